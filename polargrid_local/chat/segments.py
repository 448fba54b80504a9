"""Segments: the text of an answer, told apart as content, reasoning and calls of tools while it comes.

The text may be cut anywhere. What may still become part of a call, or the end of a block of reasoning, waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

from polargrid_local.chat.stop_text import overlap_at
from polargrid_local.chat.tagged_parameters import ParameterKind, ParameterReader
from polargrid_local.chat.tool_formats import Found, ToolFormat, marked_text, match_any, without_marks


class Segment(NamedTuple):
    """A piece of an answer. A call begins with a segment of kind "call", whose text is the tool's name; its arguments,
    JSON, follow in pieces. `call` is its index."""

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str
    call: int = -1


class Tools(NamedTuple):
    """What an answer may call: the notation, and of each tool its parameters."""

    format: ToolFormat  # with the vocabulary's marks
    parameters: Mapping[str, Mapping[str, ParameterKind]]

    @property
    def names(self) -> Collection[str]:
        return self.parameters


class Reasoning(NamedTuple):
    """The block in which a model thinks before it answers. `inline`: it stays in the content, tags and all."""

    opening: str
    closing: str
    opened: bool = False  # the prompt has opened it already
    inline: bool = False


class Segmenter:
    """Text in, segments out. The last text is followed by `finish()`."""

    def __init__(self, tools: Tools | None = None, reasoning: Reasoning | None = None) -> None:
        self._tools = tools
        self._reasoning = reasoning
        self._held = ""
        self._out: list[Segment] = []
        self._n_calls = 0
        self._calls_may_come = tools is not None
        self._firsts = tools.format.firsts if tools is not None else ()
        self._signs = {first.lstrip(" ~")[0] for first in self._firsts}  # with which a call may begin
        self._arguments = JsonEnd()
        self._parameters: ParameterReader | None = None
        self._head = ""  # of the call that may begin
        self._name = ""
        self._trim = False  # blanks that come next belong to no segment
        self._state: Callable[[], bool] = self._opening
        self._thought = reasoning is not None and reasoning.opened
        if reasoning is not None and reasoning.opened:
            self._state, self._trim = self._thinking, not reasoning.inline
        elif reasoning is None:
            self._state = self._content

    @property
    def thought(self) -> bool:
        """Whether a block of reasoning has begun."""
        return self._thought

    @property
    def answers(self) -> bool:
        """Whether what comes now is no reasoning, nor may it become any."""
        return self._state not in (self._opening, self._thinking)

    def push(self, text: str) -> list[Segment]:
        self._held += text
        while self._state():
            pass
        return self._take()

    def finish(self) -> list[Segment]:
        """What waited. An unfinished call stays as it is: nothing is added to it."""
        held, self._held = self._held, ""
        blank = not held.strip()
        if self._state == self._thinking:
            self._reason(held)
        elif self._state == self._begin_arguments:
            self._say(self._head + held)
        elif self._state == self._in_parameters and self._parameters is not None:
            if text := self._parameters.finish(held):
                self._add("arguments", text, self._n_calls - 1)
        elif self._state == self._after:
            self._say("" if blank or self._in_group else held)
        elif self._state in (self._opening, self._content):
            self._say("" if blank and self._trim else held)
        return self._take()

    def _take(self) -> list[Segment]:
        out, self._out = self._out, []
        return out

    @property
    def _in_group(self) -> bool:
        """Whether what comes between calls is a part of the notation."""
        return self._tools is not None and self._tools.format.openings != ("",)

    # what is said

    def _add(self, kind: Literal["content", "reasoning", "call", "arguments"], text: str, call: int = -1) -> None:
        """Neighbours of one kind are one segment."""
        last = self._out[-1] if self._out else None
        if last is not None and last.kind == kind != "call" and last.call == call:
            self._out[-1] = last._replace(text=last.text + text)
        else:
            self._out.append(Segment(kind, text, call))

    def _say(self, text: str) -> None:
        if text := without_marks(text):
            self._add("content", text)

    def _reason(self, text: str) -> None:
        if text := without_marks(text):
            inline = self._reasoning is not None and self._reasoning.inline
            self._add("content" if inline else "reasoning", text)

    # states: each takes what it can of the held text, and says whether another one may take more

    def _opening(self) -> bool:
        """A block of reasoning may begin."""
        assert self._reasoning is not None
        tag, text = self._reasoning.opening, self._held.lstrip()
        if text.startswith(tag):
            if self._reasoning.inline:
                self._add("content", self._held[: len(self._held) - len(text)] + marked_text(tag))
            self._held = text[len(tag) :]
            self._thought = True
            self._state, self._trim = self._thinking, not self._reasoning.inline
            return True
        if tag.startswith(text):  # the beginning of one, or nothing yet
            return False
        self._state = self._content
        return True

    def _thinking(self) -> bool:
        assert self._reasoning is not None
        tag, inline = self._reasoning.closing, self._reasoning.inline
        if self._trim:
            self._held = self._held.lstrip()
            if not self._held:
                return False
            self._trim = False
        at = self._held.find(tag)
        if at >= 0:
            thought, self._held = self._held[:at], self._held[at + len(tag) :]
            self._reason(thought + marked_text(tag) if inline else thought.rstrip())
            self._state, self._trim = self._content, not inline
            return True
        at = overlap_at(self._held, tag)
        if not inline:
            at = len(self._held[:at].rstrip())  # blanks before the end of the block are no thought
        self._reason(self._held[:at])
        self._held = self._held[at:]
        return False

    def _content(self) -> bool:
        if self._trim:  # blanks after reasoning or a call wait for what follows them
            text = self._held.lstrip()
            if not text:
                return False
            if self._n_calls == 0:
                self._held = text
        tools = self._tools
        if tools is None or not self._calls_may_come:
            self._trim = False
            self._say(self._held)
            self._held = ""
            return False
        at = 0 if tools.format.anywhere else len(self._held) - len(self._held.lstrip())
        while at < len(self._held):
            if tools.format.anywhere:
                places = [place for sign in self._signs if (place := self._held.find(sign, at)) >= 0]
                at = min(places, default=len(self._held))
            found = match_any(self._firsts, self._held, at, tools.names) if at < len(self._held) else False
            if isinstance(found, Found):
                blank = (self._trim or not tools.format.anywhere) and not self._held[:at].strip()
                self._say("" if blank else self._held[:at])
                self._begin(at, found)
                return True
            if found:
                break
            if not tools.format.anywhere:
                self._calls_may_come = False
                return True
            at += 1
        if not tools.format.anywhere:
            return False
        if self._held[:at].strip():
            self._trim = False
        if not self._trim:
            self._say(self._held[:at])
            self._held = self._held[at:]
        return False

    def _begin(self, at: int, found: Found) -> None:
        assert self._tools is not None
        self._trim = False
        self._head, self._name = self._held[at : found.end], found.name
        self._held = self._held[found.end :]
        self._state = self._begin_arguments

    def _begin_arguments(self) -> bool:
        assert self._tools is not None
        if self._tools.format.parameters:
            self._parameters = ParameterReader(self._tools.parameters[self._name])
            self._state = self._in_parameters
        else:
            text = self._held.lstrip()
            if not text:
                return False
            if text[0] != "{":  # no arguments, so no call
                self._say(self._head)
                self._state = self._content
                return True
            self._held = text
            self._arguments = JsonEnd()
            self._state = self._in_arguments
        self._add("call", self._name, self._n_calls)
        self._n_calls += 1
        return True

    def _in_arguments(self) -> bool:
        end = self._arguments.find(self._held)
        text, self._held = (self._held, "") if end is None else (self._held[:end], self._held[end:])
        if text := without_marks(text):
            self._add("arguments", text, self._n_calls - 1)
        if end is None:
            return False
        self._state = self._tail
        return True

    def _in_parameters(self) -> bool:
        assert self._parameters is not None
        text, self._held, ended = self._parameters.read(self._held)
        if text:
            self._add("arguments", without_marks(text), self._n_calls - 1)
        if ended:
            self._state = self._tail
        return ended

    def _tail(self) -> bool:
        assert self._tools is not None
        found = match_any(self._tools.format.tails, self._held, 0, ())
        if found is True:
            return False
        if isinstance(found, Found):
            self._held = self._held[found.end :]
        self._state = self._after
        return True

    def _after(self) -> bool:
        """A call has ended; another may follow, or the end of all of them."""
        assert self._tools is not None
        found = match_any(self._tools.format.nexts, self._held, 0, self._tools.names)
        if isinstance(found, Found):
            self._begin(0, found)
            return True
        closing = match_any((self._tools.format.closing,), self._held, 0, ())
        if isinstance(closing, Found) and closing.end:
            self._held = self._held[closing.end :]
        elif found or closing is True:
            return False
        self._state, self._trim = self._content, True
        self._calls_may_come = self._tools.format.anywhere
        return True


class JsonEnd:
    """Finds where one JSON object ends, in text that comes in pieces."""

    _SIGNS = re.compile(r'["\\{}\[\]]')

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped_at_start = False  # the last piece ended with a backslash in a string

    def find(self, text: str) -> int | None:
        """The place behind the end, or None if it is not in this piece."""
        if not text:
            return None
        skip = 0 if self._escaped_at_start else -1
        self._escaped_at_start = False
        for sign in self._SIGNS.finditer(text):
            at, char = sign.start(), sign[0]
            if at == skip:
                continue
            if self._in_string:
                if char == "\\":
                    skip = at + 1
                    self._escaped_at_start = skip == len(text)
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None
