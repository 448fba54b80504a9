"""Random walks through the grammars of calls: whatever a grammar lets pass, the segmenter reads as calls that fit."""

from __future__ import annotations

import enum
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import pydantic
import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from polargrid_local.chat.grammar import checked_schema, guided, options_for
from polargrid_local.chat.harmony import HarmonySegmenter, harmony_markers
from polargrid_local.chat.segments import Reasoning, Segment, Segmenter, Tools
from polargrid_local.chat.tagged_parameters import parameter_kinds
from polargrid_local.chat.tool_formats import (
    FORMATS,
    GENERIC,
    HARMONY_MARKERS,
    THINK_TAGS,
    ToolFormat,
    elements_of,
    mark_of,
    marked_text,
    written,
)
from polargrid_local.chat.tool_grammar import Demand, Signature, ToolGrammar


class Colour(enum.Enum):
    red = "red"
    blue = "bl\nue"


class Place(pydantic.BaseModel):
    name: str
    above: Place | None = None
    colour: Colour = Colour.red


class Trip(pydantic.BaseModel):
    start: Place
    stops: list[Place] = []
    note: str | None = None
    colour: Colour


def schema_of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


TOOLS: dict[str, dict[str, Any]] = {
    "get": schema_of({"city": {"type": "string"}, "n": {"type": "integer"}, "loud": {"type": "boolean"}}, "city"),
    "get_all": schema_of(
        {
            "unit": {"enum": ["c", "</parameter>", "f\n", 1, None]},
            "note": {"type": ["string", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "deep": schema_of({"a": schema_of({"b": {"type": ["number", "null"]}}, "b")}, "a"),
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        },
        "unit",
        "deep",
    ),
    "a.b-c/D_9": schema_of(
        {"größe": {"type": "string"}, "日本 語": {"type": "integer"}, 'q"uo\\te': {"const": "x"}, "a>b": {}}, "größe"
    ),
    "ping": schema_of({}),
    "trip": Trip.model_json_schema(),
}
ANSWER = schema_of({"answer": {"type": "string"}, "sure": {"type": "boolean"}}, "answer")
EVERY = (*FORMATS, GENERIC)


class Vocabulary(NamedTuple):
    """Every byte is a token, and so is each of some control tokens. `ids`: text -> id of those."""

    tokenizer: LLTokenizer
    ids: Mapping[str, int]

    def text(self, tokens: Sequence[int]) -> str:
        """With marks for control tokens."""
        names = {id: mark_of(text) for text, id in self.ids.items()}
        out, waiting = "", b""
        for token in tokens:
            if token in names:
                out, waiting = out + waiting.decode() + names[token], b""
            else:
                waiting += bytes([token])
        return out + waiting.decode()

    def tokens(self, text: str) -> list[int]:
        """Of text with marks."""
        out: list[int] = []
        for char in text:
            if marked_text(char) != char:
                out.append(self.ids[marked_text(char)])
            else:
                out += char.encode()
        return out


@cache
def vocabulary(*controls: str) -> Vocabulary:
    class Bytes:
        tokens = [*(bytes([i]) for i in range(256)), *(text.encode() for text in controls), b"<|eos|>"]
        special_token_ids = list(range(256, 257 + len(controls)))
        eos_token_id = 256 + len(controls)
        bos_token_id = None

        def __call__(self, text: bytes | str) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    return Vocabulary(LLTokenizer(TokenizerWrapper(Bytes())), {text: 256 + i for i, text in enumerate(controls)})


class Case(NamedTuple):
    """What a request and a model make. `thinks`: the template knows of reasoning, so the grammar does too."""

    format: ToolFormat
    controls: tuple[str, ...]
    names: tuple[str, ...]
    demand: Demand
    reasoning: Reasoning | None
    thinks: bool

    @property
    def tools(self) -> dict[str, Any]:
        return {name: TOOLS[name] for name in self.names}

    @property
    def marked(self) -> ToolFormat:
        return self.format.with_marks(self.controls)

    def grammar(self) -> str:
        signatures = [
            Signature(name, checked_schema(schema, "x", strict=True)[0], options_for(schema))
            for name, schema in self.tools.items()
        ]
        ids = vocabulary(*self.controls).ids
        reasoning = self.reasoning if self.thinks else None
        return ToolGrammar(signatures, self.marked, ids).constraint(self.demand, reasoning).text

    def segmenter(self) -> Any:
        if self.format.name == "harmony":
            inline = self.reasoning is None or self.reasoning.inline
            held = self.demand.answer is not None
            return HarmonySegmenter(harmony_markers(self.controls), self.names, inline=inline, held=held)
        kinds = {name: parameter_kinds(schema) for name, schema in self.tools.items()}
        format = self.marked if self.demand.answer is None else self.marked._replace(anywhere=False)
        return Segmenter(Tools(format, kinds), self.reasoning)


def cases(format: ToolFormat, n: int) -> Iterator[tuple[Case, random.Random]]:
    for i in range(n):
        rng = random.Random(f"{format.name} {i}")
        names = tuple(rng.sample(list(TOOLS), rng.choice([1, 2, len(TOOLS)])))
        tags = rng.choice(THINK_TAGS)
        markers = [*format.markers, *(HARMONY_MARKERS if format.name == "harmony" else ())]
        some = rng.sample(markers, rng.randrange(len(markers) + 1))
        controls = tuple(dict.fromkeys(rng.choice([[], markers, [*markers, *tags], some])))
        reasoning = None
        if rng.random() < 0.6 or format.name == "harmony":
            opening, closing = (mark_of(tag) if tag in controls else tag for tag in tags)
            reasoning = Reasoning(opening, closing, rng.random() < 0.5, rng.random() < 0.5)
        calls = rng.choice(["auto", "required"])
        answer = "%json " + guided(ANSWER, options_for(ANSWER)) if rng.random() < 0.25 else None
        if answer is not None and reasoning is not None and reasoning.inline:
            reasoning = reasoning._replace(inline=False)
        thinks = rng.random() < 0.7
        if not thinks and reasoning is not None:
            reasoning = reasoning._replace(opened=False, inline=False)
        yield Case(format, controls, names, Demand(calls, rng.random() < 0.7, answer), reasoning, thinks), rng


def temptations(case: Case, rng: random.Random) -> list[str]:
    """Texts that belong to the notation, whole, bent and in parts, and what JSON is made of."""
    format = case.marked
    blanks = ["", " ", "\n", "  ", "\n\n", "\t", "\r\n", " \n  "]

    def bent(pattern: str, name: str) -> str:
        return "".join(
            rng.choice(blanks) if element[0] == "~" or element[0].isspace() else written(element, name)
            for element in elements_of(pattern)
        )

    names = [*case.names, *TOOLS, "ge", "get_"]
    out = [pattern for pattern in (format.closing, format.separator) if pattern]
    out = [written(pattern, "") for pattern in out] + [bent(pattern, "") for pattern in out]
    for pattern in (*format.firsts, *format.heads, *format.nexts, *format.tails):
        for name in rng.sample(names, 2):
            out += [text for text in (written(pattern, name), bent(pattern, name)) if text]
    out = [text for text in out if text]
    out += [text[: rng.randrange(1, len(text) + 1)] for text in out]
    for pattern in rng.sample(format.firsts, min(3, len(format.firsts))):
        out += [bent(pattern, rng.choice(case.names)) + rng.choice(['{"', "{}", "", "1", "\n<parameter=n>"])] * 3
    out += ["<parameter=city>\n", "\n</parameter>", "</parameter>", "\n</function>", "<think>", "</think>"]
    if case.reasoning is not None:
        out += [case.reasoning.opening, case.reasoning.closing]
    if format.name == "harmony":
        out += [mark_of(text) if text in case.controls else text for text in HARMONY_MARKERS]
        out += ["final", "analysis", "commentary", "assistant"]
    return [
        *out,
        '"',
        '"',
        "}",
        "{",
        "]",
        "[",
        ":",
        ",",
        " ",
        "\n",
        "x",
        "1",
        "é",
        "日本",
        "😀",
        "\\u00e9",
        "\\",
        "null",
    ]


def walk(case: Case, rng: random.Random, n_more: int = 120) -> list[int] | None:
    """Tokens that the grammar takes, to its end; None where it has not ended after a while."""
    words = vocabulary(*case.controls)
    matcher = LLMatcher(words.tokenizer, LLMatcher.grammar_from_lark(case.grammar()))
    assert not matcher.is_error(), matcher.get_error()
    pool = [words.tokens(text) for text in temptations(case, rng)]
    closing = [*case.marked.tails, case.marked.closing]
    ends = [written(pattern, "") for pattern in closing if pattern] + ['"', "}", "]", "\n</parameter>"]
    if case.reasoning is not None:
        ends += [case.reasoning.closing]
    if case.format.name == "harmony":
        ends += [mark_of(text) if text in case.controls else text for text in ("<|end|>", "<|call|>")]
    last = [words.tokens(text) for text in ends]
    out: list[int] = []
    length = rng.choice([10, 40, n_more])
    while len(out) < 2000:
        if matcher.is_stopped() or (matcher.is_accepting() and (len(out) > length or rng.random() < 0.05)):
            return out
        taken: list[int] = []
        for _ in range(4):
            piece = rng.choice(pool if len(out) < length else last)
            if taken := piece[: matcher.validate_tokens(piece)]:
                break
        if not taken:
            mask = matcher.compute_bitmask()
            allowed = [i for i in range(256 + len(case.controls)) if mask[i // 8] >> i % 8 & 1]
            assert allowed, (words.text(out), matcher.get_error())
            taken = [rng.choice(allowed)]
        assert matcher.consume_tokens(taken), matcher.get_error()
        out += taken
    return None


def read(case: Case, text: str, cuts: Sequence[int]) -> list[Segment]:
    """The segments of a text that comes in pieces, neighbours of one kind joined."""
    segmenter = case.segmenter()
    segments = [
        segment for start, end in zip([0, *cuts], [*cuts, len(text)]) for segment in segmenter.push(text[start:end])
    ]
    out: list[Segment] = []
    for segment in [*segments, *segmenter.finish()]:
        if out and out[-1].kind == segment.kind != "call" and out[-1].call == segment.call:
            out[-1] = segment._replace(text=out[-1].text + segment.text)
        else:
            out.append(segment)
    return out


def check(case: Case, text: str, rng: random.Random) -> int:
    """How many calls the text has."""
    segments = read(case, text, [])
    for _ in range(2):
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(1, 9)))
        assert read(case, text, cuts) == segments
    assert read(case, text, range(1, len(text))) == segments
    calls = [segment for segment in segments if segment.kind == "call"]
    assert [call.call for call in calls] == [*range(len(calls))]
    for call in calls:
        assert call.text in case.names
        arguments = "".join(s.text for s in segments if s.kind == "arguments" and s.call == call.call)
        Draft202012Validator(TOOLS[call.text]).validate(json.loads(arguments))
    content = "".join(segment.text for segment in segments if segment.kind == "content")
    if not calls and case.reasoning is None:
        assert content == "".join(char for char in text if marked_text(char) == char)
    if case.demand.calls == "required":
        assert calls
    if not case.demand.several:
        assert len(calls) <= 1
    if case.demand.answer is not None or case.demand.calls == "required":
        if calls:
            inline = case.reasoning is not None and case.reasoning.inline
            assert not content.strip() or inline or case.format.name == "harmony", content
        else:
            Draft202012Validator(ANSWER).validate(json.loads(content))
    return len(calls)


@pytest.mark.parametrize("format", EVERY, ids=lambda format: format.name)
def test_every_walk_is_read_as_calls_that_fit(format: ToolFormat) -> None:
    ended, n_calls = 0, 0
    for case, rng in cases(format, 32):
        for _ in range(3):
            tokens = walk(case, rng)
            if tokens is not None:
                ended += 1
                n_calls += check(case, vocabulary(*case.controls).text(tokens), rng)
    assert ended > 80 and n_calls > 40
