"""Messages as a chat template takes them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from polargrid_local.api.requests import FunctionDefinition, Message, TextPart, ToolCall
from polargrid_local.chat.capabilities import Capabilities, text_parts
from polargrid_local.chat.tool_formats import GENERIC, HARMONY, ToolFormat
from polargrid_local.chat.tool_prompt import describe, write_calls, write_result


def messages_of(
    messages: Sequence[Message],
    capabilities: Capabilities,
    format: ToolFormat = GENERIC,
    tools: Sequence[FunctionDefinition] = (),
) -> list[dict[str, Any]]:
    """One dict per message, or fewer where system messages are folded into user ones, or more where a turn may have one
    call only. The role `developer` is `system`. `tools`: those that the template does not show itself; the system
    message does."""
    history = _History(capabilities, format, described=bool(tools))
    plain: list[dict[str, Any]] = []
    held: list[str] = []  # system texts on their way into the user's next turn
    for message in history.adapted(_with_description(messages, tools, format)):
        role = "system" if message.role == "developer" else message.role
        content = message.content
        texts = _texts(content)
        if role == "system" and (capabilities.system == "folded" or (capabilities.system == "first" and plain)):
            held += texts
            continue
        if role == "user" and held:
            texts, held = ["\n".join([*held, capabilities.joint.join(texts)])], []
        entry: dict[str, Any] = {"role": role}
        if (
            content is None
            and role == "assistant"
            and capabilities.null in ("always", message.tool_calls and "tool calls")
        ):
            entry["content"] = None
        elif role in capabilities.parts:
            entry["content"] = [part for text in texts or [""] for part in text_parts(text)]
        else:
            entry["content"] = capabilities.joint.join(texts)
        if message.name is not None:
            entry["name"] = message.name
        if message.tool_call_id is not None:
            entry["tool_call_id"] = history.id_of(message.tool_call_id)
        if message.reasoning_content is not None:
            entry["reasoning_content"] = message.reasoning_content
            if format.name == HARMONY.name:
                entry["thinking"] = message.reasoning_content
        if message.tool_calls:
            entry["tool_calls"] = [history.call(call) for call in message.tool_calls]
        plain.append(entry)
    if held:  # the last system texts were followed by no user's turn
        text = "\n".join(held)
        plain.append({"role": "user", "content": text_parts(text) if "user" in capabilities.parts else text})
    return plain


def _texts(content: Any) -> list[str]:
    if isinstance(content, list):
        return [part.text for part in content if isinstance(part, TextPart)]  # `parse` has refused images
    return [] if content is None else [content]


def _with_description(
    messages: Sequence[Message], tools: Sequence[FunctionDefinition], format: ToolFormat
) -> Sequence[Message]:
    """The messages with the tools described in the first system message, or in one of their own."""
    if not tools:
        return messages
    text = describe([tool.model_dump(exclude_none=True, exclude={"strict"}) for tool in tools], format)
    first = messages[0]
    if first.role in ("system", "developer"):
        said = "\n".join(_texts(first.content))
        return [first.model_copy(update={"content": f"{said}\n\n{text}"}), *messages[1:]]
    return [Message(role="system", content=text), *messages]


class _History:
    """The calls and results of a conversation, in the form in which a template shows them. `described`: the model has
    been told of a notation that is not the template's own."""

    def __init__(self, capabilities: Capabilities, format: ToolFormat, *, described: bool) -> None:
        own = format.name == capabilities.tool_format or not described
        self._shows_calls = capabilities.calls != "no" and own
        self._shows_results = capabilities.results and own
        self._several = capabilities.several
        self._parsed = capabilities.calls != "text"
        self._format = format
        self._names: dict[str, str] = {}  # id of a call -> its tool

    def adapted(self, messages: Sequence[Message]) -> Iterator[Message]:
        results: list[str] = []
        queue = list(messages)
        while queue:
            message = queue.pop(0)
            if message.role == "tool" and not self._shows_results:
                results.append(write_result("\n".join(_texts(message.content))))
                continue
            if results:
                yield Message(role="user", content="\n".join(results))
                results = []
            calls = message.tool_calls
            if calls:
                self._names |= {call.id: call.function.name for call in calls}
            if message.role == "tool" and message.name is None and message.tool_call_id in self._names:
                message = message.model_copy(update={"name": self._names[message.tool_call_id or ""]})
            if calls and not self._shows_calls:
                yield self._written(message, calls)
            elif calls and len(calls) > 1 and not self._several:
                first, queue = self._one_by_one(message, calls, queue)
                yield from first
            else:
                yield self._with_thought_apart(message)
        if results:
            yield Message(role="user", content="\n".join(results))

    def _written(self, message: Message, calls: Sequence[ToolCall]) -> Message:
        text = write_calls([(call.function.name, call.function.arguments) for call in calls], self._format)
        content = "\n".join([*_texts(message.content), text])
        return message.model_copy(update={"content": content, "tool_calls": None})

    def _one_by_one(
        self, message: Message, calls: Sequence[ToolCall], rest: list[Message]
    ) -> tuple[list[Message], list[Message]]:
        """A turn of several calls as several turns, each followed by the result of its call."""
        n_results = next((i for i, later in enumerate(rest) if later.role != "tool"), len(rest))
        results, rest = rest[:n_results], rest[n_results:]
        out = []
        for i, call in enumerate(calls):
            update: dict[str, Any] = {"tool_calls": [call]}
            if i:
                update |= {"content": None, "reasoning_content": None}
            out.append(message.model_copy(update=update))
            mine = [result for result in results if result.tool_call_id == call.id]
            out += [result.model_copy(update={"name": result.name or call.function.name}) for result in mine]
            results = [result for result in results if result.tool_call_id != call.id]
        return [*out, *results], rest

    def _with_thought_apart(self, message: Message) -> Message:
        """Inline reasoning of an earlier answer as a field of its own, for the one format that knows no inline one."""
        content = message.content
        if self._format.name != HARMONY.name or message.role != "assistant" or not isinstance(content, str):
            return message
        before, opening, rest = content.partition("<think>")
        thought, _, text = rest.partition("</think>")
        if not opening or before.strip():
            return message
        return message.model_copy(
            update={"content": text.strip("\n") or None, "reasoning_content": thought.strip("\n")}
        )

    def call(self, call: ToolCall) -> dict[str, Any]:
        arguments: Any = call.function.arguments
        if self._parsed:
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                pass  # shown as it is
        function = {"name": call.function.name, "arguments": arguments}
        return {"id": self.id_of(call.id), "type": "function", "function": function}

    def id_of(self, id: str) -> str:
        """The id of a call as the template accepts it."""
        if not self._format.short_ids or (len(id) == 9 and id.isascii() and id.isalnum()):
            return id
        return f"{zlib.crc32(id.encode()):09d}"[-9:]


def texts_of(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """What a template has to show, before it is rendered: enough to see that it cannot fit."""
    return [(text, False) for message in messages for text in _texts(message.content)]
