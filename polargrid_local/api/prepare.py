"""Preparing: a request -> a job, which is native requests and the assembler of their answer.

Pure: the time, the id and the seed are arguments.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

from typing_extensions import NamedTuple  # generic, which typing's is since Python 3.11

from polargrid_local.api.answer_form import AnswerForm, answer_form
from polargrid_local.api.assemble import (
    Assembler,
    CosineAssembler,
    EmbeddingAssembler,
    Extras,
    Predicate,
    RerankAssembler,
    TextAssembler,
)
from polargrid_local.api.assemble_chat import ChatAssembler
from polargrid_local.api.constraints import constraint_of
from polargrid_local.api.infill import cannot_fill, infill_prompt
from polargrid_local.api.logits_processor import CheckedProcessor
from polargrid_local.api.messages import messages_of, texts_of
from polargrid_local.api.plain import shown
from polargrid_local.api.ranking import ranks_by
from polargrid_local.api.reasoning_tokens import Detokenize, ReasoningTokens
from polargrid_local.api.replies import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    EmbeddingResponse,
    NativeInfo,
    RerankResponse,
    Task,
)
from polargrid_local.api.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    FunctionDefinition,
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
from polargrid_local.chat.grammar import Compile, accept_all
from polargrid_local.chat.taint import Span
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import ContextLengthError, TemplateError, ValidationError, refused

# The length of the longest token's text, where a model does not say its own: no vocabulary has a longer one. A prompt
# of more than n_ctx times so many bytes need not be tokenized to be refused.
LONGEST_PIECE_BYTES = 512

# What a model without levels of its own may be asked for. All but the first change no answer of it.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "default")

# Architectures whose scores are a label's share among all of them.
SHARES = ("qwen3", "qwen3vl")

C = TypeVar("C")  # a chunk
R = TypeVar("R")  # the whole answer


class Target(NamedTuple):
    """What `prepare` must know of a loaded model."""

    name: str  # what replies carry when a request names no model
    info: NativeInfo
    template: ChatTemplate
    content_filter: Any = None
    compile: Compile = accept_all  # raises SchemaError for what its answers cannot be held to
    lora: list[tuple[int, float]] | None = None  # adapters and scales of what names none itself; None: as loaded
    n_adapters: int = 0  # that it was loaded with
    fingerprint: str = ""  # of all that fixes an answer's bits beside the request
    tokenize: Callable[[Sequence[Span], bool], list[int]] | None = None  # (spans, with the token that begins a text)
    detokenize: Detokenize | None = None


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
        common = {"task": task, **_kept(request, target.info.get("n_ctx_train"))}
        limited = request.truncate_prompt_tokens is None
        if request.messages is not None:
            tokens = _embedded_chat(request, request.messages, target, now, limited)
            prompts: list[dict[str, Any]] = [{"prompt": [], "prompt_tokens": tokens}]
        else:
            prompts = [_prompt(given, False, target, "input", task, limited=limited) for given in request.inputs]
        requests = [{**common, **prompt} for prompt in prompts]
        encoding, dimensions = request.encoding_format, request.dimensions
        return Job(requests, EmbeddingAssembler(name, id, created, seed, len(requests), encoding, dimensions))
    if isinstance(request, RerankRequest) and task == "embed":
        prompts, pairs = _texts_of(request, target)
        idle = ["use_activation"] if request.use_activation else []
        return Job(prompts, CosineAssembler(name, id, created, seed, request, pairs, len(prompts), idle))
    if isinstance(request, RerankRequest):
        limited = request.truncate_prompt_tokens is None
        for query in {query for query, _ in request.pairs if limited}:
            check_length([(query, False)], target, "query", task)
        template = target.info.get("rerank_template", "")
        n_first = request.max_tokens_per_doc
        spans = [
            _pair(template, query, _beginning(text, n_first, target) if n_first else text)
            for query, text in request.pairs
        ]
        for prompt in spans if limited else ():
            check_length(prompt, target, "documents", task)
        common = {"task": task, **_kept(request, target.info.get("n_ctx_train"))}
        requests = [{**common, "prompt": prompt} for prompt in spans]
        labels = target.info.get("labels") or []
        label = labels.index("yes") if "yes" in labels else 0
        logistic = request.use_activation and _has_logits(labels, target)
        return Job(requests, RerankAssembler(name, id, created, seed, request, label, logistic))

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
        prompts = [_prompt(given, trusted, target, "prompt", limited=limited) for given in request.prompts]
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
    common |= _kept(request, (target.info.get("n_ctx") or 2**30) - 1)
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


def _prompt(
    given: Prompt, trusted: bool, target: Target, field: str, task: Task = "generate", limited: bool = True
) -> dict[str, Any]:
    """A text or its tokens, as a native request has it."""
    given = _joined(given, trusted, target, field, task)
    if not isinstance(given, str):
        n_vocab = target.info.get("n_vocab", 2**31)
        if (largest := max(given)) >= n_vocab:
            raise refused(field, f"token id {largest} is not below the vocabulary's size, {n_vocab}", n_vocab=n_vocab)
        return {"prompt": [], "prompt_tokens": given}
    spans = [(given, trusted)]
    if limited:
        check_length(spans, target, field, task)
    return {"prompt": spans}


def _joined(
    given: Prompt, trusted: bool, target: Target, field: str, task: Task = "generate", begins: bool = True
) -> str | list[int]:
    """Texts and tokens in turn as tokens; what is a text or tokens stays as it is. `begins`: a text at the beginning
    has what the vocabulary puts there."""
    if isinstance(given, str) or all(isinstance(part, int) for part in given):
        return cast("str | list[int]", given)
    assert target.tokenize is not None  # every loaded model has one
    check_length([(part, trusted) for part in given if isinstance(part, str)], target, field, task)
    ids: list[int] = []
    for i, part in enumerate(given):
        ids += target.tokenize([(part, trusted)], begins and i == 0) if isinstance(part, str) else [part]
    return ids


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


def _texts_of(request: RerankRequest, target: Target) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """A native request for each distinct text of a ranking, and the place of query and document in them."""
    limited, n_first = request.truncate_prompt_tokens is None, request.max_tokens_per_doc
    places: dict[str, int] = {}

    def place(text: str, field: str) -> int:
        if text not in places and limited:
            check_length([(text, False)], target, field, "embed")
        return places.setdefault(text, len(places))

    pairs = [
        (place(query, "query"), place(_beginning(text, n_first, target) if n_first else text, "documents"))
        for query, text in request.pairs
    ]
    common = {"task": "embed", **_kept(request, target.info.get("n_ctx_train"))}
    return [{**common, "prompt": [(text, False)]} for text in places], pairs


def _has_logits(labels: Sequence[str], target: Target) -> bool:
    """Whether a model's scores are still to be made numbers of 0 to 1. Raises ValidationError where they cannot be in
    the order of the scores."""
    if len(labels) < 2:
        return True
    if target.info.get("architecture") in SHARES:
        return False
    problem = f"must be false: this model tells {len(labels)} labels apart, and its scores are not shares of them"
    raise refused("use_activation", problem)


def _kept(
    request: ChatCompletionRequest | CompletionRequest | EmbeddingRequest | RerankRequest, n_most: int | None
) -> dict[str, Any]:
    """How many tokens are left of a prompt, as a native request has it; `n_most` are what -1 asks for."""
    n_asked = request.truncate_prompt_tokens
    if n_asked is None:
        return {}
    kept = {"keep_tokens": n_most or 2**30 if n_asked == -1 else max(n_asked, 1)}
    return {**kept, "keep_first": True} if request.truncation_side == "right" else kept


def _beginning(text: str, n_tokens: int, target: Target) -> str:
    """Of a text, as many of its first tokens. What they hold of a character that is cut is left out."""
    assert target.tokenize is not None and target.detokenize is not None  # every loaded model has them
    check_length([(text, False)], target, "documents", "rank")
    tokens = target.tokenize([(text, False)], False)
    if len(tokens) <= n_tokens:
        return text
    return target.detokenize(tokens[:n_tokens], False).decode("utf-8", "ignore")


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
    prefix = _joined(given, False, target, "prompt", begins=False)
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


def template_options(request: ChatCompletionRequest, target: Target) -> dict[str, Any]:
    """The variables that a template is given beside messages and tools. Raises ValidationError for an effort of which
    nobody knows."""
    options = dict(request.chat_template_kwargs)
    if request.documents:
        if not target.template.mentions("documents"):
            raise refused("documents", "this chat's template shows none; put them into a message")
        options["documents"] = request.documents
    effort = request.reasoning_effort
    if effort is not None:
        if target.template.mentions("reasoning_effort"):
            options["reasoning_effort"] = effort
        elif effort not in EFFORTS:
            raise refused("reasoning_effort", f"must be one of {', '.join(EFFORTS)}; got {shown(effort)}")
        elif effort == "none" and target.template.mentions("enable_thinking"):
            options["enable_thinking"] = False
    if request.enable_thinking is not None:
        options["enable_thinking"] = request.enable_thinking
    if not request.add_generation_prompt or request.continue_final_message:
        options["add_generation_prompt"] = False
    return options


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


def chat_prompt(
    messages: Sequence[Message],
    target: Target,
    *,
    now: datetime,
    options: Mapping[str, Any] = MappingProxyType({}),
    tools: Sequence[FunctionDefinition] = (),
    limited: bool = True,
    open_ended: bool = False,
    hint: str = "",
    task: Task = "generate",
) -> list[Span]:
    """The prompt of a chat, by the model's template. `options`: variables for it. `open_ended`: it ends where the last
    message's text does. Raises TemplateError and, where the prompt is `limited`, ContextLengthError: for texts that
    cannot fit whatever the template makes of them already before it runs, which would take long. `hint` is added to
    that error's message."""
    if limited:
        check_length(texts_of(messages), target, "messages", task, hint)
    template = target.template
    spans, refusal = None, None
    if tools and template.shows_tools:
        given = messages_of(messages, template.capabilities, template.tool_format)
        for shown in [tool.model_dump(exclude_none=True, exclude={"strict"}) for tool in tools], _completed(tools):
            try:
                shown_tools = [{"type": "function", "function": function} for function in shown]
                spans = template.render(given, now=now, **options, tools=shown_tools)
                break
            except TemplateError as error:
                refusal = refusal or error
    if spans is None:
        given = messages_of(messages, template.capabilities, template.tool_format, tools)
        try:
            spans = template.render(given, now=now, **options)
        except TemplateError as error:
            raise refusal or error from None
    if open_ended:
        spans = _cut_behind(spans, messages[-1])
    if limited:
        check_length(spans, target, "messages", task, hint)
    return spans


