"""What llama-server and vLLM answer beside text: tokens, prompts, and how the model is served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import PurePath
from typing import Any

from typing_extensions import TypedDict

from polargrid_local.api.parse import parse_request
from polargrid_local.api.requests import CompletionRequest, Sampling
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import ValidationError
from polargrid_local.service.service import Service


class Piece(TypedDict):
    id: int
    piece: str


class Tokens(TypedDict):
    """With `with_pieces` each as a Piece."""

    tokens: list[int] | list[Piece]


class CountedTokens(TypedDict):
    """As vLLM tells them."""

    count: int
    max_model_len: int
    tokens: list[int]


class Text(TypedDict):
    """By its name at llama-server, and at vLLM."""

    content: str
    prompt: str


class Prompt(TypedDict):
    prompt: str


class Props(TypedDict):
    default_generation_settings: dict[str, Any]
    total_slots: int
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    modalities: dict[str, bool]


class Slot(TypedDict):
    id: int
    n_ctx: int
    is_processing: bool


async def tokenize(service: Service, given: Mapping[str, Any]) -> Tokens | CountedTokens:
    """`content` as llama-server has it; `prompt` or `messages` as vLLM does."""
    fields = Fields(given, "", [])
    fields.refuse({"return_token_strs": (False,)})
    name = fields.get("model", str)
    if given.get("messages") is not None:
        fields.refuse({"add_special_tokens": (False,)})  # the template writes them
        words = {key: value for key, value in given.items() if key not in ("return_token_strs", "add_special_tokens")}
        request = parse_request("chat", words, max_tokens_limit=None, ignored=[])
        async with _leased(service, name) as model:
            asked = request.model_copy(update={"model": model})
            return _counted(service, model, await service.engine.tokenize(messages=asked, model=model))
    content, prompt = fields.get("content", str), fields.get("prompt", str)
    if (content is None) == (prompt is None):
        raise ValidationError("content: required, a string; or prompt or messages in its place", param="content")
    text = prompt if content is None else content
    add_special = fields.get("add_special" if prompt is None else "add_special_tokens", bool)
    parse_special = fields.get("parse_special", bool)
    async with _leased(service, name) as model:
        tokens = await service.engine.tokenize(
            text,
            model=model,
            add_special=prompt is not None if add_special is None else add_special,
            parse_special=parse_special is not False,
        )
        if prompt is not None:
            return _counted(service, model, tokens)
        if not fields.get("with_pieces", bool):
            return {"tokens": tokens}
        pieces: list[Piece] = [
            {"id": token, "piece": await service.engine.detokenize([token], model=model)} for token in tokens
        ]
        return {"tokens": pieces}


async def detokenize(service: Service, given: Mapping[str, Any]) -> Text:
    fields = Fields(given, "", [])
    tokens = fields.need("tokens", list)
    async with _leased(service, fields.get("model", str)) as model:
        text = await service.engine.detokenize(tokens, model=model)
    return {"content": text, "prompt": text}


async def apply_template(service: Service, given: Mapping[str, Any]) -> Prompt:
    """The prompt of a chat request, which is not answered."""
    request = parse_request("chat", given, max_tokens_limit=None, ignored=[])
    async with _leased(service, request.model) as model:
        return {"prompt": await service.engine.apply_template(request.model_copy(update={"model": model}))}


async def props(service: Service, given: Mapping[str, Any]) -> Props:
    async with _leased(service, given.get("model")) as model:
        info = service.engine.info(model)
        params = {name: CompletionRequest.model_fields[name].get_default() for name in Sampling.model_fields}
        return {
            "default_generation_settings": {"n_ctx": info["n_ctx"], "params": {**params, "n_predict": -1}},
            "total_slots": info["max_streams"],
            "model_path": PurePath(info["path"]).name,
            "chat_template": info["chat_template"],
            "bos_token": info["bos_text"],
            "eos_token": info["eos_text"],
            "build_info": info["build"],
            "modalities": {"vision": False, "audio": False},
        }


async def slots(service: Service, given: Mapping[str, Any]) -> list[Slot]:
    """The streams that a model may have, and how many of them it has; which is which is not told."""
    async with _leased(service, given.get("model")) as model:
        info, stats = service.engine.info(model), service.stats()[model]
        n_ctx, n_running = info["n_ctx"], stats["n_running"]
        return [{"id": i, "n_ctx": n_ctx, "is_processing": i < n_running} for i in range(info["max_streams"])]


def _counted(service: Service, model: str, tokens: list[int]) -> CountedTokens:
    return {"count": len(tokens), "max_model_len": service.engine.info(model)["n_ctx"], "tokens": tokens}


@asynccontextmanager
async def _leased(service: Service, name: str | None) -> AsyncIterator[str]:
    """The id of a model, which is in memory meanwhile."""
    lease = await service.lease(name)
    try:
        yield lease.model
    finally:
        lease.release()
