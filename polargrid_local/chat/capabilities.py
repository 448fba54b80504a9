"""Capabilities: what a chat template can do with messages, found by showing it some.

Some templates take a message's content as text, some only as typed parts ([{"type": "text", "text": ...}]), and of the
wrong one they show nothing: two different questions would give one prompt. Some drop a system message, or refuse it. So
each is tried with words that nothing else says, and what comes out decides how messages are passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple

from polargrid_local.chat.formats import FORMATS
from polargrid_local.chat.segments import Segmenter, Tools
from polargrid_local.chat.tagged_parameters import ParameterKind
from polargrid_local.chat.taint import Span
from polargrid_local.chat.tool_formats import FORMATS as TOOL_FORMATS
from polargrid_local.errors import TemplateError

MessageDict = dict[str, Any]

_NOW = datetime(2026, 1, 1)
_ASK, _RULE, _REPLY, _RESULT, _TOOL, _MORE = "kwyjask", "kwyjrule", "kwyjreply", "kwyjresult", "kwyjtool", "kwyjmore"
_ID = "kwyjcall1"  # Mistral's templates refuse an id that is not nine letters and digits
_ARGUMENTS = {"x": "kwyjone"}
_OTHERS = {"x": "kwyjtwo"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "Looks.",
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "string", "description": "What."}},
                "required": ["x"],
            },
        },
    }
]


class Capabilities(NamedTuple):
    """What a template can do with messages; the defaults where nothing is known."""

    parts: frozenset[str] = frozenset()  # the roles whose content must be typed parts; that of all others is text
    joint: str = "\n"  # what the template puts between two text parts
    # A system message is shown wherever it stands, shown only as the first one, or has to be folded into a user's turn.
    system: Literal["shown", "first", "folded"] = "shown"
    # When an assistant's content may be null; otherwise it has to be empty.
    null: Literal["always", "tool calls", "never"] = "never"
    tools: bool = False  # whether the tools that are given are shown
    # How the arguments of a call in the history are to be given; "no" where calls are not shown.
    calls: Literal["object", "text", "no"] = "no"
    several: bool = False  # whether one turn may have several calls
    # Where what was said along with a call is shown: in the same turn, only in a turn of its own before it, or nowhere.
    beside: Literal["same turn", "own turn", "no"] = "same turn"
    results: bool = False  # whether what tools answered is shown
    tool_format: str = ""  # the name of the tool format in which calls are written, "" where it is none of ours


def text_parts(text: str) -> list[MessageDict]:
    """A content of one typed part."""
    return [{"type": "text", "text": text}]


def without_traceback(error: TemplateError) -> TemplateError:
    """The same error, to be kept or raised once more: a raised one keeps alive the frames that it passed through."""
    return TemplateError(error.message, param=error.param, details=error.details)


def probe(render: Callable[..., list[Span]]) -> tuple[Capabilities, TemplateError | None]:
    """What `render(messages, now=..., **options)` shows. Where it refuses every conversation tried, nothing is known:
    the defaults, and why it refused the first. Raises TemplateError when it shows nothing of a user's message."""
    return _Probe(render).result()


