"""Tool runs: a chat that goes on, round by round, while the model calls Python functions."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, cast, overload

from typing_extensions import Unpack

from polargrid_local.api.functions import Function, Tool, result_text
from polargrid_local.api.params import Messages, ToolRunOptions
from polargrid_local.api.replies import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    FinishReason,
    ToolCallReply,
    ToolEvent,
    Usage,
)
from polargrid_local.errors import NotFoundError, ToolRoundsError, ValidationError, refused
from polargrid_local.streams import AsyncChatStream, Call, ChatStream

S = TypeVar("S", bound=Call[ChatCompletionChunk])
T = TypeVar("T")  # the class that the answer is parsed as
Tools = Iterable[Function | Tool]
Raises = type[Exception] | tuple[type[Exception], ...]

MAX_ROUNDS = 10
MAX_RESULT_CHARS = 32768
_FOR_ASYNC = "which only AsyncEngine can wait for"
_CHOICES = ("tool_choice", "toolChoice")


class _Run(Generic[S, T]):
    """What runs in threads and in tasks share: the chat so far, the request of each round, and the calls it ends in."""

    def __init__(
        self,
        ask: Callable[..., S],
        messages: Messages,
        max_rounds: int,
        max_result_chars: int,
        raises: Raises,
        fields: Mapping[str, Any],
    ) -> None:
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
            raise refused("messages", f"must be a list, got {type(messages).__name__}")
        for name, limit in (("max_rounds", max_rounds), ("max_result_chars", max_result_chars)):
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise refused(name, f"must be a number of 1 or more, got {str(limit)[:80]}")
        if fields.get("n") not in (None, 1):
            raise refused("n", "a run of tools follows one answer, not several")
        self.messages = list(messages)  # the whole chat so far: those given, then answers and results of tools
        self.reply: ChatCompletionResponse | None = None  # the latest answer that is complete, in one piece
        self._ask, self._fields = ask, dict(fields)
        self._tools: dict[str, Tool] | None = None  # by name, once they have been read
        self._max_rounds, self._max_result_chars, self._raises = max_rounds, max_result_chars, _classes(raises)
        self._streams: list[S] = []
        self._calls: deque[ToolCallReply] = deque()  # of the latest answer, not yet run
        self._called: ToolCallReply | None = None  # told of, and next to run
        self._over = self._cancelled = False
        self._turn = threading.Lock()  # held by whoever reads
        self._running: S | None = None

    def _begin_round(self) -> S:
        if len(self._streams) == self._max_rounds:
            problem = f"the model still called tools in round {self._max_rounds}, the last one that max_rounds allows"
            raise ToolRoundsError(problem, messages=self.messages, details={"max_rounds": self._max_rounds})
        fields = self._fields
        if self._streams:  # a call that is forced is forced once: the model would never come to an answer
            fields = {name: _unforced(value) if name in _CHOICES else value for name, value in fields.items()}
        tools = [tool.definition for tool in (self._tools or {}).values()] or None
        stream = self._ask(messages=list(self.messages), tools=tools, **fields)
        self._streams.append(stream)
        if self._over:  # cancelled meanwhile, when this stream was not known yet
            stream.cancel()
        return stream

    def _end_round(self) -> None:
        """The stream has ended. Only calls that the model has ended itself are complete, and run."""
        stream, self._running = self._streams[-1], None
        if stream.finish_reason is None:
            self._over = True
            return
        reply = self.reply = stream.assembler.response()
        message = reply["choices"][0]["message"]
        self.messages.append(message)
        self._calls.extend(message.get("tool_calls") or () if stream.finish_reason == "tool_calls" else ())
        self._over |= not self._calls

    def _next_call(self) -> ToolEvent | None:
        """Tells of the next call of the round; None when all have run."""
        if not self._calls:
            return None
        self._called = self._calls.popleft()
        return {"kind": "call", "call": self._called}

    def _read(self, call: ToolCallReply) -> tuple[Function, dict[str, Any]]:
        tools, name = self._tools or {}, call["function"]["name"]
        if name not in tools:
            raise NotFoundError(f"no tool is called '{name}'; there are: {', '.join(tools)}")
        return tools[name].function, tools[name].read(call["function"]["arguments"])

    def _text(self, value: Any) -> str:
        return result_text(value, self._max_result_chars)

    def _problem(self, error: Exception) -> str:
        """What the model is told of an error, unless that is one that the caller wants."""
        if isinstance(error, self._raises):
            raise error
        return self._text(f"error: {type(error).__name__}: {error}")

    def _answered(self, call: ToolCallReply, result: str, failed: bool) -> ToolEvent:
        self._called = None
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return {"kind": "result", "call": call, "result": result, "failed": failed}

    def _take_turn(self) -> None:
        if not self._turn.acquire(blocking=False):
            raise ValidationError("this run has a reader already: one thread or task at a time", code="stream_in_use")

    def cancel(self) -> None:
        """From any thread: the answer that is being made stops, no further call and no further round begins, and the
        iteration ends. A tool that is running comes to its end. Idempotent."""
        if not self._over:
            self._over = self._cancelled = True
            for stream in self._streams[-1:]:
                stream.cancel()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def text(self) -> str:
        """The text of the latest round so far; in the end that is the answer's."""
        return self._streams[-1].text if self._streams else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Of the latest round. A run ends with "stop", with "length" or "content_filter" (the answer was cut, perhaps
        in a call, which then does not run), with an exception, or with None (cancelled)."""
        return self._streams[-1].finish_reason if self._streams else None

    @property
    def parsed(self) -> T | None:
        """The answer as the class that `response_format` was; None without one, and until the answer is complete."""
        return cast("T | None", self._streams[-1].parsed if self._streams else None)

    @property
    def usage(self) -> Usage:
        """Tokens of all rounds together."""
        used = [stream.usage for stream in self._streams]
        usage: Usage = {
            "prompt_tokens": sum(usage["prompt_tokens"] for usage in used),
            "completion_tokens": sum(usage["completion_tokens"] for usage in used),
            "total_tokens": sum(usage["total_tokens"] for usage in used),
        }
        details = [usage["completion_tokens_details"] for usage in used if "completion_tokens_details" in usage]
        if details:
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": sum(drafts["accepted_prediction_tokens"] for drafts in details),
                "rejected_prediction_tokens": sum(drafts["rejected_prediction_tokens"] for drafts in details),
            }
            if thoughts := [told["reasoning_tokens"] for told in details if "reasoning_tokens" in told]:
                usage["completion_tokens_details"]["reasoning_tokens"] = sum(thoughts)
        return usage


def _unforced(choice: Any) -> Any:
    """A `tool_choice` that leaves the same tools, and asks for no call."""
    if choice in (None, "none", "auto"):
        return choice
    if not isinstance(choice, Mapping) or choice.get("type") != "allowed_tools":
        return "auto"
    if isinstance(inner := choice.get("allowed_tools"), Mapping):
        return {**choice, "allowed_tools": {**inner, "mode": "auto"}}
    return {**choice, "mode": "auto"}


def _by_name(tools: Tools, awaits: bool) -> dict[str, Tool]:
    if not isinstance(tools, Iterable) or isinstance(tools, (str, Mapping)):
        raise refused("tools", f"must be a list of functions, got {type(tools).__name__}")
    known: dict[str, Tool] = {}
    for given in tools:
        tool = given if isinstance(given, Tool) else Tool.of(given)
        if tool.name in known:
            raise refused("tools", f"two of them are called '{tool.name}'")
        if inspect.iscoroutinefunction(tool.function) and not awaits:
            raise refused("tools", f"'{tool.name}' is an async function, {_FOR_ASYNC}")
        known[tool.name] = tool
    return known


def _classes(raises: Any) -> tuple[type[Exception], ...]:
    classes = raises if isinstance(raises, tuple) else (raises,)
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, Exception):
            raise refused("raises", f"must be exception classes, got {str(cls)[:80]}")
    return classes


def _call(function: Function, arguments: dict[str, Any]) -> Any:
    try:
        return function(**arguments)
    except StopIteration as error:  # would end the run's own iteration, or hang the task that waits for this thread
        raise RuntimeError("the tool raised StopIteration") from error


class ToolRun(_Run[ChatStream[ChatCompletionChunk], T], Iterator[ToolEvent]):
    """What `Engine.run_tools()` returns: an iterator of events (`types.ToolEvent`) until the run has ended, then the
    chat it has led to. A context manager too: leaving it cancels what still runs.

    `next()` raises what a chat's stream raises, ToolRoundsError, and what tools raise of the classes in `raises`."""

    def __init__(self, ask: Callable[..., ChatStream[ChatCompletionChunk]], tools: Tools, *options: Any) -> None:
        super().__init__(ask, *options)
        self._tools = _by_name(tools, awaits=False)
        self._running = self._begin_round()

    def __iter__(self) -> ToolRun[T]:
        return self

    def __next__(self) -> ToolEvent:
        self._take_turn()
        try:
            event = self._step()
        except BaseException:
            self._over = True
            raise
        finally:
            self._turn.release()
        if event is None:
            raise StopIteration
        return event

    def _step(self) -> ToolEvent | None:
        while not self._over:
            if self._called is not None:
                return self._answered(self._called, *self._result(self._called))
            if self._running is not None:
                for chunk in self._running:
                    return {"kind": "chunk", "chunk": chunk}
                self._end_round()
            elif told := self._next_call():
                return told
            else:
                self._running = self._begin_round()
        return None

    def _result(self, call: ToolCallReply) -> tuple[str, bool]:
        try:
            value = _call(*self._read(call))
            if not inspect.isawaitable(value):
                return self._text(value), False
        except Exception as error:
            return self._problem(error), True
        if isinstance(value, Coroutine):
            value.close()
        raise refused("tools", f"'{call['function']['name']}' gave an awaitable, {_FOR_ASYNC}")

    def close(self) -> None:
        self.cancel()

    def __enter__(self) -> ToolRun[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()


class AsyncToolRun(_Run[AsyncChatStream[ChatCompletionChunk], T], AsyncIterator[ToolEvent]):
    """ToolRun for `async for`. Functions that are not async run in worker threads; one that has begun there goes on to
    its end, also when the task that waits for it is cancelled. The first step reads the tools, and raises what is wrong
    with them or with the request."""

    def __init__(self, ask: Callable[..., AsyncChatStream[ChatCompletionChunk]], tools: Tools, *options: Any) -> None:
        super().__init__(ask, *options)
        self._given = tools

    def __aiter__(self) -> AsyncToolRun[T]:
        return self

    async def __anext__(self) -> ToolEvent:
        self._take_turn()
        try:
            event = await self._step()
        except BaseException:
            self._over = True
            raise
        finally:
            self._turn.release()
        if event is None:
            raise StopAsyncIteration
        return event

    async def _step(self) -> ToolEvent | None:
        while not self._over:
            if self._called is not None:
                return self._answered(self._called, *await self._result(self._called))
            if self._running is not None:
                async for chunk in self._running:
                    return {"kind": "chunk", "chunk": chunk}
                self._end_round()
            elif told := self._next_call():
                return told
            elif self._tools is None:
                self._tools = await asyncio.to_thread(_by_name, self._given, awaits=True)
            else:
                self._running = self._begin_round()
        return None

    async def _result(self, call: ToolCallReply) -> tuple[str, bool]:
        try:
            value = await asyncio.to_thread(_call, *self._read(call))
            if inspect.isawaitable(value):
                value = await value
            return await asyncio.to_thread(self._text, value), False
        except Exception as error:
            return self._problem(error), True

    async def finish(self) -> AsyncToolRun[T]:
        """Waits until the run has ended."""
        async for _ in self:
            pass
        return self

    async def aclose(self) -> None:
        self.cancel()

    async def __aenter__(self) -> AsyncToolRun[T]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()


class RunsTools:
    """Engine's method that runs tools."""

    @overload
    def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        stream: bool = False,
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Unpack[ToolRunOptions],
    ) -> ToolRun[None]: ...
    @overload
    def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        response_format: type[T],
        stream: bool = False,
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Any,
    ) -> ToolRun[T]: ...
    def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        stream: bool = False,
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Any,
    ) -> ToolRun[Any]:
        """A chat in which the model may call `tools` (functions with type hints, or `Tool`s): its calls run in order,
        it is told the results and asked again, until it answers without a call. Returns the run when it has ended; with
        `stream=True` at once, to be iterated.

        Wrong arguments and exceptions become results ("error: ..."), except those of the classes in `raises`. Results
        of more than `max_result_chars` characters are cut, which the model is told. A forced `tool_choice` holds in the
        first round. Raises ToolRoundsError when the model calls tools in each of `max_rounds` rounds, and what
        `chat_completion_stream` raises, which takes the other `fields`."""
        ask = cast(Any, self).chat_completion_stream
        run = ToolRun[Any](ask, tools, messages, max_rounds, max_result_chars, raises, fields)
        if not stream:
            for _ in run:
                pass
        return run


