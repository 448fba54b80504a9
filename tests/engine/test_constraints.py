"""Answers held to a grammar, on the real model: what is accepted is met, however the answer is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from helpers import chat, content_of, wait_until_idle
from hostile_schemas import SCHEMAS, TOO_MUCH_FOR_THE_ORACLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemas import check_answer, check_refusal, random_schemas
from typing_extensions import TypedDict

from polargrid_local import AsyncEngine, Engine, PolarGridError, SchemaError, ServerError, ValidationError
from polargrid_local.chat.schema_limits import MAX_OPTIONAL
from polargrid_local.native import loaded_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "sad", "größer", 'q"uote']},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "mood", "tags"],
    "additionalProperties": False,
}


def held(schema: Any, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}


ROOM = 1500  # tokens: more than the longest of these answers, blanks and all, on whatever processor


def ask(engine: Engine, **options: Any) -> dict[str, Any]:
    request = {**chat("Describe somebody."), "temperature": 1, "max_tokens": ROOM, **options}
    return engine.chat_completion(**request)


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_fits_its_schema_and_streams_the_same(engine: Engine, seed: int) -> None:
    options = {"response_format": held(PERSON), "seed": seed}
    reply = ask(engine, **options)
    assert reply["choices"][0]["finish_reason"] == "stop"
    Draft202012Validator(PERSON).validate(json.loads(content_of(reply)))
    request = {**chat("Describe somebody."), "temperature": 1, "max_tokens": ROOM, **options}
    chunks = [chunk["choices"][0] for chunk in engine.chat_completion_stream(**request)]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == content_of(reply)
    assert chunks[-1]["finish_reason"] == "stop"


def words(most: int) -> st.SearchStrategy[str]:
    """Of characters that SmolLM2's vocabulary, which lacks a byte or two, can spell."""
    return st.text(st.characters(max_codepoint=0x2FFFF, exclude_categories=["Cs"]), max_size=most)


def leaves() -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(
            lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, st.integers(-9, 9), st.integers(0, 99)
        ),
        st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
        st.builds(lambda a: {"type": "string", "pattern": f"^[a-{a}]{{1,3}}$"}, st.sampled_from("bcz")),
        st.builds(lambda words: {"enum": words}, st.lists(words(4), min_size=1, max_size=3, unique=True)),
        st.builds(lambda value: {"const": value}, st.one_of(st.integers(-99, 99), words(3), st.none())),
    )


def deeper(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.dictionaries(st.sampled_from(["a", "b", "é", 'c"']), inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, inner, st.integers(0, 2)),
        st.builds(
            lambda fields, n: {
                "type": "object",
                "properties": fields,
                "required": sorted(fields)[:n],
                "additionalProperties": False,
            },
            names,
            st.integers(0, 3),
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(leaves(), deeper, max_leaves=6) | random_schemas(), st.floats(0, 2), st.integers(0, 99))
def test_random_schemas_are_met_or_refused_by_name(engine: Engine, schema: Any, temperature: float, seed: int) -> None:
    options = {"response_format": held(schema), "temperature": temperature, "seed": seed, "max_tokens": 40}
    try:
        reply = ask(engine, **options)
    except SchemaError as error:
        check_refusal(error, "response_format.json_schema.schema", schema)
        return
    if reply["choices"][0]["finish_reason"] == "stop":
        check_answer(schema, content_of(reply))
    else:
        assert reply["choices"][0]["finish_reason"] == "length"
    assert "".join(streamed(engine, **options)) == content_of(reply)


def streamed(engine: Engine, **options: Any) -> list[str]:
    chunks = engine.chat_completion_stream(**{**chat("Describe somebody."), **options})
    return [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.recursive(leaves(), deeper, max_leaves=4), min_size=2, max_size=4), st.integers(0, 99))
def test_tasks_and_threads_alone_and_together_get_the_same_answers(
    engine: Engine, smollm2: Path, schemas: list[Any], seed: int
) -> None:
    requests = [
        {
            **chat("Describe somebody."),
            "response_format": held(schema),
            "temperature": 1,
            "seed": seed,
            "max_tokens": 30,
        }
        for schema in schemas
    ]

    def outcome(answer: Any) -> Any:
        return answer.code if isinstance(answer, PolarGridError) else content_of(answer)

    def alone(request: dict[str, Any]) -> Any:
        try:
            return outcome(engine.chat_completion(**request))
        except PolarGridError as error:
            return outcome(error)

    async def together() -> list[Any]:
        async with AsyncEngine(smollm2, n_ctx=512, max_streams=4) as other:
            tasks = (other.chat_completion(**request) for request in requests)
            return [outcome(answer) for answer in await asyncio.gather(*tasks, return_exceptions=True)]

    assert asyncio.run(together()) == [alone(request) for request in requests]


