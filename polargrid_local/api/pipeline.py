"""From a request to native requests, and from native events to the chunks and responses of the remote API.

Pure: no thread, no clock, no file. Sync and async streams, the server and the plain (unstreamed) calls all feed the same
Assembler, so a joined stream is the plain answer by construction.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar, cast

from typing_extensions import NamedTuple  # generic, which typing's is since Python 3.11

from polargrid_local.api.events import Event, TokenLogprob
from polargrid_local.api.replies import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatTopLogprob,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionResponse,
    EmbeddingResponse,
    FinishReason,
    GenerateResponse,
    NativeInfo,
    PGMetadata,
    RerankResponse,
    RerankResult,
    Task,
    TextLogprobs,
    Timings,
    Usage,
)
from polargrid_local.api.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerateRequest,
    Message,
    Request,
    RerankRequest,
    Sampling,
    TextPart,
)
from polargrid_local.chat.abilities import Abilities, typed
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import ContextLengthError, ValidationError, from_code

# Where a model does not say how long its longest piece is: no vocabulary has a longer one. A prompt of more than n_ctx
# such pieces need not be tokenized to be refused.
LONGEST_PIECE_BYTES = 512

Predicate = Callable[[str], Any]
C = TypeVar("C")  # a chunk
R = TypeVar("R")  # the whole answer


class Target(NamedTuple):
    """What `prepare` must know of a loaded model: the name replies carry when a request names none, `_core`'s info()."""

    name: str
    info: NativeInfo
    template: ChatTemplate
    content_filter: Any = None


class Kind(str, Generic[C, R]):
    """The name of a kind of request, with the types of its chunks and of its whole answer for type checkers."""


CHAT = Kind[ChatCompletionChunk, ChatCompletionResponse]("chat")
COMPLETION = Kind[CompletionChunk, CompletionResponse]("completion")
GENERATE = Kind[ChatCompletionChunk, ChatCompletionResponse]("generate")
EMBEDDING = Kind[dict[str, Any], EmbeddingResponse[Any]]("embedding")
RERANK = Kind[dict[str, Any], RerankResponse]("rerank")


class Job(NamedTuple, Generic[C, R]):
    """One native request per choice (list prompts) or per input (embeddings), and the assembler of their events."""

    requests: list[dict[str, Any]]
    assembler: Assembler[C, R]


def prepare(request: Request, target: Target, *, now: datetime, id: str, seed: int) -> Job[Any, Any]:
    """`id` is 24 hex digits, `seed` the one to use when the request has none or -1, `now` the time of the request.

    Raises ValidationError, TemplateError or ContextLengthError; whatever is wrong with a request short of its token
    count is said here."""
    if isinstance(request, GenerateRequest):
        request = chat_of(request)
    name, created = request.model or target.name, int(now.timestamp())
    task: Task = (
        "embed"
        if isinstance(request, EmbeddingRequest)
        else "rank"
        if isinstance(request, RerankRequest)
        else "generate"
    )
    _check_task(task, target.info.get("tasks"), name)
    if isinstance(request, EmbeddingRequest):
        spans = [[(text, False)] for text in request.inputs]
        _check_size(spans, target.info, "input")
        requests = [{"task": "embed", "prompt": prompt} for prompt in spans]
        return Job(requests, EmbeddingAssembler(name, id, created, seed, len(requests), request.encoding_format))
    if isinstance(request, RerankRequest):
        _check_size([[(request.query, False)]], target.info, "query")
        template = target.info.get("rerank_template", "")
        spans = [_pair(template, request.query, text) for text in request.texts]
        _check_size(spans, target.info, "documents")
        requests = [{"task": "rank", "prompt": prompt} for prompt in spans]
        labels = target.info.get("labels") or []
        label = labels.index("yes") if "yes" in labels else 0
        return Job(requests, RerankAssembler(name, id, created, seed, request, label))

    seed = seed if request.seed is None or request.seed == -1 else request.seed % 2**64
    if isinstance(request, ChatCompletionRequest):
        check_length(texts_of(request.messages), target, "messages")  # rendering takes long for what cannot fit anyway
        options = {} if request.enable_thinking is None else {"enable_thinking": request.enable_thinking}
        spans = [target.template.render(messages_of(request.messages, target.template.abilities), now=now, **options)]
        cls: type[ChatAssembler | TextAssembler] = ChatAssembler
    else:
        # The prompt of a completion is its caller's own program, as it is remotely: control tokens in it are honoured.
        spans = [[(text, request.parse_special)] for text in request.prompts]
        cls = TextAssembler
    _check_size(spans, target.info, "messages" if cls is ChatAssembler else "prompt")
    phrases, predicates = split_filters(target.content_filter, request.content_filter)
    common = {
        "task": "generate",
        "max_tokens": request.max_tokens if request.max_tokens > 0 else 2**31 - 1,  # capped by the context in any case
        "stop": list(request.stop),
        "filter": phrases,
        "sampling": _sampling(request, target.info, seed),
        "ignore_eos": request.ignore_eos,
    }
    assembler = cls(
        name,
        id,
        created,
        seed,
        len(spans),
        include_usage=request.include_usage,
        logprobs=request.n_logprobs >= 0,
        predicates=predicates,
    )
    return Job([{**common, "prompt": prompt} for prompt in spans], assembler)


