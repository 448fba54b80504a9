"""Isolation: whether a model's engine runs in this process or in one of its own, and the trial of files in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from polargrid_local.errors import EngineCrashed, PolarGridError, from_code
from polargrid_local.native.core import refused
from polargrid_local.native.delivery import TERMINAL, ThreadReader
from polargrid_local.native.loaded_model import LoadedModel

Isolation = Literal["auto", "thread", "process"]

# Of these this package's tests compute real answers in process. Any other runs in a process of its own.
TESTED = frozenset(("bert", "gemma-embedding", "gemma3", "llama", "nomic-bert", "qwen3", "t5encoder"))

_TRIAL_CTX = 256
_TRIAL_S = 60.0  # of computing; a load is watched by the worker itself
_TRIAL_MEMORY = 4 << 30  # bytes of private memory beyond the file's own size
# Every byte that UTF-8 has: ASCII, the other first bytes of characters of two to four, and all continuations.
_EVERY_BYTE = (
    "".join(map(chr, range(1, 128)))
    + "".join(chr((first << 6) | (first & 0x3F)) for first in range(2, 32))
    + "".join(chr(max(0x800, first << 12) | (first << 6)) for first in range(16) if first != 13)
    + "".join(chr(max(0x10000, first << 18)) for first in range(5))
)


def choose(wanted: Isolation, verified: bool, architecture: str) -> Literal["thread", "process"]:
    """`verified`: this very file came as somebody vouched for, or has stood a trial of this build."""
    if wanted != "auto":
        return wanted
    return "thread" if verified and architecture in TESTED else "process"


def try_out(
    path: str, options: dict[str, Any], n_bytes: int, on_begin: Callable[[LoadedModel], Any] | None = None
) -> None:
    """Loads a file of `n_bytes` in a throw-away process, reads a text of every byte with it and lets it say a few
    tokens. Raises InvalidModelError where that ends the process or never ends, and what a load raises. `on_begin` gets
    what loads, for an abort()."""
    small = {**options, "n_ctx": _TRIAL_CTX, "max_streams": 1, "prefix_cache_bytes": 0}
    model = LoadedModel(path, small, isolated=True, most_memory_bytes=2 * n_bytes + _TRIAL_MEMORY)
    if on_begin is not None:
        on_begin(model)
    try:
        model.load()
        for task in model.info["tasks"]:
            _ask(model, task)
    except EngineCrashed as error:
        raise refused(error, model.path) from None
    finally:
        model.close()


def _ask(model: LoadedModel, task: str) -> None:
    """Its answer, good or bad: what counts is that there is one."""
    text = _EVERY_BYTE if task != "rank" else "a query"
    n_fits = model.info["n_ctx"] // 2
    while len(text) > 1 and len(model.tokenize([(text, False)])) > n_fits:
        text = text[: len(text) // 2]
    prompt = [(text, False)] if task != "rank" else [(text, False), ("a document", False)]
    reader = ThreadReader(model.handle)
    give_up = time.monotonic() + _TRIAL_S
    try:
        (id,) = model.submit([{"task": task, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}], reader)
        while (entry := reader.get()) is not None:
            event = entry[1]
            if event.kind == "error" and event.code == "engine_crashed":
                raise from_code(event.code, event.text, dict(event.details))
            if event.kind in TERMINAL:
                return
            if time.monotonic() > give_up:
                model.cancel([id])
    except EngineCrashed:
        raise
    except PolarGridError:
        return  # an answer like any other
