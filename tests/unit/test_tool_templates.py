"""Calls and results in the history of a chat, through the templates of real models: all of them are shown, and calls
are shown as they are read."""

from __future__ import annotations

import functools
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from fakes import INFO
from template_zoo import NO_ZOO, ZOO

from polargrid_local.api.parse import parse_request
from polargrid_local.api.prompts import Target, chat_prompt
from polargrid_local.api.tools import tools_asked
from polargrid_local.chat.harmony import HarmonySegmenter, harmony_markers
from polargrid_local.chat.segments import Segmenter, Tools
from polargrid_local.chat.tagged_parameters import parameter_kinds
from polargrid_local.chat.taint import Span
from polargrid_local.chat.template import ChatTemplate

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
# The format of every template that has one of ours; all others are answered in the generic one.
DETECTED = {
    "command-r7b": {"Cohere2MoE", "CohereForAI-c4ai-command-r7b-12-2024-tool_use"},
    "deepseek3": {"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "llama-cpp-deepseek-r1"},
    "deepseek3.1": {"deepseek-ai-DeepSeek-V3.1"},
    "devstral": {"mistralai-Ministral-3-14B-Reasoning-2512", "unsloth-mistral-Devstral-Small-2507"},
    "firefunction2": {"fireworks-ai-llama-3-firefunction-v2"},
    "functionary3.1": {"meetkai-functionary-medium-v3.1"},
    "granite3": {"ibm-granite-granite-3.3-2B-Instruct"},
    "harmony": {"openai-gpt-oss-120b"},
    "hermes": {
        "Bielik-11B-v3.0-Instruct",
        "MiMo-VL",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "Qwen-QwQ-32B",
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
        "Reka-Edge",
        "ibm-granite-granite-4.0",
        "ibm-granite-granite-4.1",
    },
    "llama3": {
        "meta-llama-Llama-3.1-8B-Instruct",
        "meta-llama-Llama-3.2-3B-Instruct",
        "meta-llama-Llama-3.3-70B-Instruct",
    },
    "mistral-nemo": {"mistralai-Mistral-Nemo-Instruct-2407"},
    "mistral-small": {"Mistral-Small-3.2-24B-Instruct-2506"},
    "nemotron2": {"NVIDIA-Nemotron-Nano-v2"},
    "qwen3-coder": {"NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Qwen3-Coder", "Qwen3.5-4B", "StepFun3.5-Flash"},
}
# They show no words beside calls, and refuse two turns of the assistant one after the other.
SILENT = {"Mistral-Small-3.2-24B-Instruct-2506", "mistralai-Mistral-Nemo-Instruct-2407"}
# It opens the calls of the first turn only.
OPENS_ONCE = "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer"}, "deep": {"type": "object"}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "kwyjweather", "description": "Looks.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "kwyjtime"}},
]
KINDS = {"kwyjweather": parameter_kinds(PARAMETERS), "kwyjtime": {}}
CITY = {"city": "kwyjbonn"}
DEEP = {"city": 'kwyj "q" \\ <|im_end|>', "n": 3, "deep": {"a": [1, {"b": None}], "c": "kwyjdeep", "d": True}}

Talk = list[dict[str, Any]]


