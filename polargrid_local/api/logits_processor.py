"""A request's `logits_processor`: the caller's own functions, called before each token of one answer is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polargrid_local.errors import LogitsProcessorError


class CheckedProcessor:
    """What the engine calls, in a thread of its own. What the functions raise, or leave of the logits, ends the answer
    and is kept here."""

    def __init__(self, functions: Sequence[Callable[[Any, Any], Any]]) -> None:
        self._functions = functions
        self._failure: BaseException | None = None

    def __call__(self, token_ids: Any, logits: Any) -> Any:
        """`token_ids`: int32, of prompt and answer so far; `logits`: float32 of shape (n_vocab,). Both may be kept and
        changed. Returns the logits to choose from."""
        try:
            return _processed(self._functions, token_ids, logits)
        except BaseException as error:
            self._failure = error
            raise

    @property
    def error(self) -> LogitsProcessorError | None:
        """What ended the answer, with its cause; None where these functions did not."""
        cause = self._failure
        if cause is None:
            return None
        error = LogitsProcessorError(f"logits_processor: {type(cause).__name__}: {cause}", param="logits_processor")
        error.__cause__ = cause
        return error


def _processed(functions: Sequence[Callable[[Any, Any], Any]], token_ids: Any, logits: Any) -> Any:
    import numpy  # imported here because a program without such functions starts sooner without it

    shape = logits.shape
    for function in functions:
        given = function(token_ids, logits)
        if given is None:
            continue
        if not isinstance(given, numpy.ndarray) or given.shape != shape or given.dtype != numpy.float32:
            told = f"{given.dtype} of shape {given.shape}" if isinstance(given, numpy.ndarray) else type(given).__name__
            raise TypeError(f"must return None or a float32 array of shape {shape}, got {told}")
        logits = given
    if numpy.isnan(logits).any():
        raise ValueError(f"the logit of token id {int(numpy.isnan(logits).argmax())} is NaN")
    if not numpy.isfinite(logits.max()):
        raise ValueError("rules out every token" if logits.max() < 0 else "a logit is plus infinity")
    return logits
