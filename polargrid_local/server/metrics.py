"""Metrics: what /metrics tells Prometheus."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from polargrid_local.api.replies import ModelStats
    from polargrid_local.server.sse import EventStream

FIRST_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)

# Engine counter -> name and help. Per model, straight from the engine's own statistics.
_COUNTERS = {
    "n_prompt_tokens": ("prompt_tokens", "Tokens of prompts, cached ones included"),
    "n_cached_tokens": ("cached_prompt_tokens", "Prompt tokens taken from the prefix cache"),
    "n_generated_tokens": ("generated_tokens", "Tokens generated"),
    "n_cancelled": ("cancelled_requests", "Requests ended by their client"),
    "n_steps": ("engine_steps", "Batches computed"),
    "n_accepted_tokens": ("accepted_draft_tokens", "Draft tokens that came true"),
    "n_rejected_tokens": ("rejected_draft_tokens", "Draft tokens that did not come true"),
    "prompt_seconds": ("prompt_seconds", "Time to read the prompts of answers that have ended"),
    "generation_seconds": ("generation_seconds", "Time to say those answers"),
}
_GAUGES = {
    "n_running": ("running_requests", "Streams in the batch"),
    "n_waiting": ("waiting_requests", "Requests in the queue"),
    "n_cells": ("kv_cells", "Size of the KV cache in tokens"),
    "n_cells_used": ("kv_cells_used", "Tokens held in the KV cache"),
    "prefix_cache_bytes": ("prefix_cache_bytes", "Host memory held by cached prefixes"),
}


def _rate(n_tokens: float, seconds: float) -> float:
    return n_tokens / seconds if seconds > 0 else 0.0


def _n_read(stats: Mapping[str, float]) -> float:
    return stats["n_prompt_tokens"] - stats["n_cached_tokens"]


# What llama-server measures too, by its names, of all models together.
_LLAMA_SERVER_COUNTERS: dict[str, tuple[str, Callable[[Mapping[str, float]], float]]] = {
    "prompt_tokens": ("Tokens of prompts, without cached ones", _n_read),
    "prompt_tokens_cached": ("Tokens of prompts taken from the cache", lambda stats: stats["n_cached_tokens"]),
    "prompt_seconds": ("Time to read prompts", lambda stats: stats["prompt_seconds"]),
    "tokens_predicted": ("Tokens generated", lambda stats: stats["n_generated_tokens"]),
    "tokens_predicted_seconds": ("Time to generate them", lambda stats: stats["generation_seconds"]),
    "n_decode": ("Batches computed", lambda stats: stats["n_steps"]),
    "spec_decode_num_draft_tokens": (
        "Draft tokens that were checked",
        lambda stats: stats["n_accepted_tokens"] + stats["n_rejected_tokens"],
    ),
    "spec_decode_num_accepted_tokens": ("Those that came true", lambda stats: stats["n_accepted_tokens"]),
}
_LLAMA_SERVER_GAUGES: dict[str, tuple[str, Callable[[Mapping[str, float]], float]]] = {
    "prompt_tokens_seconds": (
        "Tokens read a second, on average",
        lambda stats: _rate(_n_read(stats), stats["prompt_seconds"]),
    ),
    "predicted_tokens_seconds": (
        "Tokens generated a second by one stream, on average",
        lambda stats: _rate(stats["n_generated_tokens"], stats["generation_seconds"]),
    ),
    "requests_processing": ("Streams in the batch", lambda stats: stats["n_running"]),
    "requests_deferred": ("Requests in the queue", lambda stats: stats["n_waiting"]),
}


class Histogram:
    """Seconds, cumulative in the exposition. Fed once per token, so it is a list and a bisection."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        buckets, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts):
            seen += count
            buckets.append((bound, seen))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class Metrics:
    """`stats`: per loaded model, the engine's statistics by the names of its native struct."""

    def __init__(self, stats: Callable[[], Mapping[str, ModelStats]]) -> None:
        self.stats = stats
        self.started = int(time.time())
        self.requests: Counter[tuple[str, int]] = Counter()  # (route, HTTP status)
        self.key_requests: Counter[tuple[str, int]] = Counter()  # (name of the key, HTTP status)
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
        self.between_tokens = Histogram(TOKEN_BOUNDS_S)
        self.streams: set[EventStream] = set()  # the open ones
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("polargrid_requests", "HTTP requests answered", labels=["route", "status"])
        for (route, status), count in sorted(self.requests.items()):
            requests.add_metric([route, str(status)], count)
        yield requests
        by_key = CounterMetricFamily("polargrid_key_requests", "Those with an API key", labels=["key", "status"])
        for (key, status), count in sorted(self.key_requests.items()):
            by_key.add_metric([key, str(status)], count)
        yield by_key
        yield GaugeMetricFamily("polargrid_open_streams", "Event streams being written", value=len(self.streams))
        yield self.first_token.family("polargrid_first_token_seconds", "Request accepted to first text of a stream")
        yield self.between_tokens.family("polargrid_token_seconds", "Between two events of one stream")
        stats = self.stats()
        yield GaugeMetricFamily("polargrid_loaded_models", "Models in memory", value=len(stats))
        for kind, rows in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for field, (name, text) in rows.items():
                family = kind(f"polargrid_{name}", text, labels=["model"])
                for model, values in sorted(stats.items()):
                    family.add_metric([model], cast("Mapping[str, float]", values).get(field, 0))
                yield family
        total: defaultdict[str, float] = defaultdict(float)
        for values in stats.values():
            for field, value in values.items():
                if isinstance(value, (int, float)):
                    total[field] += value
        for kind, told in (
            (CounterMetricFamily, _LLAMA_SERVER_COUNTERS),
            (GaugeMetricFamily, _LLAMA_SERVER_GAUGES),
        ):
            for name, (text, of) in told.items():
                yield kind(f"llamacpp:{name}", text, value=of(total))
