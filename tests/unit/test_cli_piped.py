"""What stdin brings to a command: files, pipes, nothing, pipes that never speak, and bytes that are no text."""

import os
import subprocess
import sys

import pytest
from command_line import CATALOGUE_FILE, FakeEngine, environment, program

from polargrid_local.cli import piped


def _sent(command):
    request = FakeEngine.made[-1].requests[-1]
    return request["prompt"] if command == "complete" else request["messages"][-1]["content"]


@pytest.mark.parametrize("command", ["chat", "complete"])
@pytest.mark.parametrize(
    "prompt, stdin, sent",
    [
        ("Summarise this", "two\nlines\n", "Summarise this\n\ntwo\nlines"),
        ("Summarise this", "", "Summarise this"),
        ("Summarise this", " \n\n", "Summarise this"),
        ("", "text", "\n\ntext"),
        ("-", "text\n", "text"),
        (None, "text\n\n", "text"),
        (None, "  indented\n", "  indented"),
        (None, "/bye", "/bye"),
        (None, b"\xef\xbb\xbfcaf\xc3\xa9\r\nand\rmore\r\n", "café\nand\nmore"),
        (None, "\ufeffcafé\r\n".encode("utf-16-le"), "café"),
        (None, "\ufeffcafé".encode("utf-16-be"), "café"),
        (None, "x" * 10_000_000, "x" * 10_000_000),
        (None, "日本語 👩‍🚀", "日本語 👩‍🚀"),
    ],
)
def test_stdin_follows_the_prompt(run, command, prompt, stdin, sent):
    result = run(command, *([prompt] if prompt is not None else []), stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    assert _sent(command) == sent


@pytest.mark.parametrize("command", ["chat", "complete"])
@pytest.mark.parametrize("arguments", [[], ["-"]])
@pytest.mark.parametrize("stdin", ["", "\n", " \r\n\t", b"\xef\xbb\xbf"])
def test_nothing_to_send_is_wrong_usage(run, command, arguments, stdin):
    result = run(command, *arguments, stdin=stdin)
    assert result.exit_code == 2 and result.stdout == "" and FakeEngine.made == []
    assert "stdin is empty: give a prompt" in result.stderr


@pytest.mark.parametrize(
    "stdin, why",
    [
        (b"caf\xe9 au lait", "not UTF-8 text: invalid continuation byte at byte 3"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8 text: invalid start byte at byte 0"),
        (b"ab\0cd", "a zero byte after 2 characters"),
        (b"\xff\xfea", "not UTF-16 text: truncated data at byte 2"),
        (b"a\0b\0", "a zero byte"),
    ],
)
def test_what_is_no_text_is_one_line(run, stdin, why):
    for arguments in (["chat"], ["chat", "Summarise"], ["complete", "-"]):
        result = run(*arguments, stdin=stdin)
        assert (result.exit_code, result.stdout) == (1, "") and FakeEngine.made == []
        assert (
            result.stderr.startswith("error: stdin is not") and why in result.stderr and result.stderr.count("\n") == 1
        )


def test_another_locale_is_read_as_such():
    assert piped._decoded(b"caf\xe9", "iso8859-1") == "café"
    assert piped._decoded("café".encode(), "iso8859-1") == "café"


def test_a_stdin_without_end_is_refused(run, monkeypatch):
    monkeypatch.setattr(piped, "MOST_BYTES", 1 << 20)
    result = run("chat", stdin="y\n" * (1 << 20))
    assert result.exit_code == 1 and result.stderr.startswith("error: stdin brings more than 1 MiB")


# --- of the system ---


def _start(tmp_path, *arguments, silence_s=60.0, **streams):
    (tmp_path / CATALOGUE_FILE).write_bytes(b"GGUF")
    setup = f"""
import atexit
import polargrid_local.cli.piped
polargrid_local.cli.piped.SILENCE_S = {silence_s}
sys.argv[1:] = {list(arguments)!r}
def report():
    for request in (request for engine in FakeEngine.made for request in engine.requests):
        print("SENT", request["messages"][-1]["content"], flush=True)
atexit.register(report)
"""
    command = [sys.executable, "-c", program(setup).replace("sys.stdin.isatty()", "False")]
    return subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **streams
    )


def _end(process, stdin=None):
    out, err = process.communicate(stdin, timeout=120)
    return process.returncode, out.partition("SENT ")[2], err


def test_a_file_and_a_closed_stdin_do_not_wait(tmp_path):
    text = tmp_path / "text"
    text.write_text("from the file\n")
    with text.open() as file:
        assert _end(_start(tmp_path, "chat", "hi", stdin=file)) == (0, "hi\n\nfrom the file\n", "")
    assert _end(_start(tmp_path, "chat", "hi", stdin=subprocess.DEVNULL)) == (0, "hi\n", "")
    code, sent, err = _end(_start(tmp_path, "chat", stdin=subprocess.DEVNULL))
    assert (code, sent) == (2, "") and "stdin is empty" in err
    closed = {"preexec_fn": lambda: os.close(0)}
    assert _end(_start(tmp_path, "chat", "hi", **closed)) == (0, "hi\n", "")
    code, sent, err = _end(_start(tmp_path, "chat", **closed))
    assert (code, sent) == (2, "") and "stdin is empty" in err


def test_a_pipe_of_the_parent_is_read_to_its_end(tmp_path):
    process = _start(tmp_path, "chat", "hi", stdin=subprocess.PIPE)
    assert _end(process, "from\nthe parent\n") == (0, "hi\n\nfrom\nthe parent\n", "")
    assert _end(_start(tmp_path, "chat", "hi", stdin=subprocess.PIPE), "") == (0, "hi\n", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells who holds a pipe")
def test_a_pipe_that_only_the_parent_holds_and_never_fills_is_left_out(tmp_path):
    process = _start(tmp_path, "chat", "hi", silence_s=0.1, stdin=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "Hello, wörld 👍🏽\n"  # although our end of the pipe is still open
        assert process.stdout.readline() == "SENT hi\n"
        assert process.wait(120) == 0
        assert "stdin is open but silent" in process.stderr.read()
    finally:
        process.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells who holds a pipe")
def test_a_command_that_takes_long_to_write_is_waited_for(tmp_path):
    reader, writer = os.pipe()
    go, start = os.pipe()
    # The writer waits for a byte from us, sent once the chat has said that it waits.
    producer = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.read({go}, 1); os.write({writer}, b'late')"], pass_fds=[go, writer]
    )
    os.close(writer)
    process = _start(tmp_path, "chat", "hi", silence_s=0.1, stdin=reader)
    os.close(reader)
    assert process.stderr.readline() == "waiting for the command that writes into stdin\n"
    os.write(start, b"x")
    assert _end(process) == (0, "hi\n\nlate\n", "")
    assert producer.wait(60) == 0
    os.close(go), os.close(start)


def test_a_pipe_that_was_left_unblocking_is_read_to_its_end(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)  # a read of an empty one would end at once, before the text is there
    process = _start(tmp_path, "chat", stdin=reader)
    os.write(writer, b"text")
    os.close(writer)
    assert _end(process) == (0, "text\n", "")
    assert os.get_blocking(reader)  # the flag belongs to the pipe, which both processes share
    os.close(reader)


def test_a_file_that_is_closed_meanwhile_does_not_hide_a_pipe(monkeypatch):
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[writer]) as holder:
        os.close(writer)
        real = os.listdir
        monkeypatch.setattr(os, "listdir", lambda path: ["999999", *real(path)])
        assert piped._is_fed(reader)
        holder.communicate(b"\n")
    os.close(reader)


def test_who_feeds_a_pipe(tmp_path):
    reader, writer = os.pipe()
    try:
        assert not piped._is_fed(reader)  # no process but this one holds it
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[writer])
        assert piped._is_fed(reader)
        holder.communicate(b"\n")
        assert not piped._is_fed(reader)
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[reader])
        assert not piped._is_fed(reader)  # the other process can only read from it
        holder.communicate(b"\n")
    finally:
        os.close(reader), os.close(writer)


def test_the_prompt_function_leaves_terminals_alone(monkeypatch):
    monkeypatch.setattr(piped, "is_terminal", lambda: True)
    assert piped.prompt_of(None) is None
