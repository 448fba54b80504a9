"""The form of an answer: what it is held to, and how its text is told apart as content, reasoning and calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from polargrid_local.api.constraints import constraint_of
from polargrid_local.api.requests import ChatCompletionRequest, FunctionDefinition
from polargrid_local.api.tools import ToolsAsked
from polargrid_local.chat import grammar
from polargrid_local.chat.grammar import TOO_SLOW, Compile, Constraint
from polargrid_local.chat.harmony import HarmonySegmenter, harmony_markers
from polargrid_local.chat.schema_places import path_in
from polargrid_local.chat.segments import Reasoning, Segment, Segmenter, Tools
from polargrid_local.chat.tagged_parameters import parameter_kinds, unheld_keywords
from polargrid_local.chat.taint import Span
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.chat.tool_formats import HARMONY_MARKERS, ToolFormat, as_told
from polargrid_local.chat.tool_grammar import Demand, Signature, ToolGrammar
from polargrid_local.errors import SchemaError, refused


class Segments(Protocol):
    """Text in, segments out, however it is cut."""

    @property
    def thought(self) -> bool: ...  # whether there is reasoning
    @property
    def answers(self) -> bool: ...  # whether that is over, or there will be none
    def push(self, text: str) -> list[Segment]: ...
    def finish(self) -> list[Segment]: ...


class ThoughtTags(NamedTuple):
    """How the engine knows a thought, and what it writes to end one. The fields of a native `thought`."""

    opening: str
    closing: str
    answer: str  # what follows before the answer proper
    opened: bool  # by the prompt


class AnswerForm(NamedTuple):
    """`marks`: the control tokens that the engine is to tell of. `segments`: None for an answer that is content
    alone. `begun`: what the prompt has said of that content already. `thought`: None of a model that does not think."""

    constraint: Constraint | None
    dropped: list[str]  # paths of keywords that the answer is not held to
    marks: list[str]
    segments: Segments | None
    begun: str = ""
    thought: ThoughtTags | None = None


HARMONY_THOUGHT = ThoughtTags(
    "<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant<|channel|>final<|message|>", False
)


def answer_form(
    request: ChatCompletionRequest,
    asked: ToolsAsked,
    template: ChatTemplate,
    spans: Sequence[Span],
    control_tokens: Mapping[str, int],
    compile: Compile,
) -> AnswerForm:
    """The form of the answer to `spans`, the rendered prompt. Raises SchemaError, ValidationError, ServerError."""
    answer, dropped = constraint_of(request, compile)
    inline = request.inline_reasoning
    calls = asked.calls != "none"
    harmony = template.tool_format.channels
    tags = template.reasoning_tags
    opened = _opened_block(spans, tags[0]) if template.thinks else ""
    thought = HARMONY_THOUGHT if harmony else ThoughtTags(*tags, "", bool(opened)) if template.thinks else None
    begun = opened if inline and answer is None else ""
    silent_tags = template.thinks and answer is None and not control_tokens.keys().isdisjoint(tags)
    if inline and not calls and not harmony and not silent_tags:
        return AnswerForm(answer, dropped, [], None, begun, thought)

    reasoning = None
    # Where content is held to a schema, reasoning inside it would break the promise: then none may come.
    if not inline or (template.thinks and answer is None):
        opening, closing = (as_told(tag, control_tokens) for tag in tags)
        reasoning = Reasoning(opening, closing, bool(opened), inline)
    format = template.tool_format.with_marks(control_tokens)
    if answer is not None and _may_look_like_a_call(answer):
        format = _told_apart(format)
    constraint = answer
    schemas: dict[str, Any] = {}
    if calls or (answer is not None and (harmony or (reasoning is not None and template.thinks))):
        expression = None if answer is None else _expression(answer, calls)
        held = _HeldTools(asked, format, control_tokens, Demand(asked.calls, asked.several, expression))
        constraint = held.constraint(reasoning if template.thinks else None, compile)
        schemas, dropped = held.schemas, [*dropped, *held.dropped]
    markers = [*template.tool_format.markers, *tags, *(HARMONY_MARKERS if harmony else ())]
    marks = [text for text in dict.fromkeys(markers) if text in control_tokens]
    segments: Segments
    if harmony:
        held_answer = answer is not None
        segments = HarmonySegmenter(harmony_markers(control_tokens), list(schemas), inline=inline, held=held_answer)
    else:
        kinds = {name: parameter_kinds(schema) for name, schema in schemas.items()}
        if answer is not None:  # then calls are the whole answer, and a string in it begins none
            format = format._replace(anywhere=False)
        segments = Segmenter(Tools(format, kinds) if calls else None, reasoning)
    return AnswerForm(constraint, dropped, marks, segments, begun, thought)


def _opened_block(spans: Sequence[Span], tag: str) -> str:
    """The tag, with the blanks behind it, if the template itself ends the prompt with it; else nothing."""
    text, trusted = spans[-1] if spans else ("", False)
    end = len(text.rstrip())
    return text[end - len(tag) :] if trusted and text[:end].endswith(tag) else ""


def _may_look_like_a_call(answer: Constraint) -> bool:
    """Whether an answer held to this may be an object that begins as a call without any marker does."""
    if answer.kind != "json_schema":
        return False
    schema = json.loads(answer.text)
    if schema is False or "object" not in _listed(schema.get("type", "object")):
        return False
    properties = schema.get("properties")
    open_ended = schema.get("additionalProperties") is not False or not isinstance(properties, dict)
    return open_ended or bool({"parameters", "arguments"} & set(properties or ()))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _told_apart(format: ToolFormat) -> ToolFormat:
    """The format without a bare opening, after which such an answer and a call would be the same text."""
    bare = any(head.lstrip("~ ").startswith("{") for head in format.heads)
    marked = tuple(opening for opening in format.openings if opening)
    return format._replace(openings=marked) if bare and marked else format


def _expression(answer: Constraint, calls: bool) -> str:
    """The constraint of an answer as part of a larger grammar."""
    if answer.kind == "json_schema":
        return "%json " + answer.text
    if answer.kind == "regex":
        return "/" + answer.text.replace("/", r"\/") + "/"
    start, _, rest = answer.text.partition("\n")
    if start.startswith("start: ") and not rest:
        return start.removeprefix("start: ")
    beside = "tools" if calls else "the reasoning of this model"
    raise refused("grammar", f"a grammar cannot stand beside {beside}; a JSON schema, a regex or a choice can")


class _HeldTools:
    """The tools that may be called, with the schemas to which their arguments are held."""

    def __init__(
        self, asked: ToolsAsked, format: ToolFormat, control_tokens: Mapping[str, int], demand: Demand
    ) -> None:
        self._functions = asked.callable if asked.calls != "none" else []
        self._format, self._control_tokens, self._demand = format, control_tokens, demand
        self._fields = {name: f"{field}.parameters" for name, field in asked.fields.items()}
        self.dropped: list[str] = []  # paths of keywords
        self.schemas: dict[str, Any] = {}
        self._options: dict[str, dict[str, Any]] = {}
        for function in self._functions:
            schema, lost = _object_schema(function, self._fields[function.name])
            self.schemas[function.name], self._options[function.name] = schema, grammar.options_for(schema)
            self.dropped += lost

    def constraint(self, reasoning: Reasoning | None, compile: Compile) -> Constraint:
        if self._format.parameters:
            for function in self._functions:
                self._drop_unheld(function)
        try:
            return self._compiled(reasoning, compile)
        except SchemaError as error:
            if TOO_SLOW in error.message:
                raise  # and to look for what is to blame would take longer still
            for function in self._functions:
                schema, field = self.schemas[function.name], self._fields[function.name]
                schema, options, lost = grammar.fitted_schema(schema, field, compile, strict=function.strict)
                self.schemas[function.name], self._options[function.name] = schema, options
                self.dropped += lost
        return self._compiled(reasoning, compile)

    def _drop_unheld(self, function: FunctionDefinition) -> None:
        for steps in unheld_keywords(self.schemas[function.name]):
            path = path_in(self._fields[function.name], steps)
            if function.strict:
                raise SchemaError.at(path, f"cannot be held to in this model's notation of calls, {self._format.name}")
            self.dropped.append(path)

    def _compiled(self, reasoning: Reasoning | None, compile: Compile) -> Constraint:
        signatures = [Signature(name, schema, self._options[name]) for name, schema in self.schemas.items()]
        constraint = ToolGrammar(signatures, self._format, self._control_tokens).constraint(self._demand, reasoning)
        try:
            compile(constraint)
        except SchemaError as error:
            raise SchemaError.at("tools" if signatures else "response_format", error.message) from None
        return constraint


def _object_schema(function: FunctionDefinition, field: str) -> tuple[dict[str, Any], list[str]]:
    """The schema of a tool's arguments, which are an object, and the paths of what was dropped from it. A tool without
    parameters allows none."""
    if not function.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}, []
    schema: dict[str, Any]
    schema, dropped = grammar.checked_schema(function.parameters, field, strict=function.strict)
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise refused(f"{field}.type", f"must be 'object', got {json.dumps(kind)[:80]}")
    return {**schema, "type": "object"}, dropped
