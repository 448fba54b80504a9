"""Parsing: a dict, an SDK object or keywords -> a request, or an error that names the path of what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError as PydanticError
from pydantic_core import PydanticCustomError

from polargrid_local.api.answer_type import typed_format
from polargrid_local.api.constraints import constraint_asked
from polargrid_local.api.keys import keys_of, known, known_fields
from polargrid_local.api.plain import path, plain, shown
from polargrid_local.api.requests import (
    KINDS,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    ImagePart,
    Message,
    RerankRequest,
    Sampling,
    check_filter,
)
from polargrid_local.api.samplers import without_the_others
from polargrid_local.api.tools import tools_asked
from polargrid_local.errors import ValidationError, refused

# What the rendering of a chat is given anyway.
# `documents`, which have a field too, may also come as variables.
TEMPLATE_OWN = frozenset(("messages", "tools", "add_generation_prompt", "bos_token", "eos_token"))
MAX_TOKENS = 4096  # the SDK's limit on max_tokens; a server passes None and lets the context be the limit


def parse_filter(value: Any) -> Any:
    """A content filter outside a request: phrases or a callable. Raises ValidationError."""
    try:
        return check_filter(plain(value, "content_filter"))
    except PydanticCustomError as error:
        raise refused("content_filter", error.message()) from None


def parse_fields(obj: Any, *fields: str) -> dict[str, Any]:
    """The `fields` that a small request (a dict or an object) has. Raises ValidationError for anything else in it."""
    obj = plain(obj)
    if not isinstance(obj, dict):
        raise refused("request", f"must be a dict or a request object, got {type(obj).__name__}")
    return dict(known(obj, keys_of(fields), ()))


def parse_request(
    kind: str,
    obj: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    max_tokens_limit: int | None = MAX_TOKENS,
    ignored: list[str] | None = None,
) -> Any:
    """The request model of `kind` ("chat", "completion", "embedding", "rerank", "generate") for a dict, an SDK object,
    keyword arguments, or a positional object with keywords on top. None means omitted; camelCase is an alias; nothing
    the caller passed is changed. `response_format` may be a class (pydantic model, TypedDict, dataclass). Unknown keys,
    at any level, are refused with the nearest known one; with a list `ignored` they are tolerated, and their paths go
    there. A request parsed before is returned as it is. Without `max_tokens` an answer has the SDK's 150 (chat) or 100
    (completion) tokens at most; -1 is as many as the context leaves.

    Raises ValidationError naming the field's path and its limit; `param` and `details["field"]` hold the path."""
    cls = KINDS[kind]
    if isinstance(obj, cls) and not kwargs:
        return obj
    answer_type = None
    if isinstance(obj, cls):
        if "response_format" not in (kwargs or {}):
            answer_type = getattr(obj, "answer_type", None)
        obj = obj.model_dump(exclude_unset=True)
    obj, of_object = typed_format(obj)
    kwargs, of_keywords = typed_format(kwargs)
    obj = plain(obj)
    if obj is not None and not isinstance(obj, dict):
        raise refused("request", f"must be a dict or a request object, got {type(obj).__name__}")
    data = known_fields(kind, (obj or {}, plain(kwargs or {})), ignored)
    try:
        request = cls.model_validate(data)
    except PydanticError as error:
        raise explained(error) from None
    limit = max_tokens_limit or math.inf
    if getattr(request, "max_tokens", 0) > limit:
        raise refused("max_tokens", f"must be between 1 and {limit}, got {request.max_tokens}", le=limit)
    _check_supported(request)
    if (answer_type := of_keywords or of_object or answer_type) is not None:
        request._answer_type = answer_type
    return request