def test_many_held_answers_at_once_are_those_of_each_alone(engine: Engine) -> None:
    forms: list[dict[str, Any]] = [
        {"response_format": held(PERSON)},
        {"regex": "[a-f]{10,20}"},
        {"choice": ["left", "right"]},
        {"grammar": 'root ::= "yes" | "no, " [a-z]+'},
        {"response_format": {"type": "json_object"}},
        {},
    ]
    alone = [content_of(ask(engine, seed=i, max_tokens=40, **form)) for i, form in enumerate(forms)]
    together = [""] * len(forms)

    def one(i: int) -> None:
        together[i] = content_of(ask(engine, seed=i, max_tokens=40, **forms[i]))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(forms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert (
        re.fullmatch("[a-f]{10,20}", alone[1]) and alone[2] in ("left", "right") and alone[3].startswith(("yes", "no"))
    )


def test_an_object_may_have_as_many_optional_properties_as_the_limit_says(engine: Engine) -> None:
    properties = {f"name{i}": {"type": "null"} for i in range(MAX_OPTIONAL)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    reply = ask(engine, response_format=held(schema), max_tokens=30)
    assert reply["choices"][0]["message"]["content"].lstrip().startswith("{")
    assert reply["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_limit_cuts_and_says_so(engine: Engine) -> None:
    reply = ask(engine, response_format=held(PERSON), max_tokens=3)
    assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 3


def test_an_answer_ends_with_its_grammar_not_with_the_limit(engine: Engine) -> None:
    reply = engine.completion(prompt="The sky is", regex=" (blue|red)", max_tokens=50, ignore_eos=True)
    assert reply["choices"][0]["text"] in (" blue", " red") and reply["choices"][0]["finish_reason"] == "stop"


def test_a_completions_prompts_are_all_held(engine: Engine) -> None:
    reply = engine.completion(prompt=["A", "B", "C"], choice=["one", "two"], max_tokens=9)
    assert {choice["text"] for choice in reply["choices"]} <= {"one", "two"} and len(reply["choices"]) == 3


def test_log_probabilities_stay_the_models_own(engine: Engine) -> None:
    free = ask(engine, temperature=0, max_tokens=1, logprobs=True)["choices"][0]["logprobs"]["content"][0]
    reply = ask(engine, temperature=0, choice=["zebra"], logprobs=True, top_logprobs=1)
    first = reply["choices"][0]["logprobs"]["content"][0]
    assert first["top_logprobs"][0]["token"] == free["token"] != first["token"]
    assert first["logprob"] < free["logprob"]


def test_control_tokens_never_come_from_a_grammar(engine: Engine) -> None:
    """The literal of a control token is text in a grammar: it is spelled out, and ends nothing."""
    reply = ask(engine, choice=["<|im_end|>x"])
    assert content_of(reply) == "<|im_end|>x" and reply["choices"][0]["finish_reason"] == "stop"


def test_what_was_dropped_is_said(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    schema = {**PERSON, "not": {"required": ["zebra"]}}
    with pytest.raises(SchemaError) as caught:
        ask(engine, response_format=held(schema))
    assert caught.value.param == "response_format.json_schema.schema.not"
    reply = ask(engine, response_format=held(schema, strict=False))
    assert reply["pg_metadata"]["dropped_keywords"] == ["response_format.json_schema.schema.not"]
    assert "response_format.json_schema.schema.not" in caplog.text
    Draft202012Validator(PERSON).validate(json.loads(content_of(reply)))


def test_what_the_vocabulary_cannot_spell_is_refused(engine: Engine) -> None:
    """SmolLM2 has no token for the byte F1, with which U+40000 begins."""
    with pytest.raises(SchemaError, match="spell"):
        ask(engine, response_format=held({"const": "a\U00040000"}))
    assert content_of(ask(engine, response_format=held({"enum": ["\U00040000", "b"]}))) == '"b"'


HOSTILE: dict[str, Any] = {
    "itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "nothing": {"allOf": [{"type": "string"}, {"type": "number"}]},
    "a wide circle": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "huge counts": {"type": "array", "items": {"type": "string"}, "minItems": 10**6, "maxItems": 10**7},
    "long strings": {"type": "string", "minLength": 10**6},
    "a bomb": {"type": "string", "pattern": "^((a{1,99}){1,99}){1,99}$"},
    "many enums": {"enum": [f"{i:07}" for i in range(20_000)]},
    "wide": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(440)}},
    "powers": {"allOf": [{"anyOf": [{"const": i}, {"const": i + 1}, {}]} for i in range(40)]},
    "a decimal": {"type": "number", "multipleOf": 0.0001, "minimum": 0, "maximum": 1e9},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_met_or_refused_and_others_go_on(engine: Engine, name: str) -> None:
    beside = engine.chat_completion_stream(**chat("Count.", max_tokens=30, ignore_eos=True))
    try:
        reply = ask(engine, response_format=held(HOSTILE[name]), max_tokens=8)
        assert reply["choices"][0]["finish_reason"] in ("stop", "length")
    except (SchemaError, ServerError) as error:
        assert error.code in ("invalid_grammar", "constraint_failed")
    assert len(list(beside)) >= 30
    wait_until_idle(engine)


class Model(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=12)]
    mood: Literal["glad", "sad"]


class Typed(TypedDict):
    age: Annotated[int, pydantic.Field(ge=0, le=120)]


@dataclass
class Data:
    yes: bool


@pytest.mark.parametrize("asked", [Model, Typed, Data])
def test_a_class_is_asked_for_and_comes_back(engine: Engine, asked: Any) -> None:
    request: Any = {"messages": chat("Describe somebody.")["messages"], "max_tokens": ROOM, "seed": 1}
    reply = engine.chat_completion(**request, response_format=asked)
    parsed: Any = reply.parsed
    assert isinstance(parsed, dict if asked is Typed else asked)
    assert json.loads(json.dumps(reply)) == dict(reply)  # a plain answer all the same
    assert json.loads(content_of(reply)) == pydantic.TypeAdapter(asked).dump_python(parsed)
    stream = engine.chat_completion_stream(**request, response_format=asked)
    next(stream)
    assert stream.parsed is None
    list(stream)
    assert stream.parsed == parsed
    assert engine.chat_completion(**{**request, "max_tokens": 1}, response_format=asked).parsed is None


def test_a_class_without_a_schema_is_refused(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="Thread has no JSON schema") as caught:
        engine.chat_completion(messages=chat("x")["messages"], response_format=threading.Thread)
    assert caught.value.param == "response_format"


def test_many_hostile_schemas_at_once_are_refused_and_leave_the_engine_well(engine: Engine) -> None:
    """Compilations that are given up go on for a while: further ones are told to come again, and none is lost."""
    outcomes: list[str] = []

    def one(i: int) -> None:
        pattern = f"^((a{{1,9{i}}}){{1,99}}){{1,99}}$"
        try:
            ask(engine, response_format=held({"type": "string", "pattern": pattern}), max_tokens=2)
            outcomes.append("held")
        except PolarGridError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 24 and set(outcomes) <= {"held", "invalid_grammar", "constraint_failed", "queue_full"}
    assert content_of(ask(engine, choice=["still here"])) == "still here"


async def test_async_answers_are_held_too(smollm2: Path) -> None:
    async with AsyncEngine(smollm2, n_ctx=512) as engine:
        replies = await asyncio.gather(
            *(engine.chat_completion(**chat("Pick."), choice=["left", "right"], seed=i) for i in range(6))
        )
        assert {content_of(reply) for reply in replies} <= {"left", "right"}
        reply = await engine.chat_completion(messages=chat("Pick.")["messages"], response_format=Data, max_tokens=400)
        assert isinstance(reply.parsed, Data)


def test_without_the_library_the_error_says_how_to_get_it(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_model, "guidance_library", lambda: "")
    with Engine(smollm2, n_ctx=256) as engine:
        with pytest.raises(ServerError, match="pip install llguidance"):
            ask(engine, choice=["a"])
        monkeypatch.setitem(sys.modules, "llguidance.gbnf_to_lark", None)
        with pytest.raises(ServerError, match="pip install llguidance"):
            ask(engine, grammar='root ::= "a"')
        assert content_of(engine.chat_completion(**chat("hi")))  # everything else works


def test_another_library_is_refused_before_it_is_used(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy._core._multiarray_umath as other

    for path in (other.__file__, "/nowhere/_lib.so"):
        monkeypatch.setattr(loaded_model, "guidance_library", lambda path=path: path)
        with Engine(smollm2, n_ctx=256) as engine, pytest.raises(ServerError, match="cannot be used") as caught:
            ask(engine, choice=["a"])
        assert caught.value.code == "missing_library"


def test_hostile_schemas_neither_end_their_process_nor_fill_its_memory(smollm2: Path, root: Path) -> None:
    """In a process of their own, since they were made to end it. Each is met, cut by the limit or refused."""
    program = [sys.executable, root / "tests/engine/hostile_schemas.py", smollm2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(program, capture_output=True, text=True, env=env, timeout=500)
    *outcomes, last, most_kb = run.stdout.splitlines()
    assert run.returncode == 0, f"{run.stdout[-200:]}\n{run.stderr[-2000:]}"
    assert last == '"well"' and int(most_kb) < 2 << 20
    assert len(outcomes) == 2 * len(SCHEMAS)
    for line in outcomes:
        name, outcome = (json.loads(part) for part in re.split(r"(?<=e\]) ", line, maxsplit=1))
        if outcome[0] == "stop" and not outcome[2] and name[0] not in TOO_MUCH_FOR_THE_ORACLE:
            check_answer(SCHEMAS[name[0]], outcome[1])
        else:
            assert outcome[0] in ("stop", "length", "invalid_grammar", "invalid_request"), line


def test_what_was_dropped_is_said_of_a_stream_too(engine: Engine) -> None:
    schema = {**PERSON, "not": {"required": ["zebra"]}}
    request = {**chat("x", max_tokens=2), "response_format": held(schema, strict=False)}
    stream = engine.chat_completion_stream(**request)
    assert stream.dropped_keywords == ["response_format.json_schema.schema.not"]
    assert not any("pg_metadata" in chunk for chunk in stream)
    assert engine.chat_completion_stream(**chat("x", max_tokens=1)).dropped_keywords == []
