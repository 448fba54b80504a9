"""Harmony: the channels in which gpt-oss answers, told apart as content, reasoning and calls of tools.

An answer is one message or several: `<|channel|>` header `<|message|>` body `<|end|>`, with `<|start|>assistant` before
every one but the first. Source: OpenAI's published description of the harmony response format.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from polargrid_local.chat.segments import JsonEnd, Segment
from polargrid_local.chat.stop_text import overlap_at
from polargrid_local.chat.tool_formats import HARMONY_ENDS, HARMONY_MARKERS, NAME_SIGNS, as_told, without_marks

_RECIPIENT = re.compile(rf"to=functions\.({NAME_SIGNS}+)")


def harmony_markers(control_tokens: Collection[str]) -> dict[str, str]:
    """Each of the format's markers, and how an answer has it."""
    return {text: as_told(text, control_tokens) for text in HARMONY_MARKERS}


class HarmonySegmenter:
    """As Segmenter, for this format. `inline`: reasoning is content, in `<think>` tags, as the remote API has it.
    `held`: the final message is held to a grammar, so nothing follows it."""

    def __init__(
        self, markers: dict[str, str], names: Collection[str] = (), *, inline: bool, held: bool = False
    ) -> None:
        self._channel, self._message = markers["<|channel|>"], markers["<|message|>"]
        self._ends = [markers[text] for text in HARMONY_ENDS]
        self._start = markers["<|start|>"]
        self._names, self._inline, self._answer_held = names, inline, held
        self._held = ""
        self._kind: str | None = None  # of the body that is being read; None in a header
        self._arguments: JsonEnd | None = None  # of the call that is being read
        self._is_last = False
        self._n_calls = 0
        self._said: set[str] = set()  # kinds of what was said in earlier messages
        self._thinks = False  # inside a block of inline reasoning
        self._thought = self._answers = False
        self._out: list[Segment] = []

    @property
    def thought(self) -> bool:
        """Whether a message of reasoning has begun."""
        return self._thought

    @property
    def answers(self) -> bool:
        """Whether a message has begun that is no reasoning. What is thought behind that counts to the answer."""
        return self._answers

    def push(self, text: str) -> list[Segment]:
        self._held += text
        while self._read_body() if self._kind else self._read_header():
            self._thought = self._thought or self._kind == "reasoning"
            self._answers = self._answers or self._kind in ("content", "arguments")
        return self._take()

    def finish(self) -> list[Segment]:
        """What waited."""
        held, self._held = self._held, ""
        if self._kind is not None:
            self._say(held)
        elif self._is_bare(held):
            self._kind = "content"
            self._say(held)
        self._end_thinking("\n</think>")
        return self._take()

    def _take(self) -> list[Segment]:
        out, self._out = self._out, []
        return out

    def _is_bare(self, header: str) -> bool:
        """Whether it is no header but content without one."""
        text = header.lstrip()
        begins = (self._channel, self._start, "to=", "assistant")
        return bool(text) and not any(text.startswith(begin) or begin.startswith(text) for begin in begins)

    def _read_header(self) -> bool:
        at = self._held.find(self._message)
        if at < 0:
            if self._is_bare(self._held):
                self._kind = "content"
                return True
            return False
        header, self._held = self._held[:at], self._held[at + len(self._message) :]
        recipient = _RECIPIENT.search(header)
        if recipient is not None and recipient[1] in self._names:
            self._kind = "arguments"
            self._arguments = JsonEnd()
            self._end_thinking("\n</think>\n\n")
            self._out.append(Segment("call", recipient[1], self._n_calls))
            self._n_calls += 1
        else:
            channel = header.partition(self._channel)[2].lstrip()
            self._is_last = self._answer_held and channel.startswith("final")
            self._kind = "reasoning" if channel.startswith("analysis") else "content"
            if self._kind in self._said:  # messages of one kind are paragraphs
                self._say("\n\n")
        return True

    def _read_body(self) -> bool:
        if self._arguments is not None:  # where the markers are plain text, a string may hold them
            complete_at = self._arguments.find(self._held)
            text, self._held = self._held[:complete_at], "" if complete_at is None else self._held[complete_at:]
            self._say(text)
            if complete_at is None:
                return False
            self._arguments = None
        if self._is_last:
            text, self._held = self._held, ""
            self._say(text)
            return False
        places = [(at, end) for end in self._ends if (at := self._held.find(end)) >= 0]
        if not places:
            at = min(overlap_at(self._held, end) for end in self._ends)
            text, self._held = self._held[:at], self._held[at:]
            self._say(text)
            return False
        at, end = min(places)
        self._say(self._held[:at])
        keep = end in (self._start, self._channel)
        self._held = self._held[at if keep else at + len(end) :]
        self._said.add(self._kind or "")
        self._kind = None
        return True

    def _say(self, text: str) -> None:
        text = without_marks(text)
        if not text:
            return
        if self._kind == "arguments":
            self._out.append(Segment("arguments", text, self._n_calls - 1))
        elif self._kind == "reasoning" and self._inline:
            if not self._thinks:
                self._thinks = True
                text = "<think>\n" + text
            self._out.append(Segment("content", text))
        elif self._kind == "reasoning":
            self._out.append(Segment("reasoning", text))
        else:
            self._end_thinking("\n</think>\n\n")
            self._out.append(Segment("content", text))

    def _end_thinking(self, text: str) -> None:
        if self._thinks:
            self._thinks = False
            self._out.append(Segment("content", text))
