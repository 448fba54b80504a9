"""The package under type checkers: mypy, strict, on its code; mypy and pyright on what programs write against it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RIGHT, WRONG = ROOT / "tests/typing/right.py", ROOT / "tests/typing/wrong.py"
NODE = shutil.which("node")
PYRIGHT = ROOT / "tests/http/js/node_modules/pyright/index.js"

Errors = dict[Path, dict[int, str]]  # file -> line -> message


def marked() -> set[int]:
    lines = WRONG.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("  # wrong")}


@pytest.fixture(scope="module")
def mypy() -> Errors:
    """One run for all: most of its time goes into the libraries."""
    pytest.importorskip("mypy")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--no-pretty",
        "--no-error-summary",
        "polargrid_local",
        str(RIGHT),
        str(WRONG),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr  # the wrong lines at least
    errors: Errors = {}
    for line in done.stdout.splitlines():
        if match := re.match(r"(.+?):(\d+): error: (.*)", line):
            errors.setdefault(ROOT / match[1], {})[int(match[2])] = match[3]
    return errors


@pytest.fixture(scope="module")
def pyright() -> Errors:
    if NODE is None or not PYRIGHT.exists():
        pytest.skip("needs Node.js and pyright of npm: run npm install in tests/http/js")
    command = [NODE, PYRIGHT, "--pythonpath", sys.executable, "--outputjson", RIGHT, WRONG]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    errors: Errors = {}
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        if found["severity"] == "error":
            errors.setdefault(Path(found["file"]), {})[found["range"]["start"]["line"] + 1] = found["message"]
    return errors


def test_the_package_is_strict(mypy: Errors) -> None:
    assert {path: lines for path, lines in mypy.items() if path not in (RIGHT, WRONG)} == {}


@pytest.mark.parametrize("checker", ["mypy", pytest.param("pyright", marks=pytest.mark.node)])
def test_programs_are_understood(checker: str, request: pytest.FixtureRequest) -> None:
    errors: Errors = request.getfixturevalue(checker)
    assert errors.get(RIGHT, {}) == {}


@pytest.mark.parametrize("checker", ["mypy", pytest.param("pyright", marks=pytest.mark.node)])
def test_mistakes_are_found(checker: str, request: pytest.FixtureRequest) -> None:
    errors: Errors = request.getfixturevalue(checker)
    assert set(errors.get(WRONG, {})) == marked()
