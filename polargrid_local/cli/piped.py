"""Piped text: what a pipe or a file on stdin brings to a command, read, bounded and decoded."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import stat
import sys
from pathlib import Path

import typer

from polargrid_local.cli.answer import note
from polargrid_local.errors import ValidationError

MOST_BYTES = 64 << 20  # more than any model's context holds
SILENCE_S = 5.0  # how long a pipe that nobody seems to feed is waited for


def prompt_of(argument: str | None) -> str | None:
    """The prompt of a command: its argument and, below a blank line, what stdin brings. None: ask the person at the
    terminal."""
    if argument is None and is_terminal():
        return None
    if argument in (None, "-"):
        return not_empty(read_text())
    piped = read_beside_prompt()
    return f"{argument}\n\n{piped}" if piped.strip() else argument


def not_empty(text: str) -> str:
    """`text`, unless it is blank: that is wrong usage."""
    if not text.strip():
        raise typer.BadParameter(
            "stdin is empty: give a prompt as an argument, or pipe a text into it", param_hint="PROMPT"
        )
    return text


def is_terminal() -> bool:
    """Whether stdin is a person."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_text() -> str:
    """All of stdin, without its last line breaks; "" where stdin is closed. ValidationError: too much, or no text."""
    if sys.stdin is None:
        return ""
    with contextlib.suppress(OSError, ValueError):
        os.set_blocking(sys.stdin.fileno(), True)  # where a parent made it non-blocking, a read would end too early
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValidationError(
            f"stdin brings more than {MOST_BYTES >> 20} MiB, more than any context holds; send a part of it"
        )
    return re.sub("\r\n?", "\n", _decoded(data, sys.stdin.encoding)).rstrip("\n")


def read_beside_prompt() -> str:
    """What stdin brings to a command that has its prompt already, "" for nothing.

    A file is read, and so is a pipe that another command writes into, however long that takes. Terminals and
    /dev/null are not read. A pipe or socket that only our own parents hold open (a program that started us with a pipe
    and forgot it, ssh, a CI runner) may stay silent for ever: after SILENCE_S seconds it is left out, and a note says
    so.
    """
    try:
        fd = sys.stdin.fileno()
        kind = os.fstat(fd).st_mode
    except AttributeError:  # closed
        return ""
    except (OSError, ValueError):  # an object without a file descriptor, put there by a program: reading it ends
        return read_text()
    if stat.S_ISCHR(kind):
        return ""
    if (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)) and sys.platform != "win32":
        waiting = False
        while not select.select([fd], [], [], SILENCE_S)[0]:
            if not _is_fed(fd):
                silence = f"stdin is open but silent for {SILENCE_S:.0f} s"
                note(f"{silence}: sending the prompt alone (</dev/null saves the wait)")
                return ""
            if not waiting:
                note("waiting for the command that writes into stdin")
            waiting = True
    return read_text()


def _is_fed(fd: int) -> bool:
    """Whether a process other than our parents has the pipe's writing end. True where the system does not tell."""
    try:
        pipe = os.readlink(f"/proc/self/fd/{fd}")
        family = {os.getpid()}
        parent = os.getppid()
        while parent:
            family.add(parent)
            parent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return True
    others = (one for one in Path("/proc").iterdir() if one.name.isdigit() and int(one.name) not in family)
    return any(_writes_into(pipe, process) for process in others)


def _writes_into(pipe: str, process: Path) -> bool:
    try:
        descriptors = os.listdir(process / "fd")
    except OSError:  # another user's, or gone
        return False
    for fd in descriptors:
        with contextlib.suppress(OSError):  # closed meanwhile: there may be others
            if os.readlink(process / "fd" / fd) == pipe and _is_writable(process / "fdinfo" / fd):
                return True
    return False


def _is_writable(fdinfo: Path) -> bool:
    flags = re.search(r"^flags:\s*([0-7]+)", fdinfo.read_text(), re.MULTILINE)
    return flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _decoded(data: bytes, locale: str) -> str:
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what some shells of Windows write
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            text = data.decode(locale)
        except (UnicodeDecodeError, LookupError):
            raise ValidationError(
                f"stdin is not {'UTF-16' if is_utf16 else 'UTF-8'} text: {error.reason} at byte {error.start}; "
                "convert it first, for example with: iconv -f latin1 -t utf-8"
            ) from None
    if "\0" in text:
        raise ValidationError(
            f"stdin is not text: a zero byte after {text.index(chr(0))} characters; is it a binary file?"
        )
    return text
