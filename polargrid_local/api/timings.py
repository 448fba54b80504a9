"""Timings as llama-server tells them: how many tokens were read and said, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polargrid_local.api.replies import ServerTimings


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
    if told["prompt_n"] and ms > 0:
        told |= {"prompt_per_token_ms": ms / told["prompt_n"], "prompt_per_second": told["prompt_n"] / ms * 1e3}
    if timings.get("total_ms") is None:
        return told
    told["predicted_ms"] = ms = timings["total_ms"] - timings["prefill_ms"]
    if n_generated and ms > 0:
        told |= {"predicted_per_token_ms": ms / n_generated, "predicted_per_second": n_generated / ms * 1e3}
    return told
