"""The maps for newcomers are true: every file and every task that they name exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["CONTRIBUTING.md", "docs/architecture.md"]
HOMES = ("", "polargrid_local/", "csrc/", "csrc/kernels/", "tests/unit/", "tests/native/")  # where short names start
THEIRS = ("src/", "build/")  # llama.cpp's sources, and what is built


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    named = re.findall(r"`([\w./-]+(?:/|\.(?:py|cpp|h|md|toml|cmake)))`", (ROOT / page).read_text())
    assert len(named) > 10
    ours = {name for name in named if not name.startswith(THEIRS)}
    assert {name for name in ours if not any((ROOT / home / name).exists() for home in HOMES)} == set()


def test_every_task_that_is_named_exists() -> None:
    tasks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["poe"]["tasks"]
    named = re.findall(r"(?:`|^)poe ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert named and set(named) <= set(tasks)


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    files = {path.stem for path in (ROOT / "tests").glob("*/test_*")}
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*/test_*.py"))
    assert len(named) > 20
    assert {name for name in named - files if f"def {name}(" not in sources} == set()
