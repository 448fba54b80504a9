"""A frozen application: PyInstaller builds one that chats; it runs elsewhere, with no environment and no console."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_model

import polargrid_local
from polargrid_local.models.catalog import shipped_catalog

pytest.importorskip("PyInstaller")

APPLICATION = """
import sys
path, message, out = sys.argv[1:]
if out != "-":
    sys.stdin = sys.stdout = sys.stderr = None  # as in a windowed application
from polargrid_local import Engine
from polargrid_local.models.store import Store
assert sys.frozen and Store("/nowhere").default() == "smollm2-135m"
with Engine(path, n_threads=1) as engine:
    said = "".join(
        chunk["choices"][0]["delta"].get("content", "")
        for chunk in engine.chat_completion_stream(messages=[{"role": "user", "content": message}])
    )
    held = engine.completion(prompt=message, regex="[a-z]")["choices"][0]["text"]
    assert len(held) == 1 and held.isalpha(), held  # llguidance's library came along
if out == "-":
    print(said)
else:
    open(out, "w").write(said)
"""
# Modules that only other tests need.
NOT_OURS = (
    "hypothesis",
    "mypy",
    "pytest",
    "pip",
    "setuptools",
    "opentelemetry",
    "yaml",
    "PIL",
    "matplotlib",
    "torch",
    "pandas",
)


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """Built from a copy of the package as a wheel would install it."""
    folder = tmp_path_factory.mktemp("frozen")
    package = folder / "site" / "polargrid_local"
    shutil.copytree(
        Path(polargrid_local.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "_core.*")
    )
    shutil.copy(find_spec("polargrid_local._core").origin, package)
    shutil.copy(shipped_catalog(), package)
    (folder / "chat.py").write_text(APPLICATION)
    command = [
        sys.executable,
        "-m",
        "PyInstaller",
        "--noconfirm",
        "--log-level",
        "WARN",
        "--paths",
        str(package.parent),
    ]
    command += [
        "--additional-hooks-dir",
        str(package / "__pyinstaller"),
        *(f"--exclude-module={name}" for name in NOT_OURS),
    ]
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run([*command, "chat.py"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(package.parent)  # the application has all it needs inside
    return folder / "dist" / "chat" / "chat"


@pytest.mark.parametrize("console", [True, False])
def test_it_answers_wherever_it_is_started(application, tmp_path, console):
    said = tiny_model.write_scripted(tmp_path / "my model.gguf", [["Hi", " there", "!"]])
    out = "-" if console else str(tmp_path / "said")
    done = subprocess.run(
        [application, said.path, said.message(0), out], cwd="/", env={"LANG": "C.UTF-8"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip() if console else Path(out).read_text()) == "Hi there!"


def test_pyinstaller_finds_the_hook_by_itself(root):
    from polargrid_local.__pyinstaller import get_hook_dirs

    (folder,) = get_hook_dirs()
    assert (Path(folder) / "hook-polargrid_local.py").is_file()
    assert 'hook-dirs = "polargrid_local.__pyinstaller:get_hook_dirs"' in (root / "pyproject.toml").read_text()
