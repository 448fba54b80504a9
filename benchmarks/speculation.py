"""Drafts on and off, and llama-server's own n-gram drafts; and what passes with 1..16 rows of one sequence take.

Replayed answers have the speed that a good model of this shape would have, whatever the weights say: every pass, every
draft and every sample takes place, and then the given token stands. A small real model also answers by itself, and so
does llama-server, out of the same tree (`poe build-bench-peers`), with and without its `--spec-type ngram-mod`.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import engines
import measure
from bench_server import SERVER, Server
from measure import Samples, record
from workloads import WORKLOADS

if TYPE_CHECKING:
    from bench import Bench

LLAMA_SERVER = measure.HERE.parent / "build" / "bench" / "bin" / "llama-server"
ROW_COSTS = measure.HERE.parent / "build" / "bench" / "benchmarks" / "row_costs"
ON, OFF, PLAIN, NGRAM = "drafts", "no drafts", "llama-server", "llama-server, ngram-mod"


def answer(server: Server, prompt: str, n_tokens: int, seed: int) -> float:
    """Tokens per second of llama-server's own answer to a chat in ChatML, from its first token on."""
    text = f"<|im_start|>user\n{prompt} ({seed})<|im_end|>\n<|im_start|>assistant\n"
    body = {"prompt": text, "n_predict": n_tokens, "temperature": 0, "cache_prompt": False}
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/completion", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return float(json.load(reply)["timings"]["predicted_per_second"])


def drafts(bench: Bench) -> tuple[str, Samples]:
    """Tokens per second of every workload, interleaved round by round: title, samples."""
    args, samples = bench.args, Samples()
    ours = {ON: bench.worker("replay"), OFF: bench.worker("replay-off")}
    servers: dict[str, Server] = {}
    if args.own_answers and args.llama_server.is_file():
        servers[PLAIN] = Server(SERVER, args, 1)
        servers[NGRAM] = Server(SERVER, args, 1, "--spec-type", "ngram-mod")
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
                record(samples, column, {row: answer(server, work.prompt, args.own_answers, seed)})

    bench.rounds(one)
    for closing in (*ours.values(), *servers.values()):
        closing.close()
    counts = "; ".join(f"{row.removesuffix(' (tokens/s)')} {values[-1]}" for row, values in said.items())
    return f"Drafts, one stream. Draft tokens that came true/did not, last round: {counts}", samples


def row_costs(bench: Bench) -> tuple[str, Samples]:
    """Milliseconds of a pass by its number of rows, for both types of the cache and two lengths of the context."""
    args, samples = bench.args, Samples()
    changes: dict[str, list[float]] = {}
    for n_past in args.pasts:
        for cache_type in ("f16", "q8_0"):
            column = f"{cache_type}, {n_past} before"
            numbers = map(str, (args.threads, args.rounds, cache_type, n_past, 16))
            command = [str(args.row_costs), str(args.model), *numbers]
            done = subprocess.run(command, env=engines.thread_environment(), capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {done.stderr[-2000:]}")
            for line in map(json.loads, done.stdout.splitlines()):
                for steady, changed in zip(line["ms"], line["new_ms"], strict=True):
                    record(samples, column, {f"{line['rows']} (ms)": steady})
                    changes.setdefault(column, []).append(changed - steady)
    said = ", ".join(f"{column} {measure.spread(sorted(values)[1:-1])}" for column, values in changes.items())
    return f"A pass by its rows of one sequence. More where the pass before had another number (ms): {said}", samples
