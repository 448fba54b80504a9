"""A short benchmark: prefill and decode of one stream as a program sees them, through the public API."""

from __future__ import annotations

import statistics
import time

from polargrid_local.engine import Engine

WORDS = "time year people way day man thing woman life child world school state family student group country".split()


def measure(engine: Engine, n_prompt: int, n_generate: int, repeat: int) -> list[tuple[str, ...]]:
    """Rows (what, median, lowest, highest, unit) of `repeat` runs with `n_prompt` words in, `n_generate` tokens out."""
    prefill, decode, first_ms = [], [], []
    for run in range(repeat + 1):
        # Every run has a prompt that begins differently: a known beginning would come from the prefix cache.
        words = (WORDS[(run + i * i) % len(WORDS)] for i in range(n_prompt))
        prompt = f"Run {run}: {' '.join(words)}"
        began = time.perf_counter()
        stream = engine.completion_stream(prompt=prompt, max_tokens=n_generate, temperature=0, ignore_eos=True)
        with stream:
            next(chunk for chunk in stream if chunk["choices"] and chunk["choices"][0]["text"])
            started = time.perf_counter()
            for _ in stream:
                pass
        ended = time.perf_counter()
        usage = stream.usage
        if run == 0:
            continue  # it warms the file cache and the threads
        prefill.append((usage["prompt_tokens"] - stream.timings["cached_tokens"]) / (started - began))
        decode.append((usage["completion_tokens"] - 1) / (ended - started))
        first_ms.append(1000 * (started - began))
    rows = [
        (f"prefill of {usage['prompt_tokens']} tokens", prefill, "tokens/s"),
        ("first token", first_ms, "ms"),
        (f"decode of {usage['completion_tokens']} tokens", decode, "tokens/s"),
    ]
    return [(what, *(f"{f(values):.1f}" for f in (statistics.median, min, max)), unit) for what, values, unit in rows]
