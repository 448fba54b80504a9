"""An answer's text is told apart as content, reasoning and calls, however it is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from polargrid_local.chat.harmony import HarmonySegmenter, harmony_markers
from polargrid_local.chat.segments import Reasoning, Segmenter, Tools
from polargrid_local.chat.stop_text import StopText
from polargrid_local.chat.tool_formats import BY_NAME, FORMATS, GENERIC, HARMONY_MARKERS, mark_of
from polargrid_local.options import EngineOptions

TOOLS: dict[str, Any] = {"f": {"s": "text", "n": "json", "z": "text or null", "a>b": "text"}, "get_time": {}, "get": {}}
THINK = Reasoning("<think>", "</think>")
INLINE = THINK._replace(inline=True)


def segmenter(format: str, reasoning: Reasoning | None = None, marks: Any = ()) -> Callable[[], Segmenter]:
    return lambda: Segmenter(Tools(BY_NAME[format].with_marks(marks), TOOLS), reasoning)


def told(make: Callable[[], Any], text: str, cuts: list[int]) -> tuple[str, str, list[list[str]]]:
    """Content, reasoning, and calls as [name, arguments], of a text that comes in pieces."""
    reader = make()
    segments = []
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        segments += reader.push(text[start:end])
    segments += reader.finish()
    assert all(segment.text for segment in segments)
    calls: list[list[str]] = []
    for segment in segments:
        if segment.kind == "call":
            assert segment.call == len(calls)
            calls.append([segment.text, ""])
        elif segment.kind == "arguments":
            assert segment.call == len(calls) - 1
            calls[-1][1] += segment.text
    content = "".join(segment.text for segment in segments if segment.kind == "content")
    return content, "".join(segment.text for segment in segments if segment.kind == "reasoning"), calls


def at_every_cut(make: Callable[[], Any], text: str) -> tuple[str, str, list[list[str]]]:
    whole = told(make, text, [])
    for cut in range(len(text) + 1):
        assert told(make, text, [cut]) == whole, cut
    assert told(make, text, list(range(len(text)))) == whole
    rng = random.Random(7)
    for _ in range(20):
        cuts = sorted(rng.sample(range(len(text)), min(len(text), rng.randrange(1, 8))))
        assert told(make, text, cuts) == whole, cuts
    return whole


JSON = '{"s": "quote \\" brace } </tool_call> [ \\\\", "n": [1, {"a": null}], "u": "\\u00e9\\ud83d\\ude00 😀"}'
WRITTEN = {
    "hermes": [
        f'<tool_call>\n{{"name": "f", "arguments": {JSON}}}\n</tool_call>',
        '<tool_call>{"name":"get_time","arguments":{}}</tool_call>',
    ],
    "llama3": [
        f'{{"name": "f", "parameters": {JSON}}}',
        '; {"type": "function", "name": "get_time", "parameters": {}}',
    ],
    "mistral-nemo": [
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {JSON}, "id": "abcdefghi"}}',
        ', {"name": "get_time", "arguments": {}}]',
    ],
    "mistral-small": [f"[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{JSON}", "[TOOL_CALLS]get_time[CALL_ID]223456789[ARGS]{}"],
    "devstral": [f"[TOOL_CALLS]f[ARGS]{JSON}", "[TOOL_CALLS]get_time[ARGS]{}"],
    "granite3": [f'<|tool_call|>[{{"name": "f", "arguments": {JSON}}}', ', {"name": "get_time", "arguments": {}}]'],
    "phi4-mini": [
        f'<|tool_call|>[{{"name": "f", "arguments": {JSON}}}',
        ', {"name": "get_time", "arguments": {}}]<|/tool_call|>',
    ],
    "nemotron2": [
        f'<TOOLCALL>[{{"name": "f", "arguments": {JSON}}}',
        ', {"name": "get_time", "arguments": {}}]</TOOLCALL>',
    ],
    "firefunction2": [f'functools[{{"name": "f", "arguments": {JSON}}}', ', {"name": "get_time", "arguments": {}}]'],
    "deepseek3": [
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{JSON}\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ],
    "deepseek3.1": [
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ],
    "command-r7b": [
        f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "f", "parameters": {JSON}}}',
        ',\n    {"tool_call_id": "1", "tool_name": "get_time", "parameters": {}}\n]<|END_ACTION|>',
    ],
    "functionary3.1": [f"<function=f>{JSON}</function>", "<function=get_time>{}</function>"],
}


@pytest.mark.parametrize("reasoning", [None, THINK, INLINE], ids=["", "reasoning", "inline"])
@pytest.mark.parametrize("format", WRITTEN)
def test_two_calls_at_every_cut(format, reasoning):
    make = segmenter(format, reasoning)
    thought = "<think>\nI may write <tool_call>{ or [TOOL_CALLS]f[ARGS]{}\n</think>\n\n" if reasoning else ""
    content, thoughts, calls = at_every_cut(make, thought + "".join(WRITTEN[format]))
    assert calls == [["f", JSON], ["get_time", "{}"]]
    if reasoning is INLINE:
        assert content.rstrip() == thought.rstrip() and thoughts == ""
    else:
        assert content == "" and thoughts == thought[8:-11]


@pytest.mark.parametrize("format", [name for name in WRITTEN if BY_NAME[name].anywhere])
def test_content_around_calls_stays_what_it_is(format):
    text = "".join(WRITTEN[format])
    before = "Let me look.\n\n"
    assert at_every_cut(segmenter(format), before + text) == (before, "", [["f", JSON], ["get_time", "{}"]])
    content, _, calls = at_every_cut(segmenter(format), before + text + "\n\nDone < that.")
    assert content == before + "\n\nDone < that." and len(calls) == 2
    assert at_every_cut(segmenter(format), text + "\n \n")[0] == ""  # blanks at the end belong to the calls


@pytest.mark.parametrize("format", WRITTEN)
def test_a_name_that_is_no_tool_is_content(format):
    text = "".join(WRITTEN[format]).replace('"f"', '"ff"').replace("get_time", "get_times")
    for name in (">f[", "]f[", "=f>", "｜>f"):
        text = text.replace(name, name.replace("f", "ff"))
    text = text.replace("｜tool▁sep｜>f\n", "｜tool▁sep｜>ff\n")
    content, _, calls = at_every_cut(segmenter(format), text)
    assert content == text and calls == []


@pytest.mark.parametrize("format", WRITTEN)
def test_a_call_that_is_cut_keeps_what_there_is(format):
    """Names come whole or not at all, arguments as far as they came, and nothing is said twice or lost."""
    text = "".join(WRITTEN[format])
    for end in range(len(text)):
        content, _, calls = told(segmenter(format), text[:end], [])
        assert all(name in TOOLS for name, _ in calls)
        assert all(JSON.startswith(arguments) for _, arguments in calls[:1])
        if not calls:
            assert content == text[:end]


def opens_with_marker(format: str) -> bool:
    plain = BY_NAME[format]
    return all(marked != first for marked, first in zip(plain.with_marks(plain.markers).firsts, plain.firsts))


@pytest.mark.parametrize("format", [name for name in WRITTEN if opens_with_marker(name)])
def test_a_control_token_that_is_typed_as_text_is_text(format):
    markers = BY_NAME[format].markers
    make = segmenter(format, None, markers)
    text = "".join(WRITTEN[format])
    assert at_every_cut(make, text) == (text, "", [])
    marked = text
    for marker in sorted(markers, key=len, reverse=True):
        marked = marked.replace(marker, mark_of(marker))
    assert [name for name, _ in at_every_cut(make, marked)[2]] == ["f", "get_time"]


def test_python_tag_opens_a_call_only_as_a_control_token():
    call = '{"name": "f", "parameters": {"a": 1}}'
    make = segmenter("llama3", None, ["<|python_tag|>"])
    assert at_every_cut(make, mark_of("<|python_tag|>") + call) == ("", "", [["f", '{"a": 1}']])
    assert at_every_cut(make, "<|python_tag|>" + call) == ("<|python_tag|>" + call, "", [])
    other = "print(1)"
    assert at_every_cut(make, mark_of("<|python_tag|>") + other) == (other, "", [])


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "  {",
        '{"name": "g", "parameters": {}}',
        '{"name": "f", "parameters": null}',
        '{"name": "f"}',
        '{"name": "fg", "parameters": {}}',
        '{"name": "get_timer", "parameters": {}}',
        'Sure: {"name": "f", "parameters": {}}',
        '[{"name": "f", "parameters": {}}]',
        '{"answer": 42}',
    ],
)
def test_json_that_is_no_call_is_content(text):
    assert at_every_cut(segmenter("llama3"), text) == (text, "", [])


def test_blanks_before_the_calls_are_not_told():
    for form in (None, THINK, INLINE):
        thought = "<think>hm</think>" if form else ""
        for call in ('{"name": "f", "parameters": {}}', '<|python_tag|>{"name": "f", "parameters": {}}'):
            content, _, calls = at_every_cut(segmenter("llama3", form), f"{thought}\n\n{call}")
            assert calls == [["f", "{}"]] and content == (thought if form is INLINE else "")


@pytest.mark.parametrize(
    "text",
    [
        "a < b and <tool",
        "<tool_calls>",
        "<tool_call>f</tool_call>",
        '<tool_call>{"name": "f", "arguments": []}</tool_call>',
        '<tool_call>{"name": "f", "arguments": null}</tool_call>',
        '<tool_call> {"arguments": {}, "name": "f"} </tool_call>',
        "x<tool_call><tool_call>",
    ],
)
def test_what_only_looks_like_a_call_is_content(text):
    assert at_every_cut(segmenter("hermes"), text) == (text, "", [])


def test_a_trigger_inside_a_longer_word_may_begin_a_call():
    text = '<<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert at_every_cut(segmenter("hermes"), text) == ("<", "", [["f", "{}"]])


def test_names_that_begin_alike():
    calls = ['{"name": "get", "arguments": {}}', '{"name": "get_time", "arguments": {}}']
    text = "".join(f"<tool_call>{call}</tool_call>" for call in calls)
    assert at_every_cut(segmenter("hermes"), text)[2] == [["get", "{}"], ["get_time", "{}"]]


@pytest.mark.parametrize(
    ("value", "parameter", "json_text"),
    [
        ("02134", "s", '"02134"'),
        ('two\nlines "quoted" \\ back', "s", '"two\\nlines \\"quoted\\" \\\\ back"'),
        ("", "s", '""'),
        ("\n", "s", '"\\n"'),
        ("</parameter", "s", '"</parameter"'),
        ("<parameter=s>", "s", '"<parameter=s>"'),
        ("true", "s", '"true"'),
        ("null", "s", '"null"'),
        ("null", "z", "null"),
        ("nullify", "z", '"nullify"'),
        ("[1, 2]", "n", "[1, 2]"),
        ("0.50", "n", "0.50"),
        ("no json", "n", '"no json"'),
        ("a</parameter>b", "s", '"a</parameter>b"'),
        ('["\\"</parameter>"]', "n", '["\\"</parameter>"]'),
        ("x", "a>b", '"x"'),
    ],
)
def test_values_in_tags_have_the_types_of_the_schema(value, parameter, json_text):
    text = f"<tool_call>\n<function=f>\n<parameter={parameter}>\n{value}\n</parameter>\n</function>\n</tool_call>"
    content, _, [[name, arguments]] = at_every_cut(segmenter("qwen3-coder"), text)
    assert (content, name, arguments) == ("", "f", f'{{"{parameter}": {json_text}}}')
    assert json.loads(arguments)


@pytest.mark.parametrize(
    ("cut", "arguments"),
    [
        ("<parameter=s>\nab", '{"s": "ab'),
        ("<parameter=n>\n[1, {", '{"n": [1, {'),
        ("<parameter=n>\n12\n</param", '{"n": 12'),
        ("<parameter=z>\nnul", '{"z": "nul'),
        ("<parameter=z>\n", '{"z": '),
        ("<param", "{"),
    ],
)
def test_a_value_that_is_cut_is_told_as_far_as_it_came(cut, arguments):
    _, _, calls = at_every_cut(segmenter("qwen3-coder"), f"<tool_call>\n<function=f>\n{cut}")
    assert calls == [["f", arguments]]


def test_calls_in_tags_follow_one_another():
    text = (
        "Looking.\n<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n<parameter=n>\n1\n</parameter>\n</function>"
        "\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>"
    )
    assert at_every_cut(segmenter("qwen3-coder"), text) == (
        "Looking.\n",
        "",
        [["f", '{"s": "x", "n": 1}'], ["get_time", "{}"]],
    )


# --- reasoning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasoning", "text", "content", "thought"),
    [
        (THINK, "<think>\nhm\n</think>\n\nYes.", "Yes.", "hm"),
        (THINK, "\n<think>hm</think>Yes.", "Yes.", "hm"),
        (THINK, "<think>hm < a </thin", "", "hm < a </thin"),
        (THINK, "<think>", "", ""),
        (THINK, "<thin", "<thin", ""),
        (THINK, "Yes. <think>no</think>", "Yes. <think>no</think>", ""),
        (THINK, "<think></think>Yes.", "Yes.", ""),
        (THINK._replace(opened=True), "hm\n</think>\n\nYes.", "Yes.", "hm"),
        (THINK._replace(opened=True), "\n\nhm", "", "hm"),
        (INLINE, "<think>\nhm\n</think>\n\nYes.", "<think>\nhm\n</think>\n\nYes.", ""),
        (INLINE._replace(opened=True), "hm\n</think>\n\nYes.", "hm\n</think>\n\nYes.", ""),
        (Reasoning("[THINK]", "[/THINK]"), "[THINK]hm[/THINK]Yes.", "Yes.", "hm"),
    ],
)
def test_reasoning_is_told_apart(reasoning, text, content, thought):
    for tools in (None, Tools(GENERIC, TOOLS)):
        assert at_every_cut(lambda tools=tools: Segmenter(tools, reasoning), text) == (content, thought, [])


def test_tags_that_are_control_tokens():
    marks = Reasoning(mark_of("<think>"), mark_of("</think>"))
    text = f"{mark_of('<think>')}a </think> b{mark_of('</think>')}Yes."
    assert at_every_cut(lambda: Segmenter(None, marks), text) == ("Yes.", "a </think> b", [])
    inline = marks._replace(inline=True)
    said = "<think>a </think> b</think>Yes."
    assert at_every_cut(lambda: Segmenter(None, inline), text) == (said, "", [])


# --- harmony ----------------------------------------------------------------------------------------------------------

ANALYSIS = "<|channel|>analysis<|message|>thinking<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>Yes."
PREAMBLE = "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{"a": 1}'


@pytest.mark.parametrize("marks", [(), HARMONY_MARKERS], ids=["text", "marks"])
@pytest.mark.parametrize(
    ("text", "content", "thought", "calls"),
    [
        (FINAL, "Yes.", "", []),
        (CALL.replace("NAME", "f").replace("1", '"x}"') + "<|call|>", "", "", [["f", '{"a": "x}"}']]),
        (ANALYSIS + FINAL, "Yes.", "thinking", []),
        (ANALYSIS + ANALYSIS + FINAL + "<|return|>", "Yes.", "thinking\n\nthinking", []),
        (ANALYSIS + CALL.replace("NAME", "f"), "", "thinking", [["f", '{"a": 1}']]),
        (' to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>', "", "", [["f", '{"a": 1}']]),
        (CALL.replace("NAME", "g"), '{"a": 1}', "", []),
        (PREAMBLE + FINAL, "Let me look.\n\nYes.", "", []),
        ("plain", "plain", "", []),
        ("<|channel|>analysis", "", "", []),
    ],
)
def test_channels_are_reasoning_content_and_calls(marks, text, content, thought, calls):
    markers = harmony_markers(marks)
    for written, marker in markers.items():
        text = text.replace(written, marker)
    assert at_every_cut(lambda: HarmonySegmenter(markers, TOOLS, inline=False), text) == (content, thought, calls)
    inline = at_every_cut(lambda: HarmonySegmenter(markers, TOOLS, inline=True), text)
    said = f"<think>\n{thought}\n</think>" if thought else ""
    if said and (content or calls):
        said += "\n\n"
    assert inline == (said + content, "", calls)


def test_where_markers_are_plain_text_a_string_may_hold_them():
    markers = harmony_markers(())
    call = CALL.replace("NAME", "f").replace("1", '"<|call|>"')
    text = ANALYSIS + call + "<|call|>"
    told = ("", "thinking", [["f", '{"a": "<|call|>"}']])
    assert at_every_cut(lambda: HarmonySegmenter(markers, TOOLS, inline=False), text) == told
    final = FINAL.replace("Yes.", '"<|end|>"')
    assert at_every_cut(lambda: HarmonySegmenter(markers, inline=False, held=True), final) == ('"<|end|>"', "", [])


# --- stop strings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stops", "text", "before"),
    [
        (["END"], "one END two", "one "),
        (["END"], "one EN", "one EN"),
        (["b", "abc"], "xabd", "xa"),
        (["b", "abc"], "xabc", "x"),
        (["b", "abcd"], "xab", "xa"),
        (["aab"], "aaab", "a"),
        ([], "one END", "one END"),
        (["é"], "caf\u00e9s", "caf"),
    ],
)
def test_stop_strings_end_the_text_before_them(stops, text, before):
    for cut in range(len(text) + 1):
        for cuts in ([cut], list(range(len(text)))):
            stop, out = StopText(stops), ""
            for start, end in zip([0, *cuts], [*cuts, len(text)]):
                out += stop.push(text[start:end])
            out += "" if stop.stopped else stop.finish()
            assert out == before and stop.stopped == (before != text)


# --- the list of formats ----------------------------------------------------------------------------------------------


def test_the_option_names_every_format():
    words = EngineOptions.model_fields["tool_format"].annotation
    assert words.__args__ == ("auto", *BY_NAME)
    assert len(BY_NAME) == len(FORMATS) + 1  # no two of one name


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50])
def test_a_stop_string_may_be_shown_is_told_and_may_not_count_yet(size):
    def said(stop, text, n_on_hold=0):
        out = ""
        for at in range(0, len(text), size):
            out += stop.push(text[at : at + size], on_hold=at + size <= n_on_hold)
        return out + stop.finish(), stop.found

    assert said(StopText(["two"]), "one two three") == ("one ", "two")
    assert said(StopText(["x", "two"], include=True), "one two three") == ("one two", "two")
    assert said(StopText(["four"], include=True), "one two three") == ("one two three", None)
    if 10 % size == 0:
        assert said(StopText(["one"]), "one two xxone two", n_on_hold=10) == ("one two xx", "one")