class _Probe:
    def __init__(self, render: Callable[..., list[Span]]) -> None:
        self._render = render
        self._refusal: TemplateError | None = None  # the first
        self._ran = False
        self._parts: set[str] = set()
        self._arguments_as_text = False

    def result(self) -> tuple[Capabilities, TemplateError | None]:
        talks = (["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "user", "assistant", "user"])
        for parts in set(), {"system", "user", "assistant", "tool"}:
            self._parts = parts
            asking = next((talk for talk in talks if self._shows(talk, _ASK)), None)
            if asking:
                break
        else:
            if not self._ran:
                return Capabilities(), self._refusal
            raise TemplateError(
                "chat template: shows no message, neither of text nor of typed parts. A chat template is Jinja source "
                f"that writes out `messages`, or one of these names: {', '.join(FORMATS)}",
                param="chat_template",
                details={"names": ", ".join(FORMATS)},
            )
        self._choose("assistant", _REPLY, ["user", "assistant", "user"])
        self._choose("tool", _RESULT, ["user", "call", "tool"])
        system: Literal["shown", "first", "folded"] = "folded"
        if self._choose("system", _RULE, ["system", "user"]):
            late = self._shows(["user", "assistant", "system", "user"], _RULE, _ASK)
            both = late or self._said(["system", "user", "assistant", "system", "user"]).count(_RULE) == 2
            system = "shown" if both else "first"
        tools = self._try(self._talk(asking), tools=_TOOLS)
        calls, tool_format = self._calls()
        several = False
        beside: Literal["same turn", "own turn", "no"] = "same turn"
        if calls != "no":
            beside = self._beside()
            two = _text(self._try(self._talk(["user", "calls", "tool", "tool"])) or [])
            several = _ARGUMENTS["x"] in two and _OTHERS["x"] in two
        return Capabilities(
            frozenset(self._parts),
            self._joint(),
            system,
            self._null(),
            tools is not None and _TOOL in _text(tools),
            calls,
            several,
            beside,
            self._shows(["user", "call", "tool"], _RESULT),
            tool_format,
        ), None

    # the conversations that it is tried with

    def _talk(self, roles: list[str]) -> list[MessageDict]:
        made: dict[str, tuple[str, str, MessageDict]] = {
            "system": ("system", _RULE, {}),
            "user": ("user", _ASK, {}),
            "assistant": ("assistant", _REPLY, {}),
            "call": ("assistant", "", {"tool_calls": [self._call(_ARGUMENTS)]}),
            "said": ("assistant", _MORE, {"tool_calls": [self._call(_ARGUMENTS)]}),
            "words": ("assistant", _MORE, {}),
            "calls": ("assistant", "", {"tool_calls": [self._call(_ARGUMENTS), self._call(_OTHERS)]}),
            "tool": ("tool", _RESULT, {"tool_call_id": _ID, "name": _TOOL}),
        }
        return [self._message(*made[role]) for role in roles]

    def _message(self, role: str, text: str, more: MessageDict) -> MessageDict:
        content = text_parts(text) if role in self._parts else text
        return {"role": role, "content": content, **more}

    def _call(self, arguments: MessageDict) -> MessageDict:
        given = json.dumps(arguments) if self._arguments_as_text else arguments
        return {"id": _ID, "type": "function", "function": {"name": _TOOL, "arguments": given}}

    # what it makes of them

    def _try(self, messages: list[MessageDict], **options: Any) -> list[Span] | None:
        try:
            spans = self._render(messages, now=_NOW, **options)
        except TemplateError as error:
            self._refusal = self._refusal or without_traceback(error)
            return None
        self._ran = True
        return spans

    def _shows(self, roles: list[str], *words: str) -> bool:
        """Whether these words come out, and no list of typed parts as text."""
        said = self._said(roles)
        return all(word in said for word in words) and "typetext" not in said and "'text'" not in said

    def _said(self, roles: list[str]) -> str:
        """What comes out of what the messages say."""
        return "".join(text for text, trusted in self._try(self._talk(roles)) or () if not trusted)

    def _choose(self, role: str, word: str, roles: list[str]) -> bool:
        """Text for this role where that shows, else parts where those show. Left as it is where neither does."""
        before = set(self._parts)
        for parts in before - {role}, before | {role}:
            self._parts = parts
            if self._shows(roles, word, _ASK):
                return True
        self._parts = before
        return False

    def _joint(self) -> str:
        spans = self._try([{"role": "user", "content": [*text_parts(_ASK), *text_parts(_MORE)]}])
        text = _text(spans or [])
        between = text.partition(_ASK)[2].partition(_MORE)[0] if _MORE in text else "'"
        return "\n" if between.strip() else between

    def _calls(self) -> tuple[Literal["object", "text", "no"], str]:
        """How a call's arguments are to be given so that it is shown as a call, and in which format that is."""
        shown: list[Literal["object", "text"]] = []
        ways: tuple[Literal["object", "text"], ...] = ("object", "text")
        for way in ways:
            self._arguments_as_text = way == "text"
            for talk in ["user", "call", "tool"], ["user", "call"], ["system", "user", "call", "tool"]:
                text = _text(self._try(self._talk(talk)) or [])
                if found := _format_of(text, partial(self._after, talk[: talk.index("call")], text)):
                    return way, found
                if _TOOL in text or _ARGUMENTS["x"] in text:
                    shown.append(way)
        self._arguments_as_text = shown[:1] == ["text"]
        return (shown[0] if shown else "no"), ""

    def _after(self, roles: list[str], text: str) -> str:
        """What of `text` follows the prompt that these messages give; nothing if it does not begin with it."""
        prompt = _text(self._try(self._talk(roles)) or [])
        return text[len(prompt) :] if text.startswith(prompt) else ""

    def _beside(self) -> Literal["same turn", "own turn", "no"]:
        """Where words along with a call are shown, and the call too."""
        ways: tuple[tuple[Literal["same turn", "own turn"], list[str]], ...] = (
            ("same turn", ["said"]),
            ("own turn", ["words", "call"]),
        )
        for way, turns in ways:
            rest = ["tool", "assistant", "user"] if way == "own turn" else ["tool"]
            text = _text(self._try(self._talk(["user", *turns, *rest])) or [])
            if _MORE in text and _ARGUMENTS["x"] in text:
                return way
        return "no"

    def _null(self) -> Literal["always", "tool calls", "never"]:
        call = {"tool_calls": [self._call(_ARGUMENTS)]}
        kept = [self._keeps_null(call, self._talk(["tool"])), self._keeps_null(call, [])]
        if False in kept or True not in kept:
            return "never"
        return "always" if self._keeps_null({}, self._talk(["user"])) else "tool calls"

    def _keeps_null(self, more: MessageDict, rest: list[MessageDict]) -> bool | None:
        """Whether null passes, and is nowhere written as a word; None where empty content does not pass either."""

        def tried(content: Any) -> str | None:
            spans = self._try([*self._talk(["user"]), {"role": "assistant", "content": content, **more}, *rest])
            return None if spans is None else _text(spans)

        null, empty = tried(None), tried(text_parts("") if "assistant" in self._parts else "")
        if null is None:
            return None if empty is None else False
        return null.count("None") <= (empty or "").count("None")


def _text(spans: list[Span]) -> str:
    return "".join(text for text, _ in spans)


def _format_of(text: str, answer: Callable[[], str]) -> str:
    """The name of the tool format in which `text` holds the call, found by reading it in each of them; in those whose
    calls are all that an answer has, `answer()`, its end, must begin with it."""
    kinds: dict[str, dict[str, ParameterKind]] = {_TOOL: {"x": "text"}}
    for format in TOOL_FORMATS:
        segmenter = Segmenter(Tools(format, kinds))
        segments = [*segmenter.push(text if format.anywhere else answer()), *segmenter.finish()]
        arguments = "".join(segment.text for segment in segments if segment.call == 0 and segment.kind == "arguments")
        try:
            if json.loads(arguments or "null") == _ARGUMENTS:
                return format.name
        except ValueError:
            pass
    return ""
