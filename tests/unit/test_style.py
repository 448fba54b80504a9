"""The tree under its formatters and its linter: what `poe lint` runs, and three rules that no tool knows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [
    path
    for folder in ("polargrid_local", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "node_modules" not in path.parts
]
SCRIPTS = [
    path
    for folder in ("polargrid_local/web", "tests/http/js")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".js", ".mjs", ".jsx", ".ts", ".css") and not {"vendor", "node_modules"} & set(path.parts)
]


def lines_of(paths: list[Path]) -> list[tuple[str, str]]:
    """Every line of `paths`, with where it stands: "polargrid_local/options.py:12"."""
    return [
        (f"{path.relative_to(ROOT).as_posix()}:{number}", line)
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
    ]


def test_code_is_formatted_and_linted() -> None:
    """ruff and clang-format, which the `test` extra installs beside this Python. `poe tidy` mends most of it."""
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    command = [sys.executable, "-m", "poethepoet", "--root", str(ROOT), "lint"]
    done = subprocess.run(command, env={**os.environ, "PATH": programs}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_and_styles_fit_into_120_columns() -> None:
    """Their sources have no formatter; the Python and the C++ do."""
    assert [where for where, line in lines_of(SCRIPTS) if len(line) > 120] == []


def test_every_exception_gives_its_reason() -> None:
    """A comment that silences a checker names one kind of error, and says why."""
    silences = re.compile(r"#\s*(type: ignore|noqa)")
    explained = re.compile(r"# (type: ignore\[[a-z-]+\]|noqa: [A-Z]+\d+)  # \w")
    lines = [(where, line) for where, line in lines_of(PYTHON) if "test_style.py" not in where]
    assert [where for where, line in lines if silences.search(line) and not explained.search(line)] == []


def test_only_typed_code_silences_the_type_checker() -> None:
    """mypy reads the package and tests/typing, and nothing else: elsewhere such a comment does nothing."""
    read = ("polargrid_local/", "tests/typing/", "tests/unit/test_style.py")
    assert [where for where, line in lines_of(PYTHON) if "# type: ignore" in line and not where.startswith(read)] == []
