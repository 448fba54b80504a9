"""Constraints before any engine: limits, paths, dropped keywords, and the names that clients have for them."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

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


@pytest.mark.parametrize(
    "schema", [{}, True, {"type": "object"}, nested(30), chain(300), LIST, {"multipleOf": 0.25}, {"multipleOf": 8000}]
)
def test_what_can_be_held_is_held_whole(schema):
    constraint, dropped = grammar.json_schema(schema, "s", compile)
    held = json.loads(constraint.text)
    options = grammar.OPTIONS_OF_OPEN_OBJECTS if "properties" in constraint.text else grammar.OPTIONS
    assert held.pop("x-guidance") == options and held == (schema if schema is not True else {}) and not dropped


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
    ({"not": {"not": {}}, "items": {"not": {}}}, ["s.items.not", "s.not", "s.not.not"]),
    ({"properties": {"a": {"pattern": "^x$"}, "b": {"pattern": "(?!x)"}}}, ["s.properties.b.pattern"]),
    ({"patternProperties": {"^b": {}, "(?!x)": {}}}, ["s.patternProperties.(?!x)"]),
    (
        {"patternProperties": {"(?!x)": {"pattern": "(?!x)"}}},
        ["s.patternProperties.(?!x)", "s.patternProperties.(?!x).pattern"],
    ),
    ({"properties": {"const": {"not": {}}}}, ["s.properties.const.not"]),
    ({"type": "object", "required": ["a"], "minProperties": 3}, ["s.minProperties"]),
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
        ({"multipleOf": 7777}, "2000 remainders"),
        ({"enum": ["x" * 8000] * 40}, "262144"),
        ({"const": float("nan")}, "JSON"),
        (5, "object"),
        (False, "false"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://example.org/s.json"}, "example.org"),
        ({"type": "zebra"}, "zebra"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"anyOf": [{"type": "array", "minItems": i} for i in range(1901)]}, "1900 branches"),
        ({"anyOf": [{"const": [i]} for i in range(1901)]}, "1900 branches"),
        ({"enum": [{"a": i} for i in range(1901)]}, "1900 objects"),
        ({"$schema": "http://json-schema.org/draft-03/schema#", "divisibleBy": 2}, "draft"),
        ({"const": "\ud800"}, "surrogates"),
        ({"properties": {"\udfff": {}}}, "surrogates"),
    ],
)
def test_what_cannot_be_held_is_refused_strict_or_not(schema, problem):
    for strict in (True, False):
        with pytest.raises(SchemaError, match=problem):
            grammar.json_schema(schema, "s", compile, strict=strict)


def escaped(n, written, **beside):
    """A chain of references that are not written as plain pointers."""
    links = {f"~{i}": {"$anchor": f"a{i}", "$ref": written.format(i + 1), **beside} for i in range(n)}
    return {"$id": "http://x/y", "$ref": written.format(0), "$defs": {**links, f"~{n}": {"$anchor": f"a{n}"}}}


@pytest.mark.parametrize("written", ["#/$defs/~0{}", "#/%24defs/~0{}", "#/%24defs/%7E0{}", "#a{}", "http://x/y#a{}"])
def test_chains_are_followed_however_their_references_are_written(written):
    grammar.json_schema(escaped(300, written), "s", compile)
    with pytest.raises(SchemaError, match="chain") as caught:
        grammar.json_schema(escaped(600, written), "s", lambda constraint: pytest.fail("the compiler has seen it"))
    assert caught.value.param.startswith("s.$defs.~")


PATTERNS = [{"pattern": f"a{i}.*b"} for i in range(50)]


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": PATTERNS},
        {"allOf": [{"properties": {"a": {"items": pattern}}} for pattern in PATTERNS]},
        {"allOf": [{"anyOf": [pattern, {"type": "null"}]} for pattern in PATTERNS]},
        {"allOf": [{"format": "uri"}, {"allOf": PATTERNS[:8]}]},
        {"$ref": "#/$defs/~00", "$defs": {f"~{i}": {**PATTERNS[i], "$ref": f"#/$defs/~0{i + 1}"} for i in range(50)}},
        {"allOf": [{"$ref": "#/$defs/a"}] * 9, "$defs": {"a": PATTERNS[0]}},
    ],
)
def test_many_patterns_for_one_text_are_refused(schema):
    """The compiler would take gigabytes to see whether a text matches all of them."""
    with pytest.raises(SchemaError, match="8 patterns"):
        grammar.json_schema(schema, "s", lambda constraint: pytest.fail("the compiler has seen it"))
    for text in (f"start: %json {json.dumps(schema)}", "start: A\nA: " + " & ".join(f"/{i}.*/" for i in range(9))):
        with pytest.raises(SchemaError, match="more than"):
            grammar.any_grammar(text, "grammar", lambda constraint: pytest.fail("the compiler has seen it"))


def test_many_patterns_for_many_texts_are_held():
    grammar.json_schema({"properties": {f"p{i}": pattern for i, pattern in enumerate(PATTERNS)}}, "s", compile)
    grammar.json_schema({"anyOf": PATTERNS}, "s", compile)
    grammar.any_grammar('start: "&&&&&&&&&&" A // &&&&&&&&&\nA: /a&&&&&&&&&&/ & /a.*/', "grammar", compile)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "integer", "minimum": 10**30, "maximum": 10**31}, "s.minimum"),
        ({"type": "integer", "minimum": 2**53 + 1}, "s.minimum"),
        ({"type": "integer", "maximum": 2**53 + 3}, "s.maximum"),
        ({"type": "integer", "maximum": -(10**30)}, "s.maximum"),
        ({"type": "integer", "exclusiveMaximum": 2**60}, "s.exclusiveMaximum"),
        ({"properties": {"a": {"enum": [1, {"b": [2**53 + 1]}]}}}, "s.properties.a.enum[1].b[0]"),
        ({"const": 12345678901234567890123}, "s.const"),
        ({"type": "integer", "enum": [1, 10**30]}, "s.enum[1]"),
        ({"type": "integer", "const": 1e22}, "s.const"),
    ],
)
def test_a_number_that_the_compiler_rounds_is_refused(schema, path):
    with pytest.raises(SchemaError, match="exactly") as caught:
        grammar.json_schema(schema, "s", compile)
    assert caught.value.param == path


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "maximum": 2**63 - 1},
        {"type": "integer", "minimum": 0, "maximum": 10**30},
        {"type": "integer", "minimum": 2**53, "maximum": 2**53 + 4},
        {"enum": [2**53, 2**53 + 2, -(2**53), 1.5, 2**60 - 2**60 % 1000, True]},
        {"properties": {"minimum": {"const": 1}, "const": {"type": "integer", "maximum": 2**62 + 1}}},
        {"type": "null", "default": 10**30},
    ],
)
def test_a_number_that_the_compiler_keeps_is_held(schema):
    grammar.json_schema(schema, "s", compile)


def passes(schema, text):
    """Whether an answer that is held to `schema` could be `text`."""
    constraint, _ = grammar.json_schema(schema, "s", compile)
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(constraint.text))
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


NAMED = {"a": {"const": 1}}


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        ({"type": "object", "properties": NAMED}, '{"\\u0061": 2}', False),
        ({"type": "object", "properties": {"ä": {"const": 1}}}, '{"\\u00e4": 2}', False),
        ({"type": "object", "properties": {"\n": {"const": 1}}}, '{"\\u000a": 2}', False),
        ({"type": "object", "patternProperties": {"^a": {"const": 1}}}, '{"\\u0061b": 2}', False),
        ({"type": "object", "required": ["a"], "minProperties": 2}, '{"a": 1, "\\u0061": 2}', False),
        ({"type": "object", "properties": NAMED, "additionalProperties": {"type": "string"}}, '{"b": "\\n"}', True),
        ({"type": "object", "properties": NAMED}, '{"a": 1, "b": "é\\t\\"\\\\"}', True),
        ({"type": "object"}, '{"\\u0061": "\\u00e4"}', True),
        ({"type": "string"}, '"\\u00e4\\ud83d\\ude00"', True),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False},
            '{"a": "\\u00e4"}',
            True,
        ),
    ],
)
def test_no_property_hides_behind_another_spelling(schema, text, fits):
    assert passes(schema, text) == fits


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"items": {"$ref": "#/a b<"}}, "s.items.$ref"),
        ({"$id": "::::"}, "s.$id"),
        ({"$schema": "http://nowhere/schema#"}, "s.$schema"),
        ({"items": {"$ref": "other.json#/a"}}, "s.items.$ref"),
        ({"anyOf": [{"type": "null"}, {"required": "a"}]}, "s.anyOf[1].required"),
        ({"items": {"properties": []}}, "s.items.properties"),
        ({"properties": {"type": {"maxLength": "5"}}}, "s.properties.type.maxLength"),
        ({"items": {"multipleOf": 0}}, "s.items.multipleOf"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a", "type": "null"}}}, "s.$defs.a.$ref"),
    ],
)
def test_a_mistake_is_never_dropped(schema, path):
    for strict in (True, False):
        with pytest.raises(SchemaError) as caught:
            grammar.json_schema(schema, "s", compile, strict=strict)
        assert caught.value.param == path


def test_dropping_comes_to_an_end_soon():
    """However many complaints the compiler has, one after the other."""
    tried = []

    def count(constraint):
        tried.append(constraint)
        compile(constraint)

    fields = {f"p{i}": {"pattern": f"(?={i})", "format": f"f{i}"} for i in range(400)}
    _, dropped = grammar.json_schema({"properties": fields}, "s", count, strict=False)
    assert len(dropped) == 800 and len(tried) <= 17


def test_a_loose_one_of_is_still_one_of_them():
    schema = {"oneOf": [{"type": "string", "maxLength": 3}, {"enum": ["abcd", "a"]}]}
    constraint, dropped = grammar.json_schema(schema, "s", compile, strict=False)
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(constraint.text))
    assert dropped == ["s.oneOf"] and matcher.try_consume_tokens(list(b'"abcd"')) == 6
    assert passes({"type": "string", "maxLength": 3}, '"abc"') and not passes({"const": "abc"}, '"abcd"')


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


def test_the_engine_says_in_these_words_that_a_grammar_takes_too_long(root):
    assert grammar.TOO_SLOW in (root / "csrc" / "engine" / "guide.cpp").read_text()
