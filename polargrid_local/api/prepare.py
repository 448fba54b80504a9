"""Preparing: a request -> a job, which is native requests and the assembler of their answer.

Pure: the time, the id and the seed are arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

from typing_extensions import NamedTuple  # generic, which typing's is since Python 3.11

from polargrid_local.api.answer_form import AnswerForm, answer_form
from polargrid_local.api.assemble import (
    Assembler,
    Extras,
    Predicate,
    TextAssembler,
)
from polargrid_local.api.assemble_chat import ChatAssembler
from polargrid_local.api.assemble_ranking import RankingAssembler
from polargrid_local.api.assemble_vectors import EmbeddingAssembler
from polargrid_local.api.constraints import constraint_of
from polargrid_local.api.infill import cannot_fill, infill_prompt
from polargrid_local.api.logits_processor import CheckedProcessor
from polargrid_local.api.prepare_ranking import by_scores, by_vectors
from polargrid_local.api.prompts import (
    Target,
    chat_prompt,
    check_length,
    joined_prompt,
    kept_of,
    prompt_of,
    template_options,
)
from polargrid_local.api.ranking import ranks_by
from polargrid_local.api.reasoning_tokens import ReasoningTokens
from polargrid_local.api.replies import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    EmbeddingResponse,
    RerankResponse,
    Task,
)
from polargrid_local.api.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerateRequest,
    Message,
    Prompt,
    Request,
    RerankRequest,
    Sampling,
)
from polargrid_local.api.samplers import without_the_others
from polargrid_local.api.segmented import SegmentedAnswer
from polargrid_local.api.tools import tools_asked
from polargrid_local.errors import ValidationError, refused

C = TypeVar("C")  # a chunk
R = TypeVar("R")  # the whole answer


class Kind(str, Generic[C, R]):
    """The name of a kind of request, with the types of its chunks and of its whole answer for type checkers."""


CHAT = Kind[ChatCompletionChunk, ChatCompletionResponse]("chat")
COMPLETION = Kind[CompletionChunk, CompletionResponse]("completion")
GENERATE = Kind[ChatCompletionChunk, ChatCompletionResponse]("generate")
EMBEDDING = Kind[dict[str, Any], EmbeddingResponse[Any]]("embedding")
RERANK = Kind[dict[str, Any], RerankResponse]("rerank")


class Job(NamedTuple, Generic[C, R]):
    """One native request for each prompt, input or document, and the assembler of their events."""

    requests: list[dict[str, Any]]
    assembler: Assembler[C, R]


def prepare(request: Request, target: Target, *, now: datetime, id: str, seed: int) -> Job[Any, Any]:
    """`id` is 24 hex digits, `seed` the one to use when the request has none or -1, `now` the time of the request.

    Raises ValidationError, TemplateError or ContextLengthError; whatever is wrong with a request short of its token
    count is said here."""
    if isinstance(request, GenerateRequest):
        request = chat_of(request)
    name, created = request.model or target.name, int(now.timestamp())
    task: Task = "generate"
    if isinstance(request, EmbeddingRequest):
        task = "embed"
    elif isinstance(request, RerankRequest):
        task = "embed" if ranks_by(target.info.get("tasks", [])) == "cosine" else "rank"
    _check_task(task, target.info.get("tasks"), name)
    if isinstance(request, EmbeddingRequest):
        n_embd = target.info.get("n_embd") or 2**31
        if request.dimensions is not None and request.dimensions > n_embd:
            problem = f"must be between 1 and {n_embd}, the width of this model, got {request.dimensions}"
            raise refused("dimensions", problem, le=n_embd)
        common = {"task": task, **kept_of(request, target.info.get("n_ctx_train"))}
        limited = request.truncate_prompt_tokens is None
        if request.messages is not None:
            tokens = _embedded_chat(request, request.messages, target, now, limited)
            prompts: list[dict[str, Any]] = [{"prompt": [], "prompt_tokens": tokens}]
        else:
            prompts = [prompt_of(given, False, target, "input", task, limited=limited) for given in request.inputs]
        requests = [{**common, **prompt} for prompt in prompts]
        encoding, dimensions = request.encoding_format, request.dimensions
        return Job(requests, EmbeddingAssembler(name, id, created, seed, len(requests), encoding, dimensions))
    if isinstance(request, RerankRequest):
        ranking = by_vectors(request, target) if task == "embed" else by_scores(request, target)
        return Job(ranking.requests, RankingAssembler(name, id, created, seed, request, ranking))

    seed = seed if request.seed is None or request.seed == -1 else request.seed % 2**64
    stop, marks = list(request.stop), list[str]()
    thought: dict[str, Any] | None = None
    n_prompt_logprobs = -1 if request.prompt_logprobs is None else request.prompt_logprobs
    more: dict[str, Any] = {}
    ignored: list[str] = []
    if isinstance(request, ChatCompletionRequest):
        if request.chat_template is not None:
            target = target._replace(template=target.template.other(request.chat_template))
        asked = tools_asked(request)
        prompt = chat_prompt(
            request.messages,
            target,
            now=now,
            options=template_options(request, target),
            tools=asked.shown,
            limited=request.truncate_prompt_tokens is None,
            open_ended=request.continue_final_message,
        )
        prompts = [{"prompt": prompt}]
        form = answer_form(
            request, asked, target.template, prompt, target.info.get("control_tokens", {}), target.compile
        )
        constraint, dropped, marks = form.constraint, form.dropped, form.marks
        if form.thought is not None and request.thinking_token_budget not in (None, -1):
            thought = {**form.thought._asdict(), "max_tokens": request.thinking_token_budget}
        begun = _said_last(request.messages) + form.begun if request.echo else form.begun
        more |= {"begun": begun, "min_tokens": request.min_tokens}
        if request.return_prompt_text:
            more["prompt_text"] = "".join(text for text, _ in prompt)
        ignored = _idle_fields(request, target, form)
        if form.segments is not None:
            segments = [form.segments, *(copy.deepcopy(form.segments) for _ in range(1, request.n))]
            if not request.inline_reasoning:
                more["reasoning"] = [ReasoningTokens(own, target.detokenize) for own in segments]
            more["parts"] = [
                SegmentedAnswer(
                    segments[i],
                    stop,
                    f"{(int(id, 16) + (i << 32)) % 16**24:024x}",  # each choice counts calls of its own
                    legacy=asked.legacy,
                    include_stop=request.include_stop_str_in_output,
                    tells_reasoning=request.include_reasoning,
                )
                for i in range(request.n)
            ]
            stop = []  # those of content alone are not the engine's
        cls: type[ChatAssembler | TextAssembler] = ChatAssembler
    else:
        # The prompt of a completion is its caller's own program, as it is remotely: control tokens in it are honoured.
        limited = request.truncate_prompt_tokens is None
        trusted = request.parse_special
        prompts = [prompt_of(given, trusted, target, "prompt", limited=limited) for given in request.prompts]
        if request.fills_gap:
            prompts = [_gap(request, given, target) for given in request.prompts]
        constraint, dropped = constraint_of(request, target.compile)
        if request.echo:
            texts = [given if isinstance(given, str) else None for given in request.prompts]
            more["echo"] = [text for text in texts for _ in range(request.n)]
            if request.n_logprobs >= 0 or None in texts:  # a prompt of token ids is told by its tokens
                n_prompt_logprobs = max(request.n_logprobs, n_prompt_logprobs, 0)
        cls = TextAssembler
    phrases, predicates = split_filters(target.content_filter, request.content_filter)
    common = {
        "task": task,
        # -1: the engine stops at the end of the context
        "max_tokens": request.max_tokens if request.max_tokens >= 0 else 2**31 - 1,
        "min_tokens": request.min_tokens,
        "stop": stop,
        "stop_token_ids": request.stop_token_ids,
        "include_stop": request.include_stop_str_in_output,
        "filter": phrases,
        "ignore_eos": request.ignore_eos,
        **adapters_asked(request, target),
    }
    common |= kept_of(request, (target.info.get("n_ctx") or 2**30) - 1)
    if marks:
        common["marks"] = marks
    if constraint is not None:
        common["constraint"] = constraint._asdict()
    if thought is not None:
        common["thought"] = thought
    if request.prediction is not None and request.prediction.text:
        common["prediction"] = request.prediction.text
    if n_prompt_logprobs >= 0:
        common["n_prompt_logprobs"] = n_prompt_logprobs
    if request.return_token_ids or "reasoning" in more:  # which counts the tokens of a thought by their texts
        common["return_tokens"] = True
    if not request.skip_special_tokens:
        common["show_special"] = True
    # The first of several choices is the one that comes alone: same seed, same text.
    samplings = [_sampling(request, target, (seed + i) % 2**64) for i in range(request.n)]
    requests = [{**common, **prompt, "sampling": sampling} for prompt in prompts for sampling in samplings]
    processors = [CheckedProcessor(request.logits_processor) for _ in requests if request.logits_processor]
    for native, processor in zip(requests, processors):
        native["logits_processor"] = processor
    assembler = cls(
        name,
        id,
        created,
        seed,
        len(requests),
        n_per_prompt=request.n,
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
        predicted=request.prediction is not None,
        n_logprobs=request.n_logprobs,
        extras=Extras(*(getattr(request, name) for name in Extras._fields)),
        processors=processors,
        predicates=predicates,
        dropped_keywords=dropped,
        ignored_fields=ignored,
        answer_type=request.answer_type,
        fingerprint=target.fingerprint,
        **more,
    )
    return Job(requests, assembler)


def _embedded_chat(
    request: EmbeddingRequest, messages: Sequence[Message], target: Target, now: datetime, limited: bool
) -> list[int]:
    """The tokens of a chat's prompt: the engine reads no control tokens in a text that it is to embed."""
    assert target.tokenize is not None  # every loaded model has one
    options = dict(request.chat_template_kwargs)
    if not request.add_generation_prompt:
        options["add_generation_prompt"] = False
    spans = chat_prompt(
        messages,
        target,
        now=now,
        options=options,
        limited=limited,
        open_ended=request.continue_final_message,
        task="embed",
    )
    return target.tokenize(spans, True)


