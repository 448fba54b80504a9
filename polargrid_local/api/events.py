"""Events: what the native engine says about a request while it works on it."""

from __future__ import annotations

from typing import Any, Protocol

from typing_extensions import NotRequired, TypedDict  # pydantic describes no other before Python 3.12


class TokenLogprob(TypedDict):
    """A sampled token as `_core` reports it; `top`: the likeliest tokens at its place, whose own `top` is empty."""

    token: int
    logprob: float
    bytes: bytes
    top: list[TokenLogprob]
    rank: NotRequired[int]  # 1 = the likeliest of all


class Event(Protocol):
    """One thing the native engine says about a request: `_core.Event`. Times are ms since submit, < 0 = not reached."""

    @property
    def id(self) -> int: ...
    @property
    def kind(self) -> str: ...  # progress | loaded | text | finished | embedding | error
    @property
    def text(self) -> str: ...
    @property
    def mark(self) -> str: ...  # the control token that follows the text, one of the request's marks; "" = none
    @property
    def code(self) -> str: ...
    @property
    def details(self) -> dict[str, str]: ...
    @property
    def reason(self) -> str: ...  # "" | stop | length | content_filter
    @property
    def progress(self) -> float: ...
    @property
    def n_prompt(self) -> int: ...
    @property
    def n_cached(self) -> int: ...
    @property
    def n_generated(self) -> int: ...
    @property
    def n_accepted(self) -> int: ...  # draft tokens that came true; they are among those generated
    @property
    def n_rejected(self) -> int: ...  # and those that did not
    @property
    def queue_ms(self) -> float: ...
    @property
    def prefill_ms(self) -> float: ...
    @property
    def first_token_ms(self) -> float: ...
    @property
    def total_ms(self) -> float: ...
    @property
    def logprobs(self) -> list[TokenLogprob]: ...
    @property
    def prompt_logprobs(self) -> list[TokenLogprob]: ...  # once, where asked for; the first one's logprob means nothing
    @property
    def tokens(self) -> list[int]: ...  # where asked for: those whose text this event completes
    @property
    def prompt_tokens(self) -> list[int]: ...  # once, with the first of them
    @property
    def stop(self) -> str: ...  # the stop string that ended the answer; "" = none did
    @property
    def stop_token(self) -> int: ...  # the one of stop_token_ids that did; -1 = none
    @property
    def embedding(self) -> Any: ...  # a vector of float32
