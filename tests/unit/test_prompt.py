"""The prompt of the chat: what keys and pastes become, and what is kept of them."""

import contextlib
import os
import stat

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from polargrid_local.cli import prompt
from polargrid_local.cli.prompt import EditorPrompt, LinePrompt, is_open_block, message_of, open_prompt
from polargrid_local.errors import ValidationError


@pytest.mark.parametrize(
    "typed, message, literal",
    [
        ("hi", "hi", False),
        ("  if x:\n    y\n\n", "  if x:\n    y", False),  # indentation is the message's own
        ("\n \n  hi", "  hi", False),
        ('"""/bye"""', "/bye", True),
        ('"""\n/bye\n  two\n"""', "/bye\n  two", True),
        ('"""one\ntwo"""', "one\ntwo", True),
        ('"""\n\nkept\n\n"""', "\nkept\n", True),
        ('"""', '"""', False),
        ('""""""', "", True),
        # code pasted as it is
        ('"""Doc."""\nx = 1', '"""Doc."""\nx = 1', False),
        ('"""A."""\nx = """b"""', '"""A."""\nx = """b"""', False),
        # and the same between quotes
        ('"""\n"""Doc."""\nx = 1\n"""', '"""Doc."""\nx = 1', True),
        ("", "", False),
        (" \n\t\n", "", False),
        ("é".encode().decode("ascii", "surrogateescape"), "é", False),
    ],
)
def test_what_is_typed_becomes_a_message(typed, message, literal):
    assert message_of(typed) == (message, literal)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ValidationError, match="not UTF-8"):
        message_of("caf\udce9")


def test_a_block_is_open_until_its_quotes_are_closed():
    assert is_open_block('"""') and is_open_block('"""a\nb') and is_open_block('"""\n"""Doc."""\nx')
    assert not is_open_block('"""a"""') and not is_open_block("a") and not is_open_block('say """')
    assert not is_open_block('"""Doc."""\nx') and not is_open_block('"""\n"""Doc."""\n"""')


@pytest.fixture
def editor(monkeypatch, tmp_path):
    """editor(keys, ...) -> what `ask` returned for keys that arrive while it waits; ahead: keys that came before it."""
    monkeypatch.setenv("POLARGRID_LOCAL_HISTORY", str(tmp_path / "state" / "history"))
    with contextlib.ExitStack() as open_inputs:

        def make():
            keyboard = open_inputs.enter_context(create_pipe_input())
            monkeypatch.setattr("prompt_toolkit.input.create_input", lambda: keyboard)
            monkeypatch.setattr("prompt_toolkit.output.create_output", lambda **options: DummyOutput())
            person = EditorPrompt()
            bursts = []
            person._session.app.after_render += lambda app: bursts and keyboard.send_text(bursts.pop(0))

            def ask(*keys, ahead="", offered=""):
                bursts[:] = keys
                keyboard.send_text(ahead)
                return person.ask(offered)

            return ask

        yield make


@pytest.mark.parametrize(
    "keys, typed",
    [
        (["one\r"], "one"),
        (["one", "\r"], "one"),
        (["\x1b[200~a\nb\r\n  c\r\rd\x1b[201~", "\r"], "a\nb\n  c\n\nd"),
        (["\x1b[200~a\nb\n\x1b[201~\r"], "a\nb\n"),
        (["say \x1b[200~/bye\n/exit\x1b[201~", "\x1b[200~\nmore\x1b[201~", "!\r"], "say /bye\n/exit\nmore!"),
        (["one\x1b\rtwo\x1b\nthree\r"], "one\ntwo\nthree"),
        (['"""\r', "a\r", 'b"""\r'], '"""\na\nb"""'),
        (
            ["line one\r  line two\r\rline four\r"],
            "line one\n  line two\n\nline four\n",
        ),  # a paste by a terminal that does not mark pastes
        (["x" * 1023 + "\r" + "y" * 3000 + "\rz\r"], "x" * 1023 + "\n" + "y" * 3000 + "\nz\n"),
        (["hello\x03", "bye\r"], "bye"),  # Ctrl-C clears
        (["hello\x03", "\x1b[A!\r"], "hello!"),  # and Up brings it back
        (["日本語 👩‍🚀\r"], "日本語 👩‍🚀"),
        (["\t\x1b[200~a\tb\x1b[201~\r"], "\ta\tb"),
    ],
)
def test_keys_become_one_message(editor, keys, typed):
    assert editor()(*keys).rstrip("\n") == typed.rstrip("\n")


