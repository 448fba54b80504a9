"""Random JSON schemas for property tests, and what must be true of a refusal."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from polargrid_local.errors import SchemaError

TYPES = ["string", "integer", "number", "boolean", "null", "array", "object"]
NAMES = ["a", "b", "é", 'c"', "<|im_end|>", "\\u0061", "\n"]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 99),
    st.text('abé"\\\n😀', max_size=4),
    st.sampled_from([0.5, -1e-3, 2**53 + 1, 10**30, [], {}, {"a": [1]}, "<|im_end|>", "2020-01-01"]),
)


def _keywords(inner: st.SearchStrategy[Any] | None) -> dict[str, st.SearchStrategy[Any]]:
    found: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "minimum": st.integers(-5, 5) | st.just(2**63),
        "maximum": st.sampled_from([3, 7.5, 10**30]),
        "exclusiveMinimum": st.sampled_from([-1, 0.25]),
        "multipleOf": st.sampled_from([2, 0.25, 7]),
        "minLength": st.integers(0, 3),
        "maxLength": st.integers(0, 4),
        "pattern": st.sampled_from(["^a+$", "b", "^(x|yz){1,2}$", "(?=a)", "[^a-c]$", "é"]),
        "format": st.sampled_from(["date", "ipv4", "uuid", "sonnet"]),
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(0, 3),
        "uniqueItems": st.booleans(),
        "required": st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
        "minProperties": st.integers(0, 3),
        "maxProperties": st.integers(0, 3),
    }
    if inner is not None:
        some = st.lists(inner, min_size=1, max_size=3)
        found |= {
            "items": inner | st.booleans(),
            "prefixItems": some,
            "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$", "^\\\\", "(?!x)"]), inner, max_size=2),
            "additionalProperties": inner | st.booleans(),
            "anyOf": some,
            "allOf": some,
            "oneOf": some,
            "not": inner,
            "$ref": st.sampled_from(["#", "#/items", "#/properties/a", "#/anyOf/0", "#/nowhere"]),
        }
    return found


@st.composite
def random_schemas(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    """Any few keywords together, of all that say something about JSON: mostly such as go together with their type."""
    inner = random_schemas(depth - 1) if depth else None
    keywords = _keywords(inner)
    kind = draw(st.sampled_from([*TYPES, None]))
    fitting = {
        "string": ["minLength", "maxLength", "pattern", "format", "enum"],
        "integer": ["minimum", "maximum", "multipleOf", "exclusiveMinimum", "enum"],
        "number": ["minimum", "maximum", "multipleOf", "exclusiveMinimum", "const"],
        "array": ["items", "prefixItems", "minItems", "maxItems", "uniqueItems"],
        "object": ["properties", "patternProperties", "additionalProperties", "required", "minProperties"],
    }
    likely = [keyword for keyword in fitting.get(kind or "", list(keywords)) if keyword in keywords]
    chosen = draw(st.lists(st.sampled_from(likely), max_size=4, unique=True)) if likely else []
    if draw(st.integers(0, 3)) == 0:
        chosen.append(draw(st.sampled_from(list(keywords))))
    schema: dict[str, Any] = {} if kind is None else {"type": kind}
    return schema | {keyword: draw(keywords[keyword]) for keyword in chosen}


def check_answer(schema: Any, text: str) -> None:
    """Raises AssertionError or ValidationError for an answer that is none to this schema."""
    Draft202012Validator(schema).validate(json.loads(text))


def check_refusal(error: SchemaError, field: str, schema: Any) -> None:
    """It names the schema, or a place in it that exists."""
    assert error.status == 400 and error.param is not None
    assert error.param in places(schema, field), error


def places(schema: Any, field: str) -> set[str]:
    found = {field}
    if isinstance(schema, dict):
        for key, value in schema.items():
            found |= places(value, f"{field}.{key}")
    elif isinstance(schema, list):
        for i, value in enumerate(schema):
            found |= places(value, f"{field}[{i}]")
    return found
