"""Crashes: an engine whose process is killed at random moments, under many streams, beside one that is left alone.

python tests/soak/crashes.py MODEL.gguf [--seconds 3600] [--streams 64] [--every 5]

Half of the streams ask each engine. Every few seconds the first engine's process is ended by one of SIGKILL, SIGSEGV,
SIGABRT and SIGSTOP. Each stream must end with the text that it has alone, or with EngineCrashed; those of the other
engine always with their text. Prints a line of JSON: kills, answers, crashed streams, wrong texts, and what memory and
descriptors have grown to. Exits with status 1 where a text was wrong, a stream hung, or something stayed behind.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from polargrid_local import Engine, EngineCrashed, RateLimitError
from polargrid_local.native import worker

PROMPTS = [f"Write {n} words about the sea." for n in range(3, 11)]


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def ask(engine: Engine, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    with engine.chat_completion_stream(messages=messages, max_tokens=24, temperature=0) as stream:
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream if chunk["choices"])


class Soak:
    def __init__(self, model: str, streams: int) -> None:
        options: dict[str, Any] = {"isolation": "process", "n_ctx": 512, "max_streams": 4, "max_queue": 2 * streams}
        self.hit, self.spared = Engine(model, **options), Engine(model, **options)
        self.model = model
        self.expected = {prompt: ask(self.spared, prompt) for prompt in PROMPTS}
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def one(self, engine: Engine, seed: int) -> None:
        draw = random.Random(seed)
        while not self.stop.is_set():
            prompt = draw.choice(PROMPTS)
            try:
                said = ask(engine, prompt)
                self.count("answers" if said == self.expected[prompt] else "wrong texts")
            except EngineCrashed as error:
                self.count("crashed streams" if engine is self.hit else "streams of the other engine that crashed")
                if "force_reload" in error.message:
                    self.reload()
            except RateLimitError:
                time.sleep(0.1)
            except Exception as error:
                self.count(f"{type(error).__name__}: {error}"[:100])
                time.sleep(0.1)

    def reload(self) -> None:
        """As a person would who was told that the process is not started again by itself."""
        with self.lock:
            try:
                if self.hit._models.find(None).model.crashed:
                    self.hit.load_model(self.model, force_reload=True)
            except Exception:
                time.sleep(0.1)

    def kill(self, draw: random.Random) -> None:
        try:
            pid = int(self.hit.info()["process_id"])
        except Exception:
            return  # it is being loaded
        number = draw.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP))
        os.kill(pid, number)
        self.count(f"kills by {number.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--every", type=float, default=5, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    worker.SILENCE_S = 5  # a stopped process is found out this soon
    soak, draw = Soak(args.model, args.streams), random.Random(args.seed)
    n_descriptors, before = len(os.listdir("/proc/self/fd")), resident_mib()
    engines = (soak.hit, soak.spared)
    threads = [threading.Thread(target=soak.one, args=(engines[i % 2], i)) for i in range(args.streams)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        time.sleep(draw.uniform(0.2, 2 * args.every))
        soak.kill(draw)
    soak.stop.set()
    for thread in threads:
        thread.join(timeout=120)
    hanging = sum(thread.is_alive() for thread in threads)
    soak.reload()
    whole = [ask(engine, PROMPTS[0]) == soak.expected[PROMPTS[0]] for engine in engines]
    running = sum(stats["n_running"] + stats["n_waiting"] for engine in engines for stats in engine.stats().values())
    gc.collect()  # engines that failed to load lie in cycles of their errors
    grown = len(os.listdir("/proc/self/fd")) - n_descriptors
    after = resident_mib()
    for engine in engines:
        engine.close()
    told = {"seconds": args.seconds, "streams": args.streams, **soak.counts, "hanging": hanging}
    print(
        json.dumps({**told, "left running": running, "descriptors more": grown, "MiB": [round(before), round(after)]})
    )
    known = {"answers", "crashed streams"}
    odd = [what for what in soak.counts if what not in known and not what.startswith("kills")]
    return int(bool(odd) or hanging > 0 or running > 0 or not all(whole) or grown > 8)


if __name__ == "__main__":
    sys.exit(main())
