"""Assembling a chat: the chunks and the plain answer of one that may be more than content."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, cast

from polargrid_local.api.assemble import Assembler, Choice
from polargrid_local.api.events import Event
from polargrid_local.api.logprobs import PlacedLogprob, chat_logprobs
from polargrid_local.api.replies import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatDelta,
    ChatMessage,
    FinishReason,
    GenerateResponse,
    ToolCallReply,
)
from polargrid_local.api.segmented import SegmentedAnswer
from polargrid_local.chat.tool_formats import mark_of


class ChatAssembler(Assembler[ChatCompletionChunk, ChatCompletionResponse]):
    """`parts`: of an answer that may be more than content. `begun`: content that the prompt has said already."""

    prefix = "chatcmpl-"

    def __init__(self, *args: Any, parts: SegmentedAnswer | None = None, begun: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts, self._begun = parts, begun
        self._raw: list[str] = []  # all text, as the model wrote it
        self._untold: list[PlacedLogprob] = []  # logprobs of text that waits

    def start(self) -> list[ChatCompletionChunk]:
        chunks = [self._with([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}])]
        if self._begun:
            self.choices[0].parts.append(self._begun)
            chunks.append(self._chunk(0, self._begun, None, None))
        return chunks

    @property
    def watches(self) -> bool:
        return super().watches or (self._parts is not None and self._parts.may_stop)

    @property
    def reasoning(self) -> str:
        return "" if self._parts is None else self._parts.reasoning

    @property
    def tool_calls(self) -> list[ToolCallReply]:
        return [] if self._parts is None else self._parts.calls

    def _reason(self, event: Event) -> FinishReason:
        if event.reason == "stop" and self._parts is not None and self._parts.calls:
            return self._parts.reason_of_calls
        return super()._reason(event)

    def _end(self, choice: Choice, index: int) -> list[ChatCompletionChunk]:
        chunks = super()._end(choice, index)
        if self._untold:  # of tokens that gave no text of their own, such as the end of a call
            choice.logprobs += self._untold
            chunks[0]["choices"][0]["logprobs"] = chat_logprobs(self._untold)
        return chunks

    def _deliver(self, choice: Choice, index: int, event: Event) -> list[ChatCompletionChunk]:
        parts = self._parts
        if parts is None:
            return super()._deliver(choice, index, event)
        if self._predicates and event.text:
            self._raw.append(event.text)
            if self._is_filtered("".join(self._raw), choice, index, event):
                self._untold = []
                return self._end(choice, index)
        deltas = parts.push(event.text + (mark_of(event.mark) if event.mark else ""))
        if event.kind == "finished" and not parts.stopped:
            deltas += parts.finish()
        if self._logprobs:
            offset = sum(map(len, choice.parts))
            self._untold += [(offset, entry) for entry in event.logprobs]
        chunks = []
        for delta in deltas:
            choice.parts.append(delta.get("content", ""))
            placed, self._untold = self._untold, []
            choice.logprobs += placed
            chunks.append(self._delta_chunk(index, delta, placed if self._logprobs else None, None))
        if parts.stopped:
            choice.reason = parts.reason_of_calls if parts.calls else "stop"
            if event.kind == "text":
                self.to_cancel.append(index)
            chunks += self._end(choice, index)
        return chunks

    def _with(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(
        self, index: int, text: str | None, logprobs: list[PlacedLogprob] | None, reason: FinishReason | None
    ) -> ChatCompletionChunk:
        return self._delta_chunk(index, {} if text is None else {"content": text}, logprobs, reason)

    def _delta_chunk(
        self, index: int, delta: ChatDelta, logprobs: list[PlacedLogprob] | None, reason: FinishReason | None
    ) -> ChatCompletionChunk:
        if logprobs is None:
            return self._with([{"index": index, "delta": delta, "finish_reason": reason}])
        return self._with(
            [{"index": index, "delta": delta, "logprobs": chat_logprobs(logprobs), "finish_reason": reason}]
        )

    def _usage_chunk(self) -> ChatCompletionChunk:
        return {**self._with([]), "usage": self.usage}

    def response(self) -> ChatCompletionResponse:
        return self._as_asked(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": [self._choice(index, choice) for index, choice in enumerate(self.choices)],
                "usage": self.usage,
                "pg_metadata": self.pg_metadata,
            }
        )

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        message: ChatMessage = {"role": "assistant", "content": "".join(choice.parts)}
        if self._parts is not None:
            self._parts.fill(message)
        reason = cast(FinishReason, choice.reason)  # set, once the answer is done
        if not self._logprobs:
            return {"index": index, "message": message, "finish_reason": reason}
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(choice.logprobs),
            "finish_reason": reason,
        }

    def generate_response(self) -> GenerateResponse:
        """The reply of generate(): `created_at` is local time without a zone, as the SDK makes it."""
        created = datetime.fromtimestamp(self.created, timezone.utc).astimezone().replace(tzinfo=None)
        return {
            "id": self.id,
            "model": self.model,
            "content": self.text,
            "usage": self.usage,
            "created_at": created.isoformat(),
            "processing_time_ms": self.pg_metadata["latency_ms"],
        }
