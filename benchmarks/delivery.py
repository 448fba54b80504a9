"""Two trees of this project side by side: one stream and many, read by threads and by tasks.

    python benchmarks/delivery.py MODEL.gguf TREE [TREE ...] [--rounds 9] [--streams 32] [--tokens 64] [--threads N]

A TREE is a checkout with the extension built into its package folder. Every tree runs in a process of its own and takes
its turn in every round, the first one changing from round to round. Prints medians (min..max) of tokens per second, CPU
seconds per thousand tokens, and each later tree's ratio to the first, of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROUND = ("1 thread", "1 task", "threads", "tasks")


def measure(tree: str, model: str, n_streams: int, n_tokens: int, n_threads: int) -> None:
    """The worker: answers every line on stdin with one line of JSON, {what: [tokens per second, CPU s per 1000]}."""
    # An editable installation finds its own tree first, wherever else one looks.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    sys.path.insert(0, tree)
    import polargrid_local

    assert Path(polargrid_local.__file__).is_relative_to(tree)

    options: Any = {"n_ctx": 512, "max_streams": n_streams, "max_queue": 64, "n_threads": n_threads}
    request: Any = {"temperature": 0, "ignore_eos": True}

    def fields(i: int, n: int) -> Any:
        return {**request, "messages": [{"role": "user", "content": f"Number {i}"}], "max_tokens": n}

    @contextlib.contextmanager
    def timed(found: dict[str, Any], what: str, n: int) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.process_time()
        yield
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        found[what] = n / seconds, 1000 * cpu / n

    def threads(engine: Any, n: int, n_each: int) -> None:
        def read(i: int) -> None:
            for _ in engine.chat_completion_stream(**fields(i, n_each)):
                pass

        readers = [threading.Thread(target=read, args=(i,)) for i in range(n)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    async def tasks(engine: Any, n: int, n_each: int) -> None:
        async def read(i: int) -> None:
            async for _ in engine.chat_completion_stream(**fields(i, n_each)):
                pass

        await asyncio.gather(*(read(i) for i in range(n)))

    long = 4 * n_tokens
    for _ in sys.stdin:
        found: dict[str, Any] = {}
        with polargrid_local.Engine(model, **options) as engine:
            threads(engine, n_streams, 4)
            for what, n, n_each in (("1 thread", 1, long), ("threads", n_streams, n_tokens)):
                with timed(found, what, n * n_each):
                    threads(engine, n, n_each)

        async def on_a_loop(found: dict[str, Any] = found) -> None:
            async with polargrid_local.AsyncEngine(model, **options) as engine:
                await tasks(engine, n_streams, 4)
                for what, n, n_each in (("1 task", 1, long), ("tasks", n_streams, n_tokens)):
                    with timed(found, what, n * n_each):
                        await tasks(engine, n, n_each)

        asyncio.run(on_a_loop())
        print(json.dumps(found), flush=True)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g}..{max(values):.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("trees", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="compute threads; with 1 CPU time holds no waiting")
    args = parser.parse_args()
    rest = [str(args.model), *map(str, (args.streams, args.tokens, args.threads))]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", str(tree.resolve()), *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in args.trees
    ]
    results: list[list[dict[str, list[float]]]] = [[] for _ in workers]
    for round_ in range(args.rounds):
        order = [(i + round_) % len(workers) for i in range(len(workers))]
        for i in order:
            stdin, stdout = workers[i].stdin, workers[i].stdout
            assert stdin is not None and stdout is not None
            stdin.write("\n")
            stdin.flush()
            results[i].append(json.loads(stdout.readline()))
        print(f"round {round_ + 1} of {args.rounds}", file=sys.stderr)
    for what in ROUND:
        for i, tree in enumerate(args.trees):
            speed, cpu = ([found[what][k] for found in results[i]] for k in (0, 1))
            print(f"{what:9} {tree!s:24} {spread(speed)} tokens/s, {spread(cpu)} CPU s per 1000 tokens")
            if i:
                pairs = list(zip(results[0], results[i]))
                ratios = (spread([b[what][k] / a[what][k] for a, b in pairs]) for k in (0, 1))
                print(f"{'':9} {'ratio':24} {next(ratios)} in speed, {next(ratios)} in CPU time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main()
