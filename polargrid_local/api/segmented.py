"""A segmented answer: content, reasoning and calls while they grow, and the deltas of chat chunks that tell of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polargrid_local.api.answer_form import Segments
from polargrid_local.api.replies import ChatDelta, ChatMessage, FinishReason, FunctionCallReply, ToolCallReply
from polargrid_local.chat.segments import Segment
from polargrid_local.chat.stop_text import StopText


class SegmentedAnswer:
    """Text in, deltas out. `stops` end the content, and nothing else; `include_stop`: the one that does is content
    too. `id`: 24 hex digits, from which those of the calls are made. `legacy`: calls are told in the older form,
    `function_call`. `tells_reasoning`: False = what is thought is left out."""

    def __init__(
        self,
        segments: Segments,
        stops: Sequence[str],
        id: str,
        *,
        legacy: bool = False,
        include_stop: bool = False,
        tells_reasoning: bool = True,
    ) -> None:
        self._segments, self._id, self._legacy = segments, id, legacy
        self._tells_reasoning = tells_reasoning
        self._stop = StopText(stops, include=include_stop)
        self.may_stop = bool(stops)
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []  # name, and the arguments in pieces

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: nothing comes after it."""
        return self._stop.stopped

    @property
    def found(self) -> str | None:
        """Which stop string that was."""
        return self._stop.found

    @property
    def hides(self) -> bool:
        """Whether what comes now is a thought, and left out."""
        return not self._tells_reasoning and self._segments.thought and not self._segments.answers

    @property
    def reason_of_calls(self) -> FinishReason:
        """Why an answer that ends with calls has ended."""
        return "function_call" if self._legacy else "tool_calls"

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def functions(self) -> list[FunctionCallReply]:
        return [{"name": name, "arguments": "".join(pieces)} for name, pieces in self._calls]

    @property
    def calls(self) -> list[ToolCallReply]:
        return [
            {"id": self._call_id(i), "type": "function", "function": function}
            for i, function in enumerate(self.functions)
        ]

    def push(self, text: str, *, on_hold: bool = False) -> list[ChatDelta]:
        """`on_hold`: no stop string ends the content yet."""
        return self._told(self._segments.push(text), on_hold)

    def finish(self) -> list[ChatDelta]:
        """What waited."""
        deltas = self._told(self._segments.finish())
        return deltas if self.stopped else deltas + self._content(self._stop.finish())

    def fill(self, message: ChatMessage) -> None:
        """Into a message with its content: what else there is."""
        if self._reasoning:
            message["reasoning_content"] = self.reasoning
        if not self._calls:
            return
        message["content"] = message["content"] or None
        if self._legacy:
            message["function_call"] = self.functions[0]
        else:
            message["tool_calls"] = self.calls

    def _told(self, segments: Iterable[Segment], on_hold: bool = False) -> list[ChatDelta]:
        deltas: list[ChatDelta] = []
        for segment in segments:
            if self.stopped:
                break
            if segment.kind == "content":
                deltas += self._content(self._stop.push(segment.text, on_hold=on_hold))
                continue
            deltas += self._content(self._stop.finish())
            if not self.stopped and (self._tells_reasoning or segment.kind != "reasoning"):
                deltas.append(self._part(segment))
        return deltas

    def _content(self, text: str) -> list[ChatDelta]:
        return [{"content": text}] if text else []

    def _part(self, segment: Segment) -> ChatDelta:
        """Of reasoning, or of a call."""
        if segment.kind == "reasoning":
            self._reasoning.append(segment.text)
            return {"reasoning_content": segment.text}
        if segment.kind == "arguments":
            self._calls[segment.call][1].append(segment.text)
            if self._legacy:
                return {"function_call": {"arguments": segment.text}}
            return {"tool_calls": [{"index": segment.call, "function": {"arguments": segment.text}}]}
        self._calls.append((segment.text, []))
        if self._legacy:
            return {"function_call": {"name": segment.text, "arguments": ""}}
        return {
            "tool_calls": [
                {
                    "index": segment.call,
                    "id": self._call_id(segment.call),
                    "type": "function",
                    "function": {"name": segment.text, "arguments": ""},
                }
            ]
        }

    def _call_id(self, call: int) -> str:
        """Of its own for every call of every answer."""
        return f"call_{(int(self._id, 16) + call) % 16**24:024x}"
