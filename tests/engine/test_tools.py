"""Tools on the real engine: models whose tokens spell the notation of each family, streamed, plain and awaited."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from jsonschema import Draft202012Validator
from template_zoo import NO_ZOO, ZOO
from tiny_model import Control

from polargrid_local import AsyncEngine, Engine, ServerError
from polargrid_local.chat.tool_formats import BY_NAME, HARMONY_MARKERS
from polargrid_local.native import loaded_model

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Looks.", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
SCHEMAS = {"weather": PARAMETERS, "time": {"type": "object", "additionalProperties": False}}

# A text that would be a marker, a call and a stop string, inside an argument.
CITY = 'B "\\ <tool_call> }] [ARGS] é日😀 STOP'
ARGS = json.dumps({"city": CITY, "n": 2}, ensure_ascii=False)
# Of each format: a call of `weather`, and the further call of `time`, as models write them.
WRITTEN: dict[str, tuple[str, str]] = {
    "llama3": (f'{{"name": "weather", "parameters": {ARGS}}}', '; {"name": "time", "parameters": {}}'),
    "hermes": (
        f'<tool_call>\n{{"name": "weather", "arguments": {ARGS}}}\n</tool_call>',
        '\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    ),
    "qwen3-coder": (
        f"<tool_call>\n<function=weather>\n<parameter=city>\n{CITY}\n</parameter>\n<parameter=n>\n2\n</parameter>\n"
        "</function>\n</tool_call>",
        "\n<tool_call>\n<function=time>\n</function>\n</tool_call>",
    ),
    "mistral-nemo": (
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGS}, "id": "abcdefgh1"}}',
        ', {"name": "time", "arguments": {}, "id": "abcdefgh2"}]',
    ),
    "mistral-small": (
        f"[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{ARGS}",
        "[TOOL_CALLS]time[CALL_ID]223456789[ARGS]{}",
    ),
    "devstral": (f"[TOOL_CALLS]weather[ARGS]{ARGS}", "[TOOL_CALLS]time[ARGS]{}"),
    "granite3": (f'<|tool_call|>[{{"name": "weather", "arguments": {ARGS}}}', ', {"name": "time", "arguments": {}}]'),
    "phi4-mini": (
        f'<|tool_call|>[{{"name": "weather", "arguments": {ARGS}}}',
        ', {"name": "time", "arguments": {}}]<|/tool_call|>',
    ),
    "nemotron2": (
        f'<TOOLCALL>[{{"name": "weather", "arguments": {ARGS}}}',
        ', {"name": "time", "arguments": {}}]</TOOLCALL>',
    ),
    "firefunction2": (
        f'functools[{{"name": "weather", "arguments": {ARGS}}}',
        ', {"name": "time", "arguments": {}}]',
    ),
    "deepseek3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{ARGS}\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek3.1": (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "command-r7b": (
        f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {ARGS}}}',
        ',\n    {"tool_call_id": "1", "tool_name": "time", "parameters": {}}\n]<|END_ACTION|>',
    ),
    "functionary3.1": (f"<function=weather>{ARGS}</function>", "<function=time>{}</function>"),
    "harmony": (f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGS}", ""),
    "generic": (
        f'<tool_call>\n{{"name": "weather", "arguments": {ARGS}}}\n</tool_call>',
        '\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    ),
}
WRITTEN["llama3 with its tag"] = ("<|python_tag|>" + WRITTEN["llama3"][0], WRITTEN["llama3"][1])


def markers_of(format: str) -> list[str]:
    extra = [*HARMONY_MARKERS] if format == "harmony" else []
    return list(dict.fromkeys([*BY_NAME[format].markers, *extra]))


FREE = [text.strip('"') for text in (CITY, json.dumps(CITY, ensure_ascii=False))]


def script(text: str, controls: Sequence[str] = (), size: Callable[[], int] = lambda: 1) -> list[Any]:
    """The text as pieces: control tokens, pieces of `size()` bytes of what no grammar forces, and single bytes."""
    pieces: list[Any] = []
    for part in re.split(f"({'|'.join(map(re.escape, [*controls, *FREE]))})", text):
        data = part.encode()
        if part in controls:
            pieces.append(Control(part))
            continue
        while data:
            n = size() if part in FREE else 1
            pieces, data = [*pieces, data[:n]], data[n:]
    return pieces


def ways(text: str, controls: Sequence[str] = ()) -> list[list[Any]]:
    """One script for each way to cut: in bytes, and in pieces of all lengths."""
    rng = random.Random(text)
    return [script(text, controls, size) for size in (lambda: 1, lambda: rng.randrange(1, 9))]


def request(said: Any, i: int, **options: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Hi " + said.message(i)}
    return {"messages": [message], "tools": TOOLS, "max_tokens": 450, "temperature": 1, "seed": 3, **options}


def joined(chunks: list[Any]) -> dict[str, Any]:
    """What a client makes of a stream: the choice of the plain answer."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    logprobs: list[Any] = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content", "")
            if "reasoning_content" in delta:
                message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
            for call in delta.get("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if "id" in call:
                    assert call["index"] == len(calls) and call["function"]["arguments"] == ""
                    calls.append({**call, "function": dict(call["function"])})
                    del calls[-1]["index"]
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            if "function_call" in delta:
                function = message.setdefault("function_call", {"name": "", "arguments": ""})
                for key, text in delta["function_call"].items():
                    function[key] += text
            logprobs += (choice.get("logprobs") or {}).get("content") or []
    if "tool_calls" in message or "function_call" in message:
        message["content"] = message["content"] or None
    last = chunks[-1]["choices"][0]
    ended = {key: last[key] for key in ("finish_reason", "stop_reason") if key in last}
    choice = {"index": 0, "message": message, **ended}
    return {**choice, "logprobs": {"content": logprobs}} if logprobs else choice


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    calls = choice["message"].get("tool_calls", ())
    ids = [call["id"] for call in calls]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("call_[0-9a-f]{24}", id) for id in ids)
    message = {**choice["message"]}
    if calls:
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "id"} for call in calls]
    return {**choice, "message": message}


