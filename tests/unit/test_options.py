"""The options of an engine: one range each, in every layer; unknown names are refused with the nearest known one."""

import inspect
import itertools
import re
import typing
from os import PathLike
from pathlib import Path

import fakes
import numpy
import pytest

from polargrid_local import AsyncEngine, Engine, ValidationError
from polargrid_local.options import EngineKeywords, EngineOptions, allowed, limits, table
from polargrid_local.server import ServeConfig

RANGED = [name for name in EngineOptions.model_fields if limits(name)]


def refusals():
    """(option, a value that is none of its own)"""
    for name in EngineOptions.model_fields:
        if limits(name):
            low, high = limits(name)
            yield from ((name, low - 1), (name, high + 1), (name, True), (name, 10**5000), (name, "many"), (name, 4.5))
        elif allowed(name).startswith("one of"):
            yield from ((name, "tpu"), (name, ""), (name, 5))
        elif allowed(name) == "a name or a path":
            yield from ((name, True), (name, 2), (name, ["x"]))
        else:
            yield from ((name, "maybe"), (name, 2), (name, [True]))


@pytest.fixture
def doors(tmp_path):
    """Every way to hand over options: callables(**options)."""
    config = tmp_path / "settings.toml"

    def from_file(**options):
        return ServeConfig.load(file=config, flags=options)

    def create(**options):
        AsyncEngine.create(models_dir=tmp_path, engine_factory=fakes.factory(), **options).send(None)

    return {
        "EngineOptions": lambda **options: EngineOptions.of(options),
        "Engine": lambda **options: Engine(models_dir=tmp_path, engine_factory=fakes.factory(), **options),
        "AsyncEngine": lambda **options: AsyncEngine(models_dir=tmp_path, engine_factory=fakes.factory(), **options),
        "create": create,
        "server": lambda **options: ServeConfig.load(options),
    }


def short(value):
    return "huge" if value == 10**5000 else str(value)[:20]


@pytest.mark.parametrize(("name", "value"), list(refusals()), ids=short)
def test_each_layer_refuses_the_same_values_in_the_same_words(doors, name, value):
    said = set()
    for door in doors.values():
        with pytest.raises(ValidationError) as caught:
            door(**{name: value})
        assert caught.value.param == name and caught.value.details["field"] == name
        said.add(caught.value.message)
    (message,) = said
    assert message.startswith(f"{name}: must be {allowed(name)}, got ")


@pytest.mark.parametrize("name", RANGED)
def test_each_layer_takes_the_ends_of_the_range(doors, name, tmp_path):
    for value in limits(name):
        assert getattr(doors["EngineOptions"](**{name: value}), name) == value
        made = fakes.factory()
        (tmp_path / "m.gguf").write_bytes(b"GGUF")
        with Engine(tmp_path / "m.gguf", models_dir=tmp_path, engine_factory=made, **{name: value}):
            assert made.made[0].options[name] == value
        assert ServeConfig.load({name: value}).engine_options()[name] == value
        assert ServeConfig.load(env={f"POLARGRID_LOCAL_{name.upper()}": str(value)}).engine_options()[name] == value


@pytest.mark.parametrize("name", RANGED)
def test_variables_are_held_to_the_range_too(name):
    low, high = limits(name)
    for value in (str(low - 1), str(high + 1), "9" * 5000, "many", "4.5"):
        with pytest.raises(ValidationError, match=f"^{name}: must be an integer in {low}..{high}, got "):
            ServeConfig.load(env={f"POLARGRID_LOCAL_{name.upper()}": value})


def native_fields(root, struct):
    """{name: (low, high), or None} of a struct's list in csrc/request.h, in its order."""
    source = (root / "csrc" / "request.h").read_text()
    found = re.findall(rf'field\("(\w+)", &{struct}::(\w+)(?:, Range\{{([^,]+), ([^,}}]+)\}})?', source)
    assert found and all(name == member for name, member, *_ in found)

    def number(text):
        base, _, shift = text.replace("LL", "").partition("<<")
        return int(base) << int(shift or 0)

    return {name: (number(low), number(high)) if low else None for name, _, low, high in found}


def test_the_native_engine_has_the_same_options_and_ranges(root):
    native = native_fields(root, "EngineOptions")
    assert native.pop("lora") is None
    assert native.pop("guidance") is None  # where a library lies: no option of ours
    assert native == {name: limits(name) for name in EngineOptions().native()}
    assert list(native) == list(EngineOptions().native())


