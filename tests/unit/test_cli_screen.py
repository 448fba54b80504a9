"""The interactive chat on a full terminal, as the emulator pyte shows it: pastes, keys, wrapped answers, history."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pyte
import pytest
from command_line import CATALOGUE_FILE, Terminal, environment, open_chat, program


class Screen(Terminal):
    """A Terminal seen on its screen. `wait` reads until the screen shows something; nothing here waits for a time."""

    def __init__(self, script, models_dir, size=(60, 40), **variables):
        self.screen = pyte.Screen(*size)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        super().__init__(script, models_dir, size, **{"TERM": "xterm-256color", **variables})

    @property
    def lines(self):
        shown = [line.rstrip() for line in self.screen.display]
        return shown[: max((i + 1 for i, line in enumerate(shown) if line), default=0)]

    def wait(self, *last):
        """Until these are the last lines of the screen; each is a pattern."""
        deadline = time.monotonic() + 120
        while len(self.lines) < len(last) or not all(map(re.fullmatch, last, self.lines[-len(last) :])):
            ready = select.select([self.fd], [], [], 120)[0]
            assert ready and time.monotonic() < deadline, f"still {self.lines}"
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                raise AssertionError(f"ended, with {self.lines}") from None
            self.raw += data
            self.stream.feed(data)
        return self.lines

    def resize(self, columns, lines):
        super().resize(columns, lines)
        self.screen.resize(lines, columns)


def paste(text):
    return f"\x1b[200~{text}\x1b[201~"


def requests(chat):
    """What reached the engine: ends the chat."""
    chat.send("\x04")
    rest = b""
    with contextlib.suppress(OSError):  # the process has ended
        while select.select([chat.fd], [], [], 120)[0]:
            rest += os.read(chat.fd, 65536)
    assert chat.process.wait(120) == 0
    return [request[-1]["content"] for request in eval(rest.decode().partition("REQUESTS ")[2])]


def test_a_paste_is_one_message(tmp_path):
    with open_chat(tmp_path, "[['One'], ['Two'], ['Three']]", make=Screen) as chat:
        chat.wait(".*", ">")
        chat.send(paste("def f():\r    return 1\r\r/bye\r"))
        chat.wait("> def f.*", r"\.\.\.     return 1", r"\.\.\.", r"\.\.\. /bye", r"\.\.\.")
        chat.send("\r")
        chat.wait("One", ">")
        chat.send("two\x1b\rlines\r")
        chat.wait("Two", ">")
        chat.send("without\rmarks\r  at all\r")
        chat.wait("Three", ">")
        assert requests(chat) == ["def f():\n    return 1\n\n/bye", "two\nlines", "without\nmarks\n  at all"]


def test_a_paste_of_a_megabyte_arrives_whole(tmp_path):
    text = "\n".join(f"{i} äöü 日本" for i in range(40_000))
    with open_chat(tmp_path, "[['One']]", make=Screen) as chat:
        chat.wait(".*", ">")
        os.set_blocking(chat.fd, False)
        left = paste(text).encode()
        while left:
            readable, writable, _ = select.select([chat.fd], [chat.fd], [], 120)
            if readable:
                os.read(chat.fd, 65536)
            if writable:
                left = left[os.write(chat.fd, left[:4096]) :]
        os.set_blocking(chat.fd, True)
        chat.send("\r")
        chat.expect("One\r\n")
        assert requests(chat) == [text]


def test_what_comes_during_an_answer_waits_for_the_prompt(tmp_path):
    with open_chat(tmp_path, "[['One ', 'moment ', None], ['Two'], ['Three']]", make=Screen) as chat:
        chat.wait(".*", ">")
        chat.send("first\r")
        chat.wait("> first", "One moment")
        chat.send(paste("pasted\rmeanwhile") + "\rtyped\r/b")
        chat.send("\x03")
        lines = chat.wait("Three", "> /b")
        assert lines[1:] == [
            "> first", "One moment", "[stopped]", "> pasted", "... meanwhile", "Two", "> typed", "Three", "> /b",
        ]  # fmt: skip
        chat.send("\x7f\x7f")
        assert requests(chat) == ["first", "pasted\nmeanwhile", "typed"]


def test_what_comes_while_the_model_loads_waits_for_the_prompt(tmp_path):
    loaded = tmp_path / "loaded"
    script = program(f"""