class AsyncRunsTools:
    """AsyncEngine's method that runs tools."""

    @overload
    async def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        stream: Literal[False] = False,
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Unpack[ToolRunOptions],
    ) -> AsyncToolRun[None]: ...
    @overload
    def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        stream: Literal[True],
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Unpack[ToolRunOptions],
    ) -> AsyncToolRun[None]: ...
    @overload
    async def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        response_format: type[T],
        stream: Literal[False] = False,
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Any,
    ) -> AsyncToolRun[T]: ...
    @overload
    def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        response_format: type[T],
        stream: Literal[True],
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Any,
    ) -> AsyncToolRun[T]: ...
    def run_tools(
        self,
        messages: Messages,
        tools: Tools,
        *,
        stream: bool = False,
        max_rounds: int = MAX_ROUNDS,
        max_result_chars: int = MAX_RESULT_CHARS,
        raises: Raises = (),
        **fields: Any,
    ) -> Any:
        """As `Engine.run_tools`: `run = await engine.run_tools(...)`, or `async for event in engine.run_tools(...,
        stream=True)`. Tools may be async functions; others run in worker threads."""
        ask = cast(Any, self).chat_completion_stream
        run = AsyncToolRun[Any](ask, tools, messages, max_rounds, max_result_chars, raises, fields)
        return run if stream else run.finish()