def chat_of(request: GenerateRequest) -> ChatCompletionRequest:
    """generate() is one user message."""
    fields = request.model_dump(exclude={"prompt", "request_id"}, exclude_unset=True)
    return ChatCompletionRequest(messages=[Message(role="user", content=request.prompt)], **fields)


def messages_of(messages: Sequence[Message], abilities: Abilities = Abilities()) -> list[dict[str, Any]]:  # noqa: B008
    """Messages as this chat template takes them: `developer` is `system`, tool arguments are parsed."""
    import json

    plain: list[dict[str, Any]] = []
    held: list[str] = []  # system texts on their way into the user's next turn
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        content = message.content
        if isinstance(content, list):
            texts = [part.text for part in content if isinstance(part, TextPart)]  # images were refused
        else:
            texts = [] if content is None else [content]
        if role == "system" and (abilities.system == "folded" or (abilities.system == "first" and plain)):
            held += texts
            continue
        if role == "user" and held:
            texts, held = ["\n".join([*held, abilities.joint.join(texts)])], []
        entry: dict[str, Any] = {"role": role}
        if (
            content is None
            and role == "assistant"
            and abilities.null in ("always", message.tool_calls and "tool calls")
        ):
            entry["content"] = None
        elif role in abilities.parts:
            entry["content"] = [part for text in texts or [""] for part in typed(text)]
        else:
            entry["content"] = abilities.joint.join(texts)
        if message.name is not None:
            entry["name"] = message.name
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        if message.reasoning_content is not None:
            entry["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                try:
                    arguments = json.loads(call.function.arguments)
                except (ValueError, RecursionError):
                    arguments = call.function.arguments
                calls.append(
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": arguments},
                    }
                )
            entry["tool_calls"] = calls
        plain.append(entry)
    if held:  # no user's turn came
        text = "\n".join(held)
        plain.append({"role": "user", "content": typed(text) if "user" in abilities.parts else text})
    return plain


