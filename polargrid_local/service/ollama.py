"""What Ollama's API asks of the models themselves: which there are, what is in memory, and what one file says."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from polargrid_local.dialects.ollama_models import API_VERSION, ModelFile, listed, running, shown
from polargrid_local.dialects.ollama_replies import OllamaModel, OllamaModels, OllamaRunning, OllamaVersion
from polargrid_local.engine import inspect_model
from polargrid_local.errors import NotFoundError, PolarGridError, ValidationError
from polargrid_local.service.service import Service


async def tags(service: Service) -> OllamaModels:
    """Every model that a request may name. Files that are no model are left out."""
    rows = (await service.list_models())["data"]
    files = await asyncio.to_thread(_readable, service, [row["id"] for row in rows])
    return {"models": [listed(file) for file in files]}


async def show(service: Service, given: Mapping[str, Any]) -> OllamaModel:
    """Raises ValidationError without a name, NotFoundError, InvalidModelError."""
    name = given.get("model") or given.get("name")  # its older name
    if not isinstance(name, str):
        raise ValidationError("model: required, a string", param="model")
    return shown(await asyncio.to_thread(_read, service, name))


async def ps(service: Service) -> OllamaRunning:
    """The models in memory."""
    files = await asyncio.to_thread(_readable, service, service.pool.loaded())
    stats = service.stats()
    models = []
    for file in files:
        with contextlib.suppress(PolarGridError):  # unloaded meanwhile
            n_ctx, n_bytes = service.engine.info(file.id)["n_ctx"], service.pool.bytes_held(file.id)
            gpu_bytes = sum(stats[file.id]["device_bytes"].values()) if file.id in stats else 0
            left_s = service.pool.idle_s_left(file.id)
            expires = None if left_s is None else time.time() + left_s
            models.append(running(file, n_ctx, n_bytes, gpu_bytes, expires))
    return {"models": models}


async def version() -> OllamaVersion:
    return {"version": API_VERSION}


def _readable(service: Service, names: list[str]) -> list[ModelFile]:
    files = []
    for name in names:
        with contextlib.suppress(PolarGridError):
            files.append(_read(service, name))
    return files


def _read(service: Service, name: str) -> ModelFile:
    asked = service.names.find(name)
    model = service.names.model_of(asked)
    found = service.names.store.resolve(service.names.source(model))
    try:
        modified = found.path.stat().st_mtime
    except OSError as error:
        message = f"cannot read the model file {found.path.name}: {error.strerror}"
        raise NotFoundError(message, param="model") from None
    parent = model if model != asked else ""
    return ModelFile(name, found.n_bytes, modified, found.sha256, inspect_model(found.path), parent)
