"""ReadyModel: a model that can be asked, by its own name or by that of an adapter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from polargrid_local.api.prompts import Target
from polargrid_local.api.replies import AdapterInfo
from polargrid_local.model_entries import of_adapter
from polargrid_local.models.adapters import Adapter, unknown_adapter
from polargrid_local.models.fingerprint import fingerprint
from polargrid_local.native.loaded_model import LoadedModel

# What info() says of how a model runs, and that may change the bits of an answer.
_FIXES_BITS = ("build", "kernels", "row_invariant", "cache_type", "flash_attention", "n_gpu_layers", "n_batch")


class ReadyModel(NamedTuple):
    """The running engine, and what turns requests into jobs for it."""

    id: str  # of the model in memory, whichever of its adapters `target` stands for
    model: LoadedModel
    target: Target
    created: int  # Unix time of the load
    adapters: list[Adapter]  # as they were loaded
    identity: str  # of the files and settings that fix the bits of its answers

    @property
    def names(self) -> list[str]:
        """What it can be asked for by: its id, and those of its adapters."""
        return [self.id, *(f"{self.id}:{adapter.name}" for adapter in self.adapters if adapter.name)]

    def adapted(self, name: str) -> ReadyModel:
        """The same model with one of its named adapters alone. Raises NotFoundError for a name that none has."""
        for i, adapter in enumerate(self.adapters):
            if adapter.name == name:
                lora = [*always(self.adapters), (i, adapter.scale)]
                info: Any = {**self.target.info, "tasks": of_adapter(self.target.info.get("tasks", []))}
                return self._replace(target=self.target._replace(name=f"{self.id}:{name}", info=info, lora=lora))
        raise unknown_adapter(self.id, name, [adapter.name for adapter in self.adapters if adapter.name])

    @property
    def fingerprint(self) -> str:
        """Of all that fixes the bits of its answers: besides its identity the kernels and where they run, which changes
        when a GPU is lost, and the adapters that act."""
        info = self.model.info
        runs = {key: info.get(key) for key in _FIXES_BITS}
        devices = [[device["name"], device["description"]] for device in info.get("devices", [])]
        scales = always(self.adapters) if self.target.lora is None else self.target.lora
        return fingerprint(self.identity, runs, devices, scales)

    def adapter_infos(self) -> list[AdapterInfo]:
        return [self._adapter_info(i, adapter) for i, adapter in enumerate(self.adapters)]

    def _adapter_info(self, id: int, adapter: Adapter) -> AdapterInfo:
        name = f"{self.id}:{adapter.name}" if adapter.name else ""
        n_bytes = os.path.getsize(adapter.path) if os.path.isfile(adapter.path) else 0
        return {"id": id, "name": name, "path": adapter.path, "scale": adapter.scale, "file_bytes": n_bytes}


def always(adapters: Sequence[Adapter]) -> list[tuple[int, float]]:
    """Those that act on every answer, as native requests have them."""
    return [(i, adapter.scale) for i, adapter in enumerate(adapters) if not adapter.name]
