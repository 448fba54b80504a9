"""On a GPU: our engine through its public API against llama.cpp's own batched bench, with the same backend.

llama-batched-bench opens the library that lies beside our extension (GGML_BACKEND_PATH), so that the two differ in
nothing below llama.cpp. `poe build-bench-peers` builds it; docs/gpu.md has the whole command.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf_file
import measure
from measure import Samples, record

if TYPE_CHECKING:
    from bench import Bench

PROGRAM = measure.HERE.parent / "build" / "bench" / "bin" / "llama-batched-bench"
OURS, THEIRS = "polargrid_local", "llama.cpp's bench"


def backend_environment() -> dict[str, str]:
    """For llama.cpp's programs: the first GPU backend that is installed with the package."""
    from polargrid_local.native.core import core

    parts = sorted((Path(core().__file__).parent / "backends").glob("*"))
    if not parts:
        raise SystemExit("this build has no GPU backend: docs/gpu.md")
    return {**os.environ, "GGML_BACKEND_PATH": str(parts[0])}


def batched_bench(args: Any, n_prompt: int, n_tokens: int, counts: list[int]) -> list[dict[str, float]]:
    """One line for each of `counts`: so many sequences of a prompt each, then their tokens in one batch per step."""
    room = max(counts) * (n_prompt + n_tokens) + 256
    options = f"-ngl 99 -c {room} -b 2048 -ub 512 -npp {n_prompt} -ntg {n_tokens} -t {args.threads}"
    command = [str(args.llama_bench), "-m", str(args.model), *options.split()]
    command += ["-npl", ",".join(map(str, counts)), "--output-format", "jsonl"]
    done = subprocess.run(command, env=backend_environment(), capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != len(counts):
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return lines


def modes(bench: Bench) -> tuple[str, Any]:
    """Prefill, time to the first text and decode, interleaved round by round: (table, medians)."""
    args, samples = bench.args, Samples()
    _, _, n_bytes = gguf_file.work_per_token(args.model)
    shares: dict[str, list[float]] = {OURS: [], THEIRS: []}
    ours = bench.worker("gpu", streams=max(bench.counts))
    placement = ours("placement")

    def one(seed: int) -> None:
        for n in bench.prompts:
            [line] = batched_bench(args, n, 4, [1])
            record(samples, OURS, {f"prefill {n}, tokens/s": ours("prefill", n_prompt=n, seed=seed)})
            record(samples, THEIRS, {f"prefill {n}, tokens/s": line["speed_pp"]})
            row = f"first text after {n} tokens (ms)"
            record(samples, OURS, {row: ours("first_text", n_prompt=n, seed=seed + 50)})
            record(samples, THEIRS, {row: 1000 * (line["t_pp"] + line["t_tg"] / 4)})
        for line in batched_bench(args, 32, args.tokens, bench.counts):
            n = int(line["pl"])
            rate = ours("decode", n_streams=n, n_tokens=args.tokens, seed=seed + n)
            record(samples, OURS, {f"decode {n}, tokens/s": rate})
            record(samples, THEIRS, {f"decode {n}, tokens/s": line["speed_tg"]})
            if n == 1 and args.gpu_bandwidth:
                for name, value in ((OURS, rate), (THEIRS, line["speed_tg"])):
                    shares[name].append(value * n_bytes / 1e9 / args.gpu_bandwidth)

    bench.rounds(one)
    ours.close()
    share = {name: measure.spread(values) for name, values in shares.items() if values}
    said = "".join(f", {name} reads {value} of the bandwidth with one stream" for name, value in share.items())
    table = f"**{placement}{said}**\n\n{measure.table(samples, [OURS, THEIRS], against=THEIRS)}"
    return table, {**measure.medians(samples), "of the bandwidth": share}
