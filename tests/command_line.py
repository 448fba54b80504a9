"""The command line over a scripted engine: in this process, and in programs of their own under a pseudo-terminal."""

import contextlib
import errno
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"  # of the embedded default


class FakeStream:
    """A ChatStream that says `pieces`; an exception among them ends it, None waits until Ctrl-C comes."""

    def __init__(self, kind, pieces):
        self.kind, self.text, self.finish_reason, self.closed = kind, "", None, False
        self.usage = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
        self.timings = {"cached_tokens": 0}
        self._steps = self._run(pieces)

    def _chunk(self, text, reason=None):
        body = {"delta": {"content": text} if text else {}} if self.kind == "chat" else {"text": text}
        return {"id": "x", "choices": [{"index": 0, **body, "finish_reason": reason}]}

    def _run(self, pieces):
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                threading.Event().wait()
            self.text += piece
            yield self._chunk(piece)
        self.finish_reason = "stop"
        yield self._chunk("", "stop")

    def __iter__(self):
        return self._steps

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.closed = True


class FakeEngine:
    answers = []  # one list of pieces per request to come; a lone exception is raised by the call itself
    made = []

    def __init__(self, model, **options):
        self.model, self.options, self.requests, self.streams, self.closed = model, options, [], [], False
        FakeEngine.made.append(self)
        if options["on_load_progress"]:
            options["on_load_progress"](0.5)

    def _begin(self, kind, request):
        self.requests.append(request)
        answer = FakeEngine.answers.pop(0) if FakeEngine.answers else ["Hello", ", ", "wörld 👍🏽"]
        if isinstance(answer, BaseException):
            raise answer
        self.streams.append(FakeStream(kind, answer))
        return self.streams[-1]

    def chat_completion_stream(self, **request):
        return self._begin("chat", request)

    def completion_stream(self, **request):
        return self._begin("completion", request)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.closed = True


def environment(models_dir):
    """Of a program whose models are in `models_dir`, and which keeps its chat history there."""
    paths = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    ours = {"POLARGRID_LOCAL_MODELS": str(models_dir), "POLARGRID_LOCAL_HISTORY": str(models_dir / "history")}
    return {**os.environ, "PYTHONPATH": paths, **ours, "TERM": "dumb"}


def program(setup):
    """Python source: `setup`, then the console script on a FakeEngine."""
    return f"""
import fcntl, sys, termios
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # our terminal, whose Ctrl-C is our signal
import polargrid_local.engine
from polargrid_local.cli.main import main
from polargrid_local.errors import ContextLengthError
from command_line import FakeEngine
polargrid_local.engine.Engine = FakeEngine
{setup}
main()
"""


class Terminal:
    """A command under a pseudo-terminal. `expect` waits for a text; nothing here waits for a time."""

    def __init__(self, script, models_dir, size=(0, 0), **variables):
        self.seen = ""
        self.fd, inside = pty.openpty()
        self.resize(*size)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**environment(models_dir), **variables},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)

    def expect(self, text, again=""):
        """Reads up to `text`. After a silence `again` is sent anew: a terminal that changes its mode loses a key."""
        for _ in range(30):
            while text not in self.seen and select.select([self.fd], [], [], 2)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    data = b""
                if not data:
                    raise AssertionError(f"ended without {text!r}: {self.seen!r}")
                self.seen += data.decode(errors="replace")
            if text in self.seen:
                before, _, self.seen = self.seen.partition(text)
                return before
            self.send(again)
        raise AssertionError(f"no {text!r} after {self.seen!r}")

    def resize(self, columns, lines):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def send(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        """The exit status; reads what is left."""
        with contextlib.suppress(OSError):
            while select.select([self.fd], [], [], 120)[0] and os.read(self.fd, 65536):
                pass
        return self.process.wait(120)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self.fd)
        self.process.kill()
        self.process.wait()


def open_chat(tmp_path, answers, *flags, make=Terminal, **terminal):
    """`chat` in a terminal. `answers`: source of FakeEngine.answers. At its end it prints REQUESTS and all it asked."""
    (tmp_path / CATALOGUE_FILE).write_bytes(b"GGUF")
    setup = f"""
import atexit
FakeEngine.answers = {answers}
sys.argv[1:] = {["chat", *flags]!r}
atexit.register(lambda: print("REQUESTS", [r["messages"] for r in FakeEngine.made[0].requests]))
"""
    return make(program(setup), tmp_path, **terminal)
