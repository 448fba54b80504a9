"""Fields: one object of a request in another API's words, read field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from polargrid_local.api.plain import shown
from polargrid_local.dialects.exchange import Words
from polargrid_local.errors import refused

T = TypeVar("T")

TYPES = {str: "a string", bool: "true or false", int: "a whole number", list: "a list", dict: "an object"}


class Fields:
    """null is a field left out. `place`: its path in the request. `ignored` gets the paths of what was not read."""

    def __init__(self, given: Any, place: str, ignored: list[str]) -> None:
        if not isinstance(given, Mapping):
            raise refused(place or "request", f"must be an object, got {shown(given)}")
        self._left = {str(key): value for key, value in given.items() if value is not None}
        self.place, self._ignored = place, ignored

    def path(self, field: str) -> str:
        return f"{self.place}.{field[:80]}" if self.place else field[:80]

    def has(self, field: str) -> bool:
        return field in self._left

    def any(self, field: str) -> Any:
        """Whatever it is; None where it is not there."""
        return self._left.pop(field, None)

    def get(self, field: str, type: type[T]) -> T | None:
        value = self.any(field)
        if isinstance(value, float) and type is int and value.is_integer():
            value = int(value)  # some JSON writers print 5 as 5.0
        if value is not None and (not isinstance(value, type) or (type is int and isinstance(value, bool))):
            raise refused(self.path(field), f"must be {TYPES[type]}, got {shown(value)}")
        return value

    def need(self, field: str, type: type[T]) -> T:
        value = self.get(field, type)
        if value is None:
            raise refused(self.path(field), f"required, {TYPES[type]}")
        return value

    def take(self, *names: str, **renamed: str) -> Words:
        """Those that are there, as they are; `renamed`: their name here -> the one in what is returned."""
        names_there = {**{name: name for name in names}, **renamed}
        return {ours: self._left.pop(name) for name, ours in names_there.items() if name in self._left}

    def inside(self, place: str, given: Any) -> Fields:
        """`given`, which stands at `place` in this object."""
        return Fields(given, self.path(place), self._ignored)

    def inner(self, field: str) -> Fields:
        """The object in a field; an empty one where it is not there."""
        return self.inside(field, self._left.pop(field, {}))

    def texts(self, field: str) -> list[str]:
        """One text, or several; none of them is empty."""
        given = self.any(field)
        if not isinstance(given, (str, list)) or not given:
            raise refused(self.path(field), "must be a text, or a list of texts; and not empty")
        if isinstance(given, str):
            return [given]
        for i, text in enumerate(given):
            if not isinstance(text, str) or not text:
                raise refused(self.path(f"{field}[{i}]"), "must be a text, which is not empty")
        return given

    def objects(self, field: str) -> list[Fields]:
        """The objects of a list."""
        return [self.inside(f"{field}[{i}]", item) for i, item in enumerate(self.get(field, list) or [])]

    def skip(self, *names: str) -> None:
        """What changes no answer."""
        self.take(*names)

    def refuse(self, cannot: Mapping[str, tuple[Any, ...]]) -> None:
        """Fields that ask for what there is not, each with the values that ask for nothing."""
        for field, nothing in cannot.items():
            value = self.any(field)
            if value is not None and value not in nothing:
                only = f"; only {' or '.join(map(repr, nothing))} is accepted" if nothing else ""
                raise refused(self.path(field), f"not supported by this engine{only}")

    def end(self) -> None:
        """What is left has not been read by anybody."""
        self._ignored += [self.path(field) for field in self._left]
        self._left = {}
