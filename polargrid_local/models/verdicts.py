"""Verdicts: which model files stood a trial, on this machine and with this build."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

_MOST = 2000  # files remembered
_BEGINNING, _PIECE = 16 << 20, 64 << 10  # bytes: the header of nearly every model, hashed in some 10 ms


class Verdicts:
    """Kept in one small file of the user's cache directory; where that cannot be read or written, nothing is known.

    A file is told by where it lies, its length, its times and its beginning. The time of its last change of any kind is
    among them, which no ordinary program can set back; but Windows and some network shares have none, and there a
    rewritten header is noticed by its bytes. The header alone would not do, although most crashes come of it: numbers
    in the weights end a process too (indices of experts that are none, NaN in a sort), and to hash those takes as long
    as another trial. So a copy is tried again. `build`: that of the engine; another one makes its own trials."""

    def __init__(self, build: str, folder: Path | None = None) -> None:
        if folder is None:
            from platformdirs import user_cache_dir  # only this default needs it

            folder = Path(user_cache_dir("polargrid-local", appauthor=False))
        self._build = build
        self._file = folder / "verdicts.json"

    def stood(self, files: Iterable[Path]) -> bool:
        """Whether these files together were tried as they are now."""
        key = self._key(files)
        return key is not None and key in self._read()

    def note(self, files: Iterable[Path]) -> None:
        """They have been tried, and nothing broke."""
        key = self._key(files)
        if key is None:
            return
        known = {**self._read(), key: time.time()}
        newest = sorted(known, key=known.__getitem__)[-_MOST:]
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_name(f"{self._file.name}.{os.getpid()}")
            fresh.write_text(json.dumps({name: known[name] for name in newest}))
            os.replace(fresh, self._file)

    def _key(self, files: Iterable[Path]) -> str | None:
        """None for a file that cannot be looked at."""
        told: list[object] = [self._build]
        try:
            for path in files:
                with open(path, "rb") as file:
                    stat = os.fstat(file.fileno())
                    beginning = hashlib.sha256()
                    for _ in range(_BEGINNING // _PIECE):
                        beginning.update(file.read(_PIECE))
                times = stat.st_mtime_ns, stat.st_ctime_ns
                told.append((stat.st_dev, stat.st_ino, stat.st_size, *times, beginning.hexdigest()))
        except OSError:
            return None
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def _read(self) -> dict[str, float]:
        try:
            known = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict):
            return {}
        return {key: when for key, when in known.items() if isinstance(when, (int, float))}
