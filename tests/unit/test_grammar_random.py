"""Random schemas against `jsonschema`: any text that a constraint lets through fits, whoever chooses the tokens."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from schemas import check_answer, check_refusal, random_schemas

from polargrid_local.chat import grammar
from polargrid_local.errors import SchemaError

BYTES = LLTokenizer("byte")


def compile(constraint: grammar.Constraint) -> None:
    if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(constraint.text)):
        raise SchemaError(problem)


def matcher(constraint: grammar.Constraint) -> LLMatcher:
    return LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(constraint.text), log_level=0)


def held_or_refused(schema: Any, *, strict: bool = True) -> tuple[grammar.Constraint, list[str]] | None:
    try:
        return grammar.json_schema(schema, "s", compile, strict=strict)
    except SchemaError as error:
        check_refusal(error, "s", schema)
        return None


def walk(constraint: grammar.Constraint, choose: random.Random, n_bytes: int = 300) -> str | None:
    """A text that the constraint lets through, of bytes chosen at random; None where it comes to no end."""
    way, text = matcher(constraint), b""
    while len(text) < n_bytes and not way.is_stopped():
        mask = way.compute_bitmask()
        allowed = [token for token in range(256) if mask[token // 8] >> token % 8 & 1]
        if way.is_accepting() and (not allowed or choose.random() < 0.5):
            return text.decode()
        if not allowed:
            return None
        # Mostly what JSON is made of, so that there is an end to be come to.
        plain = [token for token in allowed if chr(token) in '{}[]":,\\u0123456789abcdefn']
        token = choose.choice(plain if plain and choose.random() < 0.9 else allowed)
        assert way.consume_token(token)
        text += bytes([token])
    return text.decode() if way.is_accepting() else None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_schemas(), st.randoms(use_true_random=False))
def test_whatever_passes_fits(schema: Any, choose: random.Random) -> None:
    held = held_or_refused(schema)
    for _ in range(4 if held else 0):
        text = walk(held[0], choose)
        if text is not None:
            note(text)
            check_answer(schema, text)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_schemas())
def test_what_is_dropped_exists_and_the_rest_is_held(schema: Any) -> None:
    held = held_or_refused(schema, strict=False)
    if held is None:
        assert held_or_refused(schema) is None
    elif not held[1]:
        assert held_or_refused(schema) == held
    for place in held[1] if held else ():
        check_refusal(SchemaError.at(place, "dropped"), "s", schema)