def test_lines_typed_ahead_are_messages_of_their_own(editor):
    ask = editor()
    assert ask(ahead="one\rtwo\rthree\r") == "one"
    assert (ask(), ask()) == ("two", "three")
    assert ask("a\rb\r").rstrip("\n") == "a\nb"


def test_ctrl_c_and_ctrl_d_at_an_empty_prompt(editor):
    ask = editor()
    with pytest.raises(KeyboardInterrupt):
        ask("\x03")
    with pytest.raises(EOFError):
        ask("\x04")
    assert ask("ab\x04\r") == "ab"


def test_what_is_offered_can_be_edited(editor):
    assert editor()("!\r", offered="again") == "again!"


def test_history_goes_from_run_to_run_and_nobody_else_reads_it(editor, tmp_path):
    editor()("\x1b[200~of two\nlines é\x1b[201~\r")
    file = tmp_path / "state" / "history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    ask = editor()
    assert ask("\x1b[A\r") == "of two\nlines é"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ask("\x1b[A\r") == "of two\nlines é"


def test_history_is_bounded(editor, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt, "HISTORY_BYTES", 32_000)
    ask = editor()
    for i in range(60):
        ask(f"\x1b[200~{i} {'x' * 1000}\n\nend\x1b[201~\r")
    too_long = "y" * 5000
    ask(f"\x1b[200~{too_long}\x1b[201~\r")
    assert ask("\x1b[A\r") == too_long  # remembered, not written
    file = tmp_path / "state" / "history"
    assert file.stat().st_size > 60_000
    assert editor()("\x1b[A\r") == f"59 {'x' * 1000}\n\nend"
    assert 10_000 < file.stat().st_size <= 16_000 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["history"]


@pytest.mark.parametrize("where", ["", os.devnull, "a folder", "below a file"])
def test_a_history_that_cannot_be_written_stops_nothing(editor, tmp_path, monkeypatch, capsys, where):
    (tmp_path / "file").touch()
    places = {"a folder": str(tmp_path), "below a file": str(tmp_path / "file" / "x")}
    monkeypatch.setenv("POLARGRID_LOCAL_HISTORY", places.get(where, where))
    mode = os.stat(os.devnull).st_mode
    ask = editor()
    assert (ask("one\r"), ask("\x1b[A\r")) == ("one", "one")
    assert os.stat(os.devnull).st_mode == mode
    assert capsys.readouterr().err.startswith("no history across runs: " if where in places else "")


def test_a_history_of_bytes_that_are_no_text_is_read(editor, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "history").write_bytes(b"\n# x\n+caf\xe9\n\0\xff\n+\n")
    assert editor()("\x1b[A\x1b[A\r") == "caf�"


@pytest.mark.parametrize("term", ["dumb", "unknown", "", None])
def test_a_terminal_that_can_do_little_gets_plain_lines(monkeypatch, term):
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert isinstance(open_prompt(), LinePrompt)


def test_an_editor_that_cannot_be_made_is_said(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_prompt(), LinePrompt)  # no terminal to write on: plain lines, and no message
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("prompt_toolkit.input.create_input", lambda: 1 / 0)
    assert isinstance(open_prompt(), LinePrompt)
    assert "ZeroDivisionError" in capsys.readouterr().err
