"""ReasoningTokens: how many tokens of an answer its thought has."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Sequence

from polargrid_local.api.answer_form import Segments
from polargrid_local.api.events import Event

Detokenize = Callable[[Sequence[int], bool], bytes]  # (ids, with the names of control tokens)


class ReasoningTokens:
    """Of one choice. A thought has all tokens up to the one that ends it, its tags among them.

    An event may bring many tokens, in the midst of which the thought ends: then their texts are read again, by a copy
    of what told the answer apart. `n_generated` is as far as the events have come."""

    def __init__(self, segments: Segments, detokenize: Detokenize | None) -> None:
        self._segments, self._detokenize = segments, detokenize
        self._before: Segments | None = None  # as they were when the last event came
        self._n_told = 0  # tokens of all events
        self._n_thought: int | None = None  # None until the thought has ended

    @property
    def count(self) -> int:
        if not self._segments.thought:
            return 0
        return self._n_told if self._n_thought is None else self._n_thought

    def coming(self, event: Event) -> None:
        """Before the event's text is told apart."""
        several = len(event.tokens) > 1 and self._detokenize is not None and not self._segments.answers
        self._before = copy.deepcopy(self._segments) if several else None

    def told(self, event: Event) -> None:
        """After that."""
        n_before, self._n_told = self._n_told, event.n_generated
        if self._n_thought is None and self._segments.answers:
            again = self._before is not None and self._segments.thought
            self._n_thought = n_before + self._n_until_end(event.tokens) if again else event.n_generated
        self._before = None

    def _n_until_end(self, tokens: Sequence[int]) -> int:
        """How many of them there are when the answer proper begins."""
        return min(bisect_left(range(len(tokens)), True, key=lambda n: self._ends_within(tokens[:n])), len(tokens))

    def _ends_within(self, tokens: Sequence[int]) -> bool:
        assert self._detokenize is not None
        segments = copy.deepcopy(self._before)
        assert segments is not None
        segments.push(self._detokenize(tokens, False).decode("utf-8", "ignore"))
        return segments.answers
