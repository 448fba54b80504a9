"""Constraints before any engine: limits, paths, dropped keywords, and the names that clients have for them."""

import json

import pytest
from llguidance import LLMatcher

from polargrid_local.api.constraints import constraint_of
from polargrid_local.api.parse import parse_request
from polargrid_local.chat import grammar
from polargrid_local.errors import SchemaError, ValidationError


def compile(constraint):
    """The library's own verdict, as the native engine asks for it."""
    made = {
        "json_schema": LLMatcher.grammar_from_json_schema,
        "lark": LLMatcher.grammar_from_lark,
        "regex": LLMatcher.grammar_from_regex,
    }[constraint.kind](constraint.text)
    if problem := LLMatcher.validate_grammar(made):
        raise SchemaError(problem)


def nested(n):
    schema = {"type": "string"}
    for _ in range(n):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain(n):
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{n}": {"type": "string"}}}


LIST = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}}


@pytest.mark.parametrize("schema", [{}, True, {"type": "object"}, nested(30), chain(300), LIST, {"multipleOf": 0.25}])
def test_what_can_be_held_is_held_whole(schema):
    constraint, dropped = grammar.json_schema(schema, "s", compile)
    held = json.loads(constraint.text)
    assert held.pop("x-guidance") == grammar.OPTIONS and held == (schema if schema is not True else {}) and not dropped


def test_nobody_weakens_the_compiler_from_inside_a_schema():
    constraint, _ = grammar.json_schema({"x-guidance": {"lenient": True}, "type": "string"}, "s", compile)
    assert json.loads(constraint.text)["x-guidance"] == grammar.OPTIONS
    with pytest.raises(SchemaError, match="s.not"):
        grammar.json_schema({"x-guidance": {"lenient": True}, "not": {}}, "s", compile)


UNSUPPORTED = [
    ({"type": "object", "properties": {"a": {"not": {}}, "not": {"type": "string"}}}, ["s.properties.a.not"]),
    ({"type": "array", "uniqueItems": True}, ["s.uniqueItems"]),
    ({"type": "string", "format": "sonnet"}, ["s.format"]),
    ({"items": {"type": "string", "pattern": "(?=a)"}}, ["s.items.pattern"]),
    ({"anyOf": [{"if": {}}, {"then": {}, "if": {}}]}, ["s.anyOf[0].if", "s.anyOf[1].if", "s.anyOf[1].then"]),
    ({"const": {"not": 1}, "not": {}}, ["s.not"]),
    ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, ["s.oneOf"]),
]


@pytest.mark.parametrize(("schema", "paths"), UNSUPPORTED)
def test_an_unsupported_keyword_is_refused_by_its_path_or_dropped_and_said(schema, paths):
    before = json.dumps(schema)
    with pytest.raises(SchemaError) as caught:
        grammar.json_schema(schema, "s", compile)
    assert caught.value.param in paths and caught.value.status == 400
    _, dropped = grammar.json_schema(schema, "s", compile, strict=False)
    assert sorted(dropped) == paths and json.dumps(schema) == before


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (nested(100), "deeper"),
        (chain(600), "chain"),
        ({"enum": ["x" * 9000]}, "8192 bytes"),
        ({"properties": {str(i): {} for i in range(500)}}, "450"),
        ({"patternProperties": {f"^{i}$": {} for i in range(100)}}, "64"),
        ({"multipleOf": 123456}, "10000"),
        ({"enum": ["x" * 8000] * 40}, "262144"),
        ({"const": float("nan")}, "JSON"),
        (5, "object"),
        (False, "false"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://example.org/s.json"}, "example.org"),
        ({"type": "zebra"}, "zebra"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
    ],
)
def test_what_cannot_be_held_is_refused_strict_or_not(schema, problem):
    for strict in (True, False):
        with pytest.raises(SchemaError, match=problem):
            grammar.json_schema(schema, "s", compile, strict=strict)


def test_circles_of_references_have_an_end():
    """Every definition holds references to all others: only following each of them once comes to an end."""
    names = [f"d{i}" for i in range(60)]
    every = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]}
    schema = {"$ref": "#/$defs/d0", "$defs": dict.fromkeys(names, every)}
    constraint, _ = grammar.json_schema(schema, "s", lambda constraint: None)
    assert constraint.kind == "json_schema"


PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema"),
        ({"response_format": {"type": "json_object", "schema": PERSON}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "schema": PERSON}}, "json_schema"),
        ({"structured_outputs": {"json": PERSON}}, "json_schema"),
        ({"structured_outputs": {"json_object": True}}, "json_schema"),
        ({"structured_outputs": {"regex": "a+"}}, "regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "lark"),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark"),
        ({"guided_json": json.dumps(PERSON)}, "json_schema"),
        ({"json_schema": PERSON}, "json_schema"),
        ({"guided_regex": "a+"}, "regex"),
        ({"guided_choice": ["a", 'b"c']}, "lark"),
        ({"guided_grammar": 'start: "a"'}, "lark"),
        ({"grammar": 'root ::= "a" | [b-d]+'}, "lark"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ["a"]}, "lark"),
        ({"response_format": {"type": "text"}}, None),
        ({}, None),
    ],
)
def test_every_name_for_a_constraint(fields, kind):
    for name, rest in (("chat", {"messages": [{"role": "user", "content": "x"}]}), ("completion", {"prompt": "x"})):
        constraint, dropped = constraint_of(parse_request(name, {**rest, **fields}), compile)
        assert (constraint and constraint.kind) == kind and not dropped


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"regex": "a", "choice": ["b"]}, "choice"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"structured_outputs": "a"}, "structured_outputs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "p"}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_json": "{"}, "guided_json"),
        ({"choice": []}, "choice"),
        ({"choice": "a"}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"regex": ""}, "regex"),
        ({"regex": "("}, "regex"),
        ({"regex": 5}, "regex"),
        ({"regex": "a\0"}, "regex"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"grammar": "start: foo"}, "grammar"),
    ],
)
def test_a_wrong_constraint_is_named(fields, path):
    with pytest.raises(ValidationError) as caught:
        constraint_of(parse_request("completion", {"prompt": "x", **fields}), compile)
    assert caught.value.param == path
