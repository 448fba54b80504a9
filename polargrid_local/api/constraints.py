"""Which constraint a request asks for, under all the names that clients have for it, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from polargrid_local.api.requests import ChatCompletionRequest, CompletionRequest
from polargrid_local.chat import grammar
from polargrid_local.chat.grammar import Compile, Constraint
from polargrid_local.errors import SchemaError, refused

# Top-level fields of vLLM and llama-server, by what they hold.
FIELDS = {
    "guided_json": "json",
    "json_schema": "json",
    "guided_regex": "regex",
    "regex": "regex",
    "guided_choice": "choice",
    "choice": "choice",
    "guided_grammar": "grammar",
    "grammar": "grammar",
}
KINDS = ("json", "json_object", "regex", "choice", "grammar")  # of vLLM's structured_outputs


class Asked(NamedTuple):
    """What a request asks for, before it is tried."""

    kind: str  # one of KINDS
    value: Any
    field: str  # the request's own name of it
    strict: bool = True  # nothing of a schema may be left out


def constraint_asked(request: ChatCompletionRequest | CompletionRequest) -> Asked | None:
    """The one constraint of a request. Raises ValidationError for two of them, or a form that none has."""
    asked = [*_fields(request), *_structured_outputs(request), *_response_format(request)]
    if len(asked) > 1:
        raise refused(asked[1].field, f"is a second constraint beside {asked[0].field}: one answer, one constraint")
    return asked[0] if asked else None


def constraint_of(
    request: ChatCompletionRequest | CompletionRequest, compile: Compile
) -> tuple[Constraint | None, list[str]]:
    """What the answer is held to, if anything, and the paths of the schema's keywords that it could not be held to:
    none but for a `response_format` without `strict`. Raises SchemaError for what no answer can be held to."""
    asked = constraint_asked(request)
    if asked is None:
        return None, []
    kind, value, field, strict = asked
    if kind == "json_object":
        constraint = grammar.any_object()
        compile(constraint)
        return constraint, []
    if kind == "json":
        return grammar.json_schema(_schema(value, field), field, compile, strict=strict)
    if kind == "choice":
        if not isinstance(value, list):
            raise refused(field, "must be a list of texts")
        return grammar.choice(value, field, compile), []
    if not isinstance(value, str) or not value:
        raise refused(field, "must be a text that is not empty")
    return (grammar.regex if kind == "regex" else grammar.any_grammar)(value, field, compile), []


def _fields(request: Any) -> list[Asked]:
    return [
        Asked(kind, value, field)
        for field, kind in FIELDS.items()
        if (value := getattr(request, field, None)) is not None
    ]


def _structured_outputs(request: Any) -> list[Asked]:
    given = request.structured_outputs
    if given is None:
        return []
    asked = []
    for key, value in given.items():
        if key not in KINDS:
            raise refused(f"structured_outputs.{key}", f"is none of {', '.join(KINDS)}")
        if value is not None and value is not False:
            asked.append(Asked(key, value, f"structured_outputs.{key}"))
    return asked


def _response_format(request: Any) -> list[Asked]:
    form = request.response_format
    if form is None:
        return []
    kind = form.get("type")
    if kind == "text":
        return []
    if kind == "json_object":
        if form.get("schema") is None:
            return [Asked("json_object", None, "response_format")]
        return [Asked("json", form["schema"], "response_format.schema")]
    if kind != "json_schema":
        raise refused("response_format", "its type must be text, json_object or json_schema")
    inner = form.get("json_schema")
    if isinstance(inner, Mapping) and "schema" in inner:
        return [Asked("json", inner["schema"], "response_format.json_schema.schema", inner.get("strict") is True)]
    if form.get("schema") is not None:
        return [Asked("json", form["schema"], "response_format.schema")]
    raise refused("response_format.json_schema.schema", "required")


def _schema(value: Any, field: str) -> Any:
    """A schema, or its JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise SchemaError.at(field, f"is no JSON: {str(error)[:200]}") from None
