"""The grammar of an answer that may, or must, call tools: made of the tools' schemas and the notation of their calls.

It is one grammar in llguidance's form of Lark, from the first token on: text is free until it spells the beginning of
a call to a tool that there is, and from there on it is held to that call. A call to anything else stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from polargrid_local.chat.grammar import WHITESPACE, Constraint, guided
from polargrid_local.chat.segments import Reasoning
from polargrid_local.chat.tagged_parameters import parameter_kind, shared_definitions, text_values
from polargrid_local.chat.tool_formats import (
    HARMONY_ENDS,
    ToolFormat,
    elements_of,
    is_blank,
    mark_of,
    marked_text,
    split_at_marks,
)

Schema = dict[str, Any]

_BLANKS = WHITESPACE + "?"  # where a call is written already: few, so that they end
_ANY_BLANKS = r"[ \t\r\n]*"  # where free text may become a call: all that are read as one
_ID = r"[A-Za-z0-9]{1,9}"
_ANY = r"(?s:.*)"


class Signature(NamedTuple):
    """A tool as the grammar needs it."""

    name: str
    schema: Schema  # of its arguments, an object
    options: dict[str, Any]  # the compiler's, for this schema


class Demand(NamedTuple):
    """What an answer must be: `calls` may come ("auto"), must come ("required"), or cannot ("none"); not `several`: one
    at most. `answer`, if not None, is the Lark expression that an answer without calls is held to."""

    calls: Literal["none", "auto", "required"]
    several: bool = True
    answer: str | None = None


def json_expression(schema: Any, options: dict[str, Any]) -> str:
    """The JSON that `schema` allows, as a Lark expression."""
    return "%json " + guided(schema, options)


def regex_text(text: str) -> str:
    """A text as a regular expression for nothing else, between Lark's slashes."""
    return re.sub(r"[\\.+*?()|\[\]{}^$#&~/-]", r"\\\g<0>", text).replace("\n", r"\n")


def pattern_regex(pattern: str, tool: str, blanks: str = _BLANKS) -> str:
    """A pattern without marks as a regular expression. `tool`: the expression of its name."""
    return _regex_around(pattern, blanks).replace("$NAME", tool)


@lru_cache(256)
def _regex_around(pattern: str, blanks: str) -> str:
    """The same with `$NAME`, which no expression of a text holds, in the place of the name."""
    text = ""
    for element in elements_of(pattern):
        if is_blank(element):
            text += blanks
        elif element == "$ID":
            text += _ID
        else:
            text += element if element == "$NAME" else regex_text(element)
    return text


