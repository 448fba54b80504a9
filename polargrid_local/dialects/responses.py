"""ResponsesExchange: OpenAI's Responses API, where a request is a list of items and so is its answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from typing_extensions import TypedDict

from polargrid_local.api.requests import Sampling
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Refusal, Words, error_words, event
from polargrid_local.dialects.response_output import ResponseOutput, item_id
from polargrid_local.dialects.response_request import (
    ResponseFormat,
    ResponseFunction,
    chat_messages,
    read_items,
    read_response_request,
    unread,
)
from polargrid_local.errors import NotFoundError

LOGPROBS = "message.output_text.logprobs"
# What else a request may include would come from tools that are not here, or is there anyway.
INCLUDES = {
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
}
# Places in a chat request, as they are called in this API.
_PLACES = (
    (re.compile(r"^messages(\[\d+\](\.\w+|\[\d+\])*)?"), "input"),
    (re.compile(r"^tools\[(\d+)\]\.function"), r"tools[\1]"),
    (re.compile(r"^response_format(\.json_schema)?"), "text.format"),
    (re.compile(r"^max_tokens\b"), "max_output_tokens"),
    (re.compile(r"^reasoning_effort\b"), "reasoning.effort"),
)
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ERROR_CODES = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}


class ResponseReply(TypedDict):
    """A response. Its items are those of OpenAI's API: `reasoning`, `message` and `function_call`."""

    id: str
    object: str
    created_at: int
    status: str  # completed, incomplete, failed; in_progress in the first events of a stream
    background: bool
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: dict[str, Any] | None
    user: str | None


class ResponseEvent(TypedDict):
    """What stands in every event. Its other keys follow from its type, as in OpenAI's API."""

    type: str
    sequence_number: int


class ResponsesExchange(Exchange):
    """`moment.kept` holds, by the ids of responses, what a next request may continue: the response, the items that came
    with its request, and those from before."""

    timed = True
    field_names = {"reasoning_effort": "reasoning.effort"}

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        asked = read_response_request(body)
        self._asked, self._moment = asked, moment
        self._kept: MutableMapping[str, Words] = {} if moment.kept is None else moment.kept
        self._logprobs = LOGPROBS in asked.include or asked.top_logprobs > 0
        self._history = self._continued(asked.previous_response_id)
        self._input = self._input_items(body["input"])
        super().__init__(self._chat(), moment, kind)
        self.ignored += unread(asked)
        self.ignored += (f"include[{i}]" for i, name in enumerate(asked.include) if name not in INCLUDES)
        self._output = ResponseOutput(moment.id, logprobs=self._logprobs)
        self._n_events = 0
        self._model = asked.model or ""
        self._reason = "stop"
        self._usage: Mapping[str, Any] = {}

    # the request

    def _continued(self, id: str | None) -> list[Words]:
        """The items of the conversation that ends with the response `id`."""
        if id is None:
            return []
        before = self._kept.get(id)
        if before is None:
            raise unknown_response(id, "previous_response_id")
        return [*before["history"], *before["input"], *before["response"]["output"]]

    def _input_items(self, given: str | list[Words]) -> list[Words]:
        """Each with an id, and itself in place of a reference to it."""
        if isinstance(given, str):
            given = [{"role": "user", "content": given}]
        items = [self._referred(i, item) if _is_reference(item) else item for i, item in enumerate(given)]
        return [_in_full(item, self._moment.id, i) for i, item in enumerate(items)]

    def _referred(self, i: int, reference: Words) -> Words:
        id = reference["id"]
        record = self._kept.get(f"resp_{id.partition('_')[2][:24]}")
        items = [*record["input"], *record["response"]["output"]] if record else []
        for item in items:
            if item["id"] == id:
                return dict(item)
        where = f"input[{i}].id"
        raise NotFoundError(f"{where}: no item {id[:80]!r} is kept here", code="item_not_found", param=where)

    def _chat(self) -> Words:
        """The fields of a chat request."""
        asked = self._asked
        messages = chat_messages(read_items([*self._history, *self._input]))
        if asked.instructions is not None:
            messages.insert(0, {"role": "system", "content": asked.instructions})
        fields: Words = {
            "reasoning_format": "deepseek",
            **(asked.model_extra or {}),
            **asked.model_dump(include=set(Sampling.model_fields), exclude_unset=True),
            "messages": messages,
            "model": asked.model,
            "max_tokens": asked.max_output_tokens,
            "stream": asked.stream,
            "tools": [_tool(tool) for tool in asked.tools],
            "tool_choice": asked.tool_choice,
            "parallel_tool_calls": asked.parallel_tool_calls,
        }
        if asked.stream:
            fields["stream_options"] = {"include_usage": True}
        if asked.reasoning.effort is not None:
            fields["reasoning_effort"] = asked.reasoning.effort
        if asked.text.format is not None:
            fields["response_format"] = _response_format(asked.text.format)
        if self._logprobs:
            fields |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
        return {name: value for name, value in fields.items() if value is not None}

    # the answer

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        choice = answer["choices"][0]
        self._model, self._reason = answer["model"], choice["finish_reason"]
        cached = {"cached_tokens": answer["pg_metadata"]["cached_tokens"]}
        self._usage = {"prompt_tokens_details": cached, **answer["usage"]}
        for _ in self._told(choice["message"], choice):
            pass
        return self._ended()[1]

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        yield from self._begin(chunk["model"])
        self._usage = chunk.get("usage", self._usage)
        for choice in chunk["choices"]:
            self._reason = choice["finish_reason"] or self._reason
            yield from map(self._event, self._told(choice["delta"], choice))

    def end(self) -> Iterable[bytes]:
        events, response = self._ended()
        yield from map(self._event, events)
        yield self._event({"type": f"response.{response['status']}", "response": response})

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        yield from self._begin(self._model)
        error = {"code": _ERROR_CODES.get(refusal.type, "server_error"), "message": _in_place(refusal).message}
        yield self._event({"type": "response.failed", "response": self._response("failed", error=error)})

    @staticmethod
    def error(refusal: Refusal) -> Words:
        return error_words(_in_place(refusal))

    def _told(self, message: Mapping[str, Any], choice: Mapping[str, Any]) -> Iterator[Words]:
        return self._output.push(message, choice.get("logprobs", {}).get("content", ()))

    def _ended(self) -> tuple[list[Words], Words]:
        """The last events of items, and the whole response, which is kept from now on."""
        status = "incomplete" if self._reason in _INCOMPLETE else "completed"
        events = list(self._output.finish(complete=status == "completed"))
        response = self._response(status)
        if self._asked.store:
            record = {"response": response, "input": self._input, "history": self._history}
            self._kept[response["id"]] = record
        return events, response

    def _begin(self, model: str) -> Iterator[bytes]:
        self._model = model
        if self._n_events == 0:
            for type in ("response.created", "response.in_progress"):
                yield self._event({"type": type, "response": self._response("in_progress")})

    def _event(self, words: Words) -> bytes:
        data = {"type": words["type"], "sequence_number": self._n_events, **words}
        self._n_events += 1
        return event(data, name=words["type"])

    def _response(self, status: str, error: Words | None = None) -> Words:
        asked, ended = self._asked, status in ("completed", "incomplete")
        response: ResponseReply = {
            "id": f"resp_{self._moment.id}",
            "object": "response",
            "created_at": int(self._moment.created),
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": _INCOMPLETE[self._reason]} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata,
            "model": self._model,
            "output": list(self._output.items) if status != "in_progress" else [],
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "prompt_cache_retention": asked.prompt_cache_retention,
            "reasoning": {"effort": asked.reasoning.effort, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.store,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}, **asked.text.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in asked.tools],
            "top_logprobs": asked.top_logprobs,
            "top_p": asked.top_p,
            "truncation": asked.truncation,
            "usage": _usage(self._usage) if ended else None,
            "user": asked.user,
        }
        return dict(response)


