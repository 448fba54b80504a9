"""Constraints: what an answer is held to, made of a JSON schema, a grammar, a pattern or a list of choices.

The native engine compiles them (llguidance) and has the last word on what it can hold; `schema_limits` stands in front
of it, and `schema_complaints` finds the keyword that a refusal is about. What is accepted is met by every complete
answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from polargrid_local.chat.schema_complaints import culprits_of
from polargrid_local.chat.schema_limits import MAX_JOINT, check_limits, check_size, uncounted
from polargrid_local.chat.schema_places import at, path_in, walk
from polargrid_local.errors import SchemaError, ServerError

MAX_CHOICES = 2048
MAX_DROPPED_ALONE = 8  # times that one culprit is found and dropped; then all keywords of its kind go at once

# Between the tokens of JSON: one blank, or a line break and its indentation. Runs of blanks without end do not pass.
WHITESPACE = r"( |\n[ \t]{0,40})"
OPTIONS = {"whitespace_pattern": WHITESPACE, "json_allow_general_unicode_escapes": True}
# Where an object may have more properties than those that it names: with \u escapes the name of a property, spelled
# another way, would pass for one more, whose value may be anything.
OPTIONS_OF_OPEN_OBJECTS = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": 'nrbtf\\"'}


class Constraint(NamedTuple):
    """`kind` json_schema, lark or regex, as the native engine knows them, and its text."""

    kind: str
    text: str


TOO_SLOW = "it takes longer than a second to compile"  # the native engine's words
Compile = Callable[[Constraint], None]
"""Compiles for a model, or raises SchemaError with the compiler's own words."""


def accept_all(constraint: Constraint) -> None:
    """A Compile without a model behind it: takes everything."""


def any_object() -> Constraint:
    """Some JSON object."""
    return Constraint("json_schema", guided({"type": "object"}, OPTIONS))


def guided(schema: Any, options: dict[str, Any]) -> str:
    """A schema as JSON for the compiler, with these options and whatever options of the compiler it brings left out."""
    return json.dumps({**schema, "x-guidance": options} if isinstance(schema, dict) else schema)


def options_for(schema: Any) -> dict[str, Any]:
    """The compiler's options for a schema that is held in full."""
    return OPTIONS_OF_OPEN_OBJECTS if any(_names_some(value) for _, value in walk(schema)) else OPTIONS


def _names_some(schema: Any) -> bool:
    """Whether it is an object's schema that says more of some properties than of all others, or counts them."""
    if not isinstance(schema, dict):
        return False
    named = schema.get("properties") or schema.get("patternProperties")
    return (bool(named) and schema.get("additionalProperties") is not False) or "minProperties" in schema


def json_schema(schema: Any, field: str, compile: Compile, *, strict: bool = True) -> tuple[Constraint, list[str]]:
    """The constraint that only JSON passes to which `schema` says yes, and the paths of keywords that had to be
    dropped: none of them with `strict`, which raises SchemaError instead. `field` is the request's own name of the
    schema."""
    schema, dropped = checked_schema(schema, field, strict=strict)
    schema, options, more = fitted_schema(schema, field, compile, strict=strict)
    return Constraint("json_schema", guided(schema, options)), dropped + more


def checked_schema(schema: Any, field: str, *, strict: bool) -> tuple[Any, list[str]]:
    """A copy of JSON's types alone and within the limits, without what the compiler would take and not keep, and the
    paths of that. With `strict` SchemaError is raised instead, and always for what exceeds a limit."""
    schema = json.loads(_checked_text(schema, field))
    check_limits(schema, field)
    dropped = []
    for steps in list(uncounted(schema)):
        if strict:
            problem = "can be one more than the required properties, and no more"
            raise SchemaError.at(path_in(field, steps), problem)
        dropped.append(path_in(field, steps))
        del at(schema, steps[:-1])[steps[-1]]
    return {} if schema is True else schema, dropped


def fitted_schema(schema: Any, field: str, compile: Compile, *, strict: bool) -> tuple[Any, dict[str, Any], list[str]]:
    """`schema`, our own copy, without what answers cannot be held to; the compiler's options for it; and the paths of
    what it lost. With `strict` SchemaError is raised instead."""
    dropped: list[str] = []
    options = options_for(schema)
    for n_tried in range(2 * MAX_DROPPED_ALONE):
        try:
            compile(Constraint("json_schema", guided(schema, options)))
            return schema, options, dropped
        except SchemaError as error:
            alone, all_such, mistake = culprits_of(error.message, schema)
            culprits = alone or all_such
            where, message = path_in(field, culprits[0] if culprits else ()), error.message
        if strict or mistake or not culprits:
            break
        culprits = alone if alone and n_tried < MAX_DROPPED_ALONE else all_such
        dropped.extend(path_in(field, steps) for steps in culprits)
        if culprits[0][-1] == "oneOf":
            options = {**options, "coerce_one_of": True}  # one of them at least, if not one alone
            continue
        for steps in sorted(culprits, key=len, reverse=True):  # what lies within another one goes before it
            del at(schema, steps[:-1])[steps[-1]]
    raise SchemaError.at(where, message)


def regex(pattern: str, field: str, compile: Compile) -> Constraint:
    """The whole answer matches `pattern` (Rust's regex syntax: no look-around, no back-references)."""
    return _compiled(Constraint("regex", pattern), field, compile)


# Texts, patterns and comments of Lark.
_LARK_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*')


def any_grammar(text: str, field: str, compile: Compile) -> Constraint:
    """A grammar in llguidance's form of Lark, or in llama.cpp's GBNF, which `::=` tells."""
    check_size(text, field)
    if re.sub(_LARK_LITERALS, "", text).count("&") >= MAX_JOINT:
        raise SchemaError.at(field, f"joins terminals by & more than {MAX_JOINT - 1} times")
    for schema in _inner_schemas(text):
        check_limits(schema, field)
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


def _inner_schemas(text: str) -> Iterator[Any]:
    """The JSON schemas that stand in a Lark grammar, as far as they are JSON."""
    for found in re.finditer(r"%json\s*(?={)", text):
        try:
            yield json.JSONDecoder().raw_decode(text, found.end())[0]
        except (ValueError, RecursionError):
            continue


def choice(choices: Sequence[str], field: str, compile: Compile) -> Constraint:
    """One of these texts, to the letter."""
    if not choices or len(choices) > MAX_CHOICES or not all(isinstance(text, str) and text for text in choices):
        raise SchemaError.at(field, f"must be 1 to {MAX_CHOICES} texts, none of them empty")
    return _compiled(Constraint("lark", "start: " + " | ".join(map(json.dumps, choices))), field, compile)


def _compiled(constraint: Constraint, field: str, compile: Compile) -> Constraint:
    check_size(constraint.text, field)
    try:
        compile(constraint)
    except SchemaError as error:
        raise SchemaError.at(field, error.message) from None
    return constraint


def _checked_text(schema: Any, field: str) -> str:
    if not isinstance(schema, (dict, bool)):
        raise SchemaError.at(field, "a JSON schema is an object, or true or false")
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()  # half of a surrogate pair is no text
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError.at(field, f"is no JSON: {str(error)[:200]}") from None
    check_size(text, field)
    return text
