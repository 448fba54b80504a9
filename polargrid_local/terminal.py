"""The terminal: progress bars and notes on stderr, answers on stdout, and the interactive chat."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from polargrid_local.errors import PolarGridError

if TYPE_CHECKING:
    from polargrid_local.engine import ChatStream
    from polargrid_local.params import MessageParam

    Open = Callable[[list[MessageParam]], ChatStream[Any]]  # messages -> a running stream

HELP = """/reset          forget the conversation
/system [TEXT]  say who the model shall be; without TEXT, nobody
/exit           leave (so does Ctrl-D)
Ctrl-C stops an answer and keeps the chat."""


class Form(str, Enum):
    """How an answer is written to stdout."""

    text = "text"
    json = "json"  # one chunk per line
    sse = "sse"  # the server's event stream


def note(text: str) -> None:
    """One line for the person in front of it; stdout is for answers alone."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def write_answer(stream: ChatStream[Any], form: Form, out: TextIO) -> None:
    """Write a ChatStream as it comes. Raises what ends it early; leaving early cancels it."""
    last = ""
    with stream:
        for chunk in stream:
            if form is Form.text:
                choice = chunk["choices"][0] if chunk["choices"] else {}
                piece = choice.get("delta", {}).get("content") or choice.get("text") or ""
                last = piece or last
            else:
                line = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
                piece = line + "\n" if form is Form.json else f"data: {line}\n\n"
            out.write(piece)
            out.flush()
    if form is Form.sse:
        out.write("data: [DONE]\n\n")
    elif form is Form.text and not last.endswith("\n"):
        out.write("\n")
    out.flush()


@contextlib.contextmanager
def download_progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, silence elsewhere. Yields the callback that `Store.pull` wants."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def load_progress(what: str) -> Iterator[Callable[[float], None] | None]:
    """A bar on a terminal while a model loads. Yields the engine's `on_load_progress`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as progress:
        task = progress.add_task(f"loading {what}", total=1.0)
        yield lambda share: progress.update(task, completed=share)


class Chat:
    """A conversation with the person at the terminal: reads lines, writes answers, keeps the history."""

    def __init__(self, open_stream: Open, system: str | None, form: Form) -> None:
        self._open = open_stream
        self._system = system
        self._form = form
        self._turns: list[MessageParam] = []

    def run(self) -> None:
        """Until Ctrl-D or /exit."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() editing and history
        while True:
            try:
                line = self._read().strip()
            except EOFError:
                sys.stderr.write("\n")
                return
            except KeyboardInterrupt:
                note("\nCtrl-D or /exit to leave")
                continue
            if line == "/exit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._say(line)

    def _read(self) -> str:
        if sys.stdout.isatty():
            return input("> ")
        sys.stderr.write("> ")  # stdout goes elsewhere, and input() would prompt there
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def _command(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self._turns.clear()
            note("conversation forgotten")
        elif command == "/system":
            self._system = rest.strip() or None
            note("system message set" if self._system else "system message removed")
        elif command == "/help":
            note(HELP)
        else:
            note(f"unknown command {command}\n{HELP}")

    def _say(self, line: str) -> None:
        system: list[MessageParam] = [{"role": "system", "content": self._system}] if self._system else []
        asked: MessageParam = {"role": "user", "content": line}
        stream = None
        try:
            stream = self._open([*system, *self._turns, asked])
            write_answer(stream, self._form, sys.stdout)
            if stream.finish_reason == "length":
                note("[stopped: --max-tokens or the context is used up]")
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            sys.stdout.flush()
            note("[stopped]")
        except PolarGridError as error:
            note(f"error: {error}")
        text = stream.text if stream is not None else ""
        if text:  # a turn without an answer would leave two user messages in a row
            self._turns += [asked, {"role": "assistant", "content": text}]
