"""On a GPU: our engine through its public API against llama.cpp's own batched bench, with the same backend.

llama-batched-bench opens the library that lies beside our extension (GGML_BACKEND_PATH), so that the two differ in
nothing below llama.cpp. `poe build-bench-peers` builds it; docs/gpu.md has the whole command.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf_file
import measure
from measure import Samples, record

if TYPE_CHECKING:
    from bench import Bench

PROGRAM = measure.HERE.parent / "build" / "bench" / "bin" / "llama-batched-bench"
OURS, THEIRS = "polargrid_local", "llama.cpp's bench"


@lru_cache
def llama_on_gpu() -> tuple[list[str], dict[str, str]]:
    """Arguments and environment for llama.cpp's programs: all layers on the GPUs that the first backend of the package
    sees. They open a backend only for the sake of a device that is named."""
    from polargrid_local import system_info
    from polargrid_local.native.core import core

    names = [device["name"] for device in system_info()["devices"] if device["gpu"]]
    parts = sorted((Path(core().__file__).parent / "backends").glob("*"))
    if not parts or not names:
        raise SystemExit(f"no GPU: {system_info()['gpu_problem']}")
    return ["-ngl", "99", "-dev", ",".join(names)], {**os.environ, "GGML_BACKEND_PATH": str(parts[0])}


def batched_bench(args: Any, n_prompt: int, n_tokens: int, counts: list[int]) -> list[dict[str, float]]:
    """One line for each of `counts`: so many sequences of a prompt each, then their tokens in one batch per step."""
    room = max(counts) * (n_prompt + n_tokens) + 256
    on_gpu, environment = llama_on_gpu()
    options = f"-c {room} -b 2048 -ub 512 -npp {n_prompt} -ntg {n_tokens} -t {args.threads} --output-format jsonl"
    command = [str(args.llama_bench), "-m", str(args.model), *on_gpu, *options.split()]
    command += ["-npl", ",".join(map(str, counts))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != len(counts):
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return lines


def modes(bench: Bench) -> tuple[str, Samples, dict[str, str]]:
    """Prefill, time to the first text and decode, interleaved round by round: title, samples, shares of the bandwidth
    that one stream reads."""
    args, samples = bench.args, Samples()
    _, _, n_bytes = gguf_file.work_per_token(args.model)
    shares: dict[str, list[float]] = {OURS: [], THEIRS: []}
    ours = bench.worker("gpu", streams=max(bench.counts))
    placement = ours("placement")
    ours("prefill", n_prompt=max(bench.prompts), seed=1)  # a GPU's programs are made and loaded at first use
    for n in bench.counts:
        ours("decode", n_streams=n, n_tokens=16, seed=n)

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
    return placement + said, samples, share