def answer(engine: Engine, said: Any, i: int, **options: Any) -> dict[str, Any]:
    """The choice of an answer, the same plain, streamed and after it has been said before."""
    reply = engine.chat_completion(**request(said, i, **options))
    chunks = [*engine.chat_completion_stream(**request(said, i, stream_options={"include_usage": True}, **options))]
    assert chunks.pop()["usage"] == reply["usage"]
    choice = reply["choices"][0]
    assert {**without_ids(joined(chunks)), "logprobs": None} == {**without_ids(choice), "logprobs": None}
    assert joined(chunks).get("logprobs") == choice.get("logprobs")
    for call in choice["message"].get("tool_calls", ()):
        assert call["function"]["name"] in SCHEMAS
        if choice["finish_reason"] == "tool_calls":
            arguments = json.loads(call["function"]["arguments"])
            Draft202012Validator(SCHEMAS[call["function"]["name"]]).validate(arguments)
    choice["n"] = reply["usage"]["completion_tokens"]
    return choice


def functions(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = choice["message"].get("tool_calls", ())
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


BOTH = [("weather", {"city": CITY, "n": 2}), ("time", {})]


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """spelled(scripts, tool_format=..., controls=...) -> (engine, said), once for all tests that want the same."""
    folder = tmp_path_factory.mktemp("spelled")
    known: dict[str, Any] = {}

    def open_spelled(scripts: list[list[Any]], *, controls: Sequence[str] = (), **options: Any) -> Any:
        key = repr((scripts, controls, options))
        if key not in known:
            for engine, _ in known.values():
                engine.close()
            known.clear()
            path = folder / f"{abs(hash(key))}.gguf"
            said = tiny_model.write_scripted(path, scripts, controls=controls, n_ctx_train=4096, common=["assistant"])
            known[key] = Engine(path, n_ctx=2048, max_streams=4, **options), said
        return known[key]

    yield open_spelled
    for engine, _ in known.values():
        engine.close()


# The generic format is Hermes by another name.
FORMATS = [(name, marked) for name in WRITTEN for marked in (False, True) if (name, marked) != ("generic", True)]


@pytest.mark.parametrize(("name", "marked"), FORMATS)
def test_each_notation_is_called_and_told(spelled: Any, name: str, marked: bool) -> None:
    format = name.partition(" ")[0]
    controls = markers_of(format) if marked else []
    one, more = WRITTEN[name]
    scripts = ways(one + more, controls)
    engine, said = spelled(scripts, controls=controls, tool_format=format)
    expected = BOTH if more else BOTH[:1]
    for i in range(len(scripts)):
        choice = answer(engine, said, i)
        assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"
        assert functions(choice) == expected
        assert choice["n"] in (len(scripts[i]), len(scripts[i]) + 1)  # the end of the turn, where it is no forced end
    forced = request(said, 1, tool_choice="required")
    assert functions(engine.chat_completion(**forced)["choices"][0]) == expected
    single = request(said, 1, parallel_tool_calls=False)
    assert functions(engine.chat_completion(**single)["choices"][0]) == expected[:1]


# --- one notation, every kind of request ------------------------------------------------------------------------------

CALL, NEXT = WRITTEN["hermes"]
TALK = {
    "both": CALL + NEXT,
    "words around": f"Let me look.\n{CALL}\n\nThat is all. STOP here",
    "no tool": '<tool_call>\n{"name": "wether", "arguments": {"a": 1}}\n</tool_call>',
    "thinks": f"<think>\nOr {NEXT} not?\n</think>\n\n{CALL}",
    "thinks on": f"Or {NEXT} not?\n</think>\n\n{CALL}",
    "answers": '{"sure": true}',
    "plain": "No STOP call.",
}
NAMES = [*TALK]
THINKS = tiny_model.CHATML + "{# <think> #}"
OPENS = tiny_model.CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}")


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Any]]:
    path = tmp_path_factory.mktemp("talking") / "talking.gguf"
    scripts = [script(text) for text in TALK.values()]
    said = tiny_model.write_scripted(path, scripts, n_ctx_train=4096, common=["assistant"], chat_template=THINKS)
    with Engine(path, n_ctx=2048, max_streams=4) as engine:
        yield engine, said


