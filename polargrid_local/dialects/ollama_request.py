"""A request in the words of Ollama's API, read: the parts of one of our requests made of it."""

from __future__ import annotations

import json
import re
from typing import Any

from polargrid_local.api.plain import shown
from polargrid_local.api.requests import Sampling
from polargrid_local.dialects.exchange import Words
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import refused

HARMLESS = ("truncate", "shift")  # what becomes of text that is too long: here it is always refused
SAME_OPTIONS = (*Sampling.model_fields, "seed", "stop")  # of the same name and meaning here
# How a model is computed, whose answers stay the same. Those that may change one, such as num_ctx, would take another
# load: they stay unread, and the answer names them as ignored.
HARMLESS_OPTIONS = (
    "draft_num_predict",
    "low_vram",
    "main_gpu",
    "num_batch",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "use_mlock",
    "use_mmap",
)
CANNOT_OPTIONS: dict[str, tuple[Any, ...]] = {
    "rope_frequency_base": (0,),
    "rope_frequency_scale": (0,),
    "tfs_z": (1,),
}
# What our parser's errors call a field that has another name there.
OUR_NAMES = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format.json_schema.schema": "format",
    "response_format": "format",
    "reasoning_effort": "think",
    **{name: f"options.{name}" for name in SAME_OPTIONS if name != "repetition_penalty"},
}

_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def keep_alive_seconds(given: Any) -> float | None:
    """Of a number of seconds or a duration such as "1h30m"; below zero, and beyond decades: for ever. None where it is
    not given."""
    if given is None:
        return None
    if isinstance(given, str) and _DURATION.fullmatch(given):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PARTS.findall(given))
        given = -seconds if given.startswith("-") else seconds
    elif isinstance(given, str) and re.fullmatch(r"-?\d{1,18}", given):
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise refused("keep_alive", f'must be a number of seconds or a duration such as "5m", got {shown(given)}')
    return float(given) if 0 <= given < 1e9 else -1.0


def option_fields(options: Fields) -> Words:
    """How many tokens there may be, and how they are chosen."""
    words = options.take(*SAME_OPTIONS, num_predict="max_tokens", repeat_penalty="repetition_penalty")
    if words.get("max_tokens") == -2:  # as -1: what the context leaves
        words["max_tokens"] = -1
    options.skip(*HARMLESS_OPTIONS)
    options.refuse(CANNOT_OPTIONS)
    options.end()
    return words


def thinking_fields(fields: Fields) -> Words:
    """Reasoning is told apart whether or not it is asked for."""
    think = fields.any("think")
    words: Words = {"reasoning_format": "deepseek"}
    if isinstance(think, str):  # a level, for models that know of levels
        words["reasoning_effort"] = think
    elif isinstance(think, bool):
        words["enable_thinking"] = think
    elif think is not None:
        raise refused("think", f"must be true, false or a level, got {shown(think)}")
    return words


def logprobs_fields(fields: Fields) -> Words:
    return fields.take("logprobs", "top_logprobs")


def format_fields(fields: Fields) -> Words:
    form = fields.any("format")
    if form is None or form == "":
        return {}
    if form == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(form, dict):
        raise refused("format", "must be 'json' or a JSON schema")
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}}


def message_fields(messages: list[Fields]) -> list[Words]:
    """Messages as ours are. Calls need have no ids there: a result answers the first call of its tool that has none
    yet."""
    waiting: dict[str, Any] = {}  # id of a call without a result -> its tool
    said = []
    for i, message in enumerate(messages):
        message.refuse({"images": ([],)})
        words = message.take("role", "content", "tool_call_id", thinking="reasoning_content", tool_name="name")
        calls = [_call(call, f"call_{i}_{j}") for j, call in enumerate(message.objects("tool_calls"))]
        message.end()
        if calls:
            words["tool_calls"] = calls
            waiting |= {str(call["id"]): call["function"].get("name") for call in calls}
        if words.get("role") == "tool":
            tool = words.get("name")
            first = next((id for id, name in waiting.items() if tool in (None, name)), None)
            waiting.pop(str(words.setdefault("tool_call_id", first)), None)
        said.append(words)
    return said


def _call(call: Fields, id: str) -> Words:
    """`id`: of a call that has none of its own."""
    function = call.inner("function")
    arguments = function.any("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    words = {"id": id, **call.take("id", "type"), "function": {**function.take("name"), "arguments": text}}
    function.skip("index", "description")
    function.end()
    call.end()
    return words
