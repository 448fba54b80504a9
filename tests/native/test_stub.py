"""The committed stub of _core is what the built module says. `python tests/native/test_stub.py --write` renews it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

STUB = Path(__file__).resolve().parents[2] / "polargrid_local" / "_core.pyi"
HEADER = "# Generated from the built module by tests/native/test_stub.py --write.\n"


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "polargrid_local._core", "-o", folder]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        return HEADER + strict((Path(folder) / "polargrid_local" / "_core.pyi").read_text())


def strict(stub: str) -> str:
    """pybind11 cannot say what its dicts and lists hold, nor that a parameter whose default is None may be None."""
    stub = re.sub(r"(?<=[:>] )dict(?= ?[=,:)\n])", "dict[str, typing.Any]", stub)
    stub = re.sub(r"(?<=[:>] )list(?= ?[=,:)\n])", "list[typing.Any]", stub)
    return re.sub(r": ([\w.\[\], ]+?) = None", r": \1 | None = None", stub)


def interface(source: str) -> list[str]:
    """Names, parameters, defaults and docstrings. Not the spelling of types, which is pybind11's and varies with it."""
    lines = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            lines += [f"class {node.name}: {ast.get_docstring(node)}"]
            lines += [
                f"{node.name}.{ast.unparse(member)}" for member in node.body if isinstance(member, ast.FunctionDef)
            ]
    lines += [ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)]
    return sorted(lines)


def test_the_committed_stub_is_the_modules_own() -> None:
    pytest.importorskip("polargrid_local._core")
    pytest.importorskip("pybind11_stubgen")
    assert interface(STUB.read_text()) == interface(generate())


if __name__ == "__main__" and "--write" in sys.argv:
    STUB.write_text(generate())
