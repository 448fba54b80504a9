"""Answers as objects: a class in place of a JSON schema, and the reply that gives its object back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from polargrid_local.errors import refused

T = TypeVar("T")


class ParsedReply(dict[str, Any], Generic[T]):
    """A whole answer, as every other one, and `parsed`: its content as the class that was asked for.

    `parsed` is None for an answer that is not complete, and raises pydantic's ValidationError where the class has
    checks of its own that no JSON schema can say."""

    def __init__(self, reply: Mapping[str, Any], content: str | None, answer_type: type[T]) -> None:
        super().__init__(reply)
        self._content, self._answer_type = content, answer_type

    @property
    def parsed(self) -> T | None:
        return parsed_as(self._answer_type, self._content)


def parsed_as(answer_type: type[T], content: str | None) -> T | None:
    """`content`: a complete answer's JSON, or None."""
    return None if content is None else TypeAdapter(answer_type).validate_json(content)


def typed_format(fields: Any) -> tuple[Any, type[Any] | None]:
    """Request fields whose response_format is a class, with its schema in the class's place, and the class. Anything
    else comes back as it is."""
    if isinstance(fields, Mapping):
        for key in ("response_format", "responseFormat"):
            form = fields.get(key)
            if isinstance(form, type):
                schema = {"name": form.__name__, "schema": _schema_of(form), "strict": True}
                return {**fields, key: {"type": "json_schema", "json_schema": schema}}, form
    return fields, None


def _schema_of(answer_type: type[Any]) -> Any:
    try:
        schema = TypeAdapter(answer_type).json_schema()
    except PydanticUserError as error:
        problem = f"{answer_type.__name__} has no JSON schema: {str(error)[:200]}"
        raise refused("response_format", problem) from None
    return closed(schema)


def closed(schema: Any) -> Any:
    """The schema without room for properties that the class does not have and would drop."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    fresh = {key: closed(value) for key, value in schema.items()}
    if isinstance(fresh.get("properties"), dict) and fresh.get("type") == "object":
        fresh.setdefault("additionalProperties", False)
    return fresh
