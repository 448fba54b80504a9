"""Adapters by name over a scripted engine: who runs with which, what lists show, and what is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest

from polargrid_local import AsyncEngine, Engine, NotFoundError, ServerError, ValidationError
from polargrid_local.api.parse import parse_request
from polargrid_local.service.llama_server import adapters
from polargrid_local.service.service import Service
from polargrid_local.service.settings import ServiceSettings

HI = [{"role": "user", "content": "hi"}]
ADAPTERS = {"one:french": "french.gguf", "one:legal": ("legal.gguf", 0.5), "two:brief": Path("brief.gguf")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    return tmp_path


@pytest.fixture
def open_engine(folder: Path) -> Iterator[Callable[..., Engine]]:
    opened: list[Engine] = []

    def make(model: Any = "one", *, info: dict[str, Any] | None = None, **options: Any) -> Engine:
        options = {"adapters": ADAPTERS, "models_dir": folder, **options}
        opened.append(Engine(model, engine_factory=fakes.factory(info=info), **options))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def native(engine: Engine, i: int = 0) -> fakes.Engine:
    made: fakes.Engine = engine._models._factory.made[i]
    return made


def test_a_name_is_answered_by_its_model_with_that_adapter_alone(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    assert native(engine).options["lora"] == [("french.gguf", 0.0), ("legal.gguf", 0.0)]  # nothing acts unasked
    replies = [
        engine.chat_completion(messages=HI, **fields)
        for fields in (
            {"model": "one:french"},
            {"model": "one:legal"},
            {"model": "one"},
            {},
            {"model": "one", "lora": [{"id": 1, "scale": 0.25}, {"id": 0}]},
            {"model": "one:french", "lora": [{"id": 1, "scale": 2}]},
            {"model": "one:french", "lora": []},
        )
    ]
    assert [reply["model"] for reply in replies[:4]] == ["one:french", "one:legal", "one", "one"]
    ran_with = [request.get("lora") for request in native(engine).requests]
    assert ran_with == [[(0, 1.0)], [(1, 0.5)], None, None, [(1, 0.25), (0, 1.0)], [(1, 2.0)], []]
    engine.completion(model="one:french", prompt="hi")
    assert native(engine).requests[-1]["lora"] == [(0, 1.0)]
    engine.load_model("two:brief")
    assert native(engine, 1).options["lora"] == [("brief.gguf", 0.0)]


def test_an_adapter_of_every_model_acts_beside_those_with_names(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(lora=[("house.gguf", 0.3)])
    assert native(engine).options["lora"] == [("house.gguf", 0.3), ("french.gguf", 0.0), ("legal.gguf", 0.0)]
    for model in ("one", "one:legal"):
        engine.completion(model=model, prompt="hi")
    assert [request.get("lora") for request in native(engine).requests] == [None, [(0, 0.3), (2, 0.5)]]
    told = [(adapter["id"], adapter["name"], adapter["scale"]) for adapter in engine.info()["adapters"]]
    assert told == [(0, "", 0.3), (1, "one:french", 1.0), (2, "one:legal", 0.5)]


def test_lists_show_adapters_behind_their_models(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    rows = engine.list_models()["data"]
    shown = [(row["id"], row["root"], row["parent"]) for row in rows]
    assert shown == [
        ("one", "one", None),
        ("one:french", "one", "one"),
        ("one:legal", "one", "one"),
        ("three", "three", None),
        ("two", "two", None),
        ("two:brief", "two", "two"),
    ]
    assert [row["tasks"] for row in rows[:2]] == [["generate", "embed"], ["generate"]]
    for row in rows:
        assert engine.get_model(row["id"]) == row
    assert engine.get_model_status()["loaded"] == ["one", "one:french", "one:legal"]


def test_a_file_of_the_models_directory_that_is_an_adapter_is_no_model(folder: Path, open_engine: Any) -> None:
    engine = open_engine(adapters={"one:two": folder / "two.gguf"})
    assert [row["id"] for row in engine.list_models()["data"]] == ["one", "one:two", "three"]


def test_what_has_no_such_adapter_says_which_there_are(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    for ask in (
        lambda: engine.completion(model="one:frensh", prompt="hi"),
        lambda: engine.get_model("one:frensh"),
        lambda: engine.load_model("one:frensh"),
    ):
        with pytest.raises(NotFoundError, match="'one' has no adapter 'frensh'; did you mean 'french'") as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("model_not_loaded", "model")
    with pytest.raises(NotFoundError, match="Model not loaded: 'two:brief'"):  # its model is on the disk alone
        engine.completion(model="two:brief", prompt="hi")
    with pytest.raises(ValidationError, match="'one:french' is an adapter of 'one': unload that"):
        engine.unload_model("one:french")
    with pytest.raises(ValidationError, match="model 'one:french' gives no embeddings"):
        engine.embeddings(model="one:french", input="hi")
    engine.unload_model("one")
    with pytest.raises(NotFoundError):
        engine.completion(model="one:french", prompt="hi")


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ([{"id": 2, "scale": 1}], r"lora\[0\].id: must be between 0 and 1: this model has 2; got 2"),
        ([{"id": -1}], r"lora\[0\].id: must be greater than or equal to 0"),
        ([{"id": 0, "scale": 1e7}], r"lora\[0\].scale: must be less than or equal to 1000000"),
        ([{"id": 0, "scale": float("nan")}], r"lora\[0\].scale"),
        ([{"id": 0}, {"id": 0}], "lora: an adapter may be named once only"),
        ([{"id": 0, "scal": 1}], r"lora\[0\].scal: unknown key; did you mean 'scale'"),
        ([{"scale": 1}], r"lora\[0\].id: required"),
        ("french", "lora"),
    ],
)
def test_what_a_request_may_not_say_of_adapters(lora: Any, says: str, open_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ValidationError, match=says):
        open_engine().completion(prompt="hi", lora=lora)
    with pytest.raises(ValidationError, match=r"lora\[0\].id: this model was loaded without any; got 0"):
        open_engine(adapters=None).completion(prompt="hi", lora=[{"id": 0}])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"one": "a"}, "must read MODEL:NAME"),
        ({":x": "a"}, "must read MODEL:NAME"),
        ({"one:": "a"}, "must read MODEL:NAME"),
        ({"one:latest": "a"}, "must read MODEL:NAME"),
        ({1: "a"}, "must read MODEL:NAME"),
        ({"one:x": 5}, r"adapters\['one:x'\]: must be a path, got int"),
        ({"one:x": ("a", "1")}, r"adapters\['one:x'\]: the scale must be a number"),
        ({f"one:{i}": "a" for i in range(65)}, "at most 64"),
        (["one:x"], "must be a mapping"),
    ],
)
def test_impossible_adapters_are_refused(given: Any, says: str, open_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ValidationError, match=says):
        open_engine(None, adapters=given)


def test_a_missing_file_is_blamed_on_its_adapter(folder: Path) -> None:
    """Before anything is loaded; the model's file could not be."""
    missing = folder / "missing.gguf"
    for options, says in (
        ({"adapters": {"one:french": missing}}, f"adapter 'one:french' ({missing}): the file does not exist"),
        ({"lora": [missing]}, f"adapter {missing}: the file does not exist"),
    ):
        with pytest.raises(NotFoundError) as caught:
            Engine(folder / "one.gguf", models_dir=folder, **options)
        assert (caught.value.message, caught.value.path) == (says, str(missing))
    with pytest.raises(NotFoundError, match="^adapters: Unknown model 'thre'.*did you mean 'three'"):
        Engine(models_dir=folder, adapters={"thre:french": folder / "two.gguf"})
    with pytest.raises(NotFoundError, match="^chat_template: Unknown model 'won'"):
        Engine(models_dir=folder, chat_template={"won": "chatml"})


