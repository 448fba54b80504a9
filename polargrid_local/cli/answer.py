"""An answer on stdout, as it streams; stderr gets the notes for the person in front of it."""

from __future__ import annotations

import json
import os
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from polargrid_local.cli.wrap import Wrap

if TYPE_CHECKING:
    from polargrid_local.engine import ChatStream


class Form(str, Enum):
    """How an answer is written to stdout."""

    text = "text"
    json = "json"  # one chunk per line
    sse = "sse"  # the server's event stream


def note(text: str) -> None:
    """One line on stderr: stdout is for answers alone."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def write_answer(stream: ChatStream[Any], form: Form, out: TextIO) -> None:
    """Write a ChatStream as it comes. Raises what ends it early; leaving early cancels it.

    On a terminal, text is wrapped between words; anywhere else every form is written as it is."""
    wrap = Wrap(lambda: _width(out)) if form is Form.text and out.isatty() else None
    last = ""
    try:
        with stream:
            for chunk in stream:
                if form is Form.text:
                    choice = chunk["choices"][0] if chunk["choices"] else {}
                    piece = choice.get("delta", {}).get("content") or choice.get("text") or ""
                    last = piece or last
                else:
                    line = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
                    piece = line + "\n" if form is Form.json else f"data: {line}\n\n"
                out.write(wrap.feed(piece) if wrap else piece)
                out.flush()
    finally:
        if wrap:
            out.write(wrap.finish())
            out.flush()
    if form is Form.sse:
        out.write("data: [DONE]\n\n")
    elif form is Form.text and not last.endswith("\n"):
        out.write("\n")
    out.flush()


def _width(out: TextIO) -> int:
    """Columns of the terminal at this moment; 0 = unknown."""
    try:
        return os.get_terminal_size(out.fileno()).columns
    except (OSError, ValueError):
        return 0
