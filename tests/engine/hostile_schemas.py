"""Schemas that were made to crash, to hang or to eat the memory. As a program: asks a model for an answer to each."""

from __future__ import annotations

import json
import resource
import sys
from typing import Any


def links(n: int, link: Any, end: Any, to: str = "#/$defs/d{}") -> dict[str, Any]:
    """Definitions of which each holds a reference to the next, made by link(reference)."""
    references = [{"$ref": to.format(i)} for i in range(n + 1)]
    return {**references[0], "$defs": {**{f"d{i}": link(references[i + 1]) for i in range(n)}, f"d{n}": end}}


def same(n: int, keyword: str) -> dict[str, Any]:
    """Each definition holds the next one ten times."""
    return links(n, lambda reference: {keyword: [reference] * 10}, {"type": "null"})


def nested(n: int, wrap: Any) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(n):
        schema = wrap(schema)
    return schema


def an_object(inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": inner}, "required": ["a"]}


LOOP = {"$ref": "#"}
MANY = [f"d{i}" for i in range(30)]
ALL = [{"$ref": f"#/$defs/{name}"} for name in MANY]
SCHEMAS: dict[str, Any] = {
    "itself": LOOP,
    "itself, required": an_object(LOOP),
    "itself or not": {"anyOf": [LOOP, {"type": "null"}]},
    "itself in all": {"allOf": [LOOP, {"type": "null"}]},
    "itself, by name": {"$dynamicRef": "#a", "$dynamicAnchor": "a"},
    "itself, by anchor": {"$ref": "#a", "$anchor": "a"},
    "all of each other": {**ALL[0], "$defs": {name: {"allOf": ALL} for name in MANY}},
    "any of each other": {**ALL[0], "$defs": {name: {"anyOf": ALL} for name in MANY}},
    "a list of each other": {**ALL[0], "$defs": {name: {"type": "array", "items": {"anyOf": ALL}} for name in MANY}},
    "a chain": links(511, lambda reference: reference, {"type": "null"}),
    "a long chain": links(5000, lambda reference: reference, {"type": "null"}),
    "an escaped chain": links(5000, lambda reference: reference, {"type": "null"}, "#/%24defs/d{}"),
    "a chain of objects": links(500, an_object, {"type": "null"}),
    "a long chain of objects": links(2000, an_object, {"type": "null"}, "#/%24defs/d{}"),
    "all of all": same(9, "allOf"),
    "any of any": same(9, "anyOf"),
    "one of one": same(9, "oneOf"),
    "ten times ten": links(9, lambda it: {"type": "array", "prefixItems": [it] * 10, "minItems": 10}, {"type": "null"}),
    "deep objects": nested(29, an_object),
    "deeper objects": nested(200, an_object),
    "deep lists": nested(500, lambda inner: {"type": "array", "items": inner}),
    "deep choices": nested(60, lambda inner: {"anyOf": [inner, {"type": "null"}]}),
    "a deep value": {"const": nested(500, lambda inner: [inner])},
    "many values": {"enum": [f"{i:07}" for i in range(20_000)]},
    "many objects": {"enum": [{"a": i, "b": [i]} for i in range(5000)]},
    "many branches": {"anyOf": [{"required": [f"k{i}"]} for i in range(2500)]},
    "many kinds": {"anyOf": [{"type": "string", "pattern": f"^[a-z]{{3,9}}{i}$"} for i in range(4000)]},
    "many names": {"type": "object", "required": [f"p{i}" for i in range(20_000)]},
    "many wishes": {"properties": {f"p{i}": {"type": "string"} for i in range(450)}},
    "products": {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(60)]},
    "all patterns": {"allOf": [{"type": "string", "pattern": f"a{i}.*b"} for i in range(50)]},
    "all patterns inside": {"allOf": [{"properties": {"a": {"pattern": f"a{i}.*b"}}} for i in range(50)]},
    "patterns of names": {"patternProperties": {f"^p{i}_.*$": {"type": "null"} for i in range(64)}},
    "patterns of the same names": {"patternProperties": {f"x{i}.*y": {"type": "null"} for i in range(64)}},
    "(a|a)*": {"type": "string", "pattern": "^(a|a)*b$"},
    "(x+x+)+": {"type": "string", "pattern": "(x+x+)+y"},
    "a million": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "more": {"type": "string", "pattern": "^((a{1,99}){1,99}){1,99}$"},
    "brackets": {"type": "string", "pattern": "(" * 4000 + "a" + ")" * 4000},
    "letters": {"type": "string", "pattern": "^[\\p{L}\\p{N}]{0,1000}[\\p{Lu}]{1000}$"},
    "long texts": {"type": "string", "minLength": 10**9},
    "longer texts": {"type": "string", "maxLength": 10**30},
    "long lists": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "lists of lists": {"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}},
    "many properties": {"type": "object", "minProperties": 10**9},
    "no multiple": {"type": "number", "multipleOf": 0},
    "tiny multiples": {"type": "number", "multipleOf": 1e-300},
    "multiples of multiples": {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949)]},
    "a wide range": {"type": "integer", "multipleOf": 7777, "minimum": -(10**15), "maximum": 10**15},
    "not a number": {"type": "number", "minimum": float("nan")},
    "no bound": {"type": "number", "maximum": float("inf")},
    "a huge number": {"const": 10**400},
    "a huger number": {"type": "integer", "maximum": 10**5000},
    "huge bounds": {"type": "integer", "minimum": 10**30, "maximum": 10**31},
    "a rounded number": {"enum": [2**53 + 1, 2**64 + 1]},
    "NUL": {"const": "a\0b"},
    "half a pair": {"const": "\ud800"},
    "half a pair in a name": {"properties": {"\udfff": {}}},
    "names that are none": {"properties": {True: {}, None: {}, 5: {}}},
    "other types": {"enum": [{1, 2}, b"x"]},
    "strange names": {
        "type": "object",
        "additionalProperties": False,
        "required": ["", "größe", "a\nb", 'q"\\', "\u2028"],
        "properties": {name: {"const": name} for name in ["", "größe", "a\nb", 'q"\\', "\u2028"]},
    },
    "control tokens": {
        "type": "object",
        "additionalProperties": False,
        "required": ["<|im_end|>"],
        "properties": {"<|im_end|>": {"enum": ["<|im_start|>", "<|endoftext|>"]}},
    },
    "a file": {"$ref": "file:///etc/passwd"},
    "a place": {"$ref": "https://example.org/schema.json"},
    "wrong types": {"properties": [1], "required": "a", "enum": 5, "anyOf": {}},
    "everything": {"description": "x" * 8000, "properties": {f"p{i}": {"description": "y" * 550} for i in range(450)}},
    "options": {"x-guidance": {"lenient": True, "coerce_one_of": True}, "not": {}},
}

# It follows references in circles, and each path of ten to the ninth. What fits them is null, or nothing.
TOO_MUCH_FOR_THE_ORACLE = {name for name in SCHEMAS if name.split()[0] in ("itself", "all", "any", "one", "a")}


def main(model: str) -> None:
    """One line for each schema, strict and not: its name, then what came of it as an error's code or a text."""
    from polargrid_local import Engine, PolarGridError

    with Engine(model, n_ctx=512) as engine:
        for name, schema in SCHEMAS.items():
            for strict in (True, False):
                form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
                request: Any = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "seed": 1}
                print(json.dumps([name, strict]), end=" ", flush=True)
                try:
                    reply = engine.chat_completion(**request, response_format=form)
                    outcome = [reply["choices"][0]["finish_reason"], reply["choices"][0]["message"]["content"]]
                    outcome.append("dropped_keywords" in reply["pg_metadata"])
                except PolarGridError as error:
                    outcome = [error.code]
                print(json.dumps(outcome), flush=True)
        print(json.dumps(engine.chat_completion(**request, choice=["well"])["choices"][0]["message"]["content"]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(sys.argv[1])