def test_a_file_that_cannot_be_looked_at_is_blamed_on_its_adapter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def fail(path: Any, **how: Any) -> os.stat_result:
        if str(path).endswith("french.gguf"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, **how)

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(NotFoundError, match="the file cannot be opened: Permission denied"):
        Engine(folder / "one.gguf", models_dir=folder, lora=[folder / "french.gguf"])


def test_a_model_outside_the_directory_has_adapters_by_its_name(folder: Path, open_engine: Any) -> None:
    outside = folder / "elsewhere"
    outside.mkdir()
    (outside / "four.gguf").write_bytes(b"GGUF")
    engine = open_engine(outside / "four.gguf", models_dir=folder / "none", adapters={"four:brief": "brief.gguf"})
    assert engine.completion(model="four:brief", prompt="hi")["model"] == "four:brief"


def test_each_model_may_have_a_template_of_its_own(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(chat_template={"two": "two: {{ messages[0].content }}", "*": "{{ messages[0].content }}!"})
    engine.load_model("two")
    prompts = [engine.apply_template(model=model, messages=HI) for model in ("one", "two", "two:brief")]
    assert prompts == ["hi!", "two: hi", "two: hi"]
    assert engine.info("two")["chat_template"] == "two: {{ messages[0].content }}"
    with pytest.raises(ValidationError, match="chat_template: must be a string, or a mapping"):
        open_engine(chat_template={"two": 2})


def test_a_fingerprint_is_that_of_the_set_up(open_engine: Callable[..., Engine], folder: Path) -> None:
    def fingerprint(model: str = "one", **options: Any) -> str:
        engine = open_engine(**options)
        told = engine.info(model)["system_fingerprint"]
        stream = engine.chat_completion_stream(model=model, messages=HI)
        list(stream)
        assert stream.system_fingerprint == told
        assert engine.chat_completion(model=model, messages=HI)["pg_metadata"]["system_fingerprint"] == told
        assert all("system_fingerprint" not in chunk for chunk in engine.completion_stream(model=model, prompt="hi"))
        return told

    plain = fingerprint()
    assert plain == fingerprint(max_streams=2, n_threads=1, speculate="off") and plain.startswith("fp_")
    others = [
        fingerprint("one:french"),
        fingerprint("one:legal"),
        fingerprint(lora=["house.gguf"]),
        fingerprint(lora=[("house.gguf", 0.5)]),
        fingerprint(chat_template="{{ messages[0].content }}"),
        fingerprint(tool_format="hermes"),
        fingerprint(content_filter=["x"]),
        *(fingerprint(info={key: "other"}) for key in ("kernels", "cache_type", "build", "n_gpu_layers")),
    ]
    (folder / "one.gguf").write_bytes(b"GGVF")
    others.append(fingerprint())
    assert len({plain, *others}) == 1 + len(others)


# the service


@pytest.fixture
async def serve(folder: Path) -> Any:
    services: list[Service] = []

    def make(**settings: Any) -> Service:
        config = ServiceSettings.load({"models_dir": folder, **settings})
        engine = AsyncEngine(engine_factory=fakes.factory(), **config.engine_options())
        services.append(Service(engine, config))
        return services[-1]

    yield make
    for service in services:
        await service.close()


NAMED = ["one:french=french.gguf", "one:legal=legal@home.gguf@0.5"]


async def ask(service: Service, model: str | None = None, **fields: Any) -> dict[str, Any]:
    """What the engine was asked, and the reply's name."""
    request = parse_request("completion" if "prompt" in fields else "chat", {"model": model, **fields})
    lease = await service.lease(request.model)
    try:
        reply = await service.answer("completion" if "prompt" in fields else "chat", request, lease)
    finally:
        lease.release()
    asked: dict[str, Any] = service.engine._models._factory.made[0].requests[-1]
    return {"name": reply["model"], **asked}


async def test_the_service_answers_for_adapters(serve: Callable[..., Service]) -> None:
    service = serve(adapters=NAMED, aliases=["fr=one:french", "a=one", "*=one"], model=["one"])
    names = ("one:french", "a:french", "fr", "one:french:latest", "one:legal", "one", "gpt-4")
    asked = [await ask(service, name, prompt="hi") for name in names]
    assert [one["name"] for one in asked] == list(names)
    assert [one.get("lora") for one in asked] == [*[[(0, 1.0)]] * 4, [(1, 0.5)], None, None]
    assert len(service.engine._models._factory.made) == 1
    assert service.pool.loaded() == ["one"]
    with pytest.raises(NotFoundError, match="no adapter 'frensh'; did you mean 'french'"):
        await service.lease("one:frensh")  # and not the answer of *
    listed = (await service.list_models())["data"]
    assert [(row["id"], row["parent"]) for row in listed if row["parent"]] == [
        ("one:french", "one"),
        ("one:legal", "one"),
        ("fr", "one"),
    ]
    assert (await service.get_model("a:french"))["id"] == "a:french"
    assert (await service.load_model("one:french", force=False))["status"] == "success"
    with pytest.raises(ValidationError, match="is an adapter: unload its model, 'one'"):
        await service.unload_model("a:french")
    told = [(adapter["id"], adapter["path"], adapter["scale"]) for adapter in await adapters(service, {})]
    assert told == [(0, "french.gguf", 0.0), (1, "legal@home.gguf", 0.0)]
    assert [adapter["scale"] for adapter in await adapters(service, {"model": "one:legal"})] == [0.0, 0.5]


async def test_without_on_demand_adapters_of_configured_models_are_served(serve: Callable[..., Service]) -> None:
    service = serve(adapters=[*NAMED, "two:brief=b"], model=["one"], on_demand=False)
    assert [row["id"] for row in (await service.list_models())["data"]] == ["one", "one:french", "one:legal"]
    with pytest.raises(NotFoundError):
        await service.lease("two:brief")


async def test_a_file_that_has_gone_is_no_fault_of_the_request(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(adapters=NAMED)

    async def load(*args: Any, **kwargs: Any) -> Any:
        service.engine._models._adapters[0].check_file()

    monkeypatch.setattr(service.engine, "load_model", load)
    with pytest.raises(ServerError, match="cannot be loaded by this server: adapter 'one:french'") as caught:
        await service.lease("one")
    assert (caught.value.status, caught.value.code) == (503, "model_unavailable")


async def test_defaults_stand_where_a_request_left_a_field_out(serve: Callable[..., Service]) -> None:
    own = {"two": {"defaults": {"temperature": 0.9}, "chat_template": "chatml"}}
    defaults = ["temperature=0.2", "top_k=7", 'stop=["END"]', "reasoning_format=deepseek", "repeat_penalty=1.5"]
    service = serve(defaults=defaults, models=own)
    chat, completion, given = (
        await ask(service, "one", messages=HI),
        await ask(service, "one", prompt="hi"),
        await ask(service, "one", prompt="hi", temperature=0.7, top_k=0, stop=None),
    )
    for asked in (chat, completion):
        sampling = asked["sampling"]
        assert (sampling["temperature"], sampling["top_k"], sampling["repetition_penalty"]) == (0.2, 7, 1.5)
        assert sampling["top_p"] == 0.9
    assert (given["sampling"]["temperature"], given["sampling"]["top_k"], given["stop"]) == (0.7, 0, ["END"])
    assert service.defaults("two")["temperature"] == 0.9 and service.defaults("two")["top_k"] == 7


async def test_a_template_of_the_requests_own_needs_a_permission(serve: Callable[..., Service]) -> None:
    request = parse_request("chat", {"messages": HI, "chat_template": "{{ messages[0].content }}"})
    for allowed in (False, True):
        service = serve(allow_chat_template=allowed)
        lease = await service.lease("one")
        if allowed:
            assert service.completed(request, lease).chat_template == request.chat_template
        else:
            with pytest.raises(ValidationError, match="^chat_template: .*allow_chat_template"):
                service.completed(request, lease)
        lease.release()


async def test_templates_come_from_settings_and_files(serve: Callable[..., Service], folder: Path) -> None:
    file = folder / "template.jinja"
    file.write_text("file: {{ messages[0].content }}")
    service = serve(chat_template_file=file, models={"two": {"chat_template": "two: {{ messages[0].content }}"}})
    for model, prompt in (("one", "file: hi"), ("two", "two: hi")):
        (await service.lease(model)).release()
        assert await service.engine.apply_template(model=model, messages=HI) == prompt
    with pytest.raises(ValidationError, match="chat_template_file: cannot be given beside chat_template"):
        serve(chat_template="chatml", chat_template_file=file)
    with pytest.raises(ValidationError, match=r"chat_template_file: cannot read .*no.jinja: No such file"):
        serve(chat_template_file=folder / "no.jinja")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"defaults": ["temperature=3"]}, "defaults: temperature: must be less than or equal to 2, got 3"),
        ({"defaults": ["temprature=1"]}, "defaults: temprature: unknown key; did you mean 'temperature'"),
        ({"defaults": ["max_tokens=5"]}, "defaults: max_tokens may have no default; these may: temperature"),
        ({"defaults": ["metadata={}"]}, "defaults: metadata may have no default"),
        ({"defaults": ["temperature"]}, "defaults: each must read NAME=VALUE"),
        ({"defaults": {"top_k": "7"}}, "defaults: top_k: must be a valid integer"),
        ({"models": {"two": {"defaults": {"seed": "x"}}}}, r"models.two.defaults: seed: "),
        ({"models": {"two": {"n_ctx": 5}}}, r"models.two.n_ctx: unknown setting"),
        ({"adapters": ["french=a"]}, "adapters: 'french' must read MODEL:NAME"),
        ({"adapters": ["one:french"]}, "adapters: each must read MODEL:NAME=PATH"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ServiceSettings.load(settings)


def test_settings_of_models_in_a_file_and_in_variables(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        '[defaults]\ntemperature = 0.2\n[adapters]\n"one:french" = "french.gguf@0.8"\n'
        '[models."one"]\nchat_template = "chatml"\n[models."one".defaults]\ntop_p = 0.5\n'
    )
    settings = ServiceSettings.load({}, {"POLARGRID_LOCAL_MODELS": "/srv/models"}, file)
    assert settings.defaults == {"temperature": 0.2} and settings.adapters == {"one:french": ("french.gguf", 0.8)}
    assert settings.models["one"].defaults == {"top_p": 0.5} and settings.models_dir == Path("/srv/models")
    variables = {
        "POLARGRID_LOCAL_DEFAULTS": '{"temperature": 0.3, "stop": ["a", "b"]}',
        "POLARGRID_LOCAL_ADAPTERS": "one:a=x,one:b=y@-2",
    }
    settings = ServiceSettings.load({}, variables, file)
    assert settings.defaults == {"temperature": 0.3, "stop": ["a", "b"]}
    assert settings.adapters == {"one:a": ("x", 1.0), "one:b": ("y", -2.0)}
