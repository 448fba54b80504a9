"""Logprobs: tokens with the logarithms of their probabilities, as OpenAI's chats and completions write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from polargrid_local.api.events import TokenLogprob
from polargrid_local.api.replies import ChatLogprobs, ChatTopLogprob, PromptLogprob, PromptLogprobs, TextLogprobs


class PlacedLogprob(NamedTuple):
    """A token's logprob, with the offset, in characters of the answer, at which the text of its event begins."""

    offset: int
    entry: TokenLogprob
    foretold: bool = True  # False: the first token of a prompt, before which there was nothing


def _token_text(entry: TokenLogprob, by_id: bool = False) -> str:
    """A token's text; OpenAI's `bytes:` and escapes for a piece of a character, `token_id:` and the number for a token
    that has no text, a control token. `by_id`: that for every token."""
    raw = bytes(entry["bytes"])
    if by_id or not raw:
        return f"token_id:{entry['token']}"
    return piece_text(raw)


def piece_text(piece: bytes) -> str:
    """The text of a token; OpenAI's `bytes:` and escapes for a piece of a character."""
    try:
        return str(piece, "utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def placed_in_prompt(entries: Sequence[TokenLogprob], n_top: int) -> list[PlacedLogprob]:
    """Of a prompt's own tokens, each at its own place in the text and with `n_top` alternatives."""
    placed: list[PlacedLogprob] = []
    before = b""
    for entry in entries:
        told: TokenLogprob = {**entry, "top": entry["top"][:n_top]}
        placed.append(PlacedLogprob(len(before.decode("utf-8", "ignore")), told, foretold=bool(placed)))
        before += bytes(entry["bytes"])
    return placed


def prompt_logprobs(entries: Sequence[TokenLogprob], n_top: int) -> PromptLogprobs:
    """Of a prompt's own tokens, each with the `n_top` likeliest at its place."""
    told: PromptLogprobs = [_said_of(entry, n_top) for entry in entries]
    return [None, *told[1:]] if told else []


def _said_of(entry: TokenLogprob, n_top: int) -> dict[int, PromptLogprob]:
    ranks = {top["token"]: rank for rank, top in enumerate(entry["top"], 1)}
    return {
        told["token"]: {
            "logprob": told["logprob"],
            "rank": told.get("rank") or ranks.get(told["token"]),
            "decoded_token": _token_text(told),
        }
        for told in (entry, *entry["top"][:n_top])
    }


def chat_logprobs(entries: list[PlacedLogprob], by_id: bool = False) -> ChatLogprobs:
    """As a choice of a chat or of its chunk has them."""
    return {
        "content": [
            {**_chat_logprob(entry, by_id), "top_logprobs": [_chat_logprob(top, by_id) for top in entry["top"]]}
            for _, entry, _ in entries
        ]
    }


def _chat_logprob(entry: TokenLogprob, by_id: bool) -> ChatTopLogprob:
    return {"token": _token_text(entry, by_id), "logprob": entry["logprob"], "bytes": list(entry["bytes"])}


def text_logprobs(entries: list[PlacedLogprob], by_id: bool = False, with_ids: bool = False) -> TextLogprobs:
    """As a choice of a completion or of its chunk has them; `with_ids`: with the numbers of all tokens."""
    told: TextLogprobs = {
        "tokens": [_token_text(placed.entry, by_id) for placed in entries],
        "token_logprobs": [placed.entry["logprob"] if placed.foretold else None for placed in entries],
        "top_logprobs": [_top_logprobs(placed.entry, by_id) if placed.foretold else None for placed in entries],
        "text_offset": [placed.offset for placed in entries],
    }
    if with_ids:
        told["token_ids"] = [placed.entry["token"] for placed in entries]
        told["top_token_ids"] = [
            [top["token"] for top in _likeliest(placed.entry)] if placed.foretold else None for placed in entries
        ]
    return told


def _likeliest(entry: TokenLogprob) -> list[TokenLogprob]:
    """And the token itself where it is none of them."""
    top = entry["top"]
    return top if any(other["token"] == entry["token"] for other in top) else [*top, entry]


def _top_logprobs(entry: TokenLogprob, by_id: bool) -> dict[str, float]:
    """The likeliest tokens and the one sampled, likeliest first. Where two read the same, the sampled one or else the
    likelier has the text as its name, the other `token_id:` and its number."""
    sampled = entry["token"]
    taken = {_token_text(entry, by_id)}
    named = {}
    for other in _likeliest(entry):
        name = _token_text(other, by_id)
        if other["token"] != sampled and name in taken:
            name = f"token_id:{other['token']}"
        taken.add(name)
        named[name] = other["logprob"]
    return named
