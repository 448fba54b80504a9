"""Mutants: model files with one changed metadata key each, tried as a file nobody knows is tried.

python tests/soak/mutants.py FOLDER [--count 20000] [--seed 1] [--report FILE]

FOLDER holds .gguf files, for example one tiny model of every architecture. Each mutant is inspected and, where no rule
refuses it, loaded in a process of its own and asked for a few tokens. Prints how many were refused by a rule or by the
loader, answered, ended their process, or never ended. Exits with status 1 where this process has more descriptors open
at the end. With --report every mutant that ended its process is a line of JSON there: each is a rule that is missing.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gguf_file

from polargrid_local.errors import InvalidModelError, PolarGridError
from polargrid_local.native import isolation, worker
from polargrid_local.native.core import core, inspect
from polargrid_local.native.isolation import try_out

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass
class Key:
    """Where a key lies in its file: its name's last byte, its type code, its value or that one's first element."""

    name: str
    name_end: int
    type_at: int
    type: int
    value_at: int
    n: int  # elements; 1 for a scalar
    value: Any  # of the first element; of a text its length


def keys(path: Path) -> list[Key]:
    found = []
    for name, raw in gguf_file.Reader(path).metadata.items():
        (kind,), value_at, n = struct.unpack_from("<I", raw.data), 4, 1
        if kind == ARRAY:
            (kind, n), value_at = struct.unpack_from("<IQ", raw.data, 4), 16
        form = FORMATS.get(kind, "<Q")
        value = struct.unpack_from(form, raw.data, value_at)[0] if n else None
        found.append(Key(name, raw.at - 1, raw.at, kind, raw.at + value_at, n, value))
    return found


def changes(key: Key, draw: random.Random) -> Iterator[tuple[str, int, bytes]]:
    """(what, where, the new bytes)"""
    yield "missing", key.name_end, b"~"
    if key.type == STRING:
        if key.value:
            yield "another text", key.value_at + 8, b"zq"[: key.value]
        return
    form = FORMATS[key.type]
    if key.type in (6, 12):
        values: list[Any] = [0.0, -1.0, 1e-30, 1e30, math.nan, math.inf, -key.value, key.value * 2]
    elif key.type == 7:
        values = [1 - key.value]
    else:
        most = 2 ** (8 * SIZES[key.type]) - 1
        values = [0, 1, 2, 3, 5, 7, 255, key.value + 1, key.value - 1, key.value * 2, key.value // 2, 65536,
                  most // 2, most, draw.randrange(64)]  # fmt: skip
        if form in ("<b", "<h", "<i", "<q"):
            values = [value - most - 1 if value > most // 2 else value for value in values]
    where = key.value_at + SIZES[key.type] * draw.randrange(key.n)
    for value in values:
        if value != key.value:
            try:
                yield str(value), where, struct.pack(form, value)
            except (struct.error, OverflowError):
                continue
    if key.type in (4, 5, 6) and key.n == 1:
        yield "another type", key.type_at, struct.pack("<I", 6 if key.type != 6 else 4)


def mutants(folder: Path, seed: int) -> list[tuple[Path, Key, str, int, bytes]]:
    draw = random.Random(seed)
    found = []
    for path in sorted(folder.glob("*.gguf")):
        for key in keys(path):
            if not key.name.startswith(("tokenizer.ggml.tokens", "general.name")):
                found += [(path, key, *change) for change in changes(key, draw)]
    draw.shuffle(found)
    return found


def outcome(path: Path) -> tuple[str, str]:
    try:
        inspect(path)
    except InvalidModelError as error:
        return "refused by a rule", error.message
    try:
        try_out(str(path), OPTIONS, path.stat().st_size)
    except InvalidModelError as error:
        details = error.details or {}
        if "hangs" in str(details.get("reason")):
            return "never ended", str(details)
        if "reason" in details:
            return "ended its process", str(details)
        return "refused by the loader", error.message
    except PolarGridError as error:
        return type(error).__name__, error.message
    return "answered", ""


OPTIONS: dict[str, Any] = {"device": "cpu", "n_threads": 1, "lora": []}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--count", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--part", default="0/1", help="I/N: every N-th mutant from the I-th on, for N processes")
    arguments.add_argument("--report", type=Path)
    arguments.add_argument("--worker", type=Path, help="another build of polargrid-worker, as one with sanitizers")
    given = arguments.parse_args()
    part, n_parts = map(int, given.part.split("/"))
    worker.HANG_S = 10
    if given.worker is not None:
        worker.worker_program = lambda: given.worker
        isolation._TRIAL_MEMORY = 1 << 60  # a sanitizer maps terabytes that it does not use
    core()
    n_descriptors = len(os.listdir("/proc/self/fd"))
    counts: Counter[str] = Counter()
    report = given.report.open("w") if given.report else None
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as scratch:
        copies: dict[Path, Path] = {}
        for path, key, what, at, new in mutants(given.folder, given.seed)[: given.count][part::n_parts]:
            if path not in copies:
                copies[path] = Path(shutil.copy(path, scratch))
            with open(copies[path], "r+b") as file:
                file.seek(at)
                old = file.read(len(new))
                file.seek(at)
                file.write(new)
                file.flush()
                kind, why = outcome(copies[path])
                counts[kind] += 1
                file.seek(at)
                file.write(old)
            if report and kind not in ("answered", "refused by a rule", "refused by the loader"):
                line = {"model": path.name, "key": key.name, "value": what, "was": str(key.value)[:40], "outcome": kind}
                report.write(json.dumps({**line, "why": why[:300]}) + "\n")
                report.flush()
            if sum(counts.values()) % 500 == 0:
                print(dict(counts), f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    gc.collect()  # engines that failed to load lie in cycles of their errors
    grown = len(os.listdir("/proc/self/fd")) - n_descriptors
    print(json.dumps({"mutants": sum(counts.values()), **counts, "descriptors left open": grown}))
    return int(grown > 2)


if __name__ == "__main__":
    sys.exit(main())