def _check_supported(request: Any) -> None:
    """What this engine cannot do yet is refused by name, never ignored."""
    if isinstance(request, (ChatCompletionRequest, CompletionRequest)):
        constraint_asked(request)
        if request.samplers is not None:
            without_the_others(request.samplers, request.model_dump(include=set(Sampling.model_fields)))
        if request.logprob_token_ids and request.n_logprobs < 0:
            raise refused("logprob_token_ids", "needs logprobs")
    if isinstance(request, ChatCompletionRequest):
        tools_asked(request)
        if request.top_logprobs and not request.logprobs:
            raise refused("top_logprobs", "needs logprobs: true")
        if request.documents and "documents" in request.chat_template_kwargs:
            raise refused("documents", "are given in chat_template_kwargs, too")
        _check_chat(request, request.messages)
    if isinstance(request, EmbeddingRequest):
        if request.messages is not None:
            if request.input is not None:
                raise refused("messages", "must be left out beside input, whose place they take")
            _check_chat(request, request.messages)
        elif request.input is None:
            raise refused("input", "required; or messages in its place")
        else:
            for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
                if getattr(request, name):
                    raise refused(name, "needs messages")
    if isinstance(request, RerankRequest) and isinstance(request.query, list):
        n_queries, n = len(request.query), len(request.documents)
        if n_queries != n:
            raise refused("query", f"must be one text, or one for each of the {n} documents; got {n_queries}")
    if isinstance(request, CompletionRequest):
        if request.max_tokens == 0 and not request.echo and request.prompt_logprobs is None:
            problem = "must be 1 or more, or -1 for what the context leaves; 0 needs echo or prompt_logprobs"
            raise refused("max_tokens", problem, ge=1)
        if request.best_of not in (None, request.n):
            raise refused("best_of", f"must be n, {request.n}: all answers are given; got {request.best_of}")
        if request.prompt == "" and not request.fills_gap:
            raise refused("prompt", "must have at least 1 character, got ''")
        if request.fills_gap:
            if request.echo:
                raise refused("echo", "the prompt of an answer before a suffix is not told, so it must be false")
            if request.truncate_prompt_tokens is not None:
                raise refused("truncate_prompt_tokens", "a prompt before a suffix is not cut: send shorter texts")


def _check_chat(request: ChatCompletionRequest | EmbeddingRequest, messages: Sequence[Message]) -> None:
    """What a chat is made of, whatever is to become of it."""
    asks_both = "add_generation_prompt" in request.model_fields_set and request.add_generation_prompt
    if request.continue_final_message and asks_both:
        raise refused("add_generation_prompt", "must be false with continue_final_message")
    for name in TEMPLATE_OWN & request.chat_template_kwargs.keys():
        raise refused(f"chat_template_kwargs.{name}", "has a field of its own in the request")
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, ImagePart):
                name = request.model or "this model"
                raise ValidationError(
                    f"model '{name}' does not support image input",
                    param=f"messages[{i}].content[{j}]",
                    details={"field": f"messages[{i}].content[{j}]"},
                )


def explained(error: PydanticError, *where: str) -> ValidationError:
    """The first thing that pydantic found wrong, by its path, in plainer words. `where`: what was read is a part of."""
    first = error.errors(include_url=False)[0]
    field = path((*where, *first["loc"])) or "request"
    limits = {key: value for key, value in first.get("ctx", {}).items() if isinstance(value, (int, float))}
    problem = "required" if first["type"] == "missing" else first["msg"].replace(" after validation", "")
    for limit in first.get("ctx", {}).values():
        if isinstance(limit, int) and limit >= 2**53:  # pydantic rounds it to a double in its message
            problem = re.sub(r"\d{16,}", str(limit), problem)
    for start in ("Input should ", "Value should ", "String should ", "List should ", "Dictionary should "):
        problem = problem.replace(start, "must ", 1)
    given = first["input"]
    if isinstance(given, str):
        given = given[:80]
    if first["type"] != "missing" and (given is None or isinstance(given, (bool, int, float, str))):
        problem += f", got {shown(given)}"
    return refused(field, problem, **limits)
