"""What llama-server and vLLM answer beside text: tokens, prompts, and how the model is served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import PurePath
from typing import Any

from typing_extensions import TypedDict

from polargrid_local import __version__
from polargrid_local.api.logprobs import piece_text
from polargrid_local.api.parse import parse_request
from polargrid_local.api.requests import ChatCompletionRequest, CompletionRequest, Sampling
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import ValidationError, refused
from polargrid_local.service.given import Given
from polargrid_local.service.lease import Lease
from polargrid_local.service.service import Service


class Piece(TypedDict):
    """`piece`: its bytes, one by one, where they are no whole characters."""

    id: int
    piece: str | list[int]


class Tokens(TypedDict):
    """With `with_pieces` each as a Piece."""

    tokens: list[int] | list[Piece]


class CountedTokens(TypedDict):
    """As vLLM tells them. `token_strs`, with `return_token_strs`: the text of each, `bytes:` and escapes for a piece
    of a character; else null."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Version(TypedDict):
    version: str


class Load(TypedDict):
    """As vLLM tells it: requests that are being answered or wait."""

    server_load: int


class Text(TypedDict):
    """By its name at llama-server, and at vLLM."""

    content: str
    prompt: str


class Prompt(TypedDict):
    prompt: str


class Props(TypedDict):
    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    modalities: dict[str, bool]


class ListedAdapter(TypedDict):
    """`id`: by which the field `lora` of requests names it. `scale`: of answers of the model that was asked about, when
    they name none. `name`: the model that it makes, which is ours."""

    id: int
    path: str
    scale: float
    name: str


