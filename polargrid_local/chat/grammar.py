"""Constraints: what an answer is held to, made of a JSON schema, a grammar, a pattern or a list of choices.

The native engine compiles them (llguidance) and has the last word on what it can hold; here stand the limits in front
of it, and the way from its refusal to the keyword that caused it. What is accepted is met by every complete answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from polargrid_local.errors import SchemaError, ServerError

MAX_TEXT_BYTES = 256 << 10
MAX_DEPTH = 64  # of objects in objects: the compiler recurses over them
MAX_CHAIN = 512  # of references to what holds references, and so on: it recurses over these too
MAX_OPTIONAL = 450  # optional properties of one object
MAX_PATTERNS = 64  # patternProperties of one object
MAX_LITERAL_BYTES = 8 << 10
MAX_MULTIPLE = 10_000  # multipleOf, once scaled to whole numbers
MAX_CHOICES = 2048

# Between the tokens of JSON: one blank, or a line break and its indentation. Runs of blanks without end do not pass.
WHITESPACE = r"( |\n[ \t]{0,40})"
OPTIONS = {"whitespace_pattern": WHITESPACE, "json_allow_general_unicode_escapes": True}


class Constraint(NamedTuple):
    """`kind` json_schema, lark or regex, as the native engine knows them, and its text."""

    kind: str
    text: str


Compile = Callable[[Constraint], None]
"""Compiles for a model, or raises SchemaError with the compiler's own words."""


def accept_all(constraint: Constraint) -> None:
    """A Compile without a model behind it: takes everything."""


def any_object() -> Constraint:
    """Some JSON object."""
    return _of_schema({"type": "object"})


def _of_schema(schema: dict[str, Any] | Literal[False]) -> Constraint:
    """Held to `schema`, whatever options of the compiler it brings."""
    return Constraint("json_schema", json.dumps(False if schema is False else {**schema, "x-guidance": OPTIONS}))


def json_schema(schema: Any, field: str, compile: Compile, *, strict: bool = True) -> tuple[Constraint, list[str]]:
    """The constraint that only JSON passes to which `schema` says yes, and the paths of keywords that had to be
    dropped: none of them with `strict`, which raises SchemaError instead. `field` is the request's own name of the
    schema."""
    fitted, dropped = fitted_schema(checked_schema(schema, field), field, compile, strict=strict)
    return _of_schema(fitted), dropped


def checked_schema(schema: Any, field: str) -> Any:
    """A copy of JSON's types alone, within the limits. Raises SchemaError."""
    schema = json.loads(_checked_text(schema, field))
    _check_limits(schema, field)
    return {} if schema is True else schema


def fitted_schema(schema: Any, field: str, compile: Compile, *, strict: bool) -> tuple[Any, list[str]]:
    """`schema`, our own copy, without what answers cannot be held to, and the paths of that. With `strict` SchemaError
    is raised instead."""
    dropped: list[str] = []
    while True:
        try:
            compile(_of_schema(schema))
            return schema, dropped
        except SchemaError as error:
            culprits = list(_culprits(error.message, schema))
            if strict or not culprits or culprits[0][-1] in _ESSENTIAL:
                raise SchemaError.at(place(field, culprits[0] if culprits else ()), error.message) from None
            for steps in culprits:
                remove(schema, steps)
                dropped.append(place(field, steps))


def regex(pattern: str, field: str, compile: Compile) -> Constraint:
    """The whole answer matches `pattern` (Rust's regex syntax: no look-around, no back-references)."""
    return _compiled(Constraint("regex", pattern), field, compile)


def any_grammar(text: str, field: str, compile: Compile) -> Constraint:
    """A grammar in llguidance's form of Lark, or in llama.cpp's GBNF, which `::=` tells."""
    _check_size(text, field)
    if "::=" in text:
        try:
            from llguidance.gbnf_to_lark import gbnf_to_lark  # an extra, and needed by few
        except ImportError:
            problem = f"{field}: GBNF is read by the package llguidance, which is not installed: pip install llguidance"
            raise ServerError(problem, code="missing_library") from None
        try:
            text = gbnf_to_lark(text)
        except Exception as error:  # whatever its parser stumbles over
            raise SchemaError.at(field, f"is no GBNF: {str(error)[:200]}") from None
    return _compiled(Constraint("lark", text), field, compile)


def choice(choices: Sequence[str], field: str, compile: Compile) -> Constraint:
    """One of these texts, to the letter."""
    if not choices or len(choices) > MAX_CHOICES or not all(isinstance(text, str) and text for text in choices):
        raise SchemaError.at(field, f"must be 1 to {MAX_CHOICES} texts, none of them empty")
    return _compiled(Constraint("lark", "start: " + " | ".join(map(json.dumps, choices))), field, compile)


def _compiled(constraint: Constraint, field: str, compile: Compile) -> Constraint:
    _check_size(constraint.text, field)
    try:
        compile(constraint)
    except SchemaError as error:
        raise SchemaError.at(field, error.message) from None
    return constraint


def _checked_text(schema: Any, field: str) -> str:
    if not isinstance(schema, (dict, bool)):
        raise SchemaError.at(field, "a JSON schema is an object, or true or false")
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError.at(field, f"is no JSON: {str(error)[:200]}") from None
    _check_size(text, field)
    return text


def _check_size(text: str, field: str) -> None:
    n_bytes = len(text.encode())
    if n_bytes > MAX_TEXT_BYTES:
        raise SchemaError.at(field, f"has {n_bytes} bytes, more than {MAX_TEXT_BYTES}")
    if "\0" in text:
        raise SchemaError.at(field, "cannot hold a NUL character")


