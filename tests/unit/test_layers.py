"""Who may import whom: rooms in layers, upper may import lower, no circles, no exceptions; and C++ includes alike."""

import ast
import re
from pathlib import Path

import pytest

import polargrid_local

PACKAGE = Path(polargrid_local.__file__).parent
CSRC = PACKAGE.parent / "csrc"

# Room: what it may import, itself aside. A room is a folder, or a module at the top of the package.
BASE = {"errors", "options", "shards", "extras"}
WORDS = BASE | {"api", "chat"}
FACADE = WORDS | {"__init__", "engine", "streams", "text", "types"}
MAY = {
    "errors": set(),
    "shards": set(),
    "extras": set(),
    "options": {"errors"},
    "chat": BASE,
    "api": BASE | {"chat"},
    "types": {"api"},
    "dialects": WORDS,
    "native": WORDS | {"_core"},
    "models": WORDS,
    "machine": {"api"},
    "model_entries": {"api"},
    "ready_model": WORDS | {"native", "models", "model_entries"},
    "registry": WORDS | {"native", "models", "machine", "model_entries", "ready_model", "__init__"},
    "streams": WORDS | {"native"},
    "text": WORDS,
    "tool_run": WORDS | {"streams"},
    "arguments": WORDS | {"models"},
    "engine": WORDS | {"arguments", "native", "registry", "streams", "text", "tool_run"},
    "__init__": {"engine", "errors"},
    "service": FACADE | {"models", "dialects"},
    "server": FACADE | {"service", "dialects"},
    "sdk": FACADE | {"service"},
    "llama_cpp_compat": FACADE,
    "cli": FACADE | {"models", "server"},
    "__main__": {"cli"},
    "__pyinstaller": {"models"},
    "_core": set(),
}
# Folders whose modules are functions of their arguments: no clock, no file, no environment, no thread.
PURE = ("api", "chat", "dialects", "types", "errors", "options", "shards", "machine", "model_entries")
IMPURE = {"os", "time", "socket", "threading", "asyncio", "random", "secrets"}

# The same for the folders of csrc, and the headers of others that each may include.
INCLUDES = {
    "bindings.cpp": {"worker", "engine", "llama", "gguf", "platform", "kernels", "border"},
    "worker": {"engine", "llama", "platform", "border"},
    "backends": {"platform", "border"},
    "border": set(),
    "platform": {"border"},
    "gguf": {"platform", "border"},
    "kernels": {"platform"},
    "llama": {"gguf", "kernels", "backends", "platform", "border"},
    "engine": {"llama", "gguf", "platform", "border"},
}
BORDER = {"request.h", "fields.h", "ranges.h"}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """The rooms of the package that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: rooms are named in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "polargrid_local":
                first = rest.partition(".")[0]
                known = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists() or first == "_core"
                found.add(first if first and known else "__init__")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "web" not in path.relative_to(PACKAGE).parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    assert room(path) in MAY, "a new room: say here what it may import"
    assert imports(path) - {room(path)} <= MAY[room(path)]


def modules(path: Path) -> set[str]:
    """The modules that a file imports when it is imported itself: of its own room, by their names in it."""
    here = f"polargrid_local.{room(path)}"
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {name.removeprefix(f"{here}.") for name in names if name.startswith(f"{here}.")}
    return found


def test_no_circles_inside_a_room() -> None:
    for folder in sorted(path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "web"):
        graph = {path.stem: modules(path) for path in folder.glob("*.py")}
        while leaves := {name for name, needs in graph.items() if not needs & set(graph)}:
            graph = {name: needs for name, needs in graph.items() if name not in leaves}
        assert not graph, f"{folder.name}: {graph}"


def test_only_one_module_touches_the_native_one() -> None:
    assert [path.name for path in FILES if "_core" in imports(path)] == ["core.py"]


def test_pure_rooms_read_no_clock_no_file_no_environment() -> None:
    for path in FILES:
        if room(path) in PURE:
            imported = {
                alias.name.partition(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert not imported & IMPURE, path


def test_every_file_says_what_it_is() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
    for source in CSRC.rglob("*.h"):
        assert source.read_text().startswith("// "), source


SOURCES = sorted(path for kind in ("*.h", "*.cpp") for path in CSRC.rglob(kind))


def part(path: Path) -> str:
    """The folder of csrc that a source lies in; the files beside the folders are the border."""
    relative = path.relative_to(CSRC)
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "border" if relative.name in BORDER else relative.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_includes_point_downwards(path: Path) -> None:
    assert part(path) in INCLUDES, "a new room: say here what it may include"
    for quote, name in re.findall(r'^#include (["<])([^">]+)[">]', path.read_text(), re.MULTILINE):
        ours = (CSRC / name).exists()
        if quote == '"' and ours:
            assert part(CSRC / name) in INCLUDES[part(path)] | {part(path)}, name
        elif name.startswith("llama"):
            assert part(path) == "llama", f"{name} belongs to csrc/llama"
        elif name.startswith("ggml"):
            assert part(path) in ("kernels", "llama", "backends"), f"{name} belongs below the engine"
        elif name.startswith(("pybind11", "Python")):
            assert part(path) == "bindings.cpp", f"{name} belongs to the border"
        else:
            assert quote == "<", f"{name}: a header of ours is named from csrc"