def _said_last(messages: Sequence[Message]) -> str:
    """The text of the last message where the model has said it."""
    return "".join(messages[-1].texts) if messages[-1].role == "assistant" else ""


def _gap(request: CompletionRequest, given: Prompt, target: Target) -> dict[str, Any]:
    """The prompt of an answer between `given` and the request's suffix. Raises ValidationError where the model cannot
    fill gaps."""
    tokens, tokenize = target.info.get("infill_tokens"), target.tokenize
    if not tokens or tokenize is None:
        raise cannot_fill(target.name)
    for field, text in ("suffix", request.suffix), ("input_extra", "".join(e.text for e in request.input_extra or ())):
        check_length([(text, False)], target, field)
    begin = tokenize([("", False)], True)
    prefix = joined_prompt(given, False, target, "prompt", begins=False)
    ids = infill_prompt(request, prefix, tokens, lambda text: tokenize([(text, False)], False), begin)
    return {"prompt": [], "prompt_tokens": ids}


def adapters_asked(request: ChatCompletionRequest | CompletionRequest, target: Target) -> dict[str, Any]:
    """The adapters that a request runs with, as a native request has them. Raises ValidationError for one that the
    model was not loaded with."""
    asked = request.lora
    if asked is None:
        return {} if target.lora is None else {"lora": target.lora}
    n = target.n_adapters
    for i, adapter in enumerate(asked):
        if adapter.id >= n:
            problem = f"must be between 0 and {n - 1}: this model has {n}" if n else "this model was loaded without any"
            raise refused(f"lora[{i}].id", f"{problem}; got {adapter.id}", n_adapters=n)
    return {"lora": [(adapter.id, adapter.scale) for adapter in asked]} if n else {}


