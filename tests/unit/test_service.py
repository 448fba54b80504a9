"""The service over an engine: one table of what is loaded or loading, and who waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest

from polargrid_local import AsyncEngine, DeviceLostError
from polargrid_local.errors import InvalidModelError, MemoryEstimateError, ServerError
from polargrid_local.service.given import Given
from polargrid_local.service.llama_server import load
from polargrid_local.service.memory import MemoryBudget
from polargrid_local.service.service import Service
from polargrid_local.service.settings import ServiceSettings


class Gate:
    """Progress of a load: half, until it is opened, then the end of it."""

    def __init__(self) -> None:
        self.half = threading.Event()
        self.open = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        yield 0.5
        self.half.set()
        self.open.wait(60)
        yield 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    return tmp_path


@pytest.fixture
async def serve(folder: Path) -> AsyncIterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(load: Any = (), **settings: Any) -> Service:
        engine = AsyncEngine(models_dir=folder, engine_factory=fakes.factory(load=load))
        services.append(Service(engine, ServiceSettings(models_dir=folder, **settings)))
        return services[-1]

    yield make
    for service in services:
        await service.close()


async def test_the_engine_says_how_far_a_load_has_come(serve: Callable[..., Service]) -> None:
    gate = Gate()
    service = serve(load=gate)
    assert "progress" not in await service.engine.get_model_status()
    load = asyncio.create_task(service.load_model("one", force=False))
    while (await service.engine.get_model_status()).get("progress") != {"one": 0.5}:
        await asyncio.sleep(0.002)
    status = await service.model_status()
    assert (status["loaded"], status["loading_status"], status["progress"]) == ([], {"one": "loading"}, {"one": 0.5})
    second = asyncio.create_task(service.load_model("two", force=False))  # waits for its turn
    await asyncio.sleep(0)
    assert (await service.model_status())["progress"] == {"one": 0.5, "two": 0.0}
    gate.open.set()
    await asyncio.gather(load, second)
    status = await service.model_status()
    assert (status["loaded"], status["progress"]) == (["one", "two"], {})


async def test_many_wait_for_one_load_which_outlives_those_who_leave(serve: Callable[..., Service]) -> None:
    gate = Gate()
    service = serve(load=gate)
    asked = [asyncio.create_task(service.lease("one")) for _ in range(3)]
    await asyncio.to_thread(gate.half.wait, 60)
    asked[0].cancel()
    gate.open.set()
    leases = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(lease).__name__ for lease in leases] == ["CancelledError", "Lease", "Lease"]
    assert len(service.engine._models._factory.made) == 1


async def test_a_load_that_another_user_of_the_engine_began_is_waited_for(serve: Callable[..., Service]) -> None:
    gate = Gate()
    service = serve(load=gate)
    theirs = asyncio.create_task(service.engine.load_model("one"))
    await asyncio.to_thread(gate.half.wait, 60)
    asked = asyncio.create_task(service.lease("one"))
    gate.open.set()
    lease = await asked
    assert (await theirs)["status"] == "success"
    assert (lease.model, len(service.engine._models._factory.made)) == ("one", 1)


async def test_what_another_user_of_the_engine_unloads_is_loaded_again(serve: Callable[..., Service]) -> None:
    service = serve()
    (await service.lease("one")).release()
    await service.engine.unload_model("one")
    assert (await service.model_status())["loaded"] == []
    assert (await service.status())["regions"][0]["models"] == []
    await service.lease("one")
    assert (await service.model_status())["loaded"] == ["one"]


async def test_a_load_that_fails_fails_for_all_who_wait(serve: Callable[..., Service]) -> None:
    service = serve(load=(0.5, fakes.Error("invalid_model", "tensor x: bad", {})))
    results = await asyncio.gather(*(service.lease("one") for _ in range(3)), return_exceptions=True)
    assert {type(result) for result in results} == {ServerError}
    assert len(service.engine._models._factory.made) == 1
    with pytest.raises(InvalidModelError):
        await service.load_model("one", force=False)
    assert (await service.model_status())["loading_status"] == {"one": "failed"}


async def test_a_forced_load_replaces_the_copy(serve: Callable[..., Service]) -> None:
    service = serve()
    await service.load_model("one", force=False)
    await service.load_model("one", force=False)
    await service.load_model("one", force=True)
    assert [made.closed for made in service.engine._models._factory.made] == [True, False]
    assert service.pool.loaded() == ["one"]


async def test_a_lease_says_how_long_its_model_stays(serve: Callable[..., Service]) -> None:
    service = serve(keep_alive_s=-1)
    service.pool.start()
    one, again, two = [await service.lease(name) for name in ("one", "one", "two")]
    one.keep_alive_s, two.keep_alive_s = 0, 3600
    one.release()
    two.release()
    assert service.pool.idle_s_left("one") == 0 and service.pool.loaded() == ["one", "two"]  # `again` holds it
    assert 3590 < (service.pool.idle_s_left("two") or 0) <= 3600
    again.release()
    last = await service.lease("two")
    last.keep_alive_s = -1
    last.release()
    while "one" in service.pool.loaded():
        await asyncio.sleep(0.002)
    assert service.pool.idle_s_left("two") is None
    (await service.lease("one")).release()
    assert service.pool.idle_s_left("one") is None  # as the settings have it: it was loaded anew


def test_a_budget_asks_the_longest_idle_to_go_and_says_what_is_missing() -> None:
    budget = MemoryBudget(100)
    assert budget.next_to_unload("new", 40, [30, 30], ["a", "b"]) is None
    assert budget.next_to_unload("new", 41, [30, 30], ["a", "b"]) == "a"
    with pytest.raises(MemoryEstimateError, match="needs 41 bytes, the memory budget leaves 40") as caught:
        budget.next_to_unload("new", 41, [30, 30], [])
    assert caught.value.details == {"need": 41, "have": 40}


async def test_a_model_that_lost_its_gpu_is_not_there_and_the_others_are(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()
    for name in ("one", "two"):
        await service.load_model(name, force=False)
    info = service.engine.info

    def lost(model: str) -> Any:
        if model == "one":
            raise DeviceLostError("the GPU stopped working")
        return info(model)

    monkeypatch.setattr(service.engine, "info", lost)
    assert service.pool.loaded() == ["two"]


def test_the_default_budget_counts_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polargrid_local.service.memory.machine_memory_bytes", lambda: 100.0)
    assert MemoryBudget(0, lambda: 900).next_to_unload("new", 790, [10], ["a"]) is None
    assert MemoryBudget(0, lambda: 900).next_to_unload("new", 791, [10], ["a"]) == "a"
    assert MemoryBudget(0).next_to_unload("new", 71, [10], ["a"]) == "a"
    assert MemoryBudget(50, lambda: 900).next_to_unload("new", 41, [10], ["a"]) == "a"  # a budget is taken at its word


def test_a_model_alone_may_have_what_is_free_unless_a_budget_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polargrid_local.service.memory.machine_memory_bytes", lambda: 100.0)
    assert MemoryBudget(0).next_to_unload("new", 95, [], []) is None
    with pytest.raises(MemoryEstimateError, match="needs 51 bytes, the memory budget leaves 50"):
        MemoryBudget(50).next_to_unload("new", 51, [], [])


async def test_how_many_requests_there_are() -> None:
    counts = {"one": {"n_running": 2, "n_waiting": 1}, "other": {"n_running": 1, "n_waiting": 0}}
    service: Any = SimpleNamespace(stats=lambda: counts)
    assert await load(service, Given()) == {"server_load": 4}
