"""Who may import whom. Doors > facade > core > pure > words; one way only."""

import ast
from pathlib import Path

import pytest

import polargrid_local

PACKAGE = Path(polargrid_local.__file__).parent
WORDS = {"types", "errors", "options"}
PURE = {"template", "marked", "abilities"}
MAY = {
    "__init__": {"engine", "errors"},
    "errors": set(),
    "types": {"errors"},
    "options": {"errors"},
    "params": {"types"},
    "budget": {"errors"},
    "named_templates": set(),
    "marked": WORDS | {"budget"},
    "abilities": WORDS | {"marked", "named_templates"},
    "template_code": {"budget", "errors"},
    "template_filters": WORDS | {"budget", "marked", "sandbox"},  # the sandbox as a type only
    "sandbox": WORDS | {"budget", "marked", "template_code", "template_filters"},
    "template": WORDS | {"abilities", "budget", "marked", "named_templates", "sandbox", "template_code"},
    "pipeline": WORDS | PURE,
    "shards": set(),
    "file_kind": set(),
    "extras": set(),
    "runtime": WORDS | {"_core", "file_kind", "shards"},
    "registry": WORDS | {"pipeline", "runtime", "store", "template", "__init__"},
    "streams": WORDS | {"pipeline", "runtime"},
    "engine": WORDS | {"params", "pipeline", "registry", "streams", "runtime"},
    "store": WORDS | {"partial", "download", "shards"},
    "partial": WORDS,
    "index": WORDS,
    "download": WORDS | {"store", "partial", "index", "shards"},
    "sdk": WORDS | {"engine", "server", "extras", "__init__"},
    "wrap": set(),
    "prompt": WORDS,
    "piped": WORDS,
    "terminal": WORDS | {"engine", "params", "prompt", "wrap"},
    "cli": WORDS | {"engine", "params", "store", "server", "terminal", "prompt", "piped", "wrap", "__init__"},
    "__main__": {"cli"},
}


def modules(path):
    """The modules of the package that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "polargrid_local" if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            here = [f"{base}.{alias.name}" for alias in node.names] if base == "polargrid_local" else [base]
            names = [
                name
                if (PACKAGE / f"{name.partition('.')[2]}.py").exists()
                or name.endswith("_core")
                or (PACKAGE / name.partition(".")[2]).is_dir()
                else base
                for name in here
            ]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "polargrid_local":
                found.add(rest.partition(".")[0] or "__init__")
    return found


@pytest.mark.parametrize("name", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_imports_point_downwards(name):
    assert name in MAY, "a new module: say here what it may import"
    assert modules(PACKAGE / f"{name}.py") <= MAY[name]


def test_the_server_knows_the_facade_and_no_model():
    for path in (PACKAGE / "server").rglob("*.py"):
        assert modules(path) <= WORDS | {"__init__", "engine", "extras", "server", "store"}, path.name


def test_only_the_runtime_touches_the_native_module():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "runtime.py":
            assert "_core" not in modules(path), path.name


def test_pure_modules_read_no_clock_no_file_no_environment():
    pure = (
        "pipeline",
        "template",
        "template_code",
        "template_filters",
        "sandbox",
        "abilities",
        "named_templates",
        "budget",
        "marked",
        "types",
        "options",
        "errors",
        "file_kind",
    )
    for name in pure:
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not imported & {"os", "time", "socket", "threading", "asyncio", "random", "secrets", "pathlib"}, name


def test_every_file_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