def ask(talking: tuple[Engine, Any], name: str, **options: Any) -> dict[str, Any]:
    engine, said = talking
    return answer(engine, said, NAMES.index(name), **options)


def test_words_around_a_call_stay_content(talking: Any) -> None:
    choice = ask(talking, "words around")
    assert choice["message"]["content"] == "Let me look.\n\n\nThat is all. STOP here"
    assert functions(choice) == BOTH[:1] and choice["finish_reason"] == "tool_calls"


def test_stop_strings_cut_content_and_no_arguments(talking: Any) -> None:
    choice = ask(talking, "words around", stop=["STOP"])
    assert choice["message"]["content"] == "Let me look.\n\n\nThat is all. " and functions(choice) == BOTH[:1]
    choice = ask(talking, "plain", stop=["STOP"])
    assert choice["message"]["content"] == "No " and choice["finish_reason"] == "stop"


def test_a_name_that_is_no_tool_stays_content(talking: Any) -> None:
    choice = ask(talking, "no tool")
    assert choice["message"] == {"role": "assistant", "content": TALK["no tool"]} and choice["finish_reason"] == "stop"


def test_which_tools_may_be_called(talking: Any) -> None:
    none = ask(talking, "both", tool_choice="none")
    assert none["message"]["content"] == TALK["both"] and "tool_calls" not in none["message"]
    named = ask(talking, "both", tool_choice={"type": "function", "function": {"name": "time"}})
    assert functions(named) == [("time", {})] and named["message"]["content"] is None
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice_of_some = {"type": "allowed_tools", "allowed_tools": allowed}
    only = ask(talking, "both", tool_choice=choice_of_some, parallel_tool_calls=False)
    assert functions(only) == BOTH[:1]
    forced = ask(talking, "plain", tool_choice="required", parallel_tool_calls=False)  # against its will
    assert forced["finish_reason"] == ("tool_calls" if "tool_calls" in forced["message"] else "length")
    assert len(forced["message"].get("tool_calls", ())) <= 1


