"""Assembling a chat: the chunks and the plain answer of one that may be more than content."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, cast

from polargrid_local.api.assemble import Assembler, Choice, Counts
from polargrid_local.api.events import Event
from polargrid_local.api.logprobs import PlacedLogprob, chat_logprobs
from polargrid_local.api.reasoning_tokens import ReasoningTokens
from polargrid_local.api.replies import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    FinishReason,
    GenerateResponse,
    ToolCallReply,
    Usage,
)
from polargrid_local.api.segmented import SegmentedAnswer
from polargrid_local.chat.tool_formats import mark_of


class ChatAssembler(Assembler[ChatCompletionChunk, ChatCompletionResponse]):
    """`parts`: of answers that may be more than content, for each choice. `begun`: content that the prompt has said
    already. `prompt_text`: the prompt, where it is to be told."""

    prefix = "chatcmpl-"

    def __init__(
        self,
        *args: Any,
        parts: Sequence[SegmentedAnswer] = (),
        begun: str = "",
        prompt_text: str | None = None,
        min_tokens: int = 0,
        reasoning: Sequence[ReasoningTokens] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._parts, self._begun, self._min_tokens = parts, begun, min_tokens
        self._prompt_text = prompt_text
        self._reasoning = reasoning  # of each choice, where that is told apart
        self._raw: list[list[str]] = [[] for _ in self.choices]  # all text, as the model wrote it
        self._untold: list[list[PlacedLogprob]] = [[] for _ in self.choices]  # logprobs of text that waits
        self._opening: list[Any] = []  # the first chunks, while they wait for what they tell

    def start(self) -> list[ChatCompletionChunk]:
        """Where the first chunk is to tell of the prompt, or how long that is, it waits until that is known."""
        chunks = []
        for index, choice in enumerate(self.choices):
            first = self._with([{"index": index, "delta": {"role": "assistant"}, "finish_reason": None}])
            chunks.append(first if self._prompt_text is None else {**first, "prompt_text": self._prompt_text})
            if self._begun:
                choice.parts.append(self._begun)
                chunks.append(self._chunk(index, self._begun, None, None))
        if self._extras.of_prompt or self._continuous_usage:
            self._opening, chunks = chunks, []
        return chunks

    def _opened(self, event: Event, index: int) -> list[ChatCompletionChunk]:
        if event.kind == "progress" and self._extras.of_prompt:
            return []
        opening, self._opening = self._opening, []
        if opening:
            opening[0] |= self.choices[index].of_prompt or {}
        if self._continuous_usage:  # nothing has been said with them
            for chunk in opening:
                chunk["usage"] = self._usage_of(Counts(prompt=self._counts.prompt))
        return opening

    @property
    def watches(self) -> bool:
        return super().watches or any(parts.may_stop for parts in self._parts)

    def _usage_of(self, counts: Counts) -> Usage:
        """With the tokens of thoughts where they are told apart."""
        usage = super()._usage_of(counts)
        if self._reasoning:
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": counts.accepted,
                "rejected_prediction_tokens": counts.rejected,
                "reasoning_tokens": sum(thought.count for thought in self._reasoning) if counts.generated else 0,
            }
        return usage

    @property
    def reasoning(self) -> str:
        return self._parts[0].reasoning if self._parts else ""

    @property
    def tool_calls(self) -> list[ToolCallReply]:
        return self._parts[0].calls if self._parts else []

    def _end(self, choice: Choice, index: int) -> list[ChatCompletionChunk]:
        if self._parts and choice.reason == "stop" and self._parts[index].calls:
            choice.reason = self._parts[index].reason_of_calls
        chunks = super()._end(choice, index)
        if untold := self._untold[index]:  # of tokens that gave no text of their own, such as the end of a call
            choice.logprobs += untold
            chunks[0]["choices"][0]["logprobs"] = self._told(untold)
        return chunks

    def _deliver(self, choice: Choice, index: int, event: Event) -> list[ChatCompletionChunk]:
        if not self._parts:
            return super()._deliver(choice, index, event)
        parts, raw = self._parts[index], self._raw[index]
        if self._predicates and event.text:
            raw.append(event.text)
            if self._is_filtered("".join(raw), choice, index, event):
                self._untold[index] = []
                return self._end(choice, index)
        text = event.text + (mark_of(event.mark) if event.mark else "")
        if self._reasoning:
            self._reasoning[index].coming(event)
        deltas = parts.push(text, on_hold=event.n_generated < self._min_tokens)
        if self._reasoning:
            self._reasoning[index].told(event)
        if event.kind == "finished" and not parts.stopped:
            deltas += parts.finish()
        if self._logprobs and not parts.hides:
            offset = sum(map(len, choice.parts))
            self._untold[index] += [PlacedLogprob(offset, entry) for entry in event.logprobs]
        chunks = []
        for delta in deltas:
            choice.parts.append(delta.get("content", ""))
            placed, self._untold[index] = self._untold[index], []
            choice.logprobs += placed
            chunks.append(self._delta_chunk(index, delta, placed if self._logprobs else None, None))
        if parts.stopped:
            choice.reason, choice.stop_reason = "stop", parts.found
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
        return self._with([{"index": index, "delta": delta, "logprobs": self._told(logprobs), "finish_reason": reason}])

    def _told(self, logprobs: list[PlacedLogprob]) -> ChatLogprobs:
        return chat_logprobs(logprobs, self._extras.return_tokens_as_token_ids)

    def _usage_chunk(self) -> ChatCompletionChunk:
        return {**self._with([]), "usage": self.usage}

    def response(self) -> ChatCompletionResponse:
        reply: ChatCompletionResponse = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(self.choices)],
            "usage": self.usage,
            "pg_metadata": self.pg_metadata,
        }
        extras = {**(self.choices[0].of_prompt or {}), **self._timings_told}
        if self._prompt_text is not None:
            extras["prompt_text"] = self._prompt_text
        return self._as_asked(cast(ChatCompletionResponse, {**reply, **extras}))

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        message: ChatMessage = {"role": "assistant", "content": "".join(choice.parts)}
        if self._parts:
            self._parts[index].fill(message)
        told: Any = {"index": index, "message": message}
        if self._logprobs:
            told["logprobs"] = self._told(choice.logprobs)
        return cast(ChatChoice, told | self._ids_told(choice) | choice.ended)

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
