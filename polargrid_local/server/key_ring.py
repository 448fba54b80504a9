"""KeyRing: the keys of the settings as the gate knows them: whose key it is, and what that one may still ask."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Mapping

from polargrid_local.errors import RateLimitError
from polargrid_local.server.keys import ApiKey
from polargrid_local.server.rate import Rate

# As OpenAI's clients look for them.
LIMIT, REMAINING, RESET = "x-ratelimit-limit-", "x-ratelimit-remaining-", "x-ratelimit-reset-"
HEADERS = [begin + what for what in ("requests", "tokens") for begin in (LIMIT, REMAINING, RESET)]


class Holder:
    """Whoever has one of the keys, by its name."""

    def __init__(self, name: str, key: ApiKey, clock: Callable[[], float]) -> None:
        self.name = name
        self.digest = _digest(key.key.encode())
        rates = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
        self._rates = {what: Rate(n, clock) for what, n in rates.items() if n is not None}

    def admit(self) -> None:
        """Counts a request. Raises RateLimitError where it is one too many, which then is not counted."""
        for what, rate in self._rates.items():
            if (wait_s := rate.next_in_s) > 0:
                raise RateLimitError(
                    f"the API key {self.name!r} has had its {rate.per_minute} {what} of a minute: "
                    f"try again in {math.ceil(wait_s)} s",
                    code="rate_limit_exceeded",
                    retry_after=wait_s,
                )
        if "requests" in self._rates:
            self._rates["requests"].spend(1)

    def spend_tokens(self, n: int) -> None:
        """What an answer took, which is known at its end only: the next request waits for what was too much."""
        if "tokens" in self._rates:
            self._rates["tokens"].spend(n)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left, for every answer to this holder."""
        said = {
            name: value
            for what, rate in self._rates.items()
            for name, value in (
                (LIMIT + what, f"{rate.per_minute}"),
                (REMAINING + what, f"{rate.left}"),
                (RESET + what, f"{math.ceil(rate.whole_in_s)}s"),
            )
        }
        return [(name.encode(), value.encode()) for name, value in said.items()]


class KeyRing:
    """`keys`: by name. `clock` tells monotonic seconds."""

    def __init__(self, keys: Mapping[str, ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        self._holders = [Holder(name, key, clock) for name, key in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._holders)

    def find(self, given: bytes) -> Holder | None:
        """Takes as long whichever key it is, and whether it is one: time must tell nothing about them."""
        digest, found = _digest(given), None
        for holder in self._holders:
            if hmac.compare_digest(digest, holder.digest):
                found = holder
        return found


def _digest(key: bytes) -> bytes:
    """Of one length for keys of any."""
    return hashlib.sha256(key).digest()