def _check_limits(schema: Any, field: str) -> None:
    """Refuses what is known to exhaust the compiler, before it sees it."""
    references: dict[str, str] = {}
    for steps, value in _walk(schema):
        if len(steps) > 2 * MAX_DEPTH:
            raise SchemaError.at(place(field, steps), f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, str) and len(value.encode()) > MAX_LITERAL_BYTES:
            raise SchemaError.at(place(field, steps), f"a text of more than {MAX_LITERAL_BYTES} bytes")
        if isinstance(value, dict):
            if excess := _too_wide(value):
                raise SchemaError.at(place(field, (*steps, *excess[:-1])), excess[-1])
            if isinstance(value.get("$ref"), str):
                references["#" + "".join(f"/{step}" for step in steps)] = value["$ref"]
    _check_chains(references, field)


def _too_wide(schema: dict[str, Any]) -> tuple[str, ...]:
    """What exceeds a limit in the keywords of this schema alone: the steps to it, then the problem; nothing if all is
    well."""
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict):
        needed = required if isinstance(required, list) else ()
        n_optional = len(set(properties) - {name for name in needed if isinstance(name, str)})
        if n_optional > MAX_OPTIONAL:
            return (f"has {n_optional} optional properties, more than {MAX_OPTIONAL}",)
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and len(patterns) > MAX_PATTERNS:
        return (f"has {len(patterns)} patternProperties, more than {MAX_PATTERNS}",)
    multiple = schema.get("multipleOf")
    if isinstance(multiple, (int, float)) and not isinstance(multiple, bool) and _scaled(multiple) > MAX_MULTIPLE:
        return ("multipleOf", f"{multiple} has too many digits: at most {MAX_MULTIPLE} of its last one")
    return ()


def _scaled(number: float) -> float:
    """`number` in units of its last decimal digit: 0.25 -> 25."""
    text = repr(number).lower()
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    return abs(int(whole + fraction or "0")) * 10.0 ** max(0, int(exponent or 0) - len(fraction))


def _check_chains(references: dict[str, str], field: str) -> None:
    """`references`: {place: target}, both as JSON pointers. How long is the longest chain of a target that holds a
    reference, whose target holds one, and so on: circles aside, which the compiler knows how to close."""
    inside: dict[str, set[str]] = {}  # targets of the references that lie in a place, however deep in it
    for place, target in references.items():
        steps = place.split("/")
        for n in range(len(steps)):
            inside.setdefault("/".join(steps[: n + 1]), set()).add(target)
    length: dict[str, int] = {}
    for first in dict.fromkeys(references.values()):
        if first in length:
            continue
        path: list[tuple[str, Iterator[str]]] = [(first, iter(inside.get(first, ())))]
        open_places = {first}
        while path:
            place, rest = path[-1]
            if len(path) > MAX_CHAIN:
                raise SchemaError.at(field, f"a chain of more than {MAX_CHAIN} references, by way of {place}")
            following = next((target for target in rest if target not in length and target not in open_places), None)
            if following is not None:
                open_places.add(following)
                path.append((following, iter(inside.get(following, ()))))
                continue
            length[place] = 1 + max((length.get(target, 0) for target in inside.get(place, ())), default=0)
            if length[place] > MAX_CHAIN:
                raise SchemaError.at(field, f"a chain of more than {MAX_CHAIN} references begins at {place}")
            open_places.discard(place)
            path.pop()


def _walk(schema: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value of a JSON document with the steps to it; without recursion, whatever its depth."""
    todo: list[tuple[tuple[str | int, ...], Any]] = [((), schema)]
    while todo:
        steps, value = todo.pop()
        yield steps, value
        items: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            items = list(value.items())
        elif isinstance(value, list):
            items = list(enumerate(value))
        todo.extend(((*steps, key), inner) for key, inner in reversed(items))


# How the compiler words a complaint, and the keyword that it is about; None where its words name the keywords.
_COMPLAINTS = (
    (re.compile(r"Unimplemented keys: (\[.*\])"), None),
    (re.compile(r"Unknown format: (.*)"), "format"),
    (re.compile(r"Invalid type: (.*)"), "type"),
    (re.compile(r"oneOf constraints"), "oneOf"),
    (re.compile(r"min/maxProperties"), "minProperties|maxProperties"),
    (re.compile(r"patternProperty regexes"), "patternProperties"),
    (re.compile(r"regex parse error"), "pattern"),
    (re.compile(r"Pointer '|Resource '"), "$ref"),
)
_ESSENTIAL = {"$ref", "type"}  # a schema without them would be another one: wrong ones are mistakes, not mere wishes
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}  # whose keys are no keywords
_DATA = {"enum", "const", "default", "examples"}  # whose values are no schemas


def _culprits(message: str, schema: Any) -> Iterator[tuple[str | int, ...]]:
    """The steps to the keywords that a refusal is about; none where its words do not say."""
    for complaint, keyword in _COMPLAINTS:
        found = complaint.search(message)
        if found is None:
            continue
        names = set(keyword.split("|")) if keyword else set(json.loads(found[1]))
        value = found[1].strip() if keyword and complaint.groups else None
        for steps, inner in _walk(schema):
            if not steps or steps[-1] not in names or (len(steps) > 1 and steps[-2] in _NAMED):
                continue
            if any(step in _DATA for step in steps[:-1]):
                continue
            if value is None or inner == value or (isinstance(inner, list) and value in inner):
                yield steps
        return


def remove(schema: Any, steps: tuple[str | int, ...]) -> None:
    for step in steps[:-1]:
        schema = schema[step]
    del schema[steps[-1]]


def place(field: str, steps: tuple[str | int, ...]) -> str:
    """The path of a keyword as messages name it. A property may have any name, so none of its signs are left out."""
    return field + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
