"""A request of the Anthropic Messages API, read: the fields of one of our chat requests made of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from polargrid_local.api.plain import plain, shown
from polargrid_local.dialects.exchange import Words
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import ValidationError, refused

SAME = ("model", "temperature", "top_p", "top_k", "stream")  # fields that are ours, too
# What changes no answer here: where the client is billed, what is kept for the next request, how soon it comes.
HARMLESS = ("metadata", "service_tier", "speed", "cache_control", "anthropic_version", "anthropic_beta")
# What another answer would come of, or a state that this server does not keep.
CANNOT = {
    "container": "no code is executed here",
    "mcp_servers": "connect to them in the client, and send their tools as tools",
    "context_management": "send the messages that the model is to see",
    "compaction": "send the messages that the model is to see",
    "thread": "nothing is kept between requests: send all messages",
}
CODES = {"thread": "thread_unsupported_request"}  # by which clients know that they are to do without
BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
EFFORTS = ("low", "medium", "high", "xhigh", "max")
CHOICES = {"auto": "auto", "any": "required", "none": "none"}

Block = tuple[str, Fields]  # its type


def chat_fields(given: Mapping[str, Any], ignored: list[str], *, counted: bool = False) -> Words:
    """`ignored` gets the paths of what nothing was made of. `counted`: the prompt's tokens are asked for, no answer.
    Raises ValidationError for what no chat request of ours can ask, by its path here."""
    fields = Fields(plain(given), "", ignored)
    for field, instead in CANNOT.items():
        if not _asks_nothing(fields.any(field)):
            problem = f"{field}: not supported by this engine: {instead}"
            raise ValidationError(problem, code=CODES.get(field), param=field)
    fields.skip(*HARMLESS)
    body = {**fields.take(*SAME), "reasoning_format": "deepseek"}
    if not counted:
        body["max_tokens"] = limit = fields.need("max_tokens", int)
        if limit < 0:
            raise refused("max_tokens", f"must not be negative, got {shown(limit)}")
        if body.get("stream") is True:
            # With the first chunk, too: a message starts with the number of its prompt's tokens.
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if stops := fields.get("stop_sequences", list):
        body["stop"] = stops
    body |= _conversation(fields)
    if tools := [_tool(tool) for tool in fields.objects("tools")]:
        body["tools"] = tools
    body |= _choice(fields) | _thinking(fields) | _format(fields)
    fields.end()
    return body


def _asks_nothing(value: Any) -> bool:
    """Empty, or context management that leaves everything as it is: some clients send it with every request."""
    if not isinstance(value, dict) or not isinstance(value.get("edits"), list):
        return not value
    return all(isinstance(edit, dict) and edit.get("keep") == "all" for edit in value["edits"])


# --- messages ---------------------------------------------------------------------------------------------------------


def _conversation(fields: Fields) -> Words:
    """The messages, and whether the answer goes on with the last of them."""
    messages: list[Words] = []
    if fields.has("system"):
        messages += _plain_turn("system", _blocks(fields, "system", "text"))
    # Neighbours of one role are one turn: many templates refuse two in a row.
    turns: list[tuple[str, list[Block]]] = []
    place = "messages"
    for message in fields.objects("messages"):
        place = message.place
        role = message.need("role", str)
        if role not in BLOCKS:
            raise refused(message.path("role"), f"must be one of {', '.join(BLOCKS)}, got {shown(role)}")
        blocks = list(_blocks(message, "content", *BLOCKS[role]))
        message.end()
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if not turns:
        raise refused("messages", "required, a list of one message or more")
    for role, blocks in turns:
        messages += _assistant_turn(blocks) if role == "assistant" else _plain_turn(role, blocks)
    if turns[-1][0] != "assistant":
        return {"messages": messages}
    if messages[-1].get("tool_calls"):
        raise refused(place, "its calls have no results: a message of tool_result blocks must follow")
    return {"messages": messages, "continue_final_message": True}


def _blocks(fields: Fields, field: str, *types: str) -> Iterator[Block]:
    """Content; a string is one block of text."""
    content = fields.any(field)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise refused(fields.path(field), f"required, a string or a list of blocks, got {shown(content)}")
    for i, item in enumerate(content):
        block = fields.inside(f"{field}[{i}]", item)
        kind = block.need("type", str)
        if kind not in types:
            raise refused(block.path("type"), f"must be {' or '.join(types)} here, got {shown(kind)}")
        block.skip("cache_control")
        yield kind, block


def _plain_turn(role: str, blocks: Iterable[Block]) -> Iterator[Words]:
    """Of a user or the system: a message of each result, and one of the texts between two of them."""
    texts: list[str] = []
    for kind, block in blocks:
        if kind == "text":
            texts.append(_text(block))
            continue
        if texts:
            yield {"role": role, "content": _content(texts)}
            texts = []
        yield _result(block)
    if texts:
        yield {"role": role, "content": _content(texts)}


def _assistant_turn(blocks: Iterable[Block]) -> Iterator[Words]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Words] = []
    for kind, block in blocks:
        if kind == "text":
            texts.append(_text(block))
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind == "thinking":
            thoughts.append(block.need("thinking", str))
            block.skip("signature")
            block.end()
        else:  # it is encrypted, and was not written by a model of this server
            block.end()
    message: Words = {"role": "assistant", "content": _content(texts) if texts or not calls else None}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    yield message


def _text(block: Fields) -> str:
    text = block.need("text", str)
    block.end()
    return text


def _content(texts: list[str]) -> str | list[Words]:
    return "".join(texts) if len(texts) < 2 else [{"type": "text", "text": text} for text in texts]


def _call(block: Fields) -> Words:
    function = {"name": block.need("name", str), "arguments": json.dumps(block.need("input", dict), ensure_ascii=False)}
    call = {"id": block.need("id", str), "type": "function", "function": function}
    block.skip("caller")  # who called it is for the client to know
    block.end()
    return call


def _result(block: Fields) -> Words:
    id, failed = block.need("tool_use_id", str), block.get("is_error", bool)
    texts = [_text(part) for _, part in _blocks(block, "content", "text")] if block.has("content") else []
    block.end()
    if failed:  # as results of functions say it that this package runs itself
        texts = [f"error: {''.join(texts[:1])}", *texts[1:]]
    return {"role": "tool", "tool_call_id": id, "content": _content(texts)}


# --- tools ------------------------------------------------------------------------------------------------------------


def _tool(tool: Fields) -> Words:
    kind = tool.get("type", str) or "custom"
    if kind != "custom":
        problem = f"{kind[:80]!r} is not supported by this engine: only tools that the client runs are, of type custom"
        raise refused(tool.path("type"), problem)
    function: Words = {"name": tool.need("name", str), "parameters": tool.need("input_schema", dict)}
    function |= tool.take("description", "strict")
    tool.skip("cache_control", "eager_input_streaming")
    tool.refuse({"defer_loading": (False,), "input_examples": ([],), "allowed_callers": (["direct"],)})
    tool.end()
    return {"type": "function", "function": function}


def _choice(fields: Fields) -> Words:
    if not fields.has("tool_choice"):
        return {}
    choice = fields.inner("tool_choice")
    kind = choice.need("type", str)
    several = not choice.get("disable_parallel_tool_use", bool)
    if kind == "tool":
        chosen: Any = {"type": "function", "function": {"name": choice.need("name", str)}}
    elif kind in CHOICES:
        chosen = CHOICES[kind]
    else:
        raise refused(choice.path("type"), f"must be auto, any, tool or none, got {shown(kind)}")
    choice.end()
    return {"tool_choice": chosen, "parallel_tool_calls": several}


# --- the form of the answer -------------------------------------------------------------------------------------------


def _thinking(fields: Fields) -> Words:
    """Without the field a model that can do without does not think, as there."""
    if not fields.has("thinking"):
        return {"enable_thinking": False}
    thinking = fields.inner("thinking")
    kind = thinking.need("type", str)
    if kind not in ("enabled", "adaptive", "disabled"):
        raise refused(thinking.path("type"), f"must be enabled, adaptive or disabled, got {shown(kind)}")
    display = thinking.get("display", str)
    if display not in (None, "summarized", "omitted"):
        raise refused(thinking.path("display"), f"must be summarized or omitted, got {shown(display)}")
    budget = thinking.get("budget_tokens", int)
    if budget is not None and budget < 1:
        raise refused(thinking.path("budget_tokens"), f"must be 1 or more, got {budget}")
    thinking.end()
    words: Words = {"enable_thinking": kind != "disabled"}
    return {**words, "thinking_token_budget": budget} if budget is not None and kind == "enabled" else words


def _format(fields: Fields) -> Words:
    """The effort, and the JSON schema of the answer, by its name or its older one."""
    config = fields.inner("output_config")
    found = [part.inner(name) for part, name in ((config, "format"), (fields, "output_format")) if part.has(name)]
    effort = config.get("effort", str)
    if effort is not None and effort not in EFFORTS:
        raise refused(config.path("effort"), f"must be one of {', '.join(EFFORTS)}, got {shown(effort)}")
    config.end()
    if len(found) > 1:
        raise refused("output_format", "is the older name of output_config.format, which is given too")
    words: Words = {} if effort is None else {"reasoning_effort": effort}
    for form in found:
        kind = form.need("type", str)
        if kind != "json_schema":
            raise refused(form.path("type"), f"must be json_schema, got {shown(kind)}")
        schema = form.need("schema", dict)
        form.skip("name", "strict")
        form.end()
        described = {"name": "answer", "strict": True, "schema": schema}
        words["response_format"] = {"type": "json_schema", "json_schema": described}
    return words
