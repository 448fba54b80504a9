"""Rate: so many of something a minute."""

from __future__ import annotations

import math
from collections.abc import Callable

MINUTE_S = 60.0


class Rate:
    """Of `per_minute`, all may be taken at once; what was taken comes back evenly. More may be spent than is left:
    then nothing is left for so much longer. `clock` tells monotonic seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._each_s = MINUTE_S / per_minute  # how long one takes to come back
        self._whole_at = clock()  # when all of them are back

    def spend(self, n: int) -> None:
        self._whole_at = max(self._whole_at, self._clock()) + n * self._each_s

    @property
    def whole_in_s(self) -> float:
        """Until all are back."""
        return max(0.0, self._whole_at - self._clock())

    @property
    def next_in_s(self) -> float:
        """Until one is left to be taken; 0: now."""
        return max(0.0, self.whole_in_s - (MINUTE_S - self._each_s))

    @property
    def left(self) -> int:
        gone = math.ceil(self.whole_in_s / self._each_s - 1e-6)  # seconds are floats, and these are whole things
        return max(0, self.per_minute - gone)
