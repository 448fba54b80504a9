"""Text out of streams: their pieces, and their sentences for a voice."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, overload


def _piece(chunk: Mapping[str, Any]) -> str:
    choices = chunk["choices"]
    if not choices:
        return ""
    choice = choices[0]
    return (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""


@overload
def text_of(stream: AsyncIterable[Mapping[str, Any]]) -> AsyncIterator[str]: ...
@overload
def text_of(stream: Iterable[Mapping[str, Any]]) -> Iterator[str]: ...
def text_of(stream: Any) -> Any:
    """Only the text of a stream's chunks, sync or async: `for piece in text_of(stream): print(piece, end="")`."""
    return _text_of_async(stream) if hasattr(stream, "__aiter__") else _text_of(stream)


def _text_of(stream: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for chunk in stream:
        if piece := _piece(chunk):
            yield piece


async def _text_of_async(stream: AsyncIterable[Mapping[str, Any]]) -> AsyncIterator[str]:
    async for chunk in stream:
        if piece := _piece(chunk):
            yield piece


# A sentence ends with its stop, closing quotes and the blanks behind them, once the next character is there to show
# that the blanks are over; a CJK stop needs no blank; a line break always ends one.
_SENTENCE = re.compile(
    r"""(?:[^\n]*?(?:[.!?…]["'”’»)\]]*\s+|[。！？][」』”’）]*\s*(?![」』”’）]))|[^\n]*\n\s*)(?=\S)"""
)


@overload
def sentences(stream: AsyncIterable[Mapping[str, Any]]) -> AsyncIterator[str]: ...
@overload
def sentences(stream: Iterable[Mapping[str, Any]]) -> Iterator[str]: ...
def sentences(stream: Any) -> Any:
    """A stream's text in whole sentences, for display or speech. Nothing is lost or trimmed: joined, they are the
    text."""
    return _sentences_async(stream) if hasattr(stream, "__aiter__") else _sentences(stream)


def _cut(held: str) -> tuple[list[str], str]:
    whole, at = [], 0
    while match := _SENTENCE.match(held, at):
        whole.append(match[0])
        at = match.end()
    return whole, held[at:]


def _sentences(stream: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    held = ""
    for piece in _text_of(stream):
        whole, held = _cut(held + piece)
        yield from whole
    if held:
        yield held


async def _sentences_async(stream: AsyncIterable[Mapping[str, Any]]) -> AsyncIterator[str]:
    held = ""
    async for piece in _text_of_async(stream):
        whole, held = _cut(held + piece)
        for sentence in whole:
            yield sentence
    if held:
        yield held
