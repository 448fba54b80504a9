"""MessageEvents: the chunks of an answer as the events of an Anthropic message, and the parts of a whole one alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json
from typing_extensions import NotRequired, TypedDict

from polargrid_local.dialects.exchange import Words

REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0}


class OutputTokensDetails(TypedDict):
    thinking_tokens: int  # with the tags around the thought


class MessageUsage(TypedDict):
    """Tokens. What was known of the prompt from earlier ones is read from the cache, and no part of `input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    service_tier: Literal["standard"]


class MessageReply(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Words]  # blocks of thinking, of text, and of one tool_use each
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(TypedDict):
    type: str
    message: NotRequired[MessageReply]  # in message_start
    index: NotRequired[int]  # of a block
    content_block: NotRequired[Words]  # as it begins
    delta: NotRequired[Words]  # of a block, or of the message
    usage: NotRequired[MessageUsage]  # in message_delta


class TokenCount(TypedDict):
    input_tokens: int


class Form(NamedTuple):
    """What of a request its answer depends on."""

    max_tokens: int
    shows_thinking: bool = True  # False: that there was a thought is told, and no more


class MessageEvents:
    """One block after the other: each is ended before the next one begins. `id`: that of the message."""

    def __init__(self, id: str, form: Form) -> None:
        self._id, self._form = id, form
        self._started = False
        self._n_begun = 0
        self._open = ""  # the type of the block that has begun and not ended
        self._last: Mapping[str, Any] = {}  # the choice that says why the answer has ended
        self._usage: Mapping[str, Any] = NO_USAGE

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[MessageEvent]:
        """The message starts with the first chunk that says how many tokens its prompt has; it is there before all
        but the role."""
        self._usage = chunk.get("usage", self._usage)
        if not self._started and (
            "usage" in chunk or any("role" not in choice["delta"] for choice in chunk["choices"])
        ):
            self._started = True
            message = message_words(self._id, chunk["model"], [], (None, None), usage_words(self._usage))
            yield {"type": "message_start", "message": message}
            yield {"type": "ping"}
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if thought := delta.get("reasoning_content"):
                yield from self._begin("thinking", thinking="", signature="")
                if self._form.shows_thinking:
                    yield self._delta("thinking_delta", thinking=thought)
            if text := delta.get("content"):
                yield from self._begin("text", text="")
                yield self._delta("text_delta", text=text)
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                if "id" in call:
                    yield from self._begin("tool_use", id=use_id(call), name=function["name"], input={})
                if piece := function.get("arguments"):
                    yield self._delta("input_json_delta", partial_json=piece)
            if choice["finish_reason"] is not None:
                self._last = choice

    def end(self) -> Iterator[MessageEvent]:
        yield from self._end_block()
        reason, sequence = stop_words(self._last, self._usage, self._form)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield {"type": "message_delta", "delta": delta, "usage": usage_words(self._usage)}
        yield {"type": "message_stop"}

    def _begin(self, kind: str, **start: Any) -> Iterator[MessageEvent]:
        """A block, unless its kind goes on. Every call of a tool is a block."""
        if self._open == kind != "tool_use":
            return
        yield from self._end_block()
        self._open = kind
        self._n_begun += 1
        block = {"type": kind, **start}
        yield {"type": "content_block_start", "index": self._n_begun - 1, "content_block": block}

    def _end_block(self) -> Iterator[MessageEvent]:
        if self._open == "thinking":
            yield self._delta("signature_delta", signature="")
        if self._open:
            yield {"type": "content_block_stop", "index": self._n_begun - 1}
        self._open = ""

    def _delta(self, kind: str, **piece: str) -> MessageEvent:
        return {"type": "content_block_delta", "index": self._n_begun - 1, "delta": {"type": kind, **piece}}


def message_words(
    id: str, model: str, blocks: list[Words], stop: tuple[str | None, str | None], usage: MessageUsage
) -> MessageReply:
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": stop[0],
        "stop_sequence": stop[1],
        "usage": usage,
    }


def whole_message(id: str, answer: Mapping[str, Any], form: Form) -> MessageReply:
    """What a client makes of the events of the same answer."""
    choice, usage = answer["choices"][0], answer["usage"]
    message = choice["message"]
    blocks: list[Words] = []
    if thought := message.get("reasoning_content"):
        blocks.append({"type": "thinking", "thinking": thought if form.shows_thinking else "", "signature": ""})
    if text := message["content"]:
        blocks.append({"type": "text", "text": text})
    for call in message.get("tool_calls", ()):
        function = call["function"]
        given = arguments_of(function["arguments"])
        blocks.append({"type": "tool_use", "id": use_id(call), "name": function["name"], "input": given})
    return message_words(id, answer["model"], blocks, stop_words(choice, usage, form), usage_words(usage, answer))


def arguments_of(text: str) -> Words:
    """Of a call cut by the answer's length: as much as is complete, as clients read a stream that ends there."""
    try:
        given = from_json(text, allow_partial=True)
    except ValueError:
        given = {}  # nothing is there yet
    return given if isinstance(given, dict) else {}


def use_id(call: Mapping[str, Any]) -> str:
    return "toolu_" + str(call["id"]).removeprefix("call_")


def stop_words(choice: Mapping[str, Any], usage: Mapping[str, Any], form: Form) -> tuple[str, str | None]:
    """Why the answer has ended, and by which of the stop sequences."""
    reason, stopped_by = choice.get("finish_reason"), choice.get("stop_reason")
    if reason == "stop" and isinstance(stopped_by, str):
        return "stop_sequence", stopped_by
    if reason == "length" and usage["completion_tokens"] < form.max_tokens:
        return "model_context_window_exceeded", None
    return REASONS.get(str(reason), "end_turn"), None


def usage_words(usage: Mapping[str, Any], answer: Mapping[str, Any] | None = None) -> MessageUsage:
    details = usage.get("prompt_tokens_details") or (answer or {}).get("pg_metadata") or {}
    cached = details.get("cached_tokens", 0)
    thought = usage.get("completion_tokens_details", {})
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"thinking_tokens": thought.get("reasoning_tokens", 0)},
        "service_tier": "standard",
    }