class ToolGrammar:
    """Collects the rules of one grammar. `ids`: the ids of the control tokens that the vocabulary has, by text."""

    def __init__(self, tools: Sequence[Signature], format: ToolFormat, ids: Mapping[str, int]) -> None:
        self._tools, self._format, self._ids = tools, format, ids
        self._rules: list[str] = []

    def constraint(self, demand: Demand, reasoning: Reasoning | None) -> Constraint:
        """`reasoning`: the block that may or, where it is open already, must come before the answer."""
        body = self._harmony(demand) if self._format.channels else self._body(demand, reasoning)
        return Constraint("lark", "\n".join([f"start: {body}", *self._rules]) + "\n")

    # parts

    def _rule(self, name: str, body: str) -> str:
        """Names a rule or, in capitals, a terminal; `name[lazy]` ends at its first match."""
        self._rules.append(f"{name}: {body}")
        return name.partition("[")[0]

    def _token(self, mark: str) -> str:
        return f"<[{self._ids[marked_text(mark)]}]>"

    def _is_mark(self, part: str) -> bool:
        return marked_text(part) != part

    def _sequences(self, name: str, patterns: Sequence[str], tool: str, *, free: bool = False) -> list[str]:
        """Patterns as Lark expressions, the tool's name filled in; `free`: any text may come before them. Those that
        differ in one text only are one expression, because the work of a step grows with the number of them."""
        alike: dict[tuple[str, ...], list[str]] = {}
        for pattern in patterns:
            parts = split_at_marks(pattern)
            shape = tuple(part if self._is_mark(part) else "" for part in parts)
            alike.setdefault(shape if shape.count("") < 2 else tuple(parts), []).append(pattern)
        return [self._sequence(f"{name}_{i}", group, tool, free=free) for i, group in enumerate(alike.values())]

    def _sequence(self, name: str, patterns: Sequence[str], tool: str = "", *, free: bool = False) -> str:
        """Patterns that are alike but for their texts, as one Lark expression."""
        out = []
        for i, texts in enumerate(zip(*map(split_at_marks, patterns))):
            if self._is_mark(texts[0]):
                out.append(("TEXT? " if free and i == 0 else "") + self._token(texts[0]))
            elif all(map(is_blank, elements_of(texts[0]))):
                out.append("BLANK?")
            else:
                first = free and i == 0
                blanks = _ANY_BLANKS if first else _BLANKS
                regexes = list(dict.fromkeys(pattern_regex(text, regex_text(tool), blanks) for text in texts))
                regex = regexes[0] if len(regexes) == 1 else f"({'|'.join(regexes)})"
                label = f"{name}_{i}"
                if first:
                    out.append(self._rule(f"{label}[lazy]", f"/{_ANY}{regex}/"))
                else:
                    out.append(self._rule(label.upper(), f"/{regex}/"))
        return " ".join(out)

    # calls

    def _arguments(self, i: int, tool: Signature) -> str:
        if self._format.parameters:
            return self._parameters(i, tool)
        return "BLANK? " + self._rule(f"arguments_{i}", json_expression(tool.schema, tool.options))

    def _parameters(self, i: int, tool: Signature) -> str:
        """The arguments as tags, in the order of the schema."""
        out = []
        required = tool.schema.get("required", [])
        shared = shared_definitions(tool.schema)
        for j, (name, schema) in enumerate(tool.schema.get("properties", {}).items()):
            label = f"parameter_{i}_{j}"
            opening = self._rule(f"OPEN_{i}_{j}", f"/\\n?<parameter={regex_text(name)}>\\n/")
            value = self._value(label, schema, shared, tool.options)
            rule = self._rule(label, f"{opening} {value}")
            out.append(rule if name in required else rule + "?")
        return " ".join(out)

    def _value(self, label: str, schema: Any, shared: Schema, options: dict[str, Any]) -> str:
        kind = parameter_kind(schema, shared)
        if kind == "json":
            whole = {**schema, **shared} if isinstance(schema, dict) else schema
            return f"{self._rule(label + '_value', json_expression(whole, options))} CLOSE"
        texts = text_values(schema, shared)
        if texts is not None:
            return self._rule(f"{label}_value".upper(), f"/({'|'.join(map(regex_text, texts))})/") + " CLOSE"
        return self._rule(f"{label}_value[lazy]", f"/{_ANY}\\n<\\/parameter>/")

    def _calls(self, *, free: bool, several: bool) -> str:
        """All calls of one group. `free`: other text may come before the first."""
        format = self._format
        several = several and not (free and format.openings == ("",))  # then what follows is a group of its own
        tail = self._rule("tail", " | ".join(end or '""' for end in self._sequences("tail", format.tails, "")))
        first, after = [], []
        for i, tool in enumerate(self._tools):
            call = self._rule(f"call_{i}", f"{self._arguments(i, tool)} {tail}".strip())
            heads = self._sequences(f"first_{i}", format.firsts, tool.name, free=free)
            first += [f"{head} {call}" for head in heads]
            heads = self._sequences(f"next_{i}", format.nexts if several else (), tool.name)
            after += [f"{head} {call}" for head in heads]
        self._rule("BLANK", f"/{WHITESPACE}/")
        if format.parameters:
            self._rule("CLOSE", r"/\n<\/parameter>/")
        calls = f"({self._rule('first', ' | '.join(first))})"
        if several:
            calls += f" ({self._rule('next', ' | '.join(after))})*"
        closing = self._sequence("closing", [format.closing])
        return self._rule("calls", f"{calls} {closing}".strip())

    def _rest(self) -> str:
        """Free text in which no call begins."""
        names = "(" + "|".join(regex_text(tool.name) for tool in self._tools) + ")"
        heads = [
            pattern_regex(parts[0], names, _ANY_BLANKS)
            for pattern in self._format.firsts
            if not self._is_mark((parts := split_at_marks(pattern))[0])
        ]
        if not heads:
            return self._rule("REST", f"/{_ANY}/")
        before = _ANY if self._format.anywhere else ""
        return self._rule("REST", f"/{_ANY}/ & ~/{before}({'|'.join(heads)}){_ANY}/")

    # answers

    def _body(self, demand: Demand, reasoning: Reasoning | None) -> str:
        self._rule("TEXT", "/(?s:.+)/")
        thought = self._thought(reasoning) if reasoning else ""
        if demand.calls == "none":
            return f"{thought} {self._rule('answer', demand.answer or f'/{_ANY}/')}"
        if demand.calls == "required":
            return f"{thought} {self._calls(free=False, several=demand.several)}"
        if demand.answer is not None:
            calls = self._calls(free=False, several=demand.several)
            return f"{thought} ({calls} | {self._rule('answer', demand.answer)})"
        free = self._format.anywhere
        calls = self._calls(free=free, several=demand.several)
        if not free or not demand.several:
            return f"{thought} ({calls} | {self._rest()})"
        return f"{thought} {calls}* {self._rest()}"

    def _thought(self, reasoning: Reasoning) -> str:
        """The block of reasoning, or its rest, and the blanks behind it."""
        blanks = self._rule("AFTER_THOUGHT", r"/[ \n]{1,8}/")
        if self._is_mark(reasoning.closing):
            end = f"TEXT? {self._token(reasoning.closing)}"
        else:
            end = self._rule("thought_end[lazy]", f"/{_ANY}{regex_text(reasoning.closing)}/")
        if reasoning.opened:
            return f"{end} {blanks}?"
        if self._is_mark(reasoning.opening):
            return f"({self._token(reasoning.opening)} {end} {blanks}?)?"
        if self._is_mark(reasoning.closing):
            start = self._rule("THOUGHT_START", f"/{regex_text(reasoning.opening)}/")
            return f"({start} {end} {blanks}?)?"
        closed = regex_text(reasoning.closing)
        whole = self._rule("thought[lazy]", f"/[ \\n]{{0,8}}{regex_text(reasoning.opening)}{_ANY}{closed}/")
        return f"({whole} {blanks}?)?"

    def _harmony(self, demand: Demand) -> str:
        plain = [regex_text(text) for text in HARMONY_ENDS if text not in self._ids]

        def without(ends: list[str]) -> str:
            """For a text that has none of these markers in it."""
            return f" & ~/{_ANY}({'|'.join(ends)}){_ANY}/" if ends else ""

        self._rule("TEXT", "/(?s:.+)/" + without(plain))

        def marker(text: str) -> str:
            return self._token(mark_of(text)) if text in self._ids else json.dumps(text)

        def until(text: str, label: str) -> str:
            if text in self._ids:
                return f"TEXT? {marker(text)}"
            end = regex_text(text)
            return self._rule(f"{label}[lazy]", f"/{_ANY}{end}/" + without([other for other in plain if other != end]))

        channel, message, start = marker("<|channel|>"), marker("<|message|>"), marker("<|start|>")
        between = f'{until("<|end|>", "message_end")} {start} "assistant"'
        before = self._rule("before", f'{channel} ("analysis" | "commentary") {message} {between}')
        answer = demand.answer if demand.answer is not None else self._rule("FREE", f"/{_ANY}/" + without(plain))
        final = self._rule("final", f'{channel} "final" {message} {self._rule("answer", answer)}')
        if demand.calls == "none":
            return f"{before}* {final}"
        calls = []
        self._rule("BLANK", f"/{WHITESPACE}/")
        for i, tool in enumerate(self._tools):
            arguments = self._rule(f"arguments_{i}", json_expression(tool.schema, tool.options))
            heads = self._sequences(f"head_{i}", self._format.firsts, tool.name)
            calls += [f"{head} {arguments}" for head in heads]
        call = self._rule("call", " | ".join(calls))
        return f"{before}* {call}" if demand.calls == "required" else f"{before}* ({final} | {call})"
