"""Strings that remember which of their parts the user wrote, whatever a chat template does with them. Pure.

Each piece of user text travels as ONE character from an unassigned Unicode plane, its stand-in; a ledger knows what it
stands for. A stand-in cannot be split, trimmed away by halves or matched by a template's own literals, and it survives
every way of joining strings, also those in C. `Text` is a string of stand-ins and template text that answers questions
(length, startswith, split, ...) as the plain text would, so that templates decide as they would on the plain text. Where
some operation loses the subclass only those answers get worse, never the mark.

User text itself cannot hold a live stand-in: all of it is behind stand-ins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from polargrid_local.chat.budget import Budget
from polargrid_local.errors import TemplateError

_FIRST, _LAST = 0x40000, 0xDFFFF  # planes 4 to 13: no character has ever been assigned there
_STAND_IN = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")

_PIECE_CHARS = 32  # what a piece and its Text take beside the characters

Span = tuple[str, bool]  # text, trusted


class Ledger:
    """The user's pieces of one prompt, in the order of their stand-ins. What is done to them is paid out of `budget`."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self._pieces: list[str] = []

    @property
    def n_chars(self) -> int:
        return sum(map(len, self._pieces))

    def mark(self, text: str) -> str:
        """User text as a string to give to a template."""
        return Text(self._stand_in(text), self) if text else ""

    def _stand_in(self, text: str) -> str:
        if len(self._pieces) > _LAST - _FIRST:
            raise TemplateError("the chat template cuts its input into too many pieces")
        self.budget.make(len(text) + _PIECE_CHARS)
        self._pieces.append(text)
        return chr(_FIRST + len(self._pieces) - 1)

    def spans(self, text: str) -> Iterator[Span]:
        """Template text (trusted) and user text (not), in order; pieces as they were marked or cut."""
        raw, at = _raw(text), 0
        self.budget.read(len(raw))
        for match in _STAND_IN.finditer(raw):
            self.budget.spend(1)
            index = ord(match[0]) - _FIRST
            if index >= len(self._pieces):
                continue  # the template's own character
            if match.start() > at:
                yield raw[at : match.start()], True
            yield self._pieces[index], False
            at = match.end()
        if at < len(raw):
            yield raw[at:], True

    def plain(self, text: str) -> str:
        if str.__len__(text) == 1 and 0 <= ord(_raw(text)) - _FIRST < len(self._pieces):
            return self._pieces[ord(_raw(text)) - _FIRST]  # the usual case: one piece, not copied
        parts = [part for part, _ in self.spans(text)]
        self.budget.make(sum(map(len, parts)))
        return "".join(parts)

    def build(self, spans: Iterable[Span]) -> str:
        raw = "".join(text if trusted else self._stand_in(text) for text, trusted in spans if text)
        return Text(raw, self)


def merged(spans: Iterable[Span]) -> list[Span]:
    """Neighbours of one kind joined."""
    out: list[Span] = []
    run: list[str] = []
    kind = True
    for text, trusted in spans:
        if run and trusted != kind:
            out.append(("".join(run), kind))
            run.clear()
        kind = trusted
        run.append(text)
    if run:
        out.append(("".join(run), kind))
    return out


def joined(items: Iterable[Any]) -> str:
    """ "".join of strings, marked where one of them is."""
    parts = list(items)
    ledger = next((part._ledger for part in parts if isinstance(part, Text)), None)
    raw = "".join(parts)
    return raw if ledger is None else Text(raw, ledger)


def _raw(text: str) -> str:
    """With its stand-ins, as a str that nobody has taught anything."""
    return str.__str__(text)


def plain_of(text: str) -> str:
    """The text that any string stands for."""
    return text._plain() if isinstance(text, Text) else text


def _plain(value: Any) -> Any:
    if isinstance(value, Text):
        return value._plain()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


