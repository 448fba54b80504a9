"""Samplers: llama-server's list of what chooses a token, and whether this engine's order gives what it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from pydantic_core import PydanticCustomError

from polargrid_local.errors import refused

# In the order in which this engine applies them: the fields of each, with the values at which it does nothing.
NEUTRAL: dict[str, dict[str, float]] = {
    "penalties": {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
    "dry": {"dry_multiplier": 0.0},
    "top_n_sigma": {"top_n_sigma": -1.0},
    "temperature": {"temperature": 1.0, "dynatemp_range": 0.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "typ_p": {"typical_p": 1.0},
    "xtc": {"xtc_probability": 0.0},
}
ORDER = tuple(NEUTRAL)
_SPELLINGS = {"typical_p": "typ_p", "typical": "typ_p", "typ": "typ_p", "temp": "temperature", "nucleus": "top_p"}
_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "t": "temperature",
    "k": "top_k",
    "p": "top_p",
    "m": "min_p",
    "y": "typ_p",
    "x": "xtc",
}
# Either of two goes first, and the same tokens are left with the same chances: a temperature changes neither the order
# of the tokens nor their distances in standard deviations; min_p measures against the likeliest, which top_k keeps.
_COMMUTE = [{"temperature", "top_k"}, {"temperature", "top_n_sigma"}, {"top_k", "min_p"}]
_KEEP_THE_BEST = {"top_n_sigma", "top_k", "top_p", "min_p"}


def sampler_names(value: Any) -> list[str]:
    """A list of names, or a text of one letter for each. Raises PydanticCustomError."""
    if isinstance(value, str):
        value = [_LETTERS.get(letter, letter) for letter in value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise PydanticCustomError("type", "must be a list of names")
    names = [_SPELLINGS.get(name, name) for name in (given.replace("-", "_") for given in value)]
    for i, name in enumerate(names):
        if name not in NEUTRAL:
            raise PydanticCustomError("name", f"item {i} must be one of {', '.join(ORDER)}")
        if name in names[:i]:
            raise PydanticCustomError("name", f"item {i} names {name} again")
    return names


def without_the_others(names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of samplers that `names` leaves out, with the values at which they do nothing. `values`: the request's
    own. Raises ValidationError where the order of `names` gives another answer than the engine's."""
    if values["mirostat"]:
        raise refused("samplers", "must be left out with mirostat, which chooses in their place")
    off = {field: value for name in ORDER if name not in names for field, value in NEUTRAL[name].items()}
    values = {**values, **off}
    for first, second in combinations([name for name in names if _acts(name, values)], 2):
        if ORDER.index(first) > ORDER.index(second) and not _commute({first, second}, values):
            used = ", ".join(ORDER)
            raise refused("samplers", f"{first} before {second} is not supported by this engine, whose order is {used}")
    return off


def _acts(name: str, values: Mapping[str, Any]) -> bool:
    if name == "xtc":
        return bool(values["xtc_probability"] > 0 and values["xtc_threshold"] <= 0.5)
    if name in ("top_k", "top_n_sigma"):
        return bool(values[name] > 0)
    return any(values[field] != value for field, value in NEUTRAL[name].items())


def _commute(pair: set[str], values: Mapping[str, Any]) -> bool:
    if "temperature" in pair:
        if values["dynatemp_range"] > 0:  # then it hangs on what is left
            return False
        if values["temperature"] == 0 and pair & _KEEP_THE_BEST:  # the likeliest token it is, whatever else is left
            return True
    return pair in _COMMUTE