def test_the_native_engine_has_the_same_words(root):
    source = (root / "csrc" / "request.h").read_text()
    for name, enum in [("device", "Device"), ("cache_type", "CacheType"), ("speculate", "Speculate")]:
        (words,) = re.findall(rf"names\({enum}\) \{{\s+return std::array\{{(.*?)\}}", source)
        assert re.findall(r'"(\w+)"', words) == list(typing.get_args(EngineOptions.model_fields[name].annotation))


def test_the_names_for_type_checkers_are_the_options():
    hints = typing.get_type_hints(EngineKeywords)
    names = [name for name in hints if name in EngineOptions.model_fields]
    assert names == list(EngineOptions.model_fields)
    for name in names:
        given = EngineOptions.model_fields[name].annotation
        more = {"speculate": given | bool, "draft_model": given | PathLike[str] | None}  # a switch; a path, or none
        assert hints[name] == more.get(name, given), name
    assert set(hints) - set(names) == {
        "models_dir",
        "lora",
        "adapters",
        "content_filter",
        "chat_template",
        "on_load_progress",
        "engine_factory",
    }


@pytest.mark.parametrize("made", [Engine, AsyncEngine, AsyncEngine.create])
def test_help_shows_every_option_with_its_default(made):
    parameters = inspect.signature(made).parameters
    assert list(parameters) == ["model", *EngineKeywords.__annotations__]
    for name, field in EngineOptions.model_fields.items():
        assert parameters[name].default == field.default and parameters[name].kind == inspect.Parameter.KEYWORD_ONLY
    told = made.__init__.__doc__ if inspect.isclass(made) else made.__doc__
    assert table() in told


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max_stream", "max_streams"),
        ("nctx", "n_ctx"),
        ("num_ctx", "n_ctx"),
        ("cache_typ", "cache_type"),
        ("lorra", "lora"),
        ("model_dir", "models_dir"),
        ("gpu_layers", "n_gpu_layers"),
        ("contentfilter", "content_filter"),
        ("x" * 10**6, None),
    ],
    ids=short,
)
def test_an_unknown_option_is_refused_by_name(doors, given, meant):
    for door in doors.values():
        with pytest.raises(ValidationError) as caught:
            door(**{given: 3})
        assert caught.value.message.startswith(given[:80]) and len(caught.value.message) < 200
        if meant in EngineOptions.model_fields or (meant and door is not doors["server"]):
            assert caught.value.message.endswith(f"; did you mean '{meant}'?")


def test_load_model_takes_no_options(tmp_path):
    with Engine(models_dir=tmp_path, engine_factory=fakes.factory()) as engine:
        with pytest.raises(ValidationError, match="n_ctx: an option of the engine"):
            engine.load_model("x", n_ctx=5)
        with pytest.raises(ValidationError, match="force_relod: unknown argument; did you mean 'force_reload'"):
            engine.load_model("x", force_relod=True)
        for call, request, path in [
            (engine.load_model, {"model_name": "x", "force_relod": True}, "force_relod"),
            (engine.load_model, {"model_name": "x", "force_reload": "no"}, "force_reload"),
            (engine.load_model, {"model": "x"}, "model"),
            (engine.load_model, 5, "request"),
            (engine.load_model, "", "model_name"),
            (engine.load_model, "a\0b", "model_name"),
            (engine.load_model, {"model_name": "\ud800"}, "model_name"),
            (engine.unload_model, {"modelName": "x", "forse": True}, "forse"),
            (engine.purge_gpu, {"forced": True}, "forced"),
            (engine.purge_gpu, {"force": "no"}, "force"),
        ]:
            with pytest.raises(ValidationError) as caught:
                call(request)
            assert caught.value.param == path


def test_speculation_may_be_switched(doors, tmp_path):
    for given, meant in [(True, "auto"), (False, "off"), ("auto", "auto"), ("off", "off")]:
        assert doors["EngineOptions"](speculate=given).speculate == meant
        made = fakes.factory()
        (tmp_path / "m.gguf").write_bytes(b"GGUF")
        with Engine(tmp_path / "m.gguf", models_dir=tmp_path, engine_factory=made, speculate=given):
            assert made.made[0].options["speculate"] == meant
        assert ServeConfig.load({"speculate": given}).engine_options()["speculate"] == meant
    (tmp_path / "settings.toml").write_text("speculate = false")
    assert ServeConfig.load(file=tmp_path / "settings.toml").speculate == "off"
    assert ServeConfig.load(env={"POLARGRID_LOCAL_SPECULATE": "off"}).speculate == "off"


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert EngineOptions.of({"n_ctx": numpy.int64(512)}).n_ctx == 512


