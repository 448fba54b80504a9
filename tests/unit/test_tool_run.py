"""Runs of tools: what the model is asked in each round, what its calls do, and how a run ends. The answers are
scripted: an engine whose every chat is the next entry of a list."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
from pydantic import BaseModel, TypeAdapter

from polargrid_local import (
    AsyncEngine,
    AsyncToolRun,
    Engine,
    EngineClosed,
    NotFoundError,
    Tool,
    ToolRoundsError,
    ToolRun,
    ValidationError,
    types,
)
from polargrid_local.tool_run import AsyncRunsTools, RunsTools

HI = [{"role": "user", "content": "Hi"}]


class Place(BaseModel):
    name: str


def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


def greet(place: Place) -> str:
    assert isinstance(place, Place)
    return f"Hello {place.name}"


def fail(text: str) -> str:
    raise KeyError(text)


def call(name: str, arguments: Any, id: str = "call_1") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


def says(text: str | None, *calls: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}
    return {"message": message, "finish_reason": reason or ("tool_calls" if calls else "stop")}


class Stream:
    """One scripted answer, in the chunks that a real one comes in."""

    def __init__(self, answer: dict[str, Any] | BaseException) -> None:
        self.answer, self.text, self.finish_reason, self.cancelled, self.read = answer, "", None, False, 0
        self.usage = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
        self.assembler = SimpleNamespace(response=lambda: {"id": "x", "choices": [{"index": 0, **answer}]})

    def _deltas(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        message = self.answer["message"]
        yield {"role": "assistant"}, None
        for piece in (message["content"] or "").split():
            self.text += piece
            yield {"content": piece}, None
        for i, made in enumerate(message.get("tool_calls", ())):
            function = {"name": made["function"]["name"], "arguments": ""}
            yield {"tool_calls": [{"index": i, "id": made["id"], "type": "function", "function": function}]}, None
            yield {"tool_calls": [{"index": i, "function": {"arguments": made["function"]["arguments"]}}]}, None
        self.finish_reason = self.answer["finish_reason"]
        self.usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        yield {}, self.finish_reason

    @property
    def parsed(self) -> Any:
        return self.text.upper() if self.finish_reason == "stop" else None

    def _next(self) -> dict[str, Any] | None:
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.read == 0:
            self._left = self._deltas()
        self.read += 1
        if self.cancelled or (entry := next(self._left, None)) is None:
            return None
        return {"id": "x", "choices": [{"index": 0, "delta": entry[0], "finish_reason": entry[1]}]}

    def cancel(self) -> None:
        self.cancelled = True

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, Any]:
        if (chunk := self._next()) is None:
            raise StopIteration
        return chunk

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        if (chunk := self._next()) is None:
            raise StopAsyncIteration
        return chunk


class Scripted:
    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked, self.streams = list(answers), [], []

    def chat_completion_stream(self, **fields: Any) -> Stream:
        self.asked.append({**fields, "messages": list(fields["messages"])})
        stream = Stream(self.answers.pop(0))
        self.streams.append(stream)
        return stream


class ScriptedEngine(Scripted, RunsTools):
    pass


class AsyncScriptedEngine(Scripted, AsyncRunsTools):
    pass


def run_of(kind: str, answers: list[Any], tools: Any, **options: Any) -> tuple[Any, Scripted, list[Any]]:
    """The finished run, its engine, and the events when streamed; errors come through."""
    if kind == "sync":
        engine = ScriptedEngine(*answers)
        return engine.run_tools(HI, tools, **options), engine, []
    if kind == "sync stream":
        engine = ScriptedEngine(*answers)
        run = engine.run_tools(HI, tools, stream=True, **options)
        return run, engine, list(run)

    engine = AsyncScriptedEngine(*answers)

    async def main() -> tuple[Any, list[Any]]:
        if kind == "async":
            return await engine.run_tools(HI, tools, **options), []
        run = engine.run_tools(HI, tools, stream=True, **options)
        return run, [event async for event in run]

    run, events = asyncio.run(main())
    return run, engine, events


KINDS = ["sync", "sync stream", "async", "async stream"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def results(run: Any) -> list[str]:
    return [message["content"] for message in run.messages if message["role"] == "tool"]


# --- the loop ---------------------------------------------------------------------------------------------------------


@every_kind
def test_calls_run_in_order_until_an_answer_without_one(kind: str):
    first = says("Let me see", call("add", {"a": 1}, "c1"), call("greet", {"place": {"name": "Rome"}}, "c2"))
    second = says(None, call("add", {"a": 2, "b": 3}, "c3"))
    last = says("All done")
    given = list(HI)
    run, engine, events = run_of(kind, [first, second, last], [add, greet], temperature=0, model="m")
    assert run.messages == [
        *HI,
        first["message"],
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "c2", "content": "Hello Rome"},
        second["message"],
        {"role": "tool", "tool_call_id": "c3", "content": "5"},
        last["message"],
    ]
    assert given == HI  # the caller's list is the caller's
    assert [len(asked["messages"]) for asked in engine.asked] == [1, 4, 6]
    for asked in engine.asked:
        assert asked["tools"] == [Tool.of(add).definition, Tool.of(greet).definition]
        assert {name: asked[name] for name in asked if name not in ("messages", "tools")} == {
            "temperature": 0,
            "model": "m",
        }
    assert (run.text, run.finish_reason, run.parsed) == ("Alldone", "stop", "ALLDONE")
    assert run.reply["choices"][0]["message"] is run.messages[-1]
    assert run.usage == {"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39}
    assert not run.cancelled
    if "stream" in kind:
        assert [event["kind"] for event in events] == (
            ["chunk"] * 9 + ["call", "result", "call", "result"] + ["chunk"] * 4 + ["call", "result"] + ["chunk"] * 4
        )
        assert events[9:11] == [
            {"kind": "call", "call": first["message"]["tool_calls"][0]},
            {"kind": "result", "call": first["message"]["tool_calls"][0], "result": "2", "failed": False},
        ]
        for stream in engine.streams:
            assert stream.read == len(list(stream._deltas())) + 1  # every chunk was given, and the end was seen


@every_kind
def test_without_tools_it_is_a_chat(kind: str):
    run, engine, _ = run_of(kind, [says("Hello")], [])
    assert run.text == "Hello" and engine.asked[0]["tools"] is None


@every_kind
@pytest.mark.parametrize("field", ["tool_choice", "toolChoice"])
@pytest.mark.parametrize("choice, later", [
    ("required", "auto"),
    ({"type": "function", "function": {"name": "add"}}, "auto"),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"name": "add"}]}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "add"}]}},
    ),
    (
        {"type": "allowed_tools", "mode": "required", "tools": [{"name": "add"}]},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "add"}]},
    ),
    ("auto", "auto"),
    ("none", "none"),
])  # fmt: skip
def test_a_call_is_forced_once(kind: str, field: str, choice: Any, later: Any):
    answers = [says(None, call("add", {"a": 1})), says(None, call("add", {"a": 1})), says("ok")]
    _, engine, _ = run_of(kind, answers, [add], **{field: choice})
    assert [asked.get(field) for asked in engine.asked] == [choice, later, later]


@every_kind
def test_rounds_are_limited_and_the_chat_can_go_on(kind: str):
    answers = [says(None, call("add", {"a": n}, f"c{n}")) for n in range(3)]
    with pytest.raises(ToolRoundsError, match="round 3, .*max_rounds") as caught:
        run_of(kind, answers, [add], max_rounds=3)
    error = caught.value
    assert error.details == {"max_rounds": 3} and error.code == "tool_rounds_exceeded"
    assert [message["role"] for message in error.messages] == ["user"] + ["assistant", "tool"] * 3
    assert error.messages[-1] == {"role": "tool", "tool_call_id": "c2", "content": "3"}
    engine = ScriptedEngine(says("Three"))
    assert engine.run_tools(error.messages, [add]).text == "Three"


@every_kind
def test_the_last_round_may_answer(kind: str):
    run, _, _ = run_of(kind, [says(None, call("add", {"a": 1})), says("2")], [add], max_rounds=2)
    assert run.text == "2"


@every_kind
@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_calls_of_an_answer_that_was_cut_never_run(kind: str, reason: str):
    ran = []
    answer = says("So", call("note", {"text": "whole"}), call("note", '{"text": "ha', "c2"), reason=reason)

    def note(text: str) -> None:
        ran.append(text)

    run, engine, events = run_of(kind, [answer], [note])
    assert ran == [] and run.finish_reason == reason and len(engine.asked) == 1
    assert run.messages == [*HI, answer["message"]] and run.parsed is None
    assert {event["kind"] for event in events} <= {"chunk"}


# --- what tools give, and what goes wrong in them ---------------------------------------------------------------------


@every_kind
def test_the_model_is_told_what_went_wrong(kind: str):
    answer = says(
        None,
        call("fail", {"text": "x"}),
        call("add", {"a": "one"}),
        call("add", '{"a": 1'),
        call("substract", {}),
        call("add", {"a": 4}),
    )
    run, _, events = run_of(kind, [answer, says("Sorry")], [add, fail])
    told = results(run)
    assert told[0] == "error: KeyError: 'x'"
    assert told[1].startswith("error: ValidationError: add: a: ")
    assert told[2].startswith("error: ValidationError: add: arguments: Invalid JSON")
    assert told[3] == "error: NotFoundError: no tool is called 'substract'; there are: add, fail"
    assert told[4] == "5" and run.text == "Sorry"
    if events:
        assert [event["failed"] for event in events if event["kind"] == "result"] == [True] * 4 + [False]


@every_kind
@pytest.mark.parametrize("raises", [KeyError, (OSError, LookupError), Exception])
def test_errors_that_the_caller_wants_come_through(kind: str, raises: Any):
    with pytest.raises(KeyError, match="x"):
        run_of(kind, [says(None, call("fail", {"text": "x"}))], [fail], raises=raises)
    run, _, _ = run_of(kind, [says(None, call("fail", {"text": "x"})), says("ok")], [fail], raises=OSError)
    assert results(run) == ["error: KeyError: 'x'"]


@every_kind
def test_wrong_calls_are_errors_like_others(kind: str):
    with pytest.raises(ValidationError, match="add: a: "):
        run_of(kind, [says(None, call("add", {}))], [add], raises=ValidationError)
    with pytest.raises(NotFoundError, match="substract"):
        run_of(kind, [says(None, call("substract", {}))], [add], raises=Exception)


@every_kind
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_always_come_through(kind: str, error: type[BaseException]):
    def stop() -> None:
        raise error

    with pytest.raises(error):
        run_of(kind, [says(None, call("stop", {}))], [stop])


@every_kind
def test_a_tool_that_raises_stop_iteration_neither_ends_nor_hangs_the_run(kind: str):
    def first() -> Any:
        return next(iter(()))

    run, _, _ = run_of(kind, [says(None, call("first", {})), says("ok")], [first])
    assert results(run) == ["error: RuntimeError: the tool raised StopIteration"] and run.text == "ok"
    with pytest.raises(RuntimeError, match="StopIteration"):
        run_of(kind, [says(None, call("first", {}))], [first], raises=Exception)


@every_kind
def test_long_results_and_errors_are_cut_and_say_so(kind: str):
    def much() -> str:
        return "x" * 100

    def worse() -> str:
        raise ValueError("y" * 100)

    run, _, _ = run_of(
        kind, [says(None, call("much", {}), call("worse", {})), says("ok")], [much, worse], max_result_chars=30
    )
    assert results(run) == [
        "x" * 30 + "\n[cut: these are the first 30 of 100 characters]",
        "error: ValueError: " + "y" * 11 + "\n[cut: these are the first 30 of 119 characters]",
    ]


@every_kind
def test_tools_by_hand_run_too(kind: str):
    parameters = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    double = Tool("double", "Doubles.", parameters, lambda x: {"doubled": x * 2})
    run, engine, _ = run_of(kind, [says(None, call("double", {"x": 4})), says("8")], [double])
    assert results(run) == ['{"doubled":8}']
    assert engine.asked[0]["tools"] == [double.definition]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [ScriptedEngine(), AsyncScriptedEngine()])
@pytest.mark.parametrize("options, problem", [
    ({"tools": [add, Tool("add", "", {}, print)]}, "tools: two of them are called 'add'"),
    ({"tools": add}, "tools: must be a list of functions, got function"),
    ({"tools": {"add": add}}, "tools: must be a list of functions, got dict"),
    ({"tools": [{"type": "function"}]}, "tools: .*got dict"),
    ({"messages": "Hi"}, "messages: must be a list, got str"),
    ({"messages": None}, "messages: must be a list, got NoneType"),
    ({"messages": {"messages": HI}}, "messages: must be a list, got dict"),
    ({"max_rounds": 0}, "max_rounds: must be a number of 1 or more, got 0"),
    ({"max_rounds": None}, "max_rounds: must be a number of 1 or more, got None"),
    ({"max_result_chars": True}, "max_result_chars: must be a number of 1 or more, got True"),
    ({"raises": "KeyError"}, "raises: must be exception classes"),
    ({"raises": (KeyError, KeyboardInterrupt)}, "raises: must be exception classes, got .*KeyboardInterrupt"),
    ({"n": 2}, "n: "),
])  # fmt: skip
async def test_wrong_arguments_are_refused_before_the_model_is_asked(engine: Any, options: Any, problem: str):
    with pytest.raises(ValidationError, match=f"^{problem}"):
        await following(engine.run_tools(**{"messages": HI, "tools": [add], "stream": True, **options}))
    assert engine.asked == []


async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "waited"


class Waiting:
    async def method(self) -> str:
        return "waited"


def test_async_functions_are_for_the_async_engine():
    engine = ScriptedEngine()
    for function, name in ((wait, "wait"), (Waiting().method, "method"), (Tool("t", "", {}, wait), "t")):
        with pytest.raises(ValidationError, match=f"tools: '{name}' is an async function, which only AsyncEngine"):
            engine.run_tools(HI, [function])
    assert engine.asked == []

    def hidden() -> Any:
        return wait(0)

    engine = ScriptedEngine(says(None, call("hidden", {})))
    with pytest.raises(ValidationError, match="tools: 'hidden' gave an awaitable, which only AsyncEngine"):
        engine.run_tools(HI, [hidden])


def test_drafts_of_a_prediction_are_counted_over_all_rounds(tmp_path):
    rounds = iter(['<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "It is 2."])

    def script(request: dict[str, Any]) -> Iterator[Any]:
        assert request["prediction"] == "It is 2."
        yield next(rounds)
        yield {"kind": "finished", "reason": "stop", "n_accepted": 3, "n_rejected": 1}

    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    with Engine(path, models_dir=tmp_path, engine_factory=fakes.factory(script), tool_format="hermes") as engine:
        run = engine.run_tools(HI, [add], prediction="It is 2.")
    assert (run.text, results(run)) == ("It is 2.", ["2"])
    assert run.usage["completion_tokens_details"] == {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 2}


async def test_a_run_that_has_not_begun_is_empty():
    engine = AsyncScriptedEngine()
    run = engine.run_tools(HI, [add], stream=True)
    assert (run.text, run.finish_reason, run.parsed, run.reply, run.messages) == ("", None, None, None, HI)
    assert run.usage == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    run.cancel()
    assert await following(run) is None and engine.asked == []


# --- the async engine -------------------------------------------------------------------------------------------------


async def test_async_functions_run_on_the_loop_and_others_off_it():
    loop_thread, ran = threading.get_ident(), {}

    async def on() -> str:
        ran["on"] = threading.get_ident()
        await asyncio.sleep(0)
        return "a"

    def off() -> str:
        ran["off"] = threading.get_ident()
        return "b"

    def hidden() -> Any:
        return on()

    engine = AsyncScriptedEngine(says(None, call("on", {}), call("off", {}), call("hidden", {})), says("ok"))
    run = await engine.run_tools(HI, [on, off, hidden])
    assert results(run) == ["a", "b", "a"]
    assert ran["on"] == loop_thread != ran["off"]


async def test_the_loop_goes_on_while_a_function_blocks():
    begun, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def block() -> str:
        loop.call_soon_threadsafe(begun.set)
        assert released.wait(120)
        return "released"

    engine = AsyncScriptedEngine(says(None, call("block", {})), says("ok"))
    task = asyncio.create_task(engine.run_tools(HI, [block]))
    await begun.wait()
    released.set()  # by the loop, which is not blocked
    assert results(await task) == ["released"]


async def test_a_cancelled_task_ends_its_run():
    begun, ended = asyncio.Event(), []

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise

    engine = AsyncScriptedEngine(says(None, call("forever", {})))
    run = engine.run_tools(HI, [forever], stream=True, raises=Exception)
    task = asyncio.create_task(run.finish())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True] and len(engine.asked) == 1
    assert [event async for event in run] == []


# --- ends in the midst ------------------------------------------------------------------------------------------------


async def following(run: Any) -> Any:
    """The next event, of either kind of run; None at its end."""
    return await anext(run, None) if isinstance(run, AsyncToolRun) else next(run, None)


both = pytest.mark.parametrize("engine", [ScriptedEngine, AsyncScriptedEngine])


@both
async def test_cancel_stops_the_answer(engine: Any):
    engine = engine(says("one two three"))
    run = engine.run_tools(HI, [add], stream=True)
    for _ in range(2):
        assert (await following(run))["kind"] == "chunk"
    run.cancel()
    run.cancel()
    assert await following(run) is None
    assert engine.streams[0].cancelled and run.cancelled
    assert (run.text, run.finish_reason, run.reply, run.messages) == ("one", None, None, HI)


@both
async def test_leaving_stops_the_answer(engine: Any):
    engine = engine(says("one two three"))
    run = engine.run_tools(HI, [add], stream=True)
    async with contextlib.AsyncExitStack() as stack:
        sync = isinstance(run, ToolRun)
        assert (stack.enter_context(run) if sync else await stack.enter_async_context(run)) is run
        await following(run)
    assert engine.streams[0].cancelled and await following(run) is None


@both
async def test_closing_is_cancelling(engine: Any):
    run = engine(says("one")).run_tools(HI, [], stream=True)
    if isinstance(run, ToolRun):
        run.close()
    else:
        await run.aclose()
    assert run.cancelled and await following(run) is None


@both
async def test_leaving_a_finished_run_changes_nothing(engine: Any):
    engine = engine(says("one"))
    run = engine.run_tools(HI, [add], stream=True)
    while await following(run):
        pass
    run.cancel()
    assert not run.cancelled and not engine.streams[0].cancelled and run.finish_reason == "stop"


@both
async def test_a_call_that_was_told_does_not_run_after_cancel(engine: Any):
    ran: list[int] = []

    def note(n: int) -> None:
        ran.append(n)
        if n == 2:
            run.cancel()  # a tool may end its own run, and has its result

    engine = engine(says(None, *(call("note", {"n": n}, f"c{n}") for n in (1, 2, 3))), says("never"))
    run = engine.run_tools(HI, [note], stream=True)
    events = []
    while event := await following(run):
        events.append(event)
    assert ran == [1, 2] and len(engine.asked) == 1
    assert [event["call"]["id"] for event in events if event["kind"] == "result"] == ["c1", "c2"]

    engine = type(engine)(says(None, call("note", {"n": 1})), says("never"))
    run = engine.run_tools(HI, [note], stream=True)
    while (await following(run))["kind"] != "call":
        pass
    run.cancel()
    assert await following(run) is None and ran == [1, 2]


@both
async def test_a_run_that_nobody_holds_is_gone_with_its_stream(engine: Any):
    engine = engine(says("one two three"))
    run = engine.run_tools(HI, [add], stream=True)
    await following(run)
    gone = weakref.ref(run)
    gc.disable()  # it is to go at once, with the last reference
    try:
        del run
        assert gone() is None
    finally:
        gc.enable()


@both
async def test_errors_of_the_engine_end_the_run(engine: Any):
    engine = engine(says(None, call("add", {"a": 1})), EngineClosed("closed"))
    run = engine.run_tools(HI, [add], stream=True)
    with pytest.raises(EngineClosed):
        while await following(run):
            pass
    assert await following(run) is None and results(run) == ["2"]


@both
async def test_a_second_reader_is_refused_and_disturbs_nothing(engine: Any):
    seen: list[str] = []

    def nosy() -> None:
        try:
            if isinstance(run, ToolRun):
                next(run)
            else:
                asyncio.run(run.finish())
        except ValidationError as error:
            seen.append(error.code)

    engine = engine(says(None, call("nosy", {})), says("ok"))
    run = engine.run_tools(HI, [nosy], stream=True)
    while await following(run):
        pass
    assert seen == ["stream_in_use"] and run.text == "ok"


def test_a_tool_may_run_tools_itself():
    inner = ScriptedEngine(says(None, call("add", {"a": 1})), says("two"))

    def ask(question: str) -> str:
        return inner.run_tools([{"role": "user", "content": question}], [add]).text

    outer = ScriptedEngine(says(None, call("ask", {"question": "1 + 1?"})), says("It is two"))
    assert results(outer.run_tools(HI, [ask])) == ["two"]


# --- with the engines' own streams ------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 41}}\n</tool_call>'


def scripts(*texts: str) -> Callable[[Any], Iterator[str]]:
    left = list(texts)
    return lambda request: iter(left.pop(0))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_runs_on_real_streams(tmp_path: Path, asynchronous: bool):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    make = fakes.factory(scripts("So " + CALL, "It is 42."))
    if asynchronous:
        async with AsyncEngine(path, models_dir=tmp_path, engine_factory=make) as engine:
            run = engine.run_tools(HI, [add], stream=True)
            events = [event async for event in run]
    else:
        with Engine(path, models_dir=tmp_path, engine_factory=make) as engine:
            run = engine.run_tools(HI, [add], stream=True)
            events = list(run)
    asked, told = run.messages[1:3]
    [made] = asked["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"a": 41}
    assert told == {"role": "tool", "tool_call_id": made["id"], "content": "42"}
    assert run.text == "It is 42." and run.reply["choices"][0]["message"] == run.messages[-1]
    chunks = [event["chunk"] for event in events if event["kind"] == "chunk"]
    assert len({chunk["id"] for chunk in chunks}) == 2  # one answer for each round
    pieces = [piece for chunk in chunks for piece in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(piece["function"].get("arguments", "") for piece in pieces) == made["function"]["arguments"]
    for event in events:
        assert TypeAdapter(types.ToolEvent).validate_python(event, strict=True) == event


@pytest.mark.parametrize("length", range(1, len(CALL) + 1))
def test_a_call_that_is_cut_anywhere_never_runs(tmp_path: Path, length: int):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    with Engine(path, models_dir=tmp_path, engine_factory=fakes.factory(scripts(CALL))) as engine:
        run = engine.run_tools(HI, [add], max_tokens=length)  # a scripted token is a character
    assert run.finish_reason == "length" and results(run) == [] and len(run.messages) == 2


def test_messages_may_be_any_iterable_of_them():
    for messages in (tuple(HI), iter(HI)):
        run = ScriptedEngine(says("ok")).run_tools(messages, [add])
        assert run.messages == [*HI, {"role": "assistant", "content": "ok"}]


def test_both_engines_offer_the_same_arguments():
    def arguments(method: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(method).parameters)

    assert arguments(RunsTools.run_tools) == arguments(AsyncRunsTools.run_tools)
