"""Assembling: the native engine's events -> the chunks of a stream, and the same chunks joined -> the plain answer.

Sync and async streams, the server and the plain (unstreamed) calls all feed an Assembler, so a joined stream is the
plain answer by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

from polargrid_local.api.answer_type import ParsedReply, parsed_as
from polargrid_local.api.events import Event
from polargrid_local.api.logits_processor import CheckedProcessor
from polargrid_local.api.logprobs import PlacedLogprob, placed_in_prompt, prompt_logprobs, text_logprobs
from polargrid_local.api.replies import (
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionResponse,
    FinishReason,
    GenerateResponse,
    PGMetadata,
    PromptProgress,
    ServerTimings,
    TextLogprobs,
    Timings,
    ToolCallReply,
    Usage,
)
from polargrid_local.api.timings import prompt_timings, server_timings
from polargrid_local.errors import from_code

Predicate = Callable[[str], Any]
C = TypeVar("C")  # a chunk
R = TypeVar("R")  # the whole answer


class Counts(NamedTuple):
    """Tokens."""

    prompt: int = 0
    cached: int = 0  # of the prompt
    generated: int = 0
    accepted: int = 0  # of drafts, and so of those generated
    rejected: int = 0  # of drafts


class Extras(NamedTuple):
    """What is told beside the answer, by the request's fields of the same names."""

    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    prompt_logprobs: int | None = None
    timings_per_token: bool = False
    return_progress: bool = False

    @property
    def of_prompt(self) -> bool:
        """Whether something is told of the prompt, which is known with the first of the answer."""
        return self.return_token_ids or self.prompt_logprobs is not None


class Choice:
    """One answer while it grows."""

    __slots__ = (
        "event",
        "logprobs",
        "n_read",
        "of_prompt",
        "parts",
        "reason",
        "stop_reason",
        "token_ids",
        "untold_ids",
    )

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.token_ids: list[int] = []  # of what has been told
        self.untold_ids: list[int] = []  # of text that waits
        self.n_read: int | None = None  # of its prompt's tokens, as far as that has been told
        self.of_prompt: dict[str, Any] | None = None  # what is told of its prompt, once that is known
        self.logprobs: list[PlacedLogprob] = []
        self.reason: FinishReason | None = None
        self.stop_reason: str | int | None = None  # the stop string or token that ended it
        self.event: Event | None = None  # the latest: counts and times so far

    @property
    def ended(self) -> dict[str, Any]:
        """What is told of the end, once there is one."""
        stopped = {} if self.stop_reason is None else {"stop_reason": self.stop_reason}
        return {"finish_reason": self.reason, **stopped}

    @property
    def counts(self) -> Counts:
        event = self.event
        if event is None:
            return Counts()
        return Counts(event.n_prompt, event.n_cached, event.n_generated, event.n_accepted, event.n_rejected)

    @property
    def times(self) -> tuple[float, float, float, float]:
        """Milliseconds since submit: queued, prefilled, first token, all; negative where not reached."""
        event = self.event
        if event is None:
            return -1.0, -1.0, -1.0, -1.0
        return event.queue_ms, event.prefill_ms, event.first_token_ms, event.total_ms


