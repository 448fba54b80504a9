"""The terminal: progress bars and notes on stderr, answers on stdout, and the interactive chat."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from polargrid_local.cli.prompt import EditorPrompt, LinePrompt, message_of
from polargrid_local.cli.wrap import Wrap
from polargrid_local.errors import ContextLengthError, PolarGridError

if TYPE_CHECKING:
    from polargrid_local.api.params import MessageParam
    from polargrid_local.engine import ChatStream

    Open = Callable[[list[MessageParam]], ChatStream[Any]]  # messages -> a running stream

HELP = '''/reset          forget the conversation
/system [TEXT]  say who the model shall be; without TEXT, nobody
/help, /?       this
/bye            leave (so do /exit, /quit, Ctrl-D, and Ctrl-C twice)

{keys}
Between """ and """ a message may have any lines, and nothing in it is a command.
A message that begins with / is sent by beginning it with //.
Ctrl-C stops an answer and keeps the chat; what was said until then stays in the conversation.
Ctrl-C at the prompt clears it.'''
HELP_COMMANDS, LEAVE_COMMANDS = ("/help", "/?"), ("/bye", "/exit", "/quit")


class Form(str, Enum):
    """How an answer is written to stdout."""

    text = "text"
    json = "json"  # one chunk per line
    sse = "sse"  # the server's event stream


def note(text: str) -> None:
    """One line for the person in front of it; stdout is for answers alone."""
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
    """A conversation with the person at the terminal: takes messages and commands, writes answers, keeps the turns."""

    def __init__(self, prompt: LinePrompt | EditorPrompt, open_stream: Open, system: str | None, form: Form) -> None:
        self._prompt = prompt
        self._open = open_stream
        self._system = system
        self._form = form
        self._turns: list[MessageParam] = []
        self._offered = ""  # what was typed in vain: stands at the next prompt
        self._interrupted = False  # the last thing that came was Ctrl-C at an empty prompt

    def run(self) -> None:
        """Until Ctrl-D or /bye. Raises KeyboardInterrupt for Ctrl-C twice at the prompt."""
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except KeyboardInterrupt:  # pressed once too often to stop an answer
                continue
        if self._interrupted:
            raise KeyboardInterrupt

    def _turn(self) -> bool:
        """Take one message or command; False when the person leaves."""
        offered, self._offered = self._offered, ""
        try:
            typed = self._prompt.ask(offered)
        except EOFError:
            self._interrupted = False
            sys.stderr.write("\n")
            return False
        except KeyboardInterrupt:
            if self._interrupted:
                return False
            self._interrupted = True
            note("Ctrl-C again, Ctrl-D or /bye to leave")
            return True
        self._interrupted = False
        try:
            text, literal = message_of(typed)
        except PolarGridError as error:
            note(f"error: {error}")
            return True
        if text.startswith("/") and not literal:
            return self._slash(text, typed)
        if text:
            self._say(text, typed)
        return True

    def _slash(self, text: str, typed: str) -> bool:
        """A text that begins with /: a command, or a message after all. False when the person leaves."""
        command = text.split(maxsplit=1)[0]
        if command == "/system":
            self._system = text.removeprefix(command).strip() or None
            note("system message set" if self._system else "system message removed")
        elif text in LEAVE_COMMANDS:
            return False
        elif text in HELP_COMMANDS:
            note(HELP.format(keys=self._prompt.keys))
        elif text == "/reset":
            self._turns.clear()
            note("conversation forgotten")
        elif "\n" in text:  # a pasted list of paths, or code that begins with a comment
            self._say(text, typed)
        elif text.startswith("//"):
            self._say(text[1:], typed)
        else:
            known = command in (*LEAVE_COMMANDS, *HELP_COMMANDS, "/reset")
            what = f"{command} takes nothing more" if known else f"unknown command {command} (/help lists them)"
            if self._prompt.confirm(f"{what}: send it as a message? [y/N] "):
                self._say(text, typed)
            else:
                self._offered = typed
        return True

    def _say(self, text: str, typed: str) -> None:
        system: list[MessageParam] = [{"role": "system", "content": self._system}] if self._system else []
        asked: MessageParam = {"role": "user", "content": text}
        stream, said = None, ""
        try:
            stream = self._open([*system, *self._turns, asked])
            write_answer(stream, self._form, sys.stdout)
            said = stream.text
            if stream.finish_reason == "length":
                note("[stopped: --max-tokens or the context is used up]")
        except KeyboardInterrupt:
            said = stream.text if stream is not None else ""
            self._end_line(said)
            note("[stopped]")
        except OSError:  # stdout is full or closed
            raise
        except Exception as error:
            self._end_line(stream.text if stream is not None else "")
            self._offered = typed
            hint = "; /reset forgets the conversation" if self._turns and isinstance(error, ContextLengthError) else ""
            kind = "error" if isinstance(error, PolarGridError) else f"internal error: {type(error).__name__}"
            note(f"{kind}: {error}{hint}")
        finally:
            if said:  # a turn without an answer would leave two user messages in a row
                self._turns += [asked, {"role": "assistant", "content": said}]

    def _end_line(self, said: str) -> None:
        """Leave the line of an answer that broke off."""
        if self._form is Form.text and said and not said.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