class TokenizerInfo(TypedDict):
    """As vLLM tells it, by the names in a tokenizer's configuration at Hugging Face. null: there is no such token."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: bool
    model_max_length: int
    chat_template: str


class Slot(TypedDict):
    id: int
    n_ctx: int
    is_processing: bool


async def tokenize(service: Service, given: Given) -> Tokens | CountedTokens:
    """`content` as llama-server has it; `prompt` or `messages` as vLLM does."""
    fields = Fields(given, "", given.ignored)
    name = fields.get("model", str)
    with_texts = fields.get("return_token_strs", bool) is True
    if given.get("messages") is not None:
        begins = fields.get("add_special_tokens", bool) is True
        words = {key: value for key, value in given.items() if key not in ("return_token_strs", "add_special_tokens")}
        request = parse_request("chat", words, max_tokens_limit=None, ignored=given.ignored)
        async with _leased(service, name) as lease:
            model = lease.model
            asked = service.completed(request, lease)
            tokens = await service.engine.tokenize(messages=asked, model=model)
            if begins and await _writes_bos(service, asked, model):  # then it is there twice, as at vLLM
                tokens = [tokens[0], *tokens]
            return await _counted(service, model, tokens, with_texts)
    content, prompt = fields.get("content", str), fields.get("prompt", str)
    if (content is None) == (prompt is None):
        raise ValidationError("content: required, a string; or prompt or messages in its place", param="content")
    if prompt is None and with_texts:
        raise refused("return_token_strs", "goes with prompt or messages; beside content it is with_pieces")
    text = prompt if content is None else content
    add_special = fields.get("add_special" if prompt is None else "add_special_tokens", bool)
    parse_special, with_pieces = fields.get("parse_special", bool), fields.get("with_pieces", bool)
    fields.end()
    async with _leased(service, name) as lease:
        model = lease.model
        tokens = await service.engine.tokenize(
            text,
            model=model,
            add_special=prompt is not None if add_special is None else add_special,
            parse_special=parse_special is not False,
        )
        if prompt is not None:
            return await _counted(service, model, tokens, with_texts)
        if not with_pieces:
            return {"tokens": tokens}
        pieces = await service.engine.token_pieces(tokens, model=model)
        told: list[Piece] = [{"id": token, "piece": _readable(piece)} for token, piece in zip(tokens, pieces)]
        return {"tokens": told}


async def version(service: Service, given: Given) -> Version:
    return {"version": __version__}


async def load(service: Service, given: Given) -> Load:
    return {"server_load": sum(stats["n_running"] + stats["n_waiting"] for stats in service.stats().values())}


async def detokenize(service: Service, given: Given) -> Text:
    fields = Fields(given, "", given.ignored)
    tokens = fields.need("tokens", list)
    hidden = fields.get("skip_special_tokens", bool) is True
    name = fields.get("model", str)
    fields.end()
    async with _leased(service, name) as lease:
        model = lease.model
        text = await service.engine.detokenize(tokens, model=model, special=not hidden)
    return {"content": text, "prompt": text}


async def apply_template(service: Service, given: Given) -> Prompt:
    """The prompt of a chat request, which is not answered."""
    request = parse_request("chat", given, max_tokens_limit=None, ignored=given.ignored)
    async with _leased(service, request.model) as lease:
        return {"prompt": await service.engine.apply_template(service.completed(request, lease))}


async def props(service: Service, given: Mapping[str, Any]) -> Props:
    async with _leased(service, given.get("model")) as lease:
        model = lease.model
        info = service.engine.info(model)
        params = {name: CompletionRequest.model_fields[name].get_default() for name in Sampling.model_fields}
        params["seed"] = -1  # another one for every answer
        params |= {name: value for name, value in service.defaults(model).items() if name in params}
        return {
            "default_generation_settings": {"n_ctx": info["n_ctx"], "params": {**params, "n_predict": -1}},
            "total_slots": info["max_streams"],
            "model_alias": model,
            "model_path": PurePath(info["path"]).name,
            "chat_template": info["chat_template"],
            "bos_token": info["bos_text"],
            "eos_token": info["eos_text"],
            "build_info": info["build"],
            "modalities": {"vision": False, "audio": False},
        }


async def adapters(service: Service, given: Mapping[str, Any]) -> list[ListedAdapter]:
    """Those that a model was loaded with, by the names of their files."""
    async with _leased(service, given.get("model")) as lease:
        listed: list[ListedAdapter] = []
        for adapter in service.engine.info(lease.model)["adapters"]:
            acts = adapter["name"] in ("", lease.asked)
            file, scale = PurePath(adapter["path"]).name, adapter["scale"] if acts else 0.0
            listed.append({"id": adapter["id"], "path": file, "scale": scale, "name": adapter["name"]})
        return listed


async def tokenizer_info(service: Service, given: Mapping[str, Any]) -> TokenizerInfo:
    async with _leased(service, given.get("model")) as lease:
        info = service.engine.info(lease.model)
        special = info["special_tokens"]
        return {
            "bos_token": special.get("bos_token"),
            "eos_token": special.get("eos_token"),
            "pad_token": special.get("pad_token"),
            "unk_token": special.get("unk_token"),
            "add_bos_token": info["add_bos"],
            "model_max_length": info["n_ctx"],
            "chat_template": info["chat_template"],
        }


async def slots(service: Service, given: Mapping[str, Any]) -> list[Slot]:
    """The streams that a model may have, and how many of them it has; which is which is not told."""
    async with _leased(service, given.get("model")) as lease:
        model = lease.model
        info, stats = service.engine.info(model), service.stats()[model]
        n_ctx, n_running = info["n_ctx"], stats["n_running"]
        return [{"id": i, "n_ctx": n_ctx, "is_processing": i < n_running} for i in range(info["max_streams"])]


def _readable(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


async def _counted(service: Service, model: str, tokens: list[int], with_texts: bool) -> CountedTokens:
    n_ctx = service.engine.info(model)["n_ctx"]
    pieces = await service.engine.token_pieces(tokens, model=model) if with_texts else None
    texts = None if pieces is None else [piece_text(piece) for piece in pieces]
    return {"count": len(tokens), "max_model_len": n_ctx, "tokens": tokens, "token_strs": texts}


async def _writes_bos(service: Service, chat: ChatCompletionRequest, model: str) -> bool:
    """Whether the template itself writes the token that the vocabulary puts before every text."""
    info = service.engine.info(model)
    bos = info["bos_text"] if info["add_bos"] else ""
    return bool(bos) and (await service.engine.apply_template(chat)).startswith(bos)


@asynccontextmanager
async def _leased(service: Service, name: str | None) -> AsyncIterator[Lease]:
    """A model, which is in memory meanwhile."""
    lease = await service.lease(name)
    try:
        yield lease
    finally:
        lease.release()