class Assembler(Generic[C, R]):
    """Events in, chunk dicts out; `response()` is the same answer in one piece. Not thread-safe: one reader at once."""

    prefix = ""

    def __init__(
        self,
        model: str,
        id: str,
        created: int,
        seed: int,
        n: int,
        *,
        n_per_prompt: int = 1,
        include_usage: bool = False,
        continuous_usage: bool = False,
        predicted: bool = False,
        n_logprobs: int = -1,
        extras: Extras = Extras(),  # noqa: B008  # it cannot be changed
        processors: Sequence[CheckedProcessor] = (),
        predicates: Sequence[Predicate] = (),
        dropped_keywords: Sequence[str] = (),
        ignored_fields: Sequence[str] = (),
        answer_type: type[Any] | None = None,
        fingerprint: str = "",
    ) -> None:
        self.id = self.prefix + id
        self.created = created
        self.model = model
        self.seed = seed
        self.choices = [Choice() for _ in range(n)]
        self.to_cancel: list[int] = []  # choices ended here (content filter) that the engine still works on
        self._open = n
        self._n_per_prompt = n_per_prompt  # choices that have one prompt, which counts once
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage  # the counts so far in every chunk
        self._predicted = predicted  # whether the request had a prediction, whose worth its usage tells
        self._logprobs = n_logprobs >= 0
        self._n_logprobs = n_logprobs  # alternatives of each token
        self._extras = extras
        self._processors = processors  # of each choice, where the request has any
        self._predicates = predicates
        self.dropped_keywords = list(dropped_keywords)  # paths in its schema that the answer is not held to
        self.ignored_fields = list(ignored_fields)  # those that change no answer of this model
        self._answer_type = answer_type
        self.fingerprint = fingerprint

    # what streams and answers are read from

    @property
    def done(self) -> bool:
        return self._open == 0

    @property
    def watches(self) -> bool:
        """Whether events must be fed as they come, because a filter may cut the answer short."""
        return bool(self._predicates)

    @property
    def text(self) -> str:
        """The text delivered so far (of the first choice)."""
        return "".join(self.choices[0].parts)

    @property
    def reasoning(self) -> str:
        """The reasoning so far that is no part of the text."""
        return ""

    @property
    def tool_calls(self) -> list[ToolCallReply]:
        """The calls so far."""
        return []

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.choices[0].reason

    @property
    def parsed(self) -> Any:
        """The first choice as the class that was asked for; None without one, and until the answer is complete."""
        return None if self._answer_type is None else parsed_as(self._answer_type, self._complete_text)

    @property
    def _complete_text(self) -> str | None:
        return self.text if self.finish_reason == "stop" else None

    def _as_asked(self, reply: R) -> R:
        """The whole answer, with `parsed` where a class was asked for."""
        if self._answer_type is None:
            return reply
        asked: Any = ParsedReply(cast(Any, reply), self._complete_text, self._answer_type)
        return cast(R, asked)

    @property
    def _counts(self) -> Counts:
        all_of_them = [choice.counts for choice in self.choices]
        of_prompts = [all_of_them[i : i + self._n_per_prompt] for i in range(0, len(all_of_them), self._n_per_prompt)]
        return Counts(*(sum(counts) for counts in zip(*all_of_them)))._replace(
            # Any of a prompt's choices may be the first to tell its length; what the others take of it from the cache
            # is what the first one has read.
            prompt=sum(max(counts.prompt for counts in of_one) for of_one in of_prompts),
            cached=sum(of_one[0].cached for of_one in of_prompts),
        )

    @property
    def usage(self) -> Usage:
        return self._usage_of(self._counts)

    def _usage_of(self, counts: Counts) -> Usage:
        usage: Usage = {
            "prompt_tokens": counts.prompt,
            "completion_tokens": counts.generated,
            "total_tokens": counts.prompt + counts.generated,
        }
        if self._predicted:
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": counts.accepted,
                "rejected_prediction_tokens": counts.rejected,
            }
        return usage

    @property
    def timings(self) -> Timings:
        """Milliseconds since submit (None = not reached), the decode rate, prompt tokens taken from the cache, and the
        tokens of all drafts, whatever they were taken from."""
        queue, prefill, first, total = (max(times) for times in zip(*(choice.times for choice in self.choices)))
        counts = self._counts
        n = counts.generated
        seconds = (total - first) / 1e3
        return {
            "queue_ms": queue if queue >= 0 else None,
            "prefill_ms": prefill if prefill >= 0 else None,
            "first_token_ms": first if first >= 0 else None,
            "total_ms": total if total >= 0 else None,
            "tokens_per_second": (n - len(self.choices)) / seconds
            if n > len(self.choices) and first >= 0 < seconds
            else None,
            "cached_tokens": counts.cached,
            "accepted_draft_tokens": counts.accepted,
            "rejected_draft_tokens": counts.rejected,
        }

    @property
    def pg_metadata(self) -> PGMetadata:
        queue, _, _, total = (max(0.0, *times) for times in zip(*(choice.times for choice in self.choices)))
        metadata: PGMetadata = {
            "region": "local",
            "latency_ms": round(total),
            "model_load_time_ms": None,
            "queue_time_ms": round(queue),
            "inference_time_ms": round(total - queue),
            "seed": self.seed,
            "cached_tokens": self._counts.cached,
        }
        if self.fingerprint:
            metadata["system_fingerprint"] = self.fingerprint
        if self.dropped_keywords:
            metadata["dropped_keywords"] = self.dropped_keywords
        if self.ignored_fields:
            metadata["ignored_fields"] = self.ignored_fields
        return metadata

    # events in, chunks out

    def start(self) -> list[C]:
        """The chunks that need no event."""
        return []

    def feed(self, event: Event, index: int = 0) -> list[C]:
        """The chunks that `event`, about choice `index`, completes. Raises what an error event says."""
        was_open = self.choices[index].reason is None
        chunks: list[Any] = self._fed(event, index)
        if was_open and event.kind in ("text", "finished"):
            chunks = self._with_extras(chunks, event, index)
        if was_open:
            chunks = [*self._opened(event, index), *self._progress(event, index), *chunks]
        if self._extras.timings_per_token:
            for chunk in chunks:
                chunk.setdefault("timings", self._timings_told["timings"])
        if self._continuous_usage:
            for chunk in chunks:
                chunk.setdefault("usage", self.usage)
        return chunks

    def _fed(self, event: Event, index: int) -> list[C]:
        choice = self.choices[index]
        if choice.reason is not None:
            return []  # what the engine had still to say when a filter had ended the choice
        kind = event.kind
        if kind == "error":
            error = self._processors[index].error if self._processors else None
            raise error or from_code(event.code, event.text, dict(event.details))
        choice.event = event
        if kind == "progress":
            return []
        if kind == "text":
            return self._deliver(choice, index, event)
        if kind == "finished":
            chunks = self._deliver(choice, index, event)
            if choice.reason is None:
                choice.stop_reason = event.stop or (event.stop_token if event.stop_token >= 0 else None)
                choice.reason = cast(FinishReason, event.reason)
                chunks += self._end(choice, index)
            return chunks
        choice.reason = "stop"  # the last kind of event, an embedding, is the whole answer
        return self._end(choice, index)

    def _opened(self, event: Event, index: int) -> list[C]:
        """The chunks of start() that have waited for this event."""
        return []

    def _progress(self, event: Event, index: int) -> list[C]:
        """Where it is asked for, how much of a prompt has been read: from what the cache had of it, which is told
        together with the first news, to all of it, which is told before the first text."""
        choice = self.choices[index]
        if not self._extras.return_progress or choice.n_read == event.n_prompt:
            return []
        steps = [(event.n_cached, event.queue_ms)] if choice.n_read is None else []
        if event.kind == "progress":
            steps.append((round(event.progress * event.n_prompt), event.total_ms))
        else:
            steps.append((event.n_prompt, event.prefill_ms))
        chunks: list[Any] = []
        for n_read, ms in steps:
            if choice.n_read is not None and n_read <= choice.n_read:
                continue
            choice.n_read = n_read
            progress: PromptProgress = {"total": event.n_prompt, "cache": event.n_cached, "processed": n_read}
            if ms >= 0:
                progress["time_ms"] = ms
            chunk: Any = self._chunk(index, None, None, None)
            chunk["prompt_progress"] = progress
            if self._extras.timings_per_token:
                chunk["timings"] = prompt_timings(progress, event.queue_ms)
            chunks.append(chunk)
        return chunks

    def _with_extras(self, chunks: list[Any], event: Event, index: int) -> list[Any]:
        """With what the request asked to be told beside the answer, in the first chunk that may tell it."""
        choice, asked = self.choices[index], self._extras
        if choice.of_prompt is None and asked.of_prompt:
            choice.of_prompt = {}
            if asked.return_token_ids:
                choice.of_prompt["prompt_token_ids"] = list(event.prompt_tokens)
            if asked.prompt_logprobs is not None:
                told = prompt_logprobs(event.prompt_logprobs, asked.prompt_logprobs)
                choice.of_prompt["prompt_logprobs"] = told
        if asked.return_token_ids:
            # Those of text that a filter holds back would tell it.
            choice.untold_ids = [] if choice.reason == "content_filter" else [*choice.untold_ids, *event.tokens]
            for own in (own for chunk in chunks for own in chunk["choices"] if own["index"] == index):
                own["token_ids"], choice.untold_ids = choice.untold_ids, []
                choice.token_ids += own["token_ids"]
        return chunks

    @property
    def _timings_told(self) -> dict[str, ServerTimings]:
        """Where the request asked for them."""
        if not self._extras.timings_per_token:
            return {}
        usage = self.usage
        return {"timings": server_timings(usage["prompt_tokens"], usage["completion_tokens"], self.timings)}

    def _ids_told(self, choice: Choice) -> dict[str, list[int]]:
        """Those of the whole choice, where the request asked for them."""
        return {"token_ids": choice.token_ids} if self._extras.return_token_ids else {}

    def _deliver(self, choice: Choice, index: int, event: Event) -> list[C]:
        text = event.text
        logprobs = event.logprobs if self._logprobs else None
        if not text and not logprobs:
            return []
        if self._predicates and self._is_filtered("".join(choice.parts) + text, choice, index, event):
            return self._end(choice, index)
        placed = None
        if logprobs is not None:
            offset = sum(map(len, choice.parts))
            placed = [PlacedLogprob(offset, entry) for entry in logprobs]
            choice.logprobs += placed
        choice.parts.append(text)
        return [self._chunk(index, text, placed, None)]

    def _is_filtered(self, so_far: str, choice: Choice, index: int, event: Event) -> bool:
        """Whether a predicate ends the choice here."""
        if not any(hit(so_far) for hit in self._predicates):
            return False
        choice.reason = "content_filter"
        if event.kind == "text":
            self.to_cancel.append(index)
        return True

    def _end(self, choice: Choice, index: int) -> list[C]:
        self._open -= 1
        chunks: list[Any] = [self._chunk(index, None, None, choice.reason)]
        if choice.stop_reason is not None:
            chunks[0]["choices"][0] |= choice.ended
        if self._include_usage and self._open == 0:
            chunks.append(self._usage_chunk())
        return chunks

    def _chunk(
        self, index: int, text: str | None, logprobs: list[PlacedLogprob] | None, reason: FinishReason | None
    ) -> C:
        raise NotImplementedError

    def _usage_chunk(self) -> C:
        raise NotImplementedError

    def response(self) -> R:
        """The whole answer as one reply. Once `done`."""
        raise NotImplementedError

    def generate_response(self) -> GenerateResponse:
        """The whole answer as generate() gives it."""
        raise NotImplementedError


