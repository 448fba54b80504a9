"""UsageCounter: requests and tokens by day and model, as GET /v1/usage and /v1/status report them."""

from __future__ import annotations

import datetime
import threading
from dataclasses import dataclass

from typing_extensions import TypedDict

from polargrid_local.errors import ValidationError


class UsagePeriod(TypedDict):
    start_date: str
    end_date: str


class ModelUsage(TypedDict):
    model_id: str
    requests: int
    tokens: int
    cost: float


class RegionUsage(TypedDict):
    region: str
    requests: int
    avg_latency_ms: int


class Usage(TypedDict):
    total_requests: int
    total_tokens: int
    total_cost: float
    by_model: list[ModelUsage]
    by_region: list[RegionUsage]


class UsageResponse(TypedDict):
    period: UsagePeriod
    usage: Usage


@dataclass
class _Row:
    requests: int = 0
    tokens: int = 0
    latency_ms: float = 0


class UsageCounter:
    """Counts since it was made, in memory only. It reads no clock: days are arguments. Safe from any thread."""

    def __init__(self, today: datetime.date) -> None:
        self.since = today
        self._lock = threading.Lock()
        self._rows: dict[tuple[datetime.date, str], _Row] = {}

    def add(self, today: datetime.date, model: str, tokens: int, latency_ms: float) -> None:
        """One request of `model`; `tokens`: of prompt and answer."""
        with self._lock:
            row = self._rows.setdefault((today, model), _Row())
            row.requests += 1
            row.tokens += tokens
            row.latency_ms += latency_ms

    def latency_ms(self, model: str) -> int:
        """The mean over all requests of a model; 0 before the first."""
        with self._lock:
            rows = [row for (_, name), row in self._rows.items() if name == model]
        return round(sum(row.latency_ms for row in rows) / max(1, sum(row.requests for row in rows)))

    def report(self, today: datetime.date, start_date: str | None, end_date: str | None) -> UsageResponse:
        """Both dates inclusive, YYYY-MM-DD; the default is everything counted. Raises ValidationError for no date."""
        start = _date("start_date", start_date) or self.since
        end = _date("end_date", end_date) or today
        by_model: dict[str, _Row] = {}
        with self._lock:
            for (day, model), row in self._rows.items():
                if start <= day <= end:
                    total = by_model.setdefault(model, _Row())
                    total.requests += row.requests
                    total.tokens += row.tokens
                    total.latency_ms += row.latency_ms
        requests = sum(row.requests for row in by_model.values())
        latency = sum(row.latency_ms for row in by_model.values())
        return {
            "period": {"start_date": start.isoformat(), "end_date": end.isoformat()},
            "usage": {
                "total_requests": requests,
                "total_tokens": sum(row.tokens for row in by_model.values()),
                "total_cost": 0.0,
                "by_model": [
                    {"model_id": model, "requests": row.requests, "tokens": row.tokens, "cost": 0.0}
                    for model, row in sorted(by_model.items())
                ],
                "by_region": (
                    [{"region": "local", "requests": requests, "avg_latency_ms": round(latency / requests)}]
                    if requests
                    else []
                ),
            },
        }


def _date(name: str, text: str | None) -> datetime.date | None:
    if not text:
        return None
    try:
        return datetime.date.fromisoformat(text[:10])
    except ValueError:
        raise ValidationError(f"{name}: expected YYYY-MM-DD", param=name) from None
