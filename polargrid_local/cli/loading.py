"""The model that a command runs: found on this disk, fetched where that is allowed, loaded behind a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrid_local.cli.answer import note
from polargrid_local.cli.progress import download_progress, load_progress
from polargrid_local.cli.tables import size
from polargrid_local.models.store import Store

if TYPE_CHECKING:
    from polargrid_local.engine import Engine


@contextlib.contextmanager
def loaded_engine(model: str | None, models_dir: Path | None, **options: Any) -> Iterator[tuple[Engine, str]]:
    """A loaded engine and its model's name; closed at the end. Without `model`, `default_name` chooses one."""
    from polargrid_local.engine import Engine

    name = default_name(Store(models_dir)) if model is None else model
    with load_progress(name) as progress:
        engine = Engine(name, models_dir=models_dir, on_load_progress=progress, **options)
    with engine:
        yield engine, name


def default_name(store: Store) -> str:
    """The model to run where none was named. The embedded default is fetched on its first use; no other ever is."""
    name = store.default()
    if name == store.catalog.embedded and name not in store.list():
        entry = store.catalog.entries[name]
        n_bytes = f"{size(entry.bytes)}, " if entry.bytes else ""
        note(
            f"No --model and no {store.catalog.preferred} on this disk: fetching {name} once ({n_bytes}{entry.licence})"
        )
        pull(store, name)
    return name


def pull(store: Store, name: str) -> Path:
    """The path of a model's file, downloaded where it is not complete on this disk."""
    with download_progress(name) as progress:
        return store.pull(name, progress)