def _cut_behind(spans: Sequence[Span], last: Message) -> list[Span]:
    """The prompt up to the end of the last message's text, which the answer then continues."""
    text = "".join(last.texts)
    whole = "".join(text for text, _ in spans)
    for said in dict.fromkeys((text, text.strip())):
        if said and (at := whole.rfind(said)) >= 0:
            end = at + len(said)
            break
    else:
        raise refused("continue_final_message", "the last message has no text in this model's prompt to go on from")
    cut: list[Span] = []
    for piece, trusted in spans:
        if end > 0:
            cut.append((piece[:end], trusted))
        end -= len(piece)
    return cut


def _completed(tools: Sequence[FunctionDefinition]) -> list[dict[str, Any]]:
    """The tools with all that templates read of them without asking whether it is there."""
    return [
        {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": {"type": "object", "properties": {}, "required": [], **(tool.parameters or {})},
        }
        for tool in tools
    ]


def check_length(spans: Sequence[Span], target: Target, field: str, task: Task = "generate", hint: str = "") -> None:
    """Raises ContextLengthError for a prompt of more characters than the context could ever hold; for tasks other than
    generating, the context is the length that the model was trained with."""
    info = target.info
    n_ctx = (info.get("n_ctx") if task == "generate" else info.get("n_ctx_train")) or 2**31
    longest = info.get("longest_piece") or LONGEST_PIECE_BYTES
    size = sum(len(text) for text, _ in spans)
    if size > n_ctx * longest:
        raise ContextLengthError(
            f"{field}: {size} characters are more than {n_ctx} tokens, the context, can hold{hint}",
            param=field,
            details={"field": field, "n_ctx": n_ctx, "n_prompt": f"> {n_ctx}"},
        )


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


def _pair(template: str, query: str, document: str) -> list[Span]:
    """A query and a document as spans: in the model's own template or, without one, by themselves: then the tokenizer
    puts the vocabulary's separators around them."""
    texts = {"query": query, "document": document}
    if not template:
        return [(query, False), (document, False)]
    parts = _PLACE.split(template)  # template text and the names of places in turn
    spans = [(texts[part], False) if i % 2 else (part, True) for i, part in enumerate(parts)]
    return [span for span in spans if span[0]]


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
