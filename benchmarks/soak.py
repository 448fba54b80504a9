"""Memory over time while new conversations begin without end.

    python benchmarks/soak.py MODEL [--seconds 420] [--prefix-cache-bytes N]

Prints one JSON line a period: seconds, requests, resident MiB, MiB of the prefix cache and its limit. Once the cache
has reached its limit, resident memory should stay flat: growth beyond is fragmentation or a leak.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from pathlib import Path

from engines import WORDS

from polargrid_local import Engine


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def converse(engine: Engine, seed: int, stop: threading.Event, done: list[int]) -> None:
    """Conversations of random lengths, none of which begins like another."""
    rng = random.Random(seed)
    while not stop.is_set():
        messages = []
        for _ in range(rng.randrange(1, 4)):
            text = " ".join(rng.choices(WORDS, k=rng.randrange(5, 400)))
            messages.append({"role": "user", "content": f"{rng.random()} {text}"})
            reply = engine.chat_completion(messages=messages, max_tokens=rng.randrange(4, 40))
            messages.append(reply["choices"][0]["message"])
            done[0] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--period", type=float, default=20)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prefix-cache-bytes", type=int, default=-1)
    args = parser.parse_args()
    stop, done = threading.Event(), [0]
    with Engine(args.model, max_streams=args.streams, prefix_cache_bytes=args.prefix_cache_bytes) as engine:
        threads = [
            threading.Thread(target=converse, args=(engine, seed, stop, done)) for seed in range(args.streams + 2)
        ]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        while (elapsed := time.monotonic() - begun) < args.seconds:
            time.sleep(args.period)
            [stats] = engine.stats().values()
            print(
                json.dumps(
                    {
                        "seconds": round(elapsed + args.period),
                        "requests": done[0],
                        "resident_mib": round(resident_mib()),
                        "prefixes_mib": stats["prefix_cache_bytes"] >> 20,
                        "limit_mib": engine.info()["prefix_cache_bytes"] >> 20,
                    }
                ),
                flush=True,
            )
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
