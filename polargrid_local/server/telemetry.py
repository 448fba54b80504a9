"""RequestSpan: one request for text, vectors or scores as OpenTelemetry sees it, by its conventions for generative AI.

Where `opentelemetry-api` is not installed, or no SDK is set up beside it, nothing is done. What becomes of the spans is
the SDK's matter: this package exports none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polargrid_local import __version__
from polargrid_local.dialects.exchange import Kind
from polargrid_local.errors import PolarGridError

try:
    from opentelemetry import propagate, trace
except ImportError:
    installed = False
else:
    installed = True

if TYPE_CHECKING:
    from opentelemetry.trace import Span

OPERATIONS: dict[Kind, str] = {
    "chat": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
    "rerank": "rerank",  # the conventions have no name for it
}
PROVIDER = "polargrid_local"
# Fields of requests, as the conventions call them.
ASKED = {
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}


class RequestSpan:
    """Begins with a request, as a child of the span that runs already or of the client's `traceparent`; then asked(),
    said() for the answer or each chunk of it, used(), failed() where it fails, and end(). It has no text of a prompt or
    an answer."""

    def __init__(self, kind: Kind, request_id: str, headers: Mapping[str, str]) -> None:
        self._span = _begin(kind, request_id, headers) if installed else None
        self._reasons: dict[int, str] = {}

    def asked(self, kind: Kind, request: Any) -> None:
        """`kind`: what a dialect has made of the one that its path has. `request`: its model of pydantic."""
        if self._span is None:
            return
        operation = OPERATIONS[kind]
        self._span.set_attribute("gen_ai.operation.name", operation)
        given = {name: getattr(request, name) for name in ASKED if name in request.model_fields_set}
        attributes = {ASKED[name]: value for name, value in given.items() if value is not None}
        if attributes.get("gen_ai.request.max_tokens", 0) < 0:  # what the context leaves
            del attributes["gen_ai.request.max_tokens"]
        self._span.set_attributes(attributes)
        self._span.update_name(f"{operation} {given.get('model') or ''}".strip())

    def said(self, answer: Mapping[str, Any]) -> None:
        """An answer of ours, or a chunk of one."""
        if self._span is None:
            return
        self._span.set_attribute("gen_ai.response.model", answer["model"])
        if "id" in answer:
            self._span.set_attribute("gen_ai.response.id", answer["id"])
        for choice in answer.get("choices", ()):
            if choice["finish_reason"] is not None:
                self._reasons[choice["index"]] = choice["finish_reason"]

    def used(self, usage: Mapping[str, Any]) -> None:
        """Tokens."""
        if self._span is not None:
            self._span.set_attribute("gen_ai.usage.input_tokens", usage["prompt_tokens"])
            if "completion_tokens" in usage:
                self._span.set_attribute("gen_ai.usage.output_tokens", usage["completion_tokens"])

    def failed(self, error: BaseException) -> None:
        """By its code alone: a message may quote a prompt."""
        if self._span is not None:
            code = error.code if isinstance(error, PolarGridError) else type(error).__name__
            self._span.set_attribute("error.type", code)
            self._span.set_status(trace.Status(trace.StatusCode.ERROR))

    def end(self) -> None:
        """Once; what comes later changes nothing."""
        span, self._span = self._span, None
        if span is not None:
            if self._reasons:
                reasons = [self._reasons[index] for index in sorted(self._reasons)]
                span.set_attribute("gen_ai.response.finish_reasons", reasons)
            span.end()


def _begin(kind: Kind, request_id: str, headers: Mapping[str, str]) -> Span | None:
    """None where nobody records it."""
    # Other instrumentation, as of FastAPI, may have begun one for the same request, with the same parent.
    inside = trace.get_current_span().get_span_context().is_valid
    span = trace.get_tracer("polargrid_local", __version__).start_span(
        OPERATIONS[kind],
        context=None if inside else propagate.extract(headers),
        kind=trace.SpanKind.INTERNAL if inside else trace.SpanKind.SERVER,
        attributes={
            "gen_ai.operation.name": OPERATIONS[kind],
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.system": PROVIDER,  # its name before, which many readers of spans still look for
            "polargrid.request_id": request_id,
        },
    )
    return span if span.is_recording() else None
