"""Logprobs of a completion in the form of a chat's: an entry per token, with its bytes and its alternatives."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from polargrid_local.dialects.exchange import Words

_BYTE = re.compile(r"\\x([0-9a-f]{2})")
_NO_TEXT = re.compile(r"token_id:\d+")


def token_entries(logprobs: Mapping[str, Any], n_top: int | None = None) -> list[Words]:
    """`logprobs`: the lists that a choice of a completion has. Entries have an `id` where those have one, and `n_top`
    alternatives at most, the likeliest."""
    lists = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    entries = [
        {**_entry(token, logprob), "top_logprobs": [_entry(*likely) for likely in top.items()][:n_top]}
        for token, logprob, top in lists
    ]
    if "token_ids" not in logprobs:
        return entries
    return [
        {"id": id, **entry, "top_logprobs": [{"id": id, **top} for id, top in zip(top_ids, entry["top_logprobs"])]}
        for entry, id, top_ids in zip(entries, logprobs["token_ids"], logprobs["top_token_ids"])
    ]


def token_probs(logprobs: Mapping[str, Any], n_top: int | None = None) -> list[Words]:
    """The same with probabilities in place of their logarithms, which are lists by other names."""
    return [
        {**_as_prob(entry), "top_probs": [_as_prob(top) for top in entry["top_logprobs"]]}
        for entry in token_entries(logprobs, n_top)
    ]


def _as_prob(entry: Words) -> Words:
    told = {name: value for name, value in entry.items() if name not in ("logprob", "top_logprobs")}
    return {**told, "prob": math.exp(entry["logprob"])}


def _entry(token: str, logprob: float) -> Words:
    return {"token": token, "logprob": logprob, "bytes": list(_bytes(token))}


def _bytes(token: str) -> bytes:
    """Of a token by its name, which for a piece of a character spells them, and for a control token says its number."""
    if token.startswith("bytes:\\x"):
        return bytes(int(digits, 16) for digits in _BYTE.findall(token))
    return b"" if _NO_TEXT.fullmatch(token) else token.encode()
