"""Stop strings for the content of an answer that has other parts too, which they must not end."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Text in, the text before the earliest stop string out. What may be the beginning of one waits.
    `include`: that stop string comes out too. `found` is what it was."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def push(self, text: str, *, on_hold: bool = False) -> str:
        """What is decided now. Nothing once `stopped`. `on_hold`: a stop string that is complete now is text like any
        other."""
        if self.stopped:
            return ""
        self._held += text
        open_at = min((overlap_at(self._held, stop) for stop in self._stops), default=len(self._held))
        match = None if on_hold else self._match()
        if match is not None and match[0] <= open_at:
            return self.finish()
        out, self._held = self._held[:open_at], self._held[open_at:]
        return out

    def finish(self) -> str:
        """What waited, once nothing follows. A stop string in it that waited for a longer one counts."""
        match = self._match()
        held, self._held = self._held, ""
        if match is None:
            return held
        at, self.found = match
        return held[:at] + (self.found if self._include else "")

    def _match(self) -> tuple[int, str] | None:
        """Where the earliest stop string begins in what waits, and which it is: of several the shortest."""
        found = [(at, len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return None if not found else (min(found)[0], min(found)[2])


def overlap_at(text: str, word: str) -> int:
    """Where the longest end of `text` stands that is a beginning of `word`, and not all of it; len(text) if none is."""
    for at in range(max(0, len(text) - len(word) + 1), len(text)):
        if word.startswith(text[at:]):
            return at
    return len(text)
