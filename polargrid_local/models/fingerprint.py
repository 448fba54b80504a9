"""Fingerprint: a short name of all that fixes an answer's bits beside the request, equal in every run of one set-up."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SAMPLES, _SAMPLE_BYTES = 16, 64 << 10


def fingerprint(*parts: Any) -> str:
    """`fp_` and 16 hex digits. `parts` are plain data."""
    return f"fp_{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"


def files_digest(files: Iterable[Path]) -> str:
    """Tells files apart by their lengths and by what they hold at 16 places, spread over each from its first byte to
    its last: all of a model would take minutes to read. "" where one cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in files:
            with open(path, "rb") as file:
                n_bytes = os.fstat(file.fileno()).st_size
                digest.update(n_bytes.to_bytes(8, "little"))
                for i in range(_SAMPLES):
                    file.seek(max(0, n_bytes - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()