def test_a_quantised_cache_needs_flash_attention(doors):
    for door in doors.values():
        with pytest.raises(ValidationError, match="^flash_attention: cannot be off with cache_type 'q8_0'$"):
            door(cache_type="q8_0", flash_attention=False)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lora", 5),
        ("lora", ["a\0"]),
        ("lora", ["\ud800"]),
        ("lora", [("a", 1, 2)]),
        ("lora", [("a", "1")]),
        ("lora", [("a", True)]),
        ("lora", itertools.repeat("a")),
        ("lora", [("a", 10**400)]),
        ("lora", [("a", float("nan"))]),
        ("lora", [b"a"]),
        ("models_dir", 5),
        ("models_dir", "a\0"),
        ("models_dir", "\ud800"),
        ("models_dir", "~nobody-here/x"),
        ("chat_template", 5),
        ("chat_template", "\ud800"),
        ("content_filter", "\ud800"),
        ("content_filter", ["fine", "\ud800"]),
        ("content_filter", 5),
        ("content_filter", [5]),
        ("on_load_progress", 5),
        ("model", 5),
        ("model", b"a"),
        ("model", "a\0b"),
        ("model", "\ud800"),
    ],
)
def test_what_only_a_program_can_give_is_checked_as_well(tmp_path, option, value):
    for make in (Engine, AsyncEngine):
        with pytest.raises(ValidationError) as caught:
            make(**{"models_dir": tmp_path, "engine_factory": fakes.factory(), option: value})
        assert option in caught.value.message or caught.value.param == "model"
        str(caught.value).encode()


def test_adapters_are_paths_with_a_scale(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    one, two = [("a", 1.0)], [("a", 1.0), ("b", 2.0)]
    for lora, native in [("a", one), (Path("a"), one), (["a"], one), (["a", ("b", 2)], two), (None, []), ((), [])]:
        made = fakes.factory()
        with Engine(tmp_path / "m.gguf", models_dir=tmp_path, engine_factory=made, lora=lora):
            assert made.made[0].options["lora"] == native


def test_the_readme_shows_the_table(root):
    assert table() in (root / "README.md").read_text()


def test_the_native_engine_has_the_same_defaults(root):
    source = (root / "csrc" / "request.h").read_text()
    body = source[source.index("struct EngineOptions {") :].partition("};")[0]
    native = dict(re.findall(r"\b(\w+) = ([\w:-]+);", body)) | dict.fromkeys(re.findall(r"string (\w+);", body), "")
    for name in EngineOptions().native():
        field = EngineOptions.model_fields[name]
        word = native[name].rpartition("::")[2]
        assert {"automatic": "auto", "true": "True", "false": "False"}.get(word, word) == str(field.default), name


TYPED = """
from polargrid_local import AsyncEngine, Engine
lora: list[str | tuple[str, float]] = ["a", ("b", 0.5)]
with Engine("x", n_ctx=5, cache_type="q8_0", lora=lora, content_filter=["x"], on_load_progress=print) as engine:
    engine.load_model("x", force_reload=True)
Engine("x", max_stream=3)
Engine("x", n_ctx="5")
Engine("x", cache_type="q9")
AsyncEngine(n_bach=5)
engine.load_model("x", force_relod=True)
async def main() -> None:
    await AsyncEngine.create("x", n_batch=512)
    await AsyncEngine.create("x", n_bach=512)
"""


def test_a_type_checker_knows_every_option(tmp_path):
    from mypy import api

    (tmp_path / "typed.py").write_text(TYPED)
    said, trouble, _ = api.run([str(tmp_path / "typed.py"), "--follow-imports=silent", f"--cache-dir={tmp_path}/cache"])
    wrong = [TYPED.splitlines()[int(line) - 1].strip() for line in re.findall(r"typed.py:(\d+): error", said)]
    assert trouble == "" and wrong == [
        'Engine("x", max_stream=3)',
        'Engine("x", n_ctx="5")',
        'Engine("x", cache_type="q9")',
        "AsyncEngine(n_bach=5)",
        'engine.load_model("x", force_relod=True)',
        'await AsyncEngine.create("x", n_bach=512)',
    ]