def test_the_older_names(talking: Any) -> None:
    older = {"tools": None, "functions": [tool["function"] for tool in TOOLS], "function_call": {"name": "weather"}}
    choice = ask(talking, "both", **older)
    assert choice["finish_reason"] == "function_call" and "tool_calls" not in choice["message"]
    assert choice["message"]["function_call"]["name"] == "weather"
    assert json.loads(choice["message"]["function_call"]["arguments"]) == {"city": CITY, "n": 2}


@pytest.mark.parametrize("form", ["none", "deepseek"])
@pytest.mark.parametrize("choice_of_tools", ["auto", "required"])
def test_a_trigger_in_a_thought_is_no_call(talking: Any, form: str, choice_of_tools: str) -> None:
    choice = ask(talking, "thinks", reasoning_format=form, tool_choice=choice_of_tools)
    thought = f"Or {NEXT} not?"
    assert functions(choice) == BOTH[:1]
    if form == "none":
        assert choice["message"]["content"].rstrip() == f"<think>\n{thought}\n</think>"
    else:
        assert choice["message"]["content"] is None and choice["message"]["reasoning_content"] == thought


def test_an_answer_or_a_call(talking: Any) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert ask(talking, "answers", response_format=form)["message"]["content"] == TALK["answers"]
    choice = ask(talking, "both", response_format=form)
    assert functions(choice) == BOTH and choice["message"]["content"] is None


@pytest.mark.parametrize("n", [1, 20, 45, 60, 100])
def test_an_answer_cut_in_a_call_says_length(talking: Any, n: int) -> None:
    choice = ask(talking, "both", max_tokens=n)
    assert choice["finish_reason"] == "length" and choice["n"] == n
    for call in choice["message"].get("tool_calls", ()):
        whole = json.dumps({"city": CITY, "n": 2}, ensure_ascii=False)
        assert call["function"]["name"] == "weather" and whole.startswith(call["function"]["arguments"])


def test_logprobs_of_every_token(talking: Any) -> None:
    choice = ask(talking, "words around", logprobs=True, top_logprobs=2)
    told = b"".join(bytes(entry["bytes"] or b"") for entry in choice["logprobs"]["content"])
    assert told.decode() == TALK["words around"] and len(choice["logprobs"]["content"]) == choice["n"]


def test_filters_end_an_answer_anywhere(talking: Any) -> None:
    for content_filter in (["[ARGS]"], lambda text: "[ARGS]" in text):
        choice = ask(talking, "both", content_filter=content_filter)
        assert choice["finish_reason"] == "content_filter" and "[ARGS]" not in json.dumps(choice["message"])


def test_awaited_and_together_they_are_the_same(talking: Any) -> None:
    engine, said = talking
    alone = [without_ids(engine.chat_completion(**request(said, i))["choices"][0]) for i in range(len(NAMES))]

    async def one(async_engine: AsyncEngine, i: int) -> tuple[Any, Any]:
        plain = await async_engine.chat_completion(**request(said, i))
        chunks = [chunk async for chunk in async_engine.chat_completion_stream(**request(said, i))]
        return without_ids(plain["choices"][0]), without_ids(joined(chunks))

    async def all_of_them() -> list[tuple[Any, Any]]:
        async with AsyncEngine(said.path, n_ctx=2048, max_streams=4) as async_engine:
            return await asyncio.gather(*(one(async_engine, i) for i in range(len(NAMES))))

    assert asyncio.run(all_of_them()) == [(choice, choice) for choice in alone]


