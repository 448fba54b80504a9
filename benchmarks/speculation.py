"""Drafts on and off, and llama-server's own n-gram drafts; and what passes with 1..16 rows of one sequence take.

Replayed answers have the speed that a good model of this shape would have, whatever the weights say: every pass, every
draft and every sample takes place, and then the given token stands. A small real model also answers by itself, and so
does llama-server, out of the same tree (`poe build-bench-peers`), with and without its `--spec-type ngram-mod`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
import measure
from measure import Samples, record
from workloads import WORKLOADS

if TYPE_CHECKING:
    from bench import Bench

SERVER = measure.HERE.parent / "build" / "bench" / "bin" / "llama-server"
ROW_COSTS = measure.HERE.parent / "build" / "bench" / "benchmarks" / "row_costs"
ON, OFF, PLAIN, NGRAM = "drafts", "no drafts", "llama-server", "llama-server, ngram-mod"


class Server:
    """llama-server with one slot, on a port of its own."""

    def __init__(self, program: Path, model: Path, threads: int, n_ctx: int, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(program), "-m", str(model), "--port", str(self.port), "-t", str(threads), "-np", "1"]
        command += ["-c", str(n_ctx), "--no-webui", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        start = time.monotonic()
        while True:
            if self.process.poll() is not None or time.monotonic() - start > 300:
                raise RuntimeError(f"llama-server did not serve (status {self.process.poll()})")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.05)

    def answer(self, prompt: str, n_tokens: int, seed: int) -> float:
        """Tokens per second of the model's own answer to a chat in ChatML, from its first token on."""
        text = f"<|im_start|>user\n{prompt} ({seed})<|im_end|>\n<|im_start|>assistant\n"
        body = {"prompt": text, "n_predict": n_tokens, "temperature": 0, "cache_prompt": False}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/completion", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return float(json.load(reply)["timings"]["predicted_per_second"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


def drafts(bench: Bench) -> tuple[str, Samples]:
    """Tokens per second of every workload, interleaved round by round: title, samples."""
    args, samples = bench.args, Samples()
    ours = {ON: bench.worker("replay"), OFF: bench.worker("replay-off")}
    servers: dict[str, Server] = {}
    if args.own_answers and args.llama_server.is_file():
        servers[PLAIN] = Server(args.llama_server, args.model, args.threads, args.n_ctx)
        ngram = ("--spec-type", "ngram-mod")
        servers[NGRAM] = Server(args.llama_server, args.model, args.threads, args.n_ctx, *ngram)
    said: dict[str, list[str]] = {}

    def one(seed: int) -> None:
        for work in WORKLOADS:
            for prediction in dict.fromkeys(("", work.prediction)):
                row = f"{work.kind}, replayed{', with a prediction' if prediction else ''} (tokens/s)"
                for column, worker in ours.items():
                    asked = {"prompt": work.prompt, "prediction": prediction, "seed": seed}
                    v = worker("replay", answer=work.answer, n_tokens=args.replayed, **asked)
                    record(samples, column, {row: v["tokens_per_s"]})
                    if column == ON:
                        said.setdefault(row, []).append(f"{v['accepted']}/{v['rejected']} of {v['tokens']}")
            if not args.own_answers:
                continue
            row, texts = f"{work.kind}, the model's own answer (tokens/s)", set()
            for column, worker in ours.items():
                asked = {"prompt": work.prompt, "prediction": work.prediction, "seed": seed}
                v = worker("answer", n_tokens=args.own_answers, **asked)
                record(samples, column, {row: v["tokens_per_s"]})
                texts.add(v["text"])
                if column == ON:
                    said.setdefault(row, []).append(f"{v['accepted']}/{v['rejected']} of {v['tokens']}")
            if len(texts) != 1:
                raise RuntimeError(f"{work.kind}: drafts changed the answer")
            for column, server in servers.items():
                record(samples, column, {row: server.answer(work.prompt, args.own_answers, seed)})

    bench.rounds(one)
    for closing in (*ours.values(), *servers.values()):
        closing.close()
    counts = "; ".join(f"{row.removesuffix(' (tokens/s)')} {values[-1]}" for row, values in said.items())
    return f"Drafts, one stream. Draft tokens that came true/did not, last round: {counts}", samples


def row_costs(bench: Bench) -> tuple[str, Samples]:
    """Milliseconds of a pass by its number of rows, for both types of the cache and two lengths of the context."""
    args, samples = bench.args, Samples()
    chosen = any(name in os.environ for name in engines.Bare.THREADS)
    environment = None if chosen else {**os.environ, **engines.Bare.THREADS}
    changes: dict[str, list[float]] = {}
    for n_past in args.pasts:
        for cache_type in ("f16", "q8_0"):
            column = f"{cache_type}, {n_past} before"
            numbers = map(str, (args.threads, args.rounds, cache_type, n_past, 16))
            command = [str(args.row_costs), str(args.model), *numbers]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {done.stderr[-2000:]}")
            for line in map(json.loads, done.stdout.splitlines()):
                for steady, changed in zip(line["ms"], line["new_ms"], strict=True):
                    record(samples, column, {f"{line['rows']} (ms)": steady})
                    changes.setdefault(column, []).append(changed - steady)
    said = ", ".join(f"{column} {measure.spread(sorted(values)[1:-1])}" for column, values in changes.items())
    return f"A pass by its rows of one sequence. More where the pass before had another number (ms): {said}", samples


def columns_of(samples: Samples, wanted: list[str]) -> list[str]:
    return [column for column in wanted if any(column in cells for cells in samples.values())]


def table(bench: Bench, section: str) -> dict[str, Any]:
    """What Bench.add() takes."""
    if section == "rows":
        title, samples = row_costs(bench)
        return {"title": title, "samples": samples, "columns": list(next(iter(samples.values())))}
    title, samples = drafts(bench)
    return {
        "title": title,
        "samples": samples,
        "columns": columns_of(samples, [ON, OFF, PLAIN, NGRAM]),
        "against": OFF,
    }
