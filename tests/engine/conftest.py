"""Engines on the real model and on tiny scripted ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_model

from polargrid_local import Engine


@pytest.fixture(scope="session")
def engine(smollm2: Path) -> Iterator[Engine]:
    """One engine on SmolLM2 for all tests that leave it as they found it."""
    with Engine(smollm2, n_ctx=2048, max_streams=4, max_queue=64) as shared:
        yield shared


@pytest.fixture(scope="session")
def busy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for a prompt (HOLD of helpers) that takes minutes to read on any machine."""
    return tiny_model.write_random(tmp_path_factory.mktemp("busy") / "busy.gguf", n_ctx_train=131072)


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """scripted(scripts, **engine options) -> (engine, said): an engine that answers script i to said.prompt(i)."""
    opened: dict[str, tuple[Engine, Any]] = {}
    folder = tmp_path_factory.mktemp("scripted")

    def open_scripted(
        scripts: list[list[Any]], *, endless: bool = False, controls: Sequence[str] = (), **options: Any
    ) -> tuple[Engine, Any]:
        key = repr((scripts, endless, controls, sorted(options.items())))
        if key not in opened:
            path = folder / f"{len(opened)}.gguf"
            said = tiny_model.write_scripted(path, scripts, endless=endless, controls=controls)
            opened[key] = Engine(said.path, **options), said
        return opened[key]

    yield open_scripted
    for shared, _ in opened.values():
        shared.close()
