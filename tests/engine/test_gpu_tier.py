"""The tests of tests/gpu, in a process of their own, so that no other test finds a GPU and picks it; and backends that
cannot be opened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polargrid_local.native.core import core

EXTENSION = Path(core().__file__)
PROGRAM = """
import json, sys
from polargrid_local import Engine, PolarGridError, system_info
with Engine(sys.argv[1], n_ctx=512) as engine:
    placement = engine.info()["placement"]
try:
    Engine(sys.argv[1], device="gpu")
except PolarGridError as error:
    print(json.dumps([system_info()["gpu_problem"], placement, error.code, error.message]))
"""


def test_the_gpu_tier(root: Path) -> None:
    if not any((EXTENSION.parent / "backends").glob("*")):
        pytest.skip("this build has no GPU backend: docs/gpu.md says how to make one")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-8000:]


def test_a_backend_that_cannot_be_opened_leaves_the_cpu_and_a_reason(smollm2: Path, root: Path, tmp_path: Path) -> None:
    package = tmp_path / "polargrid_local"
    shutil.copytree(root / "polargrid_local", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXTENSION, package)
    shutil.copy(root / "models" / "catalog.toml", package)
    (package / "backends").mkdir()
    (package / "backends" / f"cuda{'.dll' if sys.platform == 'win32' else '.so'}").write_text("no library")
    # -S: an editable install would put the original in front of the copy.
    program = f"import sys; sys.path[:0] = {[str(tmp_path), *sys.path]!r}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-S", "-c", program, smollm2], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    problem, placement, code, message = json.loads(done.stdout)
    assert problem.startswith("cuda: ") and "cannot be used: " in problem
    assert placement == f"all layers on the CPU: {problem}"
    assert code == "invalid_request" and problem in message