def texts_of(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """What a template has to show, before it is rendered: enough to see that it cannot fit."""
    texts = []
    for message in messages:
        parts = message.content if isinstance(message.content, list) else [message.content]
        texts += [part.text if isinstance(part, TextPart) else part for part in parts]
    return [(text, False) for text in texts if isinstance(text, str)]


def check_length(spans: list[tuple[str, bool]], target: Target, field: str, hint: str = "") -> None:
    """Raises ContextLengthError for a prompt of more characters than the context could ever hold."""
    _check_size([spans], target.info, field, hint)


def split_filters(*filters: Any) -> tuple[list[str], list[Predicate]]:
    """Phrases for the native matcher (exact, so with their simple case variants) and predicates for the assembler."""
    phrases: dict[str, None] = {}
    predicates: list[Predicate] = []
    for item in filters:
        if callable(item):
            predicates.append(item)
            continue
        for phrase in item or ():
            for variant in (phrase, phrase.lower(), phrase.upper(), phrase.capitalize(), phrase.title()):
                phrases[variant] = None
    return list(phrases), predicates


_CANNOT: dict[Task, str] = {
    "generate": "cannot generate text",
    "embed": "gives no embeddings",
    "rank": "does not rank documents",
}


def _check_task(task: Task, tasks: list[Task] | None, name: str) -> None:
    if tasks is not None and task not in tasks:
        raise ValidationError(
            f"model '{name}' {_CANNOT[task]}; what it can do: {', '.join(tasks)}",
            param="model",
            details={"field": "model", "task": task, "tasks": list(tasks)},
        )


_PLACE = re.compile(r"\{(query|document)\}")


def _pair(template: str, query: str, document: str) -> list[tuple[str, bool]]:
    """A query and a document as spans: in the model's own template, or by themselves where the vocabulary frames them."""
    texts = {"query": query, "document": document}
    if not template:
        return [(query, False), (document, False)]
    parts = _PLACE.split(template)  # template text and the names of places in turn
    spans = [(texts[part], False) if i % 2 else (part, True) for i, part in enumerate(parts)]
    return [span for span in spans if span[0]]


def _sampling(request: ChatCompletionRequest | CompletionRequest, info: NativeInfo, seed: int) -> dict[str, Any]:
    n_vocab = info.get("n_vocab", 2**31)
    for token in request.logit_bias:
        if token >= n_vocab:
            raise ValidationError(
                f"logit_bias: token id {token} is not below the vocabulary's size, {n_vocab}",
                param="logit_bias",
                details={"field": "logit_bias", "n_vocab": n_vocab},
            )
    return {
        **{name: getattr(request, name) for name in Sampling.model_fields},
        "top_k": max(request.top_k, 0),
        "seed": seed,
        "n_logprobs": request.n_logprobs,
        "logit_bias": list(request.logit_bias.items()),
    }


def _check_size(prompts: list[list[tuple[str, bool]]], info: NativeInfo, field: str, hint: str = "") -> None:
    n_ctx = (info.get("n_ctx") if field in ("messages", "prompt", "text") else info.get("n_ctx_train")) or 2**31
    longest = info.get("longest_piece") or LONGEST_PIECE_BYTES
    for spans in prompts:
        size = sum(len(text) for text, _ in spans)
        if size > n_ctx * longest:
            raise ContextLengthError(
                f"{field}: {size} characters are more than {n_ctx} tokens, the context, can hold{hint}",
                param=field,
                details={"field": field, "n_ctx": n_ctx, "n_prompt": f"> {n_ctx}"},
            )


# --- events to chunks -------------------------------------------------------------------------------------------------


class _Choice:
    """One answer while it grows."""

    __slots__ = ("event", "logprobs", "parts", "reason")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.logprobs: list[
            tuple[int, TokenLogprob]
        ] = []  # with the offset into the text where the token's event begins
        self.reason: FinishReason | None = None
        self.event: Event | None = None  # the latest: counts and times so far

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens: prompt, of them cached, generated."""
        event = self.event
        return (event.n_prompt, event.n_cached, event.n_generated) if event is not None else (0, 0, 0)

    @property
    def times(self) -> tuple[float, float, float, float]:
        event = self.event
        return (
            (event.queue_ms, event.prefill_ms, event.first_token_ms, event.total_ms)
            if event is not None
            else (-1.0,) * 4
        )


class Assembler(Generic[C, R]):
    """Events in, chunk dicts out; `response()` is the same answer in one piece. Not thread-safe: one reader at a time."""

    prefix = ""

    def __init__(
        self,
        model: str,
        id: str,
        created: int,
        seed: int,
        n: int,
        *,
        include_usage: bool = False,
        logprobs: bool = False,
        predicates: Sequence[Predicate] = (),
    ) -> None:
        self.id = self.prefix + id
        self.created = created
        self.model = model
        self.seed = seed
        self.choices = [_Choice() for _ in range(n)]
        self.to_cancel: list[int] = []  # choices ended here (content filter) that the engine still works on
        self._open = n
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._predicates = predicates

    # what a stream shows

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
    def finish_reason(self) -> FinishReason | None:
        return self.choices[0].reason

    @property
    def _counts(self) -> tuple[int, int, int]:
        prompt, cached, generated = (sum(counts) for counts in zip(*(choice.counts for choice in self.choices)))
        return prompt, cached, generated

    @property
    def usage(self) -> Usage:
        prompt, _, generated = self._counts
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    @property
    def timings(self) -> Timings:
        """Milliseconds since submit (None = not reached), the decode rate, and prompt tokens taken from the cache."""
        queue, prefill, first, total = (max(times) for times in zip(*(choice.times for choice in self.choices)))
        _, cached, n = self._counts
        seconds = (total - first) / 1e3
        return {
            "queue_ms": queue if queue >= 0 else None,
            "prefill_ms": prefill if prefill >= 0 else None,
            "first_token_ms": first if first >= 0 else None,
            "total_ms": total if total >= 0 else None,
            "tokens_per_second": (n - len(self.choices)) / seconds
            if n > len(self.choices) and first >= 0 < seconds
            else None,
            "cached_tokens": cached,
        }

    @property
    def pg_metadata(self) -> PGMetadata:
        queue, _, _, total = (max(0.0, *times) for times in zip(*(choice.times for choice in self.choices)))
        return {
            "region": "local",
            "latency_ms": round(total),
            "model_load_time_ms": None,
            "queue_time_ms": round(queue),
            "inference_time_ms": round(total - queue),
            "seed": self.seed,
            "cached_tokens": self._counts[1],
        }

    # the flow

    def start(self) -> list[C]:
        """The chunks that need no event."""
        return []

    def feed(self, event: Event, index: int = 0) -> list[C]:
        """The chunks that `event`, about choice `index`, completes. Raises what an error event says."""
        choice = self.choices[index]
        if choice.reason is not None:
            return []  # a tail after our own end
        kind = event.kind
        if kind == "progress":
            return []
        if kind == "error":
            raise from_code(event.code, event.text, dict(event.details))
        choice.event = event
        if kind == "text":
            return self._deliver(choice, index, event)
        if kind == "finished":
            chunks = self._deliver(choice, index, event)
            if choice.reason is None:
                choice.reason = cast(FinishReason, event.reason)
                chunks += self._end(choice, index)
            return chunks
        choice.reason = "stop"  # an embedding
        return self._end(choice, index)

    def _deliver(self, choice: _Choice, index: int, event: Event) -> list[C]:
        text = event.text
        logprobs = event.logprobs if self._logprobs else None
        if not text and not logprobs:
            return []
        if self._predicates:
            so_far = "".join(choice.parts) + text
            if any(hit(so_far) for hit in self._predicates):
                choice.reason = "content_filter"
                if event.kind == "text":
                    self.to_cancel.append(index)
                return self._end(choice, index)
        placed = None
        if logprobs is not None:
            offset = sum(map(len, choice.parts))
            placed = [(offset, entry) for entry in logprobs]
            choice.logprobs += placed
        choice.parts.append(text)
        return [self._chunk(index, text, placed, None)]

    def _end(self, choice: _Choice, index: int) -> list[C]:
        self._open -= 1
        chunks = [self._chunk(index, None, None, choice.reason)]
        if self._include_usage and self._open == 0:
            chunks.append(self._usage_chunk())
        return chunks

    def _chunk(
        self, index: int, text: str | None, logprobs: list[tuple[int, TokenLogprob]] | None, reason: FinishReason | None
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


def _token_text(entry: TokenLogprob) -> str:
    """A token's text; OpenAI's `bytes:` and escapes for a piece of a character, `token_id:` and the number for a token
    that has no text, a control token."""
    raw = bytes(entry["bytes"])
    try:
        return str(raw, "utf-8") or f"token_id:{entry['token']}"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class ChatAssembler(Assembler[ChatCompletionChunk, ChatCompletionResponse]):
    prefix = "chatcmpl-"

    def start(self) -> list[ChatCompletionChunk]:
        return [self._with([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}])]

    def _with(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(
        self, index: int, text: str | None, logprobs: list[tuple[int, TokenLogprob]] | None, reason: FinishReason | None
    ) -> ChatCompletionChunk:
        delta: ChatDelta = {} if text is None else {"content": text}
        if logprobs is None:
            return self._with([{"index": index, "delta": delta, "finish_reason": reason}])
        return self._with(
            [{"index": index, "delta": delta, "logprobs": _chat_logprobs(logprobs), "finish_reason": reason}]
        )

    def _usage_chunk(self) -> ChatCompletionChunk:
        return {**self._with([]), "usage": self.usage}

    def response(self) -> ChatCompletionResponse:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(self.choices)],
            "usage": self.usage,
            "pg_metadata": self.pg_metadata,
        }

    def _choice(self, index: int, choice: _Choice) -> ChatChoice:
        message: ChatMessage = {"role": "assistant", "content": "".join(choice.parts)}
        reason = cast(FinishReason, choice.reason)  # the answer is done
        if not self._logprobs:
            return {"index": index, "message": message, "finish_reason": reason}
        return {
            "index": index,
            "message": message,
            "logprobs": _chat_logprobs(choice.logprobs),
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


def _chat_logprobs(entries: list[tuple[int, TokenLogprob]]) -> ChatLogprobs:
    return {
        "content": [
            {**_chat_logprob(entry), "top_logprobs": [_chat_logprob(top) for top in entry["top"]]}
            for _, entry in entries
        ]
    }


def _chat_logprob(entry: TokenLogprob) -> ChatTopLogprob:
    return {"token": _token_text(entry), "logprob": entry["logprob"], "bytes": list(entry["bytes"])}


class TextAssembler(Assembler[CompletionChunk, CompletionResponse]):
    prefix = "cmpl-"

    def _with(self, choices: list[CompletionChunkChoice]) -> CompletionChunk:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(
        self, index: int, text: str | None, logprobs: list[tuple[int, TokenLogprob]] | None, reason: FinishReason | None
    ) -> CompletionChunk:
        if logprobs is None:
            return self._with([{"text": text or "", "index": index, "finish_reason": reason}])
        return self._with(
            [{"text": text or "", "index": index, "logprobs": _text_logprobs(logprobs), "finish_reason": reason}]
        )

    def _usage_chunk(self) -> CompletionChunk:
        return {**self._with([]), "usage": self.usage}

    def response(self) -> CompletionResponse:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {
                    "text": "".join(choice.parts),
                    "index": index,
                    "logprobs": _text_logprobs(choice.logprobs) if self._logprobs else None,
                    "finish_reason": cast(FinishReason, choice.reason),  # the answer is done
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": self.usage,
            "pg_metadata": self.pg_metadata,
        }


def _text_logprobs(entries: list[tuple[int, TokenLogprob]]) -> TextLogprobs:
    return {
        "tokens": [_token_text(entry) for _, entry in entries],
        "token_logprobs": [entry["logprob"] for _, entry in entries],
        "top_logprobs": [_top_logprobs(entry) for _, entry in entries],
        "text_offset": [
            offset for offset, _ in entries
        ],  # the tokens of one event share the place where its text begins
    }


def _top_logprobs(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the one sampled, likeliest first. Where two read the same, the sampled one or else the
    likelier has the text as its name, the other `token_id:` and its number."""
    sampled = entry["token"]
    top = entry["top"] if any(other["token"] == sampled for other in entry["top"]) else [*entry["top"], entry]
    taken = {_token_text(entry)}
    named = {}
    for other in top:
        name = _token_text(other)
        if other["token"] != sampled and name in taken:
            name = f"token_id:{other['token']}"
        taken.add(name)
        named[name] = other["logprob"]
    return named


class EmbeddingAssembler(Assembler[dict[str, Any], EmbeddingResponse[Any]]):
    """The last event of each choice holds its vector; there is nothing to stream."""

    def __init__(self, model: str, id: str, created: int, seed: int, n: int, encoding_format: str) -> None:
        super().__init__(model, id, created, seed, n)
        self._encoding_format = encoding_format

    def _chunk(self, index: int, text: str | None, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {}

    def response(self) -> EmbeddingResponse[Any]:
        prompt = self.usage["prompt_tokens"]
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _encoded(choice.event.embedding, self._encoding_format),
                }
                for index, choice in enumerate(self.choices)
                if choice.event is not None
            ],
            "model": self.model,
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
        }


