"""Taint tracking: strings that remember which of their parts came from outside, whatever a template does with them.

Tainted is all text of a request: what users, assistants and tools said. Trusted is what the template itself writes, and
only that may become control tokens. Each tainted piece travels through the template as ONE character of an unassigned
Unicode plane, its placeholder; a TaintTable knows which text it stands for. A placeholder cannot be split, trimmed by
halves or matched by a template's own literals, and it survives every way of joining strings, also those in C.

`TaintedText` is a string of placeholders and template text that answers questions (length, startswith, split, ...) as
the plain text would, so that templates decide as they would on the plain text. Where some operation makes a plain str
of it, those answers are about placeholders, but the taint stays. Tainted text cannot forge a placeholder of its own:
whatever characters it holds are in the table, never in the string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

from polargrid_local.chat.budget import Budget
from polargrid_local.errors import TemplateError

_FIRST, _LAST = 0x40000, 0xDFFFF  # the placeholders: planes 4 to 13, where no character has ever been assigned
_PLACEHOLDER = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")

_PIECE_CHARS = 32  # what the objects of a piece take beside its own characters

Span = tuple[str, bool]  # text, and whether it is trusted


class TaintTable:
    """The tainted pieces of one prompt, in the order of their placeholders. Work on them is paid out of `budget`."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self._pieces: list[str] = []

    @property
    def n_chars(self) -> int:
        return sum(map(len, self._pieces))

    def taint(self, text: str) -> str:
        """Text from outside as a string to give to a template."""
        return TaintedText(self._placeholder(text), self) if text else ""

    def _placeholder(self, text: str) -> str:
        if len(self._pieces) > _LAST - _FIRST:
            raise TemplateError("the chat template cuts its input into too many pieces")
        self.budget.make(len(text) + _PIECE_CHARS)
        self._pieces.append(text)
        return chr(_FIRST + len(self._pieces) - 1)

    def spans(self, text: str) -> Iterator[Span]:
        """The trusted and the tainted parts of `text` in order; tainted pieces as they were entered or cut."""
        raw, at = _raw(text), 0
        self.budget.read(len(raw))
        for match in _PLACEHOLDER.finditer(raw):
            self.budget.spend(1)
            index = ord(match[0]) - _FIRST
            if index >= len(self._pieces):
                continue  # a character that the template itself writes, and no placeholder yet
            if match.start() > at:
                yield raw[at : match.start()], True
            yield self._pieces[index], False
            at = match.end()
        if at < len(raw):
            yield raw[at:], True

    def plain(self, text: str) -> str:
        """The text that a string with placeholders stands for."""
        if str.__len__(text) == 1 and 0 <= ord(_raw(text)) - _FIRST < len(self._pieces):
            return self._pieces[ord(_raw(text)) - _FIRST]  # most texts are one piece, which need not be copied
        parts = [part for part, _ in self.spans(text)]
        self.budget.make(sum(map(len, parts)))
        return "".join(parts)

    def build(self, spans: Iterable[Span]) -> str:
        """The reverse of `spans`: a string with new placeholders for the parts that are not trusted."""
        raw = "".join(text if trusted else self._placeholder(text) for text, trusted in spans if text)
        return TaintedText(raw, self)


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Neighbours that are both trusted, or both not, as one span."""
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


def join_tainted(items: Iterable[Any]) -> str:
    """ "".join of strings, tainted where one of them is."""
    parts = list(items)
    taints = next((part._taints for part in parts if isinstance(part, TaintedText)), None)
    raw = "".join(parts)
    return raw if taints is None else TaintedText(raw, taints)


def _raw(text: str) -> str:
    """The string with its placeholders, as a plain str."""
    return str.__str__(text)


def plain_of(text: str) -> str:
    """The text that any string stands for."""
    return text._plain() if isinstance(text, TaintedText) else text


def _plain(value: Any) -> Any:
    if isinstance(value, TaintedText):
        return value._plain()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


class TaintedText(str):
    """Template text and placeholders. Private to a render: never leaves it."""

    __slots__ = ("_known", "_taints")

    _taints: TaintTable
    _known: str | None  # the plain text, from the first question on

    def __new__(cls, raw: str, taints: TaintTable | None = None) -> TaintedText:
        if taints is None:
            # Python's and Jinja's own code may call the class with a text alone. The placeholders in it stay tainted.
            return str.__new__(str, raw)  # type: ignore[return-value]  # a plain str, for want of a table
        text = super().__new__(cls, raw)
        text._taints = taints
        text._known = None
        return text

    def _plain(self) -> str:
        if self._known is None:
            self._known = self._taints.plain(self)
        return self._known

    def _cuts(self, bounds: Iterable[tuple[int, int]]) -> list[str]:
        """The plain text's [start:stop] for each of the bounds, still tainted. One pass: the bounds must ascend."""
        spans = list(self._taints.spans(self))
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
            out.append(self._taints.build(part))
        return out

    def _cut(self, start: int, stop: int) -> str:
        if start <= 0 and stop >= len(self):
            return self
        return self._cuts([(start, stop)])[0]

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        inner = repr(self._plain())
        return inner[0] + self._taints.taint(inner[1:-1]) + inner[-1]

    def __format__(self, spec: str) -> str:
        return self._taints.taint(format(self._plain(), spec)) if spec else self

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
        return str.__len__(self) > 0  # a placeholder never stands for empty text

    def __iter__(self) -> Iterator[str]:
        for text, trusted in self._taints.spans(self):
            for char in text:
                yield char if trusted else self._taints.taint(char)

    def __getitem__(self, key: Any) -> str:
        size = len(self)
        if isinstance(key, slice):
            start, stop, step = key.indices(size)
            if step == 1:
                return self._cut(start, stop)
            self._taints.budget.items(20 * size)
            chars = [(char, trusted) for text, trusted in self._taints.spans(self) for char in text]
            return self._taints.build(merge_spans(chars[key]))
        index = range(size)[key]
        return self._cut(index, index + 1)

    def __add__(self, other: str) -> str:
        return TaintedText(_raw(self) + _raw(other), self._taints) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return TaintedText(_raw(other) + _raw(self), self._taints) if isinstance(other, str) else NotImplemented

    def __mul__(self, n: Any) -> str:
        return TaintedText(_raw(self) * n, self._taints)

    __rmul__ = __mul__

    def __mod__(self, args: Any) -> str:
        raise TypeError("user text is not a format")

    def format(self, *args: Any, **kwargs: Any) -> str:
        """Refused: str.format would read any attribute that the format names. The sandbox has a bounded one."""
        raise TypeError("user text is not a format")

    format_map = format

    # methods that cut

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
        """The tainted counterparts of plain parts that lie in this order in the plain text."""
        plain, at, bounds = self._plain(), 0, []
        for part in parts:
            at = plain.index(part, at)
            bounds.append((at, at + len(part)))
            at += len(part)
        return self._cuts(bounds)

    def _between(self, parts: Iterable[str], gap: int) -> list[str]:
        """The tainted counterparts of plain parts with `gap` characters between them."""
        at, bounds = 0, []
        for part in parts:
            bounds.append((at, at + len(part)))
            at += len(part) + gap
        return self._cuts(bounds)

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        parts = self._plain().split(_plain(sep), maxsplit)
        return self._found(parts) if sep is None else self._between(parts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
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

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not old:
            return self._taints.taint(self._plain().replace("", _plain(new), count))
        return TaintedText("".join(_join(_raw(new), self.split(old, count))), self._taints)

    def join(self, items: Iterable[str]) -> str:
        return TaintedText("".join(_join(_raw(self), items)), self._taints)

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        return self._plain().encode(*args, **kwargs)


def _join(separator: str, items: Iterable[str]) -> Iterator[str]:
    for i, item in enumerate(items):
        if i:
            yield separator
        yield item


def _question(name: str) -> Any:
    """A method that only asks about the plain text."""

    def method(self: TaintedText, *args: Any) -> Any:
        return getattr(self._plain(), name)(*map(_plain, args))

    return method


def _whole_change(name: str) -> Any:
    """A method that changes text in any other way: the whole result is tainted."""

    def method(self: TaintedText, *args: Any, **kwargs: Any) -> Any:
        return self._taints.taint(getattr(self._plain(), name)(*map(_plain, args), **kwargs))

    return method


def _char_change(name: str) -> Any:
    """A method that changes each character by itself: trusted parts stay trusted, tainted ones tainted."""

    def method(self: TaintedText) -> Any:
        spans = self._taints.spans(self)
        return self._taints.build([(getattr(text, name)(), trusted) for text, trusted in spans])

    return method


for _kind, _names in (
    (
        _question,
        "startswith endswith find rfind index rindex count isalnum isalpha isascii isdecimal isdigit isidentifier "
        "islower isnumeric isprintable isspace istitle isupper",
    ),
    (_char_change, "upper lower swapcase casefold"),
    (_whole_change, "capitalize title center ljust rjust zfill expandtabs translate"),
):
    for _name in _names.split():
        _made = _kind(_name)
        _made.__name__ = _name
        setattr(TaintedText, _name, _made)


def tainted(value: Any, taints: TaintTable) -> Any:
    """A copy of plain data with every string tainted, dict keys too."""
    if isinstance(value, str):
        return taints.taint(value)
    if isinstance(value, Mapping):
        return {tainted(key, taints): tainted(item, taints) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tainted(item, taints) for item in value]
    return value


def to_json(value: Any, taints: TaintTable, **options: Any) -> str:
    """json.dumps of data with tainted strings: their contents stay tainted, JSON's punctuation is trusted."""
    options.setdefault("ensure_ascii", False)
    ascii_only = options["ensure_ascii"]

    def escaped(text: str) -> str:
        spans = taints.spans(_raw(text))
        return "".join(
            part if trusted else _raw(taints.taint(json.dumps(part, ensure_ascii=ascii_only)[1:-1]))
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

    # Placeholders pass through unescaped; the template's own text is made ASCII afterwards, where that is asked for.
    text = json.dumps(walk(value), **{**options, "ensure_ascii": False})
    if ascii_only:
        text = re.sub(
            r"[^\x00-\x7f]",
            lambda found: found[0] if _PLACEHOLDER.match(found[0]) else json.dumps(found[0])[1:-1],
            text,
        )
    return TaintedText(text, taints) if _PLACEHOLDER.search(text) else text
