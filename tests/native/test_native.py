"""Builds the C++ tests and runs each as one test: as shipped, and the pure units again under ASan and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
TESTS = sorted(source.stem for source in HERE.glob("test_*.cpp"))
PURE = [name for name in TESTS if not name.startswith(("test_kernels", "test_attention"))]

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake and a C++17 compiler")


def run(command: list[str]) -> str:
    """Output of a command that must succeed; its failure shows both streams."""
    env = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env)
    assert done.returncode == 0, f"{' '.join(command)} returned {done.returncode}:\n{done.stdout[-8000:]}"
    return done.stdout


@lru_cache
def build_dir(sanitize: bool) -> Path:
    """A configured build tree inside the repository's ignored build/, kept between runs."""
    path = REPO / "build" / ("native_sanitize" if sanitize else "native")
    command = ["cmake", "-S", str(REPO), "-B", str(path), "-DPGL_NATIVE_TESTS=ON", "-DPGL_PYTHON=OFF"]
    command.append(f"-DPGL_SANITIZE={'ON' if sanitize else 'OFF'}")
    if not (path / "CMakeCache.txt").exists() and shutil.which("ninja"):
        command += ["-G", "Ninja"]
    if "PGL_LLAMA_CPP_DIR" in os.environ:
        command.append(f"-DPGL_LLAMA_CPP_DIR={os.environ['PGL_LLAMA_CPP_DIR']}")
    run(command)
    return path


def build_and_run(name: str, sanitize: bool) -> None:
    path = build_dir(sanitize)
    run(["cmake", "--build", str(path), "--target", name, "--parallel", str(os.cpu_count() or 1)])
    program = next(p for p in path.rglob(f"{name}*") if p.is_file() and p.stem == name and os.access(p, os.X_OK))
    assert " 0 failed" in run([str(program)])


@pytest.mark.parametrize("name", TESTS)
def test_native(name: str) -> None:
    build_and_run(name, sanitize=False)


@pytest.mark.parametrize("name", PURE)
@pytest.mark.skipif(os.name == "nt", reason="sanitizers as configured are GCC's and Clang's")
def test_native_sanitized(name: str) -> None:
    build_and_run(name, sanitize=True)
