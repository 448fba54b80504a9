"""Prompts: what a model is to read, as a native request has it, and whether it can fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, cast

from typing_extensions import NamedTuple  # generic, which typing's is since Python 3.11

from polargrid_local.api.messages import messages_of, texts_of
from polargrid_local.api.plain import shown
from polargrid_local.api.reasoning_tokens import Detokenize
from polargrid_local.api.replies import NativeInfo, Task
from polargrid_local.api.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    FunctionDefinition,
    Message,
    Prompt,
    RerankRequest,
)
from polargrid_local.chat.grammar import Compile, accept_all
from polargrid_local.chat.taint import Span
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import ContextLengthError, TemplateError, refused

# The length of the longest token's text, where a model does not say its own: no vocabulary has a longer one. A prompt
# of more than n_ctx times so many bytes need not be tokenized to be refused.
LONGEST_PIECE_BYTES = 512

# What a model without levels of its own may be asked for. All but the first change no answer of it.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "default")


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


def prompt_of(
    given: Prompt, trusted: bool, target: Target, field: str, task: Task = "generate", limited: bool = True
) -> dict[str, Any]:
    """A text or its tokens, as a native request has it."""
    given = joined_prompt(given, trusted, target, field, task)
    if not isinstance(given, str):
        n_vocab = target.info.get("n_vocab", 2**31)
        if (largest := max(given)) >= n_vocab:
            raise refused(field, f"token id {largest} is not below the vocabulary's size, {n_vocab}", n_vocab=n_vocab)
        return {"prompt": [], "prompt_tokens": given}
    spans = [(given, trusted)]
    if limited:
        check_length(spans, target, field, task)
    return {"prompt": spans}


def joined_prompt(
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


def kept_of(
    request: ChatCompletionRequest | CompletionRequest | EmbeddingRequest | RerankRequest, n_most: int | None
) -> dict[str, Any]:
    """How many tokens are left of a prompt, as a native request has it; `n_most` are what -1 asks for."""
    n_asked = request.truncate_prompt_tokens
    if n_asked is None:
        return {}
    kept = {"keep_tokens": n_most or 2**30 if n_asked == -1 else max(n_asked, 1)}
    return {**kept, "keep_first": True} if request.truncation_side == "right" else kept


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