def unknown_response(id: str, param: str) -> NotFoundError:
    """Never kept here, or no longer."""
    problem = f"{param}: no response {id[:80]!r} is kept here: it was not stored, or others have taken its place"
    return NotFoundError(problem, code="response_not_found", param=param)


def _is_reference(item: Words) -> bool:
    return item.get("type") == "item_reference" or not (item.get("type") or "role" in item)


def _in_full(item: Words, response: str, i: int) -> Words:
    """An item of a request with the keys that may be left out of it."""
    item = {**item, "type": item.get("type") or "message"}
    content = item.get("content")
    if item["type"] == "message" and isinstance(content, str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        item["content"] = [{"type": kind, "text": content}]
    id = item.get("id")
    return {**item, "id": id if isinstance(id, str) and id else item_id(item["type"], response, f"i{i:03x}")}


def _tool(tool: ResponseFunction) -> Words:
    function = tool.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
    return {"type": "function", "function": function}


def _response_format(form: ResponseFormat) -> Words:
    if form.type != "json_schema":
        return {"type": form.type}
    inner = form.model_dump(by_alias=True, include={"name", "json_schema", "strict"}, exclude_none=True)
    return {"type": form.type, "json_schema": inner}


def _usage(usage: Mapping[str, Any]) -> Words:
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    details = usage.get("completion_tokens_details", {})
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }


def _in_place(refusal: Refusal) -> Refusal:
    """With the place that it names as this API calls it."""
    param = refusal.param
    if param is None:
        return refusal
    for pattern, name in _PLACES:
        param = pattern.sub(name, param)
    message = refusal.message
    if message.startswith(f"{refusal.param}:"):
        message = param + message[len(refusal.param or "") :]
    return refusal._replace(message=message, param=param)