def _idle_fields(request: ChatCompletionRequest, target: Target, form: AnswerForm) -> list[str]:
    """Those that clients send to every model and that change no answer of this one."""
    idle = []
    if request.reasoning_effort not in (None, "none") and not target.template.mentions("reasoning_effort"):
        idle.append("reasoning_effort")
    if request.thinking_token_budget not in (None, -1) and form.thought is None:
        idle.append("thinking_token_budget")
    return idle


def chat_of(request: GenerateRequest) -> ChatCompletionRequest:
    """generate() is one user message."""
    fields = request.model_dump(exclude={"prompt", "request_id"}, exclude_unset=True)
    return ChatCompletionRequest(messages=[Message(role="user", content=request.prompt)], **fields)


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


def _sampling(request: ChatCompletionRequest | CompletionRequest, target: Target, seed: int) -> dict[str, Any]:
    values = {name: getattr(request, name) for name in Sampling.model_fields}
    if request.samplers is not None:
        values |= without_the_others(request.samplers, values)
    return {
        **values,
        "top_k": max(values["top_k"], 0),
        "seed": seed,
        "n_logprobs": request.n_logprobs,
        "logprob_token_ids": request.logprob_token_ids,
        "post_sampling_probs": request.post_sampling_probs,
        "logit_bias": _biases(cast(Any, request.logit_bias), target),  # pairs, whatever form they came in
    }


def _biases(given: Sequence[tuple[int | str, float]], target: Target) -> list[tuple[int, float]]:
    """Of token ids: a text's bias is that of each of its tokens."""
    n_vocab = target.info.get("n_vocab", 2**31)
    biases: list[tuple[int, float]] = []
    for token, bias in given:
        if isinstance(token, str):
            assert target.tokenize is not None  # every loaded model has one
            biases += [(id, bias) for id in target.tokenize([(token, False)], False)]
        elif token >= n_vocab:
            problem = f"token id {token} is not below the vocabulary's size, {n_vocab}"
            raise refused("logit_bias", problem, n_vocab=n_vocab)
        else:
            biases.append((token, bias))
    return biases
