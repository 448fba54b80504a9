"""The fixture that the tests of the command line share."""

import pytest
from command_line import CATALOGUE_FILE, FakeEngine


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run("chat", "hi") -> result with stdout, stderr, exit_code; the models directory holds the embedded default."""
    from typer.testing import CliRunner

    from polargrid_local.cli import commands

    (tmp_path / CATALOGUE_FILE).write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setenv("POLARGRID_LOCAL_MODELS", str(tmp_path))
    monkeypatch.setattr("polargrid_local.engine.Engine", FakeEngine)
    FakeEngine.made, FakeEngine.answers = [], []
    runner = CliRunner()
    return lambda *arguments, stdin="": runner.invoke(commands.app, [str(a) for a in arguments], input=stdin)
