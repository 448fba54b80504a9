"""Timings as llama-server tells them: how many tokens were read and said, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polargrid_local.api.replies import PromptProgress, ServerTimings


def server_timings(n_prompt: int, n_generated: int, timings: Mapping[str, Any]) -> ServerTimings:
    """Of token counts and of our own `Timings`, as far as they go."""
    n_cached = timings.get("cached_tokens", 0)
    told: ServerTimings = {"cache_n": n_cached, "prompt_n": n_prompt - n_cached, "predicted_n": n_generated}
    accepted, rejected = timings.get("accepted_draft_tokens", 0), timings.get("rejected_draft_tokens", 0)
    if accepted + rejected:
        told |= {"draft_n": accepted + rejected, "draft_n_accepted": accepted}
    if timings.get("prefill_ms") is None:
        return told
    told["prompt_ms"] = ms = timings["prefill_ms"] - (timings["queue_ms"] or 0)
    told["prompt_per_token_ms"], told["prompt_per_second"] = _rates(told["prompt_n"], ms)
    if timings.get("total_ms") is None:
        return told
    told["predicted_ms"] = ms = timings["total_ms"] - timings["prefill_ms"]
    # The first token comes with the prompt's last pass, so it costs no time of its own.
    told["predicted_per_token_ms"], told["predicted_per_second"] = _rates(max(n_generated - 1, 0), ms)
    return told


def prompt_timings(progress: PromptProgress, began_ms: float) -> ServerTimings:
    """While a prompt is being read; `began_ms`: when that began, since submit."""
    n_read = progress["processed"] - progress["cache"]
    ms = max(progress.get("time_ms", 0.0) - began_ms, 0.0) if n_read else 0.0
    per_token, per_second = _rates(n_read, ms)
    return {
        "cache_n": progress["cache"],
        "prompt_n": n_read,
        "prompt_ms": ms,
        "prompt_per_token_ms": per_token,
        "prompt_per_second": per_second,
        "predicted_n": 0,
        "predicted_ms": 0.0,
        "predicted_per_token_ms": 0.0,
        "predicted_per_second": 0.0,
    }


def _rates(n_tokens: int, ms: float) -> tuple[float, float]:
    """Milliseconds per token, and tokens per second; 0 where there is nothing to divide by."""
    return (ms / n_tokens if n_tokens else 0.0), (n_tokens / ms * 1e3 if ms > 0 else 0.0)
