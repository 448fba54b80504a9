"""MessagesExchange: one request of the Anthropic Messages API, and the answer to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Refusal, Words, event
from polargrid_local.dialects.message_events import Form, MessageEvents, whole_message
from polargrid_local.dialects.message_request import chat_fields

ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# How our chat requests call a field, and how it is called here.
NAMES = (
    (re.compile(r"^stop(?![a-z_])"), "stop_sequences"),
    (re.compile(r"^response_format(\.json_schema)?"), "output_config.format"),
    (re.compile(r"^(tools\[\d+\])\.function\.parameters"), r"\1.input_schema"),
    (re.compile(r"^(tools\[\d+\])\.function"), r"\1"),
)


class MessagesExchange(Exchange):
    timed = True
    field_names = {"reasoning_effort": "output_config.effort", "thinking_token_budget": "thinking.budget_tokens"}
    request_id_header = "request-id"

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        ignored: list[str] = []
        fields = chat_fields(body, ignored)
        super().__init__(fields, moment, kind)
        self.ignored = ignored
        thinking = body.get("thinking") or {}
        self._id = f"msg_{moment.id}"
        self._form = Form(int(fields["max_tokens"]), thinking.get("display") != "omitted")
        self._events = MessageEvents(self._id, self._form)

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return whole_message(self._id, answer, self._form)

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        return map(_named, self._events.chunk(chunk))

    def end(self) -> Iterable[bytes]:
        return map(_named, self._events.end())

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        yield _named(self.error(refusal))

    @staticmethod
    def error(refusal: Refusal) -> Words:
        message = refusal.message
        for ours, theirs in NAMES:
            message = ours.sub(theirs, message)
        kind = ERRORS.get(refusal.status, "api_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": message, "details": {"error_code": refusal.code}},
            "request_id": refusal.request_id,
        }


def _named(words: Mapping[str, Any]) -> bytes:
    return event(words, words["type"])