import time, pathlib
class Slow(FakeEngine):
    def __init__(self, *arguments, **options):
        print("LOADING", flush=True)
        while not pathlib.Path({str(loaded)!r}).exists():
            time.sleep(0.01)
        super().__init__(*arguments, **options)
polargrid_local.engine.Engine = Slow
FakeEngine.answers = [["One"]]
sys.argv[1:] = ["chat"]
""")
    (tmp_path / CATALOGUE_FILE).write_bytes(b"GGUF")
    with Screen(script, tmp_path) as chat:
        chat.wait("LOADING", "loading smollm2-135m.*")
        chat.send(paste("pasted\rearly") + "\r")
        loaded.touch()
        chat.wait("> pasted", r"\.\.\. early", "One", ">")
    loaded.unlink()
    with Screen(script, tmp_path) as chat:
        chat.wait("LOADING", "loading smollm2-135m.*")
        chat.send("\x03")
        assert chat.end() == 130


def test_words_are_not_split_whatever_the_width(tmp_path):
    words = [
        "It",
        "was",
        "a",
        "bright",
        "cold",
        "day",
        "in",
        "April",
        "and",
        "the",
        "clocks",
        "were",
        "striking",
        "thirteen",
        "日本語の文章です。",
        "👍🏽",
        "end",
    ]
    pieces = [piece for word in words for piece in (word[:3], word[3:] + " ") if piece]
    with open_chat(tmp_path, f"[{pieces!r}] * 2", make=Screen, size=(30, 60)) as chat:
        chat.wait(".*", ">")
        chat.send("a\r")
        lines = chat.wait("> a", *[".*"] * 4, ">")
        assert lines[-5:-1] == ["It was a bright cold day in", "April and the clocks were", lines[-3], lines[-2]]
        assert " ".join(lines[-5:-1]).split()[:14] == words[:14]
        chat.resize(20, 60)
        os.kill(chat.process.pid, signal.SIGWINCH)
        chat.send("b\r")
        lines = chat.wait("> b", *[".*"] * 5, ">")
        assert lines[-6:-3] == ["It was a bright cold", "day in April and the", "clocks were striking"]


def test_an_answer_to_a_pipe_or_a_file_is_not_touched(tmp_path):
    text = "word " * 100 + "\x1b[1m日本\r\n"
    out = tmp_path / "out"
    script = program(f"""
