"""ResponseOutput: the items of a response's output while they grow, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

Words = dict[str, Any]

_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


def item_id(kind: str, response: str, place: str) -> str:
    """The id of an item of the response with these 24 hex digits. A reference to it so tells which response has it."""
    return f"{_PREFIX.get(kind, 'item')}_{response}{place}"


class ResponseOutput:
    """Deltas of a chat in, events without their numbers out. One item grows at a time; the next begins where a delta of
    another kind comes."""

    def __init__(self, response: str, *, logprobs: bool) -> None:
        self.items: list[Words] = []
        self._response, self._asked = response, logprobs
        self._open: Words | None = None  # the last of the items, while it grows
        self._texts: list[str] = []  # of the open item
        self._logprobs: list[Words] = []  # of all tokens so far, whatever they are a part of
        self._spelled = 0  # bytes of those tokens that belong to items before

    def push(self, delta: Mapping[str, Any], logprobs: Sequence[Words] = ()) -> Iterator[Words]:
        self._logprobs += logprobs
        if text := delta.get("reasoning_content"):
            yield from self._grow("reasoning", text)
        if text := delta.get("content"):
            yield from self._grow("message", text, logprobs)
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if "name" in function:
                item = {"type": "function_call", "call_id": call["id"], "name": function["name"], "arguments": ""}
                yield from self._begin(item)
            if text := function.get("arguments"):
                self._texts.append(text)
                yield self._event("response.function_call_arguments.delta", delta=text)

    def finish(self, *, complete: bool) -> Iterator[Words]:
        """What was cut is the last item. A complete answer has words or calls, even if the words are none."""
        if complete and not any(item["type"] != "reasoning" for item in self.items):
            yield from self._start("message")
        yield from self.close("completed" if complete else "incomplete")

    def close(self, status: str = "completed") -> Iterator[Words]:
        """The end of the open item, if there is one."""
        item = self._open
        if item is None:
            return
        text = "".join(self._texts)
        if item["type"] == "function_call":
            item["arguments"] = text
            yield self._event("response.function_call_arguments.done", name=item["name"], arguments=text)
        else:
            part = self._part(item["type"], text, self._spelling(text) if self._asked else [])
            told = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            yield self._event(f"response.{part['type']}.done", content_index=0, text=text, **told)
            yield self._event("response.content_part.done", content_index=0, part=part)
            item["content"] = [part]
        item["status"] = status
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": dict(item)}
        self._open, self._texts = None, []

    def _grow(self, kind: str, text: str, logprobs: Sequence[Words] = ()) -> Iterator[Words]:
        if self._open is None or self._open["type"] != kind:
            yield from self._start(kind)
        self._texts.append(text)
        if kind == "message":
            told = list(logprobs)
            yield self._event("response.output_text.delta", content_index=0, delta=text, logprobs=told)
        else:
            yield self._event("response.reasoning_text.delta", content_index=0, delta=text)

    def _start(self, kind: str) -> Iterator[Words]:
        """An item that has its text in a part."""
        own: Words = {"role": "assistant"} if kind == "message" else {"summary": []}
        yield from self._begin({"type": kind, **own, "content": []})
        yield self._event("response.content_part.added", content_index=0, part=self._part(kind, "", []))

    def _begin(self, item: Words) -> Iterator[Words]:
        yield from self.close()
        id = item_id(item["type"], self._response, f"{len(self.items):04x}")
        self._open = {"id": id, **item, "status": "in_progress"}
        self.items.append(self._open)
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": dict(self._open)}

    def _event(self, type: str, **words: Any) -> Words:
        """About the open item."""
        return {"type": type, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **words}

    @staticmethod
    def _part(kind: str, text: str, logprobs: list[Words]) -> Words:
        if kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _spelling(self, text: str) -> list[Words]:
        """The logprobs of the tokens that spell a text, which stands behind all those asked for before; of all further
        tokens where no run of them spells it, as with half a character at its end."""
        sizes = [len(token["bytes"]) for token in self._logprobs]
        spelled = b"".join(bytes(token["bytes"]) for token in self._logprobs)
        begin = spelled.find(text.encode(), self._spelled)
        end = begin + len(text.encode())
        if begin < 0:
            begin, end = self._spelled, len(spelled)
        else:
            self._spelled = end
        ends = accumulate(sizes)
        return [token for token, size, to in zip(self._logprobs, sizes, ends) if begin < to and to - size < end]
