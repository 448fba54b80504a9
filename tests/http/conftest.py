"""Real servers in their own processes, started by the command line, on loopback."""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny_model
from browser import chromium, context, page, scripted  # noqa: F401  # fixtures
from serving import ALIAS, SAID, SMOLLM2, ServerProcess


@pytest.fixture(scope="session")
def models_dir(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2, `random` (says anything, for 131072 tokens: many minutes on any machine) and `scripted` (says SAID)."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(smollm2, folder)
    tiny_model.write_random(folder / "random.gguf", n_ctx_train=131072)
    tiny_model.write_scripted(folder / "scripted.gguf", [SAID])
    return folder


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`random` and `scripted` alone."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.write_random(folder / "random.gguf", n_ctx_train=131072)
    tiny_model.write_scripted(folder / "scripted.gguf", [SAID])
    return folder


@pytest.fixture(scope="session")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The one that most tests share: three models, an alias, eight streams."""
    process = ServerProcess(
        models_dir, tmp_path_factory.mktemp("server") / "log", model=f"{SMOLLM2},random,scripted",
        aliases=f"{ALIAS}={SMOLLM2}", n_ctx=2048, max_streams=8, max_queue=8, n_threads=1, log_level="debug",
    )  # fmt: skip
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's; a module about another client has its own by this name."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def start(tiny_dir: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """start(**settings): a server over the tiny models, not yet ready; killed after the test."""
    running: list[ServerProcess] = []

    def begin(**settings: Any) -> ServerProcess:
        settings = {"model": "random", "n_threads": 1, "n_ctx": 131072, "max_streams": 4, **settings}
        running.append(ServerProcess(tiny_dir, tmp_path / f"log{len(running)}", **settings))
        return running[-1]

    yield begin
    for process in running:
        process.stop(signal.SIGKILL)