class Text(str):
    """Template text and stand-ins. Private to a render: never leaves it."""

    __slots__ = ("_known", "_ledger")

    _ledger: Ledger
    _known: str | None  # the plain text, once somebody has asked

    def __new__(cls, raw: str, ledger: Ledger | None = None) -> Text:
        if ledger is None:  # some library builds one: without a ledger it is a plain string, its stand-ins still marked
            return str.__new__(str, raw)  # type: ignore[return-value]  # no Text, as said above
        text = super().__new__(cls, raw)
        text._ledger = ledger
        text._known = None
        return text

    def _plain(self) -> str:
        if self._known is None:
            self._known = self._ledger.plain(self)
        return self._known

    def _cuts(self, bounds: Iterable[tuple[int, int]]) -> list[str]:
        """The plain text's [start:stop] for each of the bounds, marks kept; in one pass, so the bounds must ascend."""
        spans = list(self._ledger.spans(self))
        out: list[str] = []
        first = at = 0  # the first span that may still matter, and where it begins
        for start, stop in bounds:
            while first < len(spans) and at + len(spans[first][0]) <= start:
                at += len(spans[first][0])
                first += 1
            part: list[Span] = []
            i, offset = first, at
            while i < len(spans) and offset < stop:
                text, trusted = spans[i]
                part.append((text[max(start - offset, 0) : stop - offset], trusted))
                offset += len(text)
                i += 1
            out.append(self._ledger.build(part))
        return out

    def _cut(self, start: int, stop: int) -> str:
        if start <= 0 and stop >= len(self):
            return self
        return self._cuts([(start, stop)])[0]

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        inner = repr(self._plain())
        return inner[0] + self._ledger.mark(inner[1:-1]) + inner[-1]

    def __format__(self, spec: str) -> str:
        return self._ledger.mark(format(self._plain(), spec)) if spec else self

    def __hash__(self) -> int:
        return hash(self._plain())

    def __eq__(self, other: object) -> bool:
        return bool(self._plain() == _plain(other))

    def __ne__(self, other: object) -> bool:
        return bool(self._plain() != _plain(other))

    def __lt__(self, other: str) -> bool:
        return bool(self._plain() < _plain(other))

    def __le__(self, other: str) -> bool:
        return bool(self._plain() <= _plain(other))

    def __gt__(self, other: str) -> bool:
        return bool(self._plain() > _plain(other))

    def __ge__(self, other: str) -> bool:
        return bool(self._plain() >= _plain(other))

    def __contains__(self, other: object) -> bool:
        return _plain(other) in self._plain()

    def __len__(self) -> int:
        return len(self._plain())

    def __bool__(self) -> bool:
        return str.__len__(self) > 0  # no stand-in stands for nothing

    def __iter__(self) -> Iterator[str]:
        for text, trusted in self._ledger.spans(self):
            for char in text:
                yield char if trusted else self._ledger.mark(char)

    def __getitem__(self, key: Any) -> str:
        size = len(self)
        if isinstance(key, slice):
            start, stop, step = key.indices(size)
            if step == 1:
                return self._cut(start, stop)
            self._ledger.budget.items(20 * size)
            chars = [(char, trusted) for text, trusted in self._ledger.spans(self) for char in text]
            return self._ledger.build(merged(chars[key]))
        index = range(size)[key]
        return self._cut(index, index + 1)

    def __add__(self, other: str) -> str:
        return Text(_raw(self) + _raw(other), self._ledger) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return Text(_raw(other) + _raw(self), self._ledger) if isinstance(other, str) else NotImplemented

    def __mul__(self, n: Any) -> str:
        return Text(_raw(self) * n, self._ledger)

    __rmul__ = __mul__

    def __mod__(self, args: Any) -> str:
        raise TypeError("user text is not a format")

    def format(self, *args: Any, **kwargs: Any) -> str:
        """Python's own would reach any attribute that the format names. The sandbox formats, under its guard."""
        raise TypeError("user text is not a format")

    format_map = format

    # cutting

    def strip(self, chars: str | None = None) -> str:
        plain = self._plain()
        start = len(plain) - len(plain.lstrip(_plain(chars)))
        return self._cut(start, max(start, len(plain.rstrip(_plain(chars)))))

    def lstrip(self, chars: str | None = None) -> str:
        plain = self._plain()
        return self._cut(len(plain) - len(plain.lstrip(_plain(chars))), len(plain))

    def rstrip(self, chars: str | None = None) -> str:
        return self._cut(0, len(self._plain().rstrip(_plain(chars))))

    def removeprefix(self, prefix: str) -> str:
        return self._cut(len(prefix), len(self)) if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> str:
        return self._cut(0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

    def _found(self, parts: Iterable[str]) -> list[str]:
        """The marked counterparts of plain parts that lie in this order in the plain text."""
        plain, at, bounds = self._plain(), 0, []
        for part in parts:
            at = plain.index(part, at)
            bounds.append((at, at + len(part)))
            at += len(part)
        return self._cuts(bounds)

    def _between(self, parts: Iterable[str], gap: int) -> list[str]:
        """The marked counterparts of plain parts with `gap` characters between them."""
        at, bounds = 0, []
        for part in parts:
            bounds.append((at, at + len(part)))
            at += len(part) + gap
        return self._cuts(bounds)

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:  # type: ignore[override]  # templates give an int
        parts = self._plain().split(_plain(sep), maxsplit)
        return self._found(parts) if sep is None else self._between(parts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:  # type: ignore[override]  # templates give an int
        parts = self._plain().rsplit(_plain(sep), maxsplit)
        return self._found(parts) if sep is None else self._between(parts, len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._between(self._plain().splitlines(keepends=True), 0)
        return lines if keepends else [line[: len(bare)] for line, bare in zip(lines, self._plain().splitlines())]

    def partition(self, sep: str) -> tuple[str, str, str]:
        head, found, tail = self._between(self._plain().partition(_plain(sep)), 0)
        return head, found, tail

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        head, found, tail = self._between(self._plain().rpartition(_plain(sep)), 0)
        return head, found, tail

    def replace(self, old: str, new: str, count: int = -1) -> str:  # type: ignore[override]  # templates give an int
        if not old:
            return self._ledger.mark(self._plain().replace("", _plain(new), count))
        return Text("".join(_join(_raw(new), self.split(old, count))), self._ledger)

    def join(self, items: Iterable[str]) -> str:
        return Text("".join(_join(_raw(self), items)), self._ledger)

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        return self._plain().encode(*args, **kwargs)


def _join(separator: str, items: Iterable[str]) -> Iterator[str]:
    for i, item in enumerate(items):
        if i:
            yield separator
        yield item


def _ask(name: str) -> Any:
    """A question about the plain text."""

    def method(self: Text, *args: Any) -> Any:
        return getattr(self._plain(), name)(*map(_plain, args))

    return method


def _change(name: str) -> Any:
    """Any other change: the result counts as the user's, all of it."""

    def method(self: Text, *args: Any, **kwargs: Any) -> Any:
        return self._ledger.mark(getattr(self._plain(), name)(*map(_plain, args), **kwargs))

    return method


def _each(name: str) -> Any:
    """A change that works character by character."""

    def method(self: Text) -> Any:
        spans = self._ledger.spans(self)
        return self._ledger.build([(getattr(text, name)(), trusted) for text, trusted in spans])

    return method


for _kind, _names in (
    (
        _ask,
        "startswith endswith find rfind index rindex count isalnum isalpha isascii isdecimal isdigit isidentifier "
        "islower isnumeric isprintable isspace istitle isupper",
    ),
    (_each, "upper lower swapcase casefold"),
    (_change, "capitalize title center ljust rjust zfill expandtabs translate"),
):
    for _name in _names.split():
        _made = _kind(_name)
        _made.__name__ = _name
        setattr(Text, _name, _made)


def marked(value: Any, ledger: Ledger) -> Any:
    """A copy of plain data with every string marked, dict keys too."""
    if isinstance(value, str):
        return ledger.mark(value)
    if isinstance(value, Mapping):
        return {marked(key, ledger): marked(item, ledger) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [marked(item, ledger) for item in value]
    return value


def to_json(value: Any, ledger: Ledger, **options: Any) -> str:
    """json.dumps with the marks kept: punctuation is the template's, what stands inside user strings is the user's."""
    options.setdefault("ensure_ascii", False)
    ascii_only = options["ensure_ascii"]

    def escaped(text: str) -> str:
        spans = ledger.spans(_raw(text))
        return "".join(
            part if trusted else _raw(ledger.mark(json.dumps(part, ensure_ascii=ascii_only)[1:-1]))
            for part, trusted in spans
        )

    def walk(item: Any) -> Any:
        if isinstance(item, str):
            return escaped(item)
        if isinstance(item, Mapping):
            return {walk(key): walk(value) for key, value in item.items()}
        if isinstance(item, (list, tuple)):
            return [walk(part) for part in item]
        return item

    # Stand-ins pass through unescaped; the template's own text is made ASCII afterwards, where that is asked for.
    text = json.dumps(walk(value), **{**options, "ensure_ascii": False})
    if ascii_only:
        text = re.sub(
            r"[^\x00-\x7f]", lambda found: found[0] if _STAND_IN.match(found[0]) else json.dumps(found[0])[1:-1], text
        )
    return Text(text, ledger) if _STAND_IN.search(text) else text