class TextAssembler(Assembler[CompletionChunk, CompletionResponse]):
    """`echo`: the prompt of each choice, which its text begins with; None for one that is known by its tokens alone."""

    prefix = "cmpl-"

    def __init__(self, *args: Any, echo: Sequence[str | None] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._untold = dict(enumerate(echo))  # prompts by the choices that have not begun
        self._begun: set[int] = set()

    def _deliver(self, choice: Choice, index: int, event: Event) -> list[CompletionChunk]:
        if index not in self._untold:
            return super()._deliver(choice, index, event)
        prompt = self._untold.pop(index)
        told = event.prompt_logprobs
        if prompt is None:
            prompt = b"".join(bytes(entry["bytes"]) for entry in told).decode("utf-8", "replace")
        placed = placed_in_prompt(told, self._n_logprobs) if self._logprobs else None
        choice.logprobs += placed or []
        choice.parts.append(prompt)
        return [self._chunk(index, prompt, placed, None), *super()._deliver(choice, index, event)]

    def _with_extras(self, chunks: list[Any], event: Event, index: int) -> list[Any]:
        """A choice's first chunk tells of its prompt."""
        chunks = super()._with_extras(chunks, event, index)
        if chunks and index not in self._begun:
            self._begun.add(index)
            chunks[0]["choices"][0] |= self.choices[index].of_prompt or {}
        return chunks

    def _with(self, choices: list[CompletionChunkChoice]) -> CompletionChunk:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(
        self, index: int, text: str | None, logprobs: list[PlacedLogprob] | None, reason: FinishReason | None
    ) -> CompletionChunk:
        if logprobs is None:
            return self._with([{"text": text or "", "index": index, "finish_reason": reason}])
        return self._with(
            [{"text": text or "", "index": index, "logprobs": self._told(logprobs), "finish_reason": reason}]
        )

    def _told(self, logprobs: list[PlacedLogprob]) -> TextLogprobs:
        extras = self._extras
        return text_logprobs(logprobs, extras.return_tokens_as_token_ids, with_ids=extras.return_token_ids)

    def _usage_chunk(self) -> CompletionChunk:
        return {**self._with([]), "usage": self.usage}

    def response(self) -> CompletionResponse:
        reply: CompletionResponse = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(self.choices)],
            "usage": self.usage,
            "pg_metadata": self.pg_metadata,
        }
        return self._as_asked(cast(CompletionResponse, {**reply, **self._timings_told}))

    def _choice(self, index: int, choice: Choice) -> CompletionChoice:
        told = {
            "text": "".join(choice.parts),
            "index": index,
            "logprobs": self._told(choice.logprobs) if self._logprobs else None,
            **self._ids_told(choice),
            **(choice.of_prompt or {}),
            **choice.ended,
        }
        return cast(CompletionChoice, told)
