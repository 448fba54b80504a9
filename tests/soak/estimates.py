"""Estimates: Engine.estimate beside the most memory that a process has really had, over contexts, caches and loaders.

python tests/soak/estimates.py MODEL.gguf [--contexts 2048,8192] [--tokens 530] [--kernels on]

Every engine reads a prompt of so many tokens: more than one batch, whose buffers are then all in use. 0 = as many as
its context holds, which takes long. The memory of a cache comes into use as it is filled; what of it such a prompt
leaves empty is added. Linux. Prints a row of a table for each; exits with status 1 where the two differ by more than
5 %.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from polargrid_local import Engine


def status_bytes(pid: int, field: str) -> int:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def measured(model: str, options: dict[str, Any], n_tokens: int, cache_bytes: int) -> int:
    """The most that the process had, or would have had with a full cache."""
    n_tokens = n_tokens or int(0.96 * options["n_ctx"])
    with Engine(model, isolation="process", prefix_cache_bytes=0, **options) as engine:
        words = "time year people way day man thing woman life child world school state family student group".split()
        prompt = " ".join((words * (n_tokens // len(words) + 1))[: n_tokens - 8])
        usage = engine.completion(prompt=prompt, max_tokens=4)["usage"]
        pid = int(engine.info()["process_id"])
        empty = cache_bytes * (options["n_ctx"] - usage["total_tokens"]) // options["n_ctx"]
        return max(status_bytes(pid, "VmHWM"), status_bytes(pid, "VmRSS") + empty)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--contexts", default="2048,8192")
    arguments.add_argument("--tokens", type=int, default=530)
    arguments.add_argument("--kernels", default="on,off")
    given = arguments.parse_args()
    contexts = [int(n) for n in given.contexts.split(",")]
    print("| n_ctx | cache | mmap | kernels | estimate, MiB | measured, MiB | off by |\n|---|---|---|---|---|---|---|")
    worst = 0.0
    kinds = [kind == "on" for kind in given.kernels.split(",")]
    for n_ctx, cache, mmap, kernels in itertools.product(contexts, ("f16", "q8_0"), (True, False), kinds):
        options: dict[str, Any] = {"n_ctx": n_ctx, "cache_type": cache, "mmap": mmap, "kernels": kernels}
        options |= {"max_streams": 1, "device": "cpu", "n_threads": 2}
        estimate = Engine.estimate(given.model, **options)
        told = estimate["total_bytes"]
        real = measured(given.model, options, given.tokens, estimate["cache_bytes"])
        off = told / real - 1
        worst = max(worst, abs(off))
        flags = " | ".join("on" if flag else "off" for flag in (mmap, kernels))
        print(f"| {n_ctx} | {cache} | {flags} | {told >> 20} | {real >> 20} | {off:+.1%} |", flush=True)
    return int(worst > 0.05)


if __name__ == "__main__":
    sys.exit(main())
