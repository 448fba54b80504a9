"""The remote on localhost: an HTTP server of the PolarGrid and OpenAI text APIs (extra [server])."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polargrid_local.errors import ValidationError
from polargrid_local.extras import how_to_install
from polargrid_local.server.config import ServeConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

    from polargrid_local.engine import AsyncEngine

__all__ = ["ServeConfig", "create_app", "run"]


def create_app(engine: AsyncEngine, config: ServeConfig | None = None) -> FastAPI:
    """The ASGI application over an AsyncEngine: it loads `config.model` at its start and closes the engine at its end.

    Raises ValidationError where the extra [server] is not installed."""
    _need_extra()
    from polargrid_local.server.app import create_app

    return create_app(engine, config or ServeConfig())


def run(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM; then running requests get `drain_s` to end. Raises what keeps it from starting."""
    _need_extra()
    from polargrid_local.server.process import run

    run(config)


def _need_extra() -> None:
    if how := how_to_install("server"):
        raise ValidationError(f"the server {how}")
