"""Assembling vectors: the plain answer of a request for embeddings."""

from __future__ import annotations

import base64
import math
from typing import Any

from polargrid_local.api.assemble import Assembler
from polargrid_local.api.replies import EmbeddingResponse


class EmbeddingAssembler(Assembler[dict[str, Any], EmbeddingResponse[Any]]):
    """The last event of each choice holds its vector; there is nothing to stream."""

    def __init__(
        self, model: str, id: str, created: int, seed: int, n: int, encoding_format: str, dimensions: int | None
    ) -> None:
        super().__init__(model, id, created, seed, n)
        self._encoding_format, self._dimensions = encoding_format, dimensions

    def _chunk(self, index: int, text: str | None, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {}

    def response(self) -> EmbeddingResponse[Any]:
        prompt = self.usage["prompt_tokens"]
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _encoded(_shortened(choice.event.embedding, self._dimensions), self._encoding_format),
                }
                for index, choice in enumerate(self.choices)
                if choice.event is not None
            ],
            "model": self.model,
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
        }


def _shortened(vector: Any, n: int | None) -> Any:
    """The first `n` numbers of `vector` (n_embd,), made of length 1 again (Kusupati et al. 2022)."""
    if n is None:
        return vector
    kept = vector[:n]
    length = math.sqrt(sum(float(x) ** 2 for x in kept))
    return kept / length if length > 0 else kept


def _encoded(vector: Any, encoding_format: str) -> Any:
    """`vector` (n_embd,) as a list, as base64 of little-endian float32, or as a numpy array of float32, a copy."""
    if encoding_format == "float":
        return [float(x) for x in vector]
    import numpy  # imported here because a program that only chats starts sooner without it

    if encoding_format == "base64":
        return base64.b64encode(numpy.asarray(vector, dtype="<f4").tobytes()).decode()
    return numpy.array(vector, dtype=numpy.float32)