def test_a_block_that_the_template_opens(tmp_path: Path) -> None:
    said = tiny_model.write_scripted(
        tmp_path / "opens.gguf", [script("xxxxxxx" + TALK["thinks on"])], n_ctx_train=4096, common=["assistant"],
        chat_template=OPENS,
    )  # fmt: skip
    with Engine(said.path, n_ctx=2048) as engine:  # `<think>` is seven more tokens between the marker and the answer
        for options in ({}, {"tool_choice": "required"}):
            choice = answer(engine, said, 0, reasoning_format="deepseek", **options)
            assert choice["message"]["reasoning_content"] == f"Or {NEXT} not?" and functions(choice) == BOTH[:1]
            inline = answer(engine, said, 0, **options)
            assert inline["message"]["content"].startswith("<think>") and functions(inline) == BOTH[:1]


def test_a_marker_that_is_typed_is_text(spelled: Any) -> None:
    text = "See " + WRITTEN["devstral"][0]
    scripts = [script(text), script(text, markers_of("devstral"))]
    engine, said = spelled(scripts, controls=markers_of("devstral"), tool_format="devstral")
    typed = answer(engine, said, 0)
    assert typed["message"] == {"role": "assistant", "content": text} and typed["finish_reason"] == "stop"
    called = answer(engine, said, 1)
    assert called["message"]["content"] == "See " and functions(called) == BOTH[:1]


def test_without_its_library_it_is_a_typed_error(talking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = talking
    monkeypatch.setattr(loaded_model, "guidance_library", lambda: "")
    with Engine(said.path, n_ctx=2048) as engine:
        with pytest.raises(ServerError) as caught:
            engine.chat_completion(**request(said, 0))
        assert caught.value.code == "missing_library" and "pip install" in caught.value.message
        free = engine.chat_completion(**request(said, NAMES.index("plain"), tool_choice="none"))
        assert free["choices"][0]["message"]["content"] == TALK["plain"]


# --- real templates ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("meta-llama-Llama-3.1-8B-Instruct", "llama3"),
        ("Qwen-Qwen3-0.6B", "hermes"),
        ("Qwen3-Coder", "qwen3-coder"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        ("openai-gpt-oss-120b", "harmony"),
    ],
)
def test_the_template_of_a_model_chooses_the_notation(tmp_path: Path, template: str, name: str) -> None:
    source = next(path for path in ZOO if path.stem == template).read_text(encoding="utf-8")
    one, more = WRITTEN[name]
    options: dict[str, Any] = {"n_ctx_train": 8192, "common": ["assistant"], "chat_template": source}
    # The answer begins as many tokens behind the marker as the template writes there.
    said = tiny_model.write_scripted(tmp_path / "tail.gguf", [["x"]], **options)
    with Engine(said.path, n_ctx=8192) as engine:
        [marker] = engine.tokenize(said.message(0))[-1:]
        ids = engine.tokenize(messages=[{"role": "user", "content": "Hi " + said.message(0)}])
    n_tail = len(ids) - 1 - ids.index(marker)
    text = one if name == "llama3" else one + more  # Llama's template has one call in a turn
    said = tiny_model.write_scripted(tmp_path / "said.gguf", [["x"] * (n_tail - 5) + script(text)], **options)
    with Engine(said.path, n_ctx=8192) as engine:
        assert engine.info()["tool_format"] == name
        choice = answer(engine, said, 0)
        assert functions(choice) == (BOTH if text == one + more and more else BOTH[:1])
        assert choice["message"]["content"] is None
