"""The tier that computes on a GPU: a real one, else the software device of Mesa's Vulkan driver (llvmpipe).

`pytest tests/gpu` runs it alone. In a run of all tests it has a process of its own (tests/engine/test_gpu_tier.py), so
that no other test finds a GPU and picks it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_model

from polargrid_local import Engine

HERE = Path(__file__).parent
# ggml hides software devices unless they are named. The first one that Vulkan lists, on a machine that has no other.
SOFTWARE = {"GGML_VK_VISIBLE_DEVICES": "0"}


def _machine() -> dict[str, Any]:
    """system_info() of another process: in this one a backend would be opened for good."""
    program = "import json, polargrid_local; print(json.dumps(polargrid_local.system_info()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout) if done.returncode == 0 else {"devices": [], "gpu_problem": done.stderr[-2000:]}


def _gpus(machine: dict[str, Any]) -> list[dict[str, Any]]:
    return [device for device in machine["devices"] if device["gpu"]]


MACHINE = _machine()
SOFTWARE_ONLY = not _gpus(MACHINE)
if SOFTWARE_ONLY:
    os.environ |= SOFTWARE
    MACHINE = _machine()
GPUS = _gpus(MACHINE)
VULKAN = any(gpu["name"].startswith("Vulkan") for gpu in GPUS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not GPUS:
            item.add_marker(pytest.mark.skip(f"no GPU, and no software device: {MACHINE['gpu_problem']}"))
        elif SOFTWARE_ONLY and item.get_closest_marker("real_gpu"):
            item.add_marker(pytest.mark.skip("llvmpipe cannot show it"))
        elif not VULKAN and item.get_closest_marker("vulkan_faults"):
            item.add_marker(pytest.mark.skip("the faults are made by a Vulkan layer"))


@pytest.fixture(scope="session")
def gpu() -> str:
    """The name of the GPU that models are placed on."""
    return GPUS[0]["name"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny(weights="f16", ...) -> a model of random weights: 6 layers and the output, unless n_layer says otherwise."""
    folder, made = tmp_path_factory.mktemp("tiny"), {}

    def write(**options: Any) -> Path:
        options = {"n_layer": 6, "n_ctx_train": 4096, **options}
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tiny_model.write_random(folder / f"model{len(made)}.gguf", **options)
        return made[key]

    return write


@pytest.fixture(scope="session")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that answers three prompts, said.prompt(0..2), with said.texts, which no rounding changes."""
    scripts = [[f" {word}{i}" for i in range(24)] for word in ("red", "green", "blue")]
    written = tiny_model.write_scripted(tmp_path_factory.mktemp("said") / "said.gguf", scripts)
    return SimpleNamespace(path=written.path, prompt=written.prompt, texts=["".join(script) for script in scripts])


@pytest.fixture
def open_on_gpu() -> Iterator[Callable[..., Engine]]:
    """open_on_gpu(path, **options) -> an engine with device="gpu", closed after the test."""
    engines = []

    def open_engine(path: Path, **options: Any) -> Engine:
        engines.append(Engine(path, **{"device": "gpu", "n_ctx": 512, **options}))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the Vulkan layer that makes faults, built from vulkan_faults.c."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("layer")
    flags = "-shared -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-cast-function-type -o".split()
    subprocess.run([compiler, *flags, folder / "faults.so", HERE / "vulkan_faults.c"], check=True)
    about = {
        "name": "VK_LAYER_polargrid_faults",
        "type": "GLOBAL",
        "library_path": "./faults.so",
        "api_version": "1.3.0",
        "implementation_version": "1",
        "description": "faults for tests",
    }
    (folder / "faults.json").write_text(json.dumps({"file_format_version": "1.2.0", "layer": about}))
    return folder


@pytest.fixture
def faulty(layer: Path, tmp_path: Path) -> Callable[..., Any]:
    """faulty(case, *arguments, **environment) -> what that function of faulty_device.py returns, run in a process whose
    Vulkan devices have the faults that it asks for."""

    def run(case: str, *arguments: Any, **environment: str) -> Any:
        faults = Path(tempfile.mkdtemp(dir=tmp_path))
        variables = {
            "PGL_FAULTS": str(faults),
            "VK_LAYER_PATH": str(layer),
            "VK_INSTANCE_LAYERS": "VK_LAYER_polargrid_faults",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, HERE / "faulty_device.py", case, *map(str, arguments)],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    return run