FakeEngine.answers = [[{text!r}]]
sys.argv[1:] = ['chat']
sys.stdout = open({str(out)!r}, 'w', newline='')
""")
    (tmp_path / CATALOGUE_FILE).write_bytes(b"GGUF")
    with Screen(script, tmp_path) as chat:
        chat.wait(".*", ">")
        chat.send("hi\r")
        chat.wait("> hi", ">")
        chat.send("\x04")
        assert chat.end() == 0
    assert out.read_bytes() == text.encode()


def test_ctrl_c_clears_then_warns_then_leaves(tmp_path):
    with open_chat(tmp_path, "[]", make=Screen) as chat:
        chat.wait(".*", ">")
        chat.send("some text")
        chat.wait("> some text")
        chat.send("\x03")
        chat.wait(".*chat", ">")
        chat.send("\x03")
        chat.wait(".*", ">", "Ctrl-C again, Ctrl-D or /bye to leave", ">")
        chat.send("\x1b[A")  # Up: brings back what was cleared
        chat.wait("> some text")
        chat.send("\x03")
        chat.wait("Ctrl-C again, Ctrl-D or /bye to leave", ">")
        chat.send("\x03")
        chat.expect("REQUESTS []")
        assert chat.end() == 130


def test_a_message_that_failed_is_offered_again(tmp_path):
    with open_chat(tmp_path, "[['One'], ContextLengthError('too long'), ['Two']]", make=Screen) as chat:
        chat.wait(".*", ">")
        chat.send("zero\r")
        chat.wait("One", ">")
        chat.send(paste("of two\rlines") + "\r")
        chat.wait("error: too long; /reset forgets the conversation", "> of two", r"\.\.\. lines")
        chat.send("!\r")
        chat.wait("Two", ">")
        assert requests(chat) == ["zero", "of two\nlines", "of two\nlines!"]


def test_a_refused_command_is_offered_again(tmp_path):
    with open_chat(tmp_path, "[['One']]", make=Screen, size=(100, 20)) as chat:
        chat.wait(".*", ">")
        chat.send("/etc/hosts\r")
        chat.wait(r"unknown command /etc/hosts .*: send it as a message\? \[y/N\]")
        chat.send("n\r")
        chat.wait(".* n", "> /etc/hosts")
        chat.send("\x01/\r")
        chat.wait("One", ">")
        assert requests(chat) == ["/etc/hosts"]


def test_history_goes_from_run_to_run(tmp_path):
    with open_chat(tmp_path, "[['One']]", make=Screen) as chat:
        chat.wait(".*", ">")
        chat.send(paste("of two\rlines") + "\r")
        chat.wait("One", ">")
        assert requests(chat) == ["of two\nlines"]
    with open_chat(tmp_path, "[['One']]", make=Screen) as chat:
        chat.wait(".*", ">")
        chat.send("\x1b[A")
        chat.wait("> of two", r"\.\.\. lines")
        chat.send("\r")
        chat.wait("One", ">")
        assert requests(chat) == ["of two\nlines"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding(tmp_path, encoding):
    with open_chat(tmp_path, "[['wörld 日本']] * 2", make=Screen, PYTHONIOENCODING=encoding) as chat:
        chat.wait(".*", ">")
        chat.send("plain\r")
        chat.wait(r"w.rld \?\?", ">")
        chat.send("/system wörld\r")
        chat.wait("system message set", ">")
        assert requests(chat) == ["plain"]


def test_the_terminal_is_left_as_it_was(tmp_path):
    import termios

    with open_chat(tmp_path, "[['One ', None]]", make=Screen) as chat:
        before = termios.tcgetattr(chat.fd)
        chat.wait(".*", ">")
        chat.send("first\r")
        chat.wait("> first", "One")
        assert not termios.tcgetattr(chat.fd)[3] & termios.ECHO
        chat.send("\x03")
        chat.wait(r"\[stopped\]", ">")
        chat.send("\x04")
        chat.expect("REQUESTS")
        assert termios.tcgetattr(chat.fd) == before
        assert chat.end() == 0
    assert chat.raw.rindex(b"\x1b[?2004l") > 0


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_a_paste_in_tmux(tmp_path):
    (tmp_path / CATALOGUE_FILE).write_bytes(b"GGUF")
    script, log = tmp_path / "chat.py", tmp_path / "requests"
    script.write_text(f"""
import atexit, sys
import polargrid_local.engine
from polargrid_local.cli.main import main
from command_line import FakeEngine
polargrid_local.engine.Engine = FakeEngine
FakeEngine.answers = [["One"], ["Two"]]
sys.argv[1:] = ["chat"]
sent = lambda: [request["messages"][-1]["content"] for request in FakeEngine.made[0].requests]
atexit.register(lambda: open({str(log)!r}, "w").write(repr(sent())))
main()
""")
    variables = {**environment(tmp_path), "TERM": "xterm"}

    def tmux(*arguments, stdin=None):
        command = ["tmux", "-f", os.devnull, "-S", str(tmp_path / "socket"), *arguments]
        done = subprocess.run(command, env=variables, input=stdin, capture_output=True, text=True, timeout=120)
        return done.stdout

    def until(condition):
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, tmux("capture-pane", "-p")
            time.sleep(0.05)

    def shows(*lines):
        until(lambda: "\n".join(lines) in "\n".join(line.rstrip() for line in tmux("capture-pane", "-p").splitlines()))

    tmux("new-session", "-d", "-x", "80", "-y", "24", sys.executable, str(script))
    try:
        shows("ends the chat", ">")
        tmux("load-buffer", "-", stdin="line one\n    line two\n")
        tmux("paste-buffer", "-p")  # as tmux's paste key does: marked as a paste, for programs that ask for that
        shows("> line one", "...     line two")
        tmux("send-keys", "Enter")
        shows("One", ">")
        tmux("paste-buffer")  # not marked as a paste: its last line break arrives as an Enter
        shows("Two", ">")
        tmux("send-keys", "/bye", "Enter")
        until(lambda: log.exists() and log.read_text())
        assert eval(log.read_text()) == ["line one\n    line two"] * 2
    finally:
        tmux("kill-server")
