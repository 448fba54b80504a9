"""Times MUL_MAT per type, shape and number of tokens: our kernels per instruction set against ggml's paths.

Drives the `bench_kernels` executable (configure with -DPGL_BENCHMARKS=ON, build target bench_kernels). All paths take
turns in one process, round by round, so that they meet the same machine. One thread is timed in CPU time, more in
wall time. Prints a table in GMAC/s (one MAC: one int8 multiply-add), best of the rounds, then one JSON line with all.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

# (type, weight rows, row length): what Llama-3.1-8B and SmolLM2 multiply by; the long matrices are cut, not the rows.
SHAPES = [
    ("q4_K", 4096, 4096),
    ("q4_K", 1024, 14336),
    ("q6_K", 4096, 4096),
    ("q5_K", 4096, 4096),
    ("q8_0", 4096, 4096),
    ("q4_0", 4096, 4096),
    ("q4_1", 4096, 4096),
    ("q4_1", 1536, 576),
    ("q8_0", 8192, 576),
]
TOKENS = [1, 2, 4, 8, 16, 64, 256]


def measure(binary: Path, shape: tuple, threads: int, rounds: int, tokens: list[int]) -> list[dict]:
    """One dict per (path, tokens): microseconds, and the GMAC/s and GB/s of weights they amount to."""
    name, n_rows, row_length = shape
    command = [str(binary.resolve()), name, n_rows, row_length, threads, rounds, *tokens]
    output = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    bits = {"q4_K": 4.5, "q5_K": 5.5, "q6_K": 6.5625, "q8_0": 8.5, "q4_0": 4.5, "q4_1": 5.0}[name]
    rows = []
    for line in output.splitlines():
        path, m, best_us, median_us = line.split()
        macs, n_bytes = int(m) * n_rows * row_length, n_rows * row_length * bits / 8
        rows.append(
            {
                "type": name,
                "rows": n_rows,
                "row_length": row_length,
                "path": path,
                "tokens": int(m),
                "best_us": float(best_us),
                "median_us": float(median_us),
                "gmac_s": round(macs / float(best_us) / 1e3, 1),
                "gb_s": round(n_bytes / float(best_us) / 1e3, 1),
            }
        )
    return rows


def table(rows: list[dict], tokens: list[int]) -> str:
    """Markdown, one line per path; the last column is the geometric mean of the gain over ggml's best path."""
    paths = list(dict.fromkeys(row["path"] for row in rows))
    speed = {(row["path"], row["tokens"]): row["gmac_s"] for row in rows}
    theirs = [max(speed[path, m] for path in paths if path.startswith("ggml")) for m in tokens]
    lines = []
    for path in paths:
        ratio = 1.0
        for m, their in zip(tokens, theirs, strict=True):
            ratio *= speed[path, m] / their
        cells = " | ".join(f"{speed[path, m]:.1f}" for m in tokens)
        first = rows[0]
        label = f"{first['type']} {first['rows']} x {first['row_length']}"
        lines.append(f"| {label} | {path} | {cells} | {ratio ** (1 / len(tokens)):.2f}x |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path, help="the bench_kernels executable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--types", nargs="*", help="only these types, e.g. q4_K q6_K")
    parser.add_argument("--tokens", nargs="*", type=int, default=TOKENS)
    arguments = parser.parse_args()
    everything = []
    print("| weights | path | " + " | ".join(f"M = {m}" for m in arguments.tokens) + " | vs best ggml |")
    print("|---|---|" + "---|" * (len(arguments.tokens) + 1))
    for shape in SHAPES:
        if arguments.types and shape[0] not in arguments.types:
            continue
        rows = measure(arguments.binary, shape, arguments.threads, arguments.rounds, arguments.tokens)
        print(table(rows, arguments.tokens), flush=True)
        everything += rows
    print(
        json.dumps(
            {"machine": platform.processor() or platform.machine(), "threads": arguments.threads, "results": everything}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
