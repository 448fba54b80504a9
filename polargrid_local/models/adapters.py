"""Adapter: a LoRA file, by itself or under a name that makes a model of its own of it."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

from polargrid_local.errors import NotFoundError, did_you_mean
from polargrid_local.models.names import why_no_file


class Adapter(NamedTuple):
    """`base` and `name`: of one that is asked for as the model "base:name". Without them it acts on every answer."""

    path: str
    scale: float
    base: str = ""
    name: str = ""

    @property
    def title(self) -> str:
        """What messages call it: by its name, if it has one, and its path."""
        return f"adapter '{self.base}:{self.name}' ({self.path})" if self.name else f"adapter {self.path}"

    def check_file(self) -> int:
        """Its length in bytes. Raises NotFoundError where there is no such file, or where it cannot be looked at."""
        path = Path(self.path)
        try:
            file = path.stat()
        except (OSError, ValueError):  # ValueError: a name that no file can have
            file = None
        if file is None or not stat.S_ISREG(file.st_mode):
            raise NotFoundError(f"{self.title}: the file {why_no_file(path)}", param="lora", path=self.path)
        return file.st_size


def split_name(name: str) -> tuple[str, str]:
    """The model and the adapter in "model:adapter"; empty texts for a name that has no such form."""
    base, _, adapter = name.rpartition(":")
    return (base, adapter) if base and adapter else ("", "")


def unknown_adapter(base: str, name: str, known: list[str]) -> NotFoundError:
    """For a name that none of a model's adapters has."""
    hint = did_you_mean(name, known) or "."
    message = f"Model not loaded: '{base[:200]}' has no adapter '{name[:80]}'{hint} Its adapters: {', '.join(known)}"
    return NotFoundError(message, code="model_not_loaded", param="model")
