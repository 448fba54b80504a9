"""Stop strings for the content of an answer that has other parts too, which they must not end."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Text in, the text before the earliest stop string out. What may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What is decided now. Nothing once `stopped`."""
        if self.stopped:
            return ""
        self._held += text
        open_at = min((overlap_at(self._held, stop) for stop in self._stops), default=len(self._held))
        found_at = self._found_at()
        if found_at is not None and found_at <= open_at:
            return self.finish()
        out, self._held = self._held[:open_at], self._held[open_at:]
        return out

    def finish(self) -> str:
        """What waited, once nothing follows. A stop string in it that waited for a longer one counts."""
        found_at = self._found_at()
        held, self._held = self._held, ""
        self.stopped = self.stopped or found_at is not None
        return held[:found_at]

    def _found_at(self) -> int | None:
        """Where the earliest stop string begins in what waits."""
        return min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)


def overlap_at(text: str, word: str) -> int:
    """Where the longest end of `text` stands that is a beginning of `word`, and not all of it; len(text) if none is."""
    for at in range(max(0, len(text) - len(word) + 1), len(text)):
        if word.startswith(text[at:]):
            return at
    return len(text)
