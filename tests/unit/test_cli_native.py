"""The command line over the native engine: Ctrl-C at a terminal while a real model speaks."""

import json

import pytest
from command_line import Terminal
from typer.testing import CliRunner

pytest.importorskip("polargrid_local._core", exc_type=ImportError)
import tiny_model

from polargrid_local.cli import commands as cli


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model that ticks without end after message 0, and one that answers `done` after message 0."""
    folder = tmp_path_factory.mktemp("models")
    # Each token is longer than a line: the terminal's buffer is full, and the answer waits, long before --max-tokens.
    endless = tiny_model.write_scripted(folder / "endless.gguf", [[" tick" * 100]], endless=True, n_ctx_train=8192)
    brief = tiny_model.write_scripted(folder / "brief.gguf", [["al", "l do", "ne"]])
    return folder, endless, brief


def test_ctrl_c_stops_the_native_engine_and_the_chat_goes_on(tiny):
    folder, endless, _ = tiny
    script = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from polargrid_local.cli.main import main
sys.argv[1:] = "chat -m endless --n-ctx 8192 --max-tokens 4096".split()
main()
"""
    with Terminal(script, folder) as chat:
        chat.expect("Ctrl-D ends the chat")
        for _ in range(2):
            chat.expect("> ")
            chat.send(endless.message(0) + "\r")
            chat.expect(" tick tick tick")
            chat.send("\x03")
            chat.expect("[stopped]")
            chat.expect("> ")
            chat.send("/reset\r")
            chat.expect("conversation forgotten")
        chat.expect("> ")
        chat.send("\x04")
        assert chat.end() == 0


def test_an_answer_arrives_as_text_chunks_and_events(tiny, monkeypatch):
    folder, _, brief = tiny
    monkeypatch.setenv("POLARGRID_LOCAL_MODELS", str(folder))
    runner = CliRunner()
    assert runner.invoke(cli.app, ["chat", brief.message(0), "-m", "brief"]).stdout == "all done\n"
    assert runner.invoke(cli.app, ["complete", brief.prompt(0), "-m", str(brief.path)]).stdout == "all done\n"
    result = runner.invoke(cli.app, ["chat", brief.message(0), "-m", "brief.gguf", "--sse"])
    *events, done, rest = result.stdout.split("\n\n")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant"} and deltas[-1] == {} and (done, rest) == ("data: [DONE]", "")
    assert "".join(delta.get("content", "") for delta in deltas) == "all done"


def test_info_reads_the_file_and_the_machine(tiny):
    _folder, _, brief = tiny
    runner = CliRunner()
    facts = json.loads(runner.invoke(cli.app, ["info", str(brief.path), "--n-ctx", "100", "--json"]).stdout)
    assert facts["model"]["architecture"] == "llama" and facts["model"]["chat_template"]
    need = facts["estimate"]["f16"]
    assert need["n_ctx"] == 100 and need["total_bytes"] > facts["model"]["tensor_bytes"] and need["fits"]
    assert need["cache_bytes"] > facts["estimate"]["q8_0"]["cache_bytes"] and facts["system"]["n_threads"] >= 1
    assert "architecture" in runner.invoke(cli.app, ["info", str(brief.path)]).stdout


def test_a_file_that_is_no_model_is_one_clear_line(tmp_path):
    path = tmp_path / "page.gguf"
    path.write_text("<html>please log in</html>")
    for command in (["chat", "hi", "-m", str(path)], ["info", str(path)]):
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
