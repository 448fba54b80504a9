"""MemoryBudget: the bytes that all loaded models together may take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from polargrid_local.errors import MemoryEstimateError

DEFAULT_SHARE = 0.8  # of the machine's memory; the rest is left to everything else that runs on it


class MemoryBudget:
    """`n_bytes`: 0 for 80 % of the memory of this machine, or of this container, and of its GPUs, `gpu_bytes`."""

    def __init__(self, n_bytes: int, gpu_bytes: Callable[[], int] = lambda: 0) -> None:
        self._n_bytes, self._gpu_bytes = n_bytes, gpu_bytes

    def binds(self, any_loaded: bool) -> bool:
        """Whether the next model has to fit into it. One that is alone may have whatever is free, which its load finds
        out, unless a budget was given."""
        return self._n_bytes > 0 or any_loaded

    def next_to_unload(self, model: str, need: int, taken: Iterable[int], idle: Sequence[str]) -> str | None:
        """The first of the `idle` models, None where `model` fits with its `need` bytes beside the bytes `taken`.

        Raises MemoryEstimateError where it does not fit and nothing is idle."""
        taken = list(taken)
        if not self.binds(bool(taken)):
            return None
        all_of_it = self._n_bytes or DEFAULT_SHARE * (machine_memory_bytes() + self._gpu_bytes())
        have = all_of_it - sum(taken)
        if have >= need:
            return None
        if idle:
            return idle[0]
        have = max(0, int(have))
        raise MemoryEstimateError(
            f"model '{model}' needs {need} bytes, the memory budget leaves {have}", details={"need": need, "have": have}
        )


def machine_memory_bytes() -> float:
    """This machine's, or this container's; infinity where the system does not tell."""
    try:
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf
    try:
        return min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit: no such file, or the word "max" in it
        return total
