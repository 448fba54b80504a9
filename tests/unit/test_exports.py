"""What `import polargrid_local` gives, and what it costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import polargrid_local
from polargrid_local import engine, errors

PUBLIC = [
    "AsyncChatStream",
    "AsyncEngine",
    "AsyncToolRun",
    "AuthenticationError",
    "ChatStream",
    "ContextLengthError",
    "DeviceLostError",
    "Engine",
    "EngineClosed",
    "EngineCrashed",
    "ForkedEngineError",
    "InvalidModelError",
    "LogitsProcessorError",
    "MemoryEstimateError",
    "ModelFileChanged",
    "NetworkError",
    "NotFoundError",
    "NumericError",
    "PolarGridError",
    "RateLimitError",
    "SchemaError",
    "ServerError",
    "TemplateError",
    "TimeoutError",
    "Tool",
    "ToolRoundsError",
    "ToolRun",
    "ValidationError",
    "inspect_model",
    "is_polargrid_error",
    "sentences",
    "system_info",
    "text_of",
]


def test_the_public_names_are_these():
    assert polargrid_local.__all__ == PUBLIC == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(polargrid_local, name) is getattr(engine, name, None) or getattr(errors, name)
        assert name in dir(polargrid_local)
    with pytest.raises(AttributeError, match="nothing"):
        polargrid_local.nothing  # noqa: B018  # reading the attribute is what raises


def test_every_error_is_exported():
    tree = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PolarGridError)
    ]
    assert set(tree) <= set(PUBLIC)


def test_every_error_is_raised_somewhere():
    package = Path(polargrid_local.__file__).parent
    python = [path.read_text() for path in package.rglob("*.py") if path.name != "errors.py"]
    native = [path.read_text() for path in (package.parent / "csrc").rglob("*.cpp")]
    for name in PUBLIC:
        cls = getattr(polargrid_local, name)
        if isinstance(cls, type) and issubclass(cls, errors.PolarGridError) and cls is not errors.PolarGridError:
            by_code = [f'"{cls.code}"' in text for text in native + python] if cls.code in errors._BY_CODE else []
            assert any(by_code) or any(f"{name}(" in text for text in python), name


def test_both_engines_have_the_same_methods():
    def public(cls):
        return {name for name in dir(cls) if not name.startswith("_")}

    assert public(polargrid_local.AsyncEngine) - public(polargrid_local.Engine) == {"aclose", "create", "start"}
    assert public(polargrid_local.Engine) <= public(polargrid_local.AsyncEngine)


AUDIT = """
import json, sys, threading
seen = []
def watch(event, args):
    if event.startswith("socket.") or event in ("_thread.start_new_thread", "subprocess.Popen", "os.system", "os.fork"):
        seen.append(event)
sys.addaudithook(watch)
before = set(sys.modules)
import polargrid_local
light = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
polargrid_local.NotFoundError, polargrid_local.is_polargrid_error
errors = sorted(set(sys.modules) - before)
from polargrid_local import Engine, text_of
threads = threading.active_count()
print(json.dumps({"light": light, "errors": errors, "all": sorted(sys.modules), "seen": seen, "threads": threads}))
"""


def test_importing_opens_starts_prints_and_loads_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AUDIT], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stderr == ""
    report = json.loads(done.stdout)  # one line, and nothing else was printed
    assert report["seen"] == [] and report["threads"] == 1
    assert set(report["light"]) <= {"polargrid_local", "typing"} | set(sys.stdlib_module_names)
    for name in ("polargrid_local._core", "polargrid_local.engine", "jinja2", "pydantic", "numpy", "huggingface_hub"):
        assert name not in report["errors"], name
    for name in ("polargrid_local._core", "numpy", "huggingface_hub", "fastapi", "typer", "httpx", "requests"):
        assert name not in report["all"], name


def test_ggml_is_told_not_to_run_a_debugger_before_it_is_loaded():
    code = """
import os, sys
os.environ.pop("GGML_NO_BACKTRACE", None)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "polargrid_local._core":
            print(os.environ.get("GGML_NO_BACKTRACE"))
            raise ImportError("seen")
sys.meta_path.insert(0, Finder())
from polargrid_local.native import core
print(os.environ.get("GGML_NO_BACKTRACE"))
try:
    core.core()
except ImportError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["None", "1"]
