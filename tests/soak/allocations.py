"""Allocations: an engine whose process finds no memory at its n-th allocation, for n = 1, 1 + step, ... until it gets
through a load and an answer without noticing.

python tests/soak/allocations.py MODEL.gguf [--points 2000]

Every point must end in an answer or a typed error, and a process without the fault must then answer. Needs a C compiler
and glibc. Prints a line of JSON; exits with status 1 where an error had no type, or a wrong answer came.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from polargrid_local import Engine
from polargrid_local.errors import PolarGridError
from polargrid_local.native import worker

HERE = Path(__file__).parent
worker.HANG_S = 5
ordinary = worker._environment


def answer(model: str) -> str:
    options: dict[str, Any] = {"isolation": "process", "n_ctx": 256, "max_streams": 1, "n_threads": 1, "device": "cpu"}
    with Engine(model, **options) as engine:
        reply = engine.completion(prompt="the of and", max_tokens=4, temperature=0, ignore_eos=True)
        return str(reply["choices"][0]["text"])


def with_fault(model: str, library: Path, n: int) -> tuple[str, str]:
    worker._environment = lambda: {**ordinary(), "LD_PRELOAD": str(library), "PGL_FAIL_AT": str(n)}
    try:
        return "answers", answer(model)
    except PolarGridError as error:
        return type(error).__name__, error.message
    finally:
        worker._environment = ordinary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--points", type=int, default=2000)
    args = parser.parse_args()
    expected = answer(args.model)
    counts: Counter[str] = Counter()
    wrong = 0
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "failing_malloc.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, HERE / "failing_malloc.c"], check=True)
        # How many there are, by doubling: behind the last one no fault is noticed.
        last = 64
        while any(with_fault(args.model, library, n)[0] != "answers" for n in (last, last + 1, last + 2)):
            last *= 2
        step = max(1, last // args.points)
        for n in range(1, last, step):
            kind, said = with_fault(args.model, library, n)
            counts[kind] += 1
            wrong += kind == "answers" and said != expected
            if sum(counts.values()) % 200 == 0:
                print(dict(counts), file=sys.stderr, flush=True)
    told = {"points": sum(counts.values()), "allocations": last, **counts, "wrong answers": wrong}
    print(json.dumps(told))
    return int(wrong > 0 or answer(args.model) != expected)


if __name__ == "__main__":
    sys.exit(main())
