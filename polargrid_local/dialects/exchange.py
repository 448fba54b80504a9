"""Exchange: one request in the words of some API, and the answer to it in the same words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

Kind = Literal["chat", "completion", "embedding", "rerank"]
Words = dict[str, Any]  # a JSON object

dump = json.JSONEncoder(
    separators=(",", ":"), allow_nan=False
).encode  # in ASCII, for clients that break lines at U+2028


class Moment(NamedTuple):
    """What an exchange may not find out by itself."""

    id: str  # 24 hex digits, of this request alone
    created: float  # seconds since 1970
    kept: MutableMapping[str, Words] | None = None  # what may be continued, by its id; None: nothing is


class Refusal(NamedTuple):
    """An error as clients are told of it, by file names and not by paths."""

    message: str
    type: str  # invalid_request_error, server_error, ...
    code: str
    param: str | None
    status: int
    request_id: str | None = None
    counts: Mapping[str, int] = MappingProxyType({})  # of a prompt that is too long, by llama-server's names for them

    def named(self, names: Mapping[str, str]) -> Refusal:
        """With another API's name of the field that is wrong, with which the message mostly begins. `names`: our names
        -> those; a longer one of ours comes before its beginning."""
        param, message = self.param or "", self.message
        for ours, theirs in names.items():
            if param == ours or param.startswith((f"{ours}.", f"{ours}[")):
                message = theirs + message.removeprefix(ours) if message.startswith(ours) else message
                return self._replace(message=message, param=theirs + param.removeprefix(ours))
        return self


class Exchange:
    """This API's own words. Those of another API are a subclass: it makes `body`, the fields of one of our requests, in
    its constructor, and says the answer in its own words. A constructor raises ValidationError for what it cannot ask.

    One exchange answers once: by reply(), or by chunk() for each chunk and then end(). failure() in place of whatever
    comes next, at any time."""

    media_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    comments: ClassVar[bool] = True  # whether a line beginning with a colon means nothing in its streams
    timed: ClassVar[bool] = False  # whether its usage chunks have our `timings` too
    form_bodies: ClassVar[bool] = False  # whether JSON may be called a form, as `curl -d` does
    request_id_header: ClassVar[str | None] = None  # where its clients look for an id, beside x-request-id
    streams: ClassVar[bool | None] = None  # whether an answer is a stream; None: where `stream` says so

    field_names: Mapping[str, str] = MappingProxyType({})  # our names of fields -> what its requests call them
    keep_alive_s: float | None = None  # how long its model then stays in memory; negative: always; None: as before

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        self.kind: Kind = kind
        self.body = body
        self.ignored: list[str] = []  # paths of fields that nothing was made of
        self.load_ms = 0.0  # until the model was there; whoever asks it tells this, before an answer
        self.total_ms = 0.0  # until the whole answer was; told before reply()
        self.streaming: bool = body.get("stream") is True if self.streams is None else self.streams

    def all_ignored(self, by_model: Sequence[str]) -> list[str]:
        """Paths of all fields that nothing was made of; `by_model`: our own names of those that its model has no use
        for."""
        return [*self.ignored, *(self.field_names.get(field, field) for field in by_model)]

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """The whole answer, out of one of our own. Those of text tell the fingerprint, and what of the prompt was
        cached, where OpenAI does, too."""
        metadata = answer.get("pg_metadata", {})
        if "cached_tokens" in metadata:
            answer = {**answer, "usage": with_cached(answer["usage"], metadata["cached_tokens"])}
        answer = self._with_verbose(answer)
        fingerprint = metadata.get("system_fingerprint")
        return {**answer, "system_fingerprint": fingerprint} if fingerprint else answer

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        """What goes over the wire for one chunk of ours."""
        yield event(self._with_verbose(chunk))

    def _with_verbose(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the prompt in the place where llama-server's clients look for it, who ask for it by `verbose`."""
        if "prompt_text" not in said or self.body.get("verbose") is not True:
            return said
        return {**said, "__verbose": {"prompt": said["prompt_text"]}}

    def end(self) -> Iterable[bytes]:
        """What follows the last chunk."""
        yield b"data: [DONE]\n\n"

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        """What ends a stream that has begun, in place of end()."""
        yield event(error_words(refusal))

    @staticmethod
    def error(refusal: Refusal) -> Words:
        """The body of a refusal."""
        return error_words(refusal)


class AlwaysStreams(Exchange):
    streams = True


def account_of(said: Mapping[str, Any]) -> Words:
    """What an answer of ours, or a chunk of one, tells beside the answer itself."""
    return {key: said[key] for key in ("model", "usage", "timings", "pg_metadata") if key in said}


def with_cached(usage: Mapping[str, Any], n_cached: int) -> Words:
    return {**usage, "prompt_tokens_details": {"cached_tokens": n_cached}}


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """One Server-Sent Event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {dump(data)}\n\n".encode("ascii")


def error_words(refusal: Refusal) -> Words:
    """What clients of both kinds read: PolarGrid's SDKs `detail`, OpenAI's `error`."""
    inner = {"message": refusal.message, "type": refusal.type, "code": refusal.code, "param": refusal.param}
    return {"detail": refusal.message, "error": {**inner, **refusal.counts}}
