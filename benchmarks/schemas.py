"""Which schemas of a collection are accepted, beside what llguidance accepts by itself, and which answers then pass.

    python benchmarks/schemas.py FILE-OR-FOLDER...

Reads JSON files: schemas, or lists of cases with `schema` and `tests` as in the JSON-Schema-Test-Suite, whose folders
draft4, draft7, draft2020-12, ... name the dialect. No model is needed. Ends with 1 if anything invalid passes.
"""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from polargrid_local.chat import grammar
from polargrid_local.errors import SchemaError

BYTES = LLTokenizer("byte")


def compile(constraint: grammar.Constraint) -> None:
    if problem := problem_of(constraint.text):
        raise SchemaError(problem)


def problem_of(text: str) -> str:
    return str(LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text)))


def passes(text: str, answer: str) -> bool:
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(text), log_level=0)
    tokens = list(answer.encode())
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def cases(path: Path) -> Iterator[tuple[str, Any, list[dict[str, Any]]]]:
    """(name, schema, its tests) of one file."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return
    if isinstance(content, dict):
        yield str(path), content, []
        return
    dialect = next((part for part in reversed(path.parts) if part.startswith("draft")), "")
    for case in content:
        schema = case["schema"]
        if isinstance(schema, dict) and dialect[5:].isdecimal():
            schema = {"$schema": f"http://json-schema.org/draft-0{dialect[5:]}/schema#", **schema}
        elif isinstance(schema, dict) and dialect:
            schema = {"$schema": f"https://json-schema.org/draft/{dialect[5:]}/schema", **schema}
        yield f"{path}: {case['description']}", schema, case["tests"]


def main(places: list[str]) -> int:
    count: collections.Counter[str] = collections.Counter()
    for place in map(Path, places):
        for path in sorted(place.rglob("*.json")) if place.is_dir() else [place]:
            for name, schema, tests in cases(path):
                own = schema if isinstance(schema, bool) else {**schema, "x-guidance": grammar.OPTIONS}
                count["schemas"] += 1
                taken_by_library = not problem_of(json.dumps(own))
                count["accepted by llguidance"] += taken_by_library
                try:
                    text = grammar.json_schema(schema, "schema", compile)[0].text
                except SchemaError as error:
                    if taken_by_library:
                        print(f"refused in front of llguidance: {name}: {error.message}")
                    continue
                count["accepted"] += 1
                for test in tests:
                    passed = passes(text, json.dumps(test["data"], ensure_ascii=False))
                    count[f"{'valid' if test['valid'] else 'invalid'} {'passed' if passed else 'refused'}"] += 1
                    if passed and not test["valid"]:
                        print(f"passed though invalid: {name}: {test['description']}")
    print(", ".join(f"{what} {n}" for what, n in count.items()))
    return 1 if count["invalid passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
