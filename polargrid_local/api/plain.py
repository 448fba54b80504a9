"""Plain data: a bounded copy of whatever a caller passed, and how a place in it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Integral, Real
from typing import Any

from pydantic import BaseModel

from polargrid_local.errors import ValidationError, refused

MAX_DEPTH = 64
MAX_VALUES = 100_000  # in one request, every item of every list and mapping counted: more than any client sends


def plain(value: Any, *loc: str | int) -> Any:
    """`value` in new dicts, lists, strings and numbers, whatever mappings and objects with `model_dump` it came in.
    `loc`: where it stands, as keys and indices.

    One bounded walk: what holds itself, what is shared a million times and a mapping whose iteration never ends are all
    refused after MAX_VALUES steps or MAX_DEPTH levels. So is half a surrogate pair, which no tokenizer and no encoder
    takes. Raises ValidationError naming the place."""
    left, place = MAX_VALUES, list(loc)

    def refuse(problem: str, *, whole: bool = False) -> ValidationError:
        """`whole`: not this place is to blame, but the field that it lies in."""
        where = place[:1] if whole and place and isinstance(place[0], str) else [] if whole else place
        return refused(path(tuple(where)) or "request", problem)

    def read(items: Iterable[Any]) -> list[Any]:
        try:
            found = list(islice(items, left + 1))  # one more than allowed shows that there are too many
        except Exception as error:
            raise refuse(f"cannot be read: {type(error).__name__}: {str(error)[:200]}") from None
        if len(found) > left:
            raise refuse(f"holds more than {MAX_VALUES} values", whole=True)
        return found

    def inside(key: str | int, value: Any, depth: int) -> Any:
        place.append(key)
        value = copy(value, depth)
        place.pop()
        return value

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise refuse(f"holds more than {MAX_VALUES} values", whole=True)
        if isinstance(value, str):
            try:
                value.isascii() or value.encode()
            except UnicodeEncodeError as error:
                raise refuse(f"lone surrogate at character {error.start}") from None
            return str.__str__(value)
        if value is None or isinstance(value, (int, float, type)):
            return value
        if depth > MAX_DEPTH:
            raise refuse(f"nested deeper than {MAX_DEPTH}", whole=True)
        if isinstance(value, (list, tuple)):
            return [inside(i, item, depth + 1) for i, item in enumerate(read(value))]
        if isinstance(value, Mapping):
            fresh = {}
            for key, item in read(_items(value)):
                if isinstance(key, bool) or not isinstance(key, (str, int)):
                    raise refuse(f"keys must be strings, got {type(key).__name__}")
                key = copy(key, depth)
                fresh[key] = inside(key, item, depth + 1)
            return fresh
        if hasattr(value, "model_dump"):
            if isinstance(value, BaseModel):
                copy(dict(value), depth + 1)  # checked first, since model_dump of what is not bounded would not end
            (dumped,) = read(value.model_dump() for _ in range(1))
            return copy(dumped, depth + 1)
        if isinstance(value, Real):  # numbers of numpy and the like
            return int(value) if isinstance(value, Integral) else float(value)
        if not callable(value):
            raise refuse(f"must be plain data, got {type(value).__name__}")
        return value

    return copy(value, 0 if loc else -1)


def _items(mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    for key, item in mapping.items():  # noqa: UP028  # unpacking fails here, inside the caller's try
        yield key, item


def path(loc: tuple[Any, ...]) -> str:
    """('messages', 2, 'content') -> messages[2].content"""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]" if abs(part) < 2**80 else "[...]"
        elif not part.startswith("<") and part != "[key]":
            text += f".{part[:80]}" if text else part[:80]
    return text


def shown(value: Any) -> str:
    """A value as an error message shows it. Python itself refuses to write out an integer of thousands of digits."""
    return "a huge number" if isinstance(value, int) and abs(value) >= 2**80 else repr(value)[:80]
