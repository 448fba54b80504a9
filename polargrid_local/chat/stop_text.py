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
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        starts = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        open_at = min((overlap_at(self._held, stop) for stop in self._stops), default=len(self._held))
        if starts and min(at for at, _ in starts) <= open_at:
            self.stopped = True
            out, self._held = self._held[: min(at for at, _ in starts)], ""
            return out
        out, self._held = self._held[:open_at], self._held[open_at:]
        return out

    def finish(self) -> str:
        """What waited, once nothing follows. A stop string in it that waited for a longer one counts."""
        held, self._held = self._held, ""
        starts = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if starts:
            self.stopped = True
            return held[: min(starts)]
        return held


def overlap_at(text: str, word: str) -> int:
    """Where the longest end of `text` stands that is a beginning of `word`, and not all of it; len(text) if none is."""
    for at in range(max(0, len(text) - len(word) + 1), len(text)):
        if word.startswith(text[at:]):
            return at
    return len(text)