def call(name: str, arguments: dict[str, Any], id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def turn(*calls: dict[str, Any], content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [*calls], **more}


def result(id: str, text: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


ASK = {"role": "user", "content": "kwyjask </think> <tool_call> [TOOL_CALLS] <|im_end|>"}
MORE = [{"role": "assistant", "content": "kwyjdone"}, {"role": "user", "content": "kwyjmore"}]


def talks(a: str, b: str) -> dict[str, Talk]:
    one, two = call("kwyjweather", CITY, a), call("kwyjtime", {}, b)
    sunny, noon = result(a, "kwyjsunny"), result(b, "kwyjnoon")
    thought = {"reasoning_content": "kwyjthought"}
    inline = "<think>\nkwyjthought\n</think>\n\nkwyjlook"
    return {
        "one": [ASK, turn(one), sunny],
        "two": [ASK, turn(one, two), sunny, noon],
        "two, answered in another order": [ASK, turn(one, two), noon, sunny],
        "nested": [ASK, turn(call("kwyjweather", DEEP, a)), sunny],
        "one after the other": [ASK, turn(one), sunny, turn(two), noon],
        "empty content": [ASK, turn(one, content=""), sunny],
        "a thought": [ASK, turn(one, **thought), sunny],
        "words": [ASK, turn(one, content="kwyjlook"), sunny],
        "words, two": [ASK, turn(one, two, content="kwyjlook"), sunny, noon],
        "words and a thought": [ASK, turn(one, content="kwyjlook", **thought), sunny],
        "words and a thought inline": [ASK, turn(one, content=inline), sunny],
        "parts": [ASK, turn(one), result(a, [{"type": "text", "text": "kwyjsunny"}])],
        "it goes on": [{"role": "system", "content": "kwyjrule"}, ASK, turn(one), sunny, *MORE],
        "older names": [
            ASK,
            {"role": "assistant", "content": None, "function_call": one["function"]},
            {"role": "function", "name": "kwyjweather", "content": "kwyjsunny"},
        ],
    }


IDS = [("call_0123456789abcdef01234567", "call_1123456789abcdef01234567"), ("toolu_01AbC", "toolu_02AbC")]
TALKS = [*talks(*IDS[0]).items()]
TALKS += [(name, talk) for ids in (IDS[1], ("abcdefgh1", "abcdefgh2")) for name, talk in [*talks(*ids).items()][:2]]


@functools.cache
def template_of(path: Path) -> ChatTemplate:
    return ChatTemplate(path.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"})


def render(template: ChatTemplate, messages: Talk, tools: Any = None) -> list[Span]:
    request = parse_request("chat", {"model": "M", "messages": messages, "tools": tools})
    target = Target("M", INFO, template)
    return chat_prompt(request.messages, target, now=NOW, tools=tools_asked(request).shown)


def joined(spans: list[Span]) -> str:
    return "".join(text for text, _ in spans)


def words_of(talk: Talk) -> set[str]:
    """All that has to be seen: what the messages say, thoughts aside, which many templates leave out."""
    text = json.dumps(talk)
    for sign in '"\\{}[]:,()':
        text = text.replace(sign, " ")
    return {word for word in text.replace(" n", " ").split() if word.startswith("kwyj")} - {"kwyjthought", "kwyj"}


def calls_in(template: ChatTemplate, text: str) -> list[tuple[str, Any]]:
    format, segmenter = template.tool_format, None
    if format.name == "harmony":
        segmenter = HarmonySegmenter(harmony_markers(()), list(KINDS), inline=False)
    else:
        segmenter = Segmenter(Tools(format._replace(anywhere=True), KINDS))
    segments = [*segmenter.push(text), *segmenter.finish()]
    names = [segment.text for segment in segments if segment.kind == "call"]
    arguments = [
        "".join(segment.text for segment in segments if segment.kind == "arguments" and segment.call == i)
        for i in range(len(names))
    ]
    return [(name, json.loads(text)) for name, text in zip(names, arguments)]


def zoo(test: Any) -> Any:
    missing = pytest.mark.skipif(not ZOO, reason=NO_ZOO)
    return missing(pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)(test))


@zoo
def test_the_format_of_every_template(path: Path) -> None:
    expected = next((name for name, stems in DETECTED.items() if path.stem in stems), "generic")
    assert template_of(path).tool_format.name == expected


@zoo
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
def test_calls_and_results_are_shown(path: Path, tools: Any) -> None:
    template = template_of(path)
    for name, talk in TALKS:
        spans = render(template, talk, tools)
        text, start = joined(spans), joined(spans).index("kwyjask")
        words = words_of(talk)
        if path.stem in SILENT:
            words -= {"kwyjlook"}
        shown = {word for word in words if word in (text if word == "kwyjrule" else text[start:])}
        assert shown == words, name
        trusted = "\0".join(text for text, trusted in spans if trusted)
        assert "kwyj" not in trusted and "<|im_end|> " not in trusted, name
        if template.tool_format.name == "generic" and (tools is None or template.shows_tools):
            continue  # then calls are in the template's own notation
        if path.stem == OPENS_ONCE and name == "one after the other":
            continue
        expected = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for message in talk
            for call in message.get("tool_calls") or [{"function": message.get("function_call")}]
            if call["function"]
        ]
        assert sorted(calls_in(template, text[start:]), key=str) == sorted(expected, key=str), name


ODD = [
    None,
    {},
    {"type": "object"},
    {"type": "object", "properties": {"kwyjp": {}}},
    {"type": "object", "properties": {"kwyjp": True}},
    {"type": "object", "properties": {"kwyjp": {"enum": ["a", 1, None]}}},
    {"type": "object", "properties": {"kwyjp": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
    {"type": "object", "properties": {"kwyjp": {"type": ["string", "null"], "description": "d"}}},
    {"type": "object", "properties": {"kwyjp": {"type": "array"}, "kwyjq": {"type": "object"}}},
    {"$defs": {"P": {"type": "object"}}, "type": "object", "properties": {"kwyjp": {"$ref": "#/$defs/P"}}},
]


@zoo
def test_tools_of_every_kind_are_shown(path: Path) -> None:
    for parameters in ODD:
        function = {"name": "kwyjtool", **({} if parameters is None else {"parameters": parameters})}
        spans = render(template_of(path), [ASK], [{"type": "function", "function": function}])
        assert "kwyjtool" in joined(spans) and all(word in joined(spans) for word in words_of([function]))
        assert not any("kwyj" in text for text, trusted in spans if trusted)


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
def test_the_table_names_templates_that_there_are() -> None:
    stems = {path.stem for path in ZOO}
    assert len(ZOO) > 60 and {OPENS_ONCE, *SILENT}.union(*DETECTED.values()) <= stems


# --- templates of our own ---------------------------------------------------------------------------------------------

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"


def test_null_where_a_call_comes_last_only_is_no_null() -> None:
    """Some read the content of every turn but the last."""
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if not loop.last %}{{ m.content.split('x')[-1] }}{% endif %}"
        "{{ m.content or '' if loop.last }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.capabilities.null == "never"
    assert "kwyjweather" in joined(render(template, TALKS[0][1]))


def test_words_beside_a_call_get_a_turn_of_their_own_where_they_would_be_lost() -> None:
    source = PLAIN.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
    assert ChatTemplate(PLAIN).capabilities.beside == "same turn"
    assert ChatTemplate(source).capabilities.beside == "own turn"
    text = joined(render(ChatTemplate(source), dict(TALKS)["words"]))
    assert text.startswith(f"[user]{ASK['content']}[assistant]kwyjlook[assistant][{{")
    assert text.endswith("[tool]kwyjsunny")


def test_tools_that_a_template_cannot_show_are_described_to_it() -> None:
    hermes = "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    tools = "{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.parameters.properties | length }}"
    described = tools + "{% for k, p in t.function.parameters.properties.items() %}{{ p.type.upper() }}{% endfor %}"
    source = described + "{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}" + hermes + "{% endfor %}"
    template = ChatTemplate(source)
    assert template.shows_tools
    function = {"name": "kwyjtool", "parameters": {"properties": {"x": {"type": "string"}}}}
    assert "kwyjtool: 1STRING[user]" in joined(render(template, [ASK], [{"type": "function", "function": function}]))
    assert "kwyjtool: 0[user]" in joined(
        render(template, [ASK], [{"type": "function", "function": {"name": "kwyjtool"}}])
    )
    function["parameters"] = {"properties": {"x": {"enum": [1]}}}
    text = joined(render(template, [ASK], [{"type": "function", "function": function}]))
    assert text.startswith("[system]You can call") and '"enum": [1]' in text
