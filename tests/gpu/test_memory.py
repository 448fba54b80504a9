"""What is said of a GPU's memory: in process, over HTTP and by the SDK's names; and that closing gives it back."""

from __future__ import annotations

import os
import sys

import pytest
from serving import ServerProcess

from polargrid_local import Engine, system_info


def held_by(engine: Engine) -> int:
    return sum(sum(stats["device_bytes"].values()) for stats in engine.stats().values())


def test_the_cache_lies_on_the_device(tiny, open_on_gpu):
    one, four = (open_on_gpu(tiny(), n_ctx=4096, max_streams=n) for n in (1, 4))
    info = four.info()
    assert held_by(four) - held_by(one) >= 3 * info["cache_bytes"] // 4 > 0


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_status_and_memory_count_what_is_held(tiny, open_on_gpu, gpu, isolation):
    engine = open_on_gpu(tiny(), n_ctx=4096, isolation=isolation)
    held = held_by(engine)
    status, memory = engine.get_gpu_status(), engine.get_gpu_memory()
    [listed] = [device for device in system_info()["devices"] if device["name"] == gpu]
    first = status["gpus"][0]
    assert first["name"] == listed["description"] and first["memory"]["total_mb"] == listed["memory_bytes"] >> 20
    assert first["memory"]["used_mb"] >= held >> 20 > 0
    assert first["memory"]["used_mb"] + first["memory"]["free_mb"] == pytest.approx(first["memory"]["total_mb"], abs=1)
    holder = engine.info()["process_id"]
    assert (holder == os.getpid()) == (isolation == "thread")
    assert status["processes"] == [{"pid": holder, "name": "polargrid-local", "memory_mb": held >> 20}]
    assert status["total_gpus"] == len(memory["memory"])
    assert memory["memory"][0]["used_gb"] == first["memory"]["used_gb"]


def test_purging_gives_the_memory_back(tiny, open_on_gpu):
    engine = open_on_gpu(tiny(n_layer=12, n_embd=512, n_head=8, n_ff=2048, weights="f16"), n_ctx=4096)
    held = held_by(engine)
    assert held > 100 << 20
    purged = engine.purge_gpu(force=True)
    assert purged["memory_after"]["used_gb"] <= purged["memory_before"]["used_gb"]
    assert held_by(engine) == 0 and engine.get_gpu_status()["processes"] == []


@pytest.mark.real_gpu
def test_closing_gives_the_memory_back_to_the_driver(tiny):
    def free() -> int:
        return next(device["free_bytes"] for device in system_info()["devices"] if device["gpu"])

    path = tiny(n_layer=12, n_embd=512, n_head=8, n_ff=2048, weights="f16")
    with Engine(path, device="gpu", n_ctx=4096):
        pass  # the driver keeps a little from the first use on
    before = free()
    with Engine(path, device="gpu", n_ctx=4096) as engine:
        held = held_by(engine)
        assert before - free() >= 0.9 * held
    assert before - free() < 0.1 * held


def test_memory_is_flat_over_many_engines(tiny):
    held = set()
    for _ in range(4):
        with Engine(tiny(), device="gpu", n_ctx=512) as engine:
            engine.completion(prompt="the of", max_tokens=4, ignore_eos=True)
            held.add(held_by(engine))
    assert len(held) == 1


def test_the_server_tells_the_same(tiny, tmp_path):
    path = tiny()
    server = ServerProcess(path.parent, tmp_path / "log", model=str(path), device="gpu", n_ctx=1024).wait_ready()
    try:
        status = server.get("/v1/gpu/status").json()
        [process] = status["processes"]
        assert process["pid"] != server.process.pid and process["memory_mb"] > 0  # the engine's own process
        if sys.platform == "linux":
            assert [process["pid"]] == server.workers()
        assert status["gpus"][0]["memory"]["used_mb"] >= process["memory_mb"]
        assert server.get("/v1/gpu/memory").json()["memory"][0]["total_gb"] == status["gpus"][0]["memory"]["total_gb"]
        purged = server.post("/v1/gpu/purge", json={"force": True}).json()
        assert purged["models_unloaded"] and purged["status"] == "success"
        assert server.get("/v1/gpu/status").json()["processes"] == []
    finally:
        server.stop()


def test_a_servers_budget_counts_the_gpus_that_it_may_use():
    total = sum(device["memory_bytes"] for device in system_info()["devices"] if device["gpu"])
    for options, expected in (({}, total), ({"device": "cpu"}, 0), ({"n_gpu_layers": 0}, 0)):
        with Engine(**options) as engine:
            assert engine.gpu_bytes() == expected