def _encoded(vector: Any, encoding_format: str) -> Any:
    """Numbers as a list, as base64 of little-endian float32, or as a numpy array of float32 that is the caller's own."""
    if encoding_format == "float":
        return [float(x) for x in vector]
    import numpy  # late: a chat does without, and starts sooner

    if encoding_format == "base64":
        return base64.b64encode(numpy.asarray(vector, dtype="<f4").tobytes()).decode()
    return numpy.array(vector, dtype=numpy.float32)


class RerankAssembler(Assembler[dict[str, Any], RerankResponse]):
    """The last event of each choice holds a document's scores, one for each of the model's labels; that of `label` is its
    relevance."""

    prefix = "rerank-"

    def __init__(
        self,
        model: str,
        id: str,
        created: int,
        seed: int,
        request: RerankRequest,
        label: int = 0,
    ) -> None:
        super().__init__(model, id, created, seed, len(request.texts))
        self._request = request
        self._label = label

    def _chunk(self, index: int, text: str | None, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {}

    def response(self) -> RerankResponse:
        request = self._request
        results: list[RerankResult] = [
            {"index": index, "relevance_score": float(choice.event.embedding[self._label])}
            for index, choice in enumerate(self.choices)
            if choice.event is not None
        ]
        if request.return_documents:
            for result in results:
                result["document"] = {"text": request.texts[result["index"]]}
        results.sort(key=lambda result: -result["relevance_score"])  # stable: equal ones stay in the caller's order
        prompt = self.usage["prompt_tokens"]
        return {
            "id": self.id,
            "object": "list",
            "model": self.model,
            "results": results[: request.top_n],
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
        }
