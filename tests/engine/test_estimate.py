"""Engine.estimate: what it says beside what a process really takes, and what it refuses."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_archs
import tiny_model

from polargrid_local import AsyncEngine, Engine, InvalidModelError, MemoryEstimateError, NotFoundError, ValidationError


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 1024},
        {"n_ctx": 4096},
        {"n_ctx": 4096, "cache_type": "q8_0"},
        {"n_ctx": 2048, "max_streams": 3},
        {"n_ctx": 2048, "kernels": False},
    ],
    ids=str,
)
def test_a_full_context_takes_what_was_estimated(smollm2: Path, options: dict[str, Any]) -> None:
    options = {"max_streams": 1, "device": "cpu", "n_threads": 2, **options}  # each thread has buffers of its own
    estimate: dict[str, Any] = dict(Engine.estimate(smollm2, **options))
    parts = ("weights_bytes", "cache_bytes", "compute_bytes", "other_bytes")
    assert estimate["total_bytes"] == sum(estimate[part] for part in parts)
    with Engine(smollm2, isolation="process", prefix_cache_bytes=0, **options) as engine:
        assert engine.info()["n_ctx"] == estimate["n_ctx"] == options["n_ctx"]
        words = "time year people way day man thing woman life child world school state family student group ".split()
        n_words = int(0.96 * options["n_ctx"])
        text = " ".join((words * (n_words // len(words) + 1))[: n_words - 8])
        prompts = [f"{n} {text}" for n in range(options["max_streams"])]
        engine.completion(prompt=prompts, max_tokens=8)
        peak = peak_bytes(engine.info()["process_id"])
    assert estimate["total_bytes"] == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("kind", ["bert", "t5encoder", "qwen3-reranker", "gemma3"])
def test_models_of_any_task_are_estimated(kind: str, tmp_path: Path) -> None:
    estimate = Engine.estimate(tiny_archs.write(tmp_path / "m.gguf", kind))
    assert estimate["fits"]
    assert 0 < estimate["weights_bytes"] < estimate["total_bytes"] < 1 << 30


def test_a_context_that_does_not_fit_is_told_with_one_that_does(smollm2: Path) -> None:
    wanted: dict[str, Any] = {"n_ctx": 1 << 24, "max_streams": 64, "device": "cpu"}
    estimate = Engine.estimate(smollm2, **wanted)
    assert not estimate["fits"]
    assert estimate["total_bytes"] > estimate["available_bytes"]
    assert 0 < estimate["max_n_ctx"] < wanted["n_ctx"]
    with pytest.raises(MemoryEstimateError):
        Engine(smollm2, **wanted)
    assert Engine.estimate(smollm2, **{**wanted, "n_ctx": estimate["max_n_ctx"] // 2})["fits"]


def test_it_is_asked_as_an_engine_is_made(tmp_path: Path) -> None:
    path = tiny_model.write_random(tmp_path / "m.gguf")
    for isolation in ("thread", "process"):
        assert Engine.estimate(path, isolation=isolation, n_ctx=256)["n_ctx"] == 256
    assert asyncio.run(AsyncEngine.estimate(path, n_ctx=256))["n_ctx"] == 256
    with pytest.raises(ValidationError, match="n_ctx"):
        Engine.estimate(path, n_ctx=-1)
    with pytest.raises(NotFoundError):
        Engine.estimate(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidModelError, match=r"bad\.gguf"):
        Engine.estimate(tmp_path / "bad.gguf")
