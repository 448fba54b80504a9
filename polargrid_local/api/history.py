"""History: the calls and results of a conversation, in the form in which a chat template shows them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from polargrid_local.api.requests import Message, ToolCall
from polargrid_local.chat.capabilities import Capabilities
from polargrid_local.chat.tool_formats import ToolFormat
from polargrid_local.chat.tool_prompt import write_calls, write_result


class History:
    """`described`: the model has been told of a notation that is not the template's own."""

    def __init__(self, capabilities: Capabilities, format: ToolFormat, *, described: bool) -> None:
        own = format.name == capabilities.tool_format or not described
        self._shows_calls = capabilities.calls != "no" and own
        self._shows_results = capabilities.results and own
        self._several = capabilities.several
        self._words = capabilities.beside
        self._parsed = capabilities.calls != "text"
        self._format = format
        self._names: dict[str, str] = {}  # id of a call -> its tool

    def adapted(self, messages: Sequence[Message]) -> Iterator[Message]:
        results: list[str] = []
        queue = list(messages)
        while queue:
            message = queue.pop(0)
            if message.role == "tool" and not self._shows_results:
                results.append(write_result("\n".join(message.texts)))
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
                for turn in first:
                    yield from self._with_words_apart(turn)
            else:
                yield from self._with_words_apart(self._with_thought_apart(message))
        if results:
            yield Message(role="user", content="\n".join(results))

    def _written(self, message: Message, calls: Sequence[ToolCall]) -> Message:
        text = write_calls([(call.function.name, call.function.arguments) for call in calls], self._format)
        content = "\n".join([*message.texts, text])
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

    def _with_words_apart(self, message: Message) -> list[Message]:
        """A turn with words beside its calls; as two where the template would lose either, or refuse both."""
        texts = message.texts
        apart = self._words == "own turn"
        if self._format.channels:  # one body of words may come before a call: those, or a thought
            apart = message.reasoning_content is not None
        if not (apart and message.tool_calls and any(texts)):
            return [message]
        words = message.model_copy(update={"tool_calls": None})
        return [words, message.model_copy(update={"content": None, "reasoning_content": None})]

    def _with_thought_apart(self, message: Message) -> Message:
        """Inline reasoning of an earlier answer as a field of its own, for the one format that knows no inline one."""
        content = message.content
        if not self._format.channels or message.role != "assistant" or not isinstance(content, str):
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
