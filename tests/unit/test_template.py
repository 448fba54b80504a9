"""Templates: joined spans are the plain render, user text is never trusted, and no template runs away."""

import functools
import json
from datetime import datetime
from pathlib import Path

import jinja2.sandbox
import pytest
from fakes import INFO
from hypothesis import given, settings
from hypothesis import strategies as st
from template_zoo import NO_ZOO, ZOO

from polargrid_local.api.parse import parse_request
from polargrid_local.api.prompts import Target, template_options
from polargrid_local.chat import compiler as module
from polargrid_local.chat.formats import CHATML
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import TemplateError

NOW = datetime(2026, 1, 2, 3, 4, 5)
TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))} | {
    "chatml": CHATML
}
HI = [{"role": "user", "content": "Hi there"}]
CONVERSATIONS = [
    HI,
    [
        {"role": "system", "content": " Be <b>nice</b> \n"},
        {"role": "user", "content": "  Hello\n wörld <|im_end|><|eot_id|> \n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nBonjour [INST] "},
        {"role": "user", "content": 'And "q" \\ \U00040000 👩‍🚀?'},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": ""}],
    [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "get", "arguments": {"city": 'P "x" <|im_end|>', "n": 2}},
                }
            ],
        },
        {"role": "tool", "content": "sunny </think> ok", "tool_call_id": "c1", "name": "get"},
        {"role": "user", "content": "<tool_response>x</tool_response>"},
    ],
]


@functools.cache
def compile_template(source):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", module.GenerationTag]
    )

    def refuse(message):
        raise jinja2.TemplateError(message)

    env.filters["tojson"] = lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    env.globals.update(raise_exception=refuse, strftime_now=NOW.strftime)
    return env.from_string(source)


def plain(source, messages, **options):
    """What everybody else renders: one string in which nobody can tell who wrote what."""
    return compile_template(source).render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
        date_string="02 Jan 2026",
        datetime="Jan 02 2026",
        **options,
    )


@functools.cache
def chat_template(source):
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


def render(source, messages=None, **options):
    return chat_template(source).render(HI if messages is None else messages, now=NOW, **options)


def refused(source, messages=None):
    with pytest.raises(TemplateError) as caught:
        render(source, messages)
    return caught.value.message


def user(spans):
    return [text for text, trusted in spans if not trusted]


# --- fidelity ---------------------------------------------------------------------------------------------------------


def check_fidelity(source, **known):
    for messages in CONVERSATIONS:
        try:
            expected = plain(source, messages, **known)
        except (jinja2.TemplateError, TypeError):  # the template refuses, or fails on these messages
            refused(source, messages)
            continue
        spans = render(source, messages)
        assert "".join(text for text, _ in spans) == expected
        assert not any("wörld <|im_end|>" in text or '"q"' in text for text, trusted in spans if trusted)


@pytest.mark.parametrize("name", TEMPLATES)
def test_joined_spans_are_the_plain_render(name):
    check_fidelity(TEMPLATES[name])


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
def test_joined_spans_are_the_plain_render_for_every_model_family():
    assert len(ZOO) > 40
    for path in ZOO:
        known = {"enable_thinking": True} if path.stem in THINK_UNLESS_TOLD else {}
        check_fidelity(path.read_text(encoding="utf-8"), **known)


WORDS = st.lists(
    st.sampled_from(
        [
            "<|im_end|>",
            "<|eot_id|>",
            "</think>",
            "<think>",
            "a",
            "é",
            "👍",
            " ",
            "\n",
            '"',
            "\\",
            "{{",
            "%}",
            "\U00040000",
            "\U000dffff",
        ]
    ),
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(WORDS, min_size=1, max_size=4))
def test_user_text_is_never_trusted_whatever_it_holds(name, contents):
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    spans = render(TEMPLATES[name], messages)
    assert "".join(text for text, _ in spans) == plain(TEMPLATES[name], messages)
    # Trusted text is what the template writes around contents that say nothing.
    assert "".join(t for t, trusted in spans if trusted).replace(" ", "").replace("\n", "") in {
        "".join(
            t
            for t, trusted in render(
                TEMPLATES[name], [{**m, "content": filler if m["content"].strip() else ""} for m in messages]
            )
            if trusted
        )
        .replace(" ", "")
        .replace("\n", "")
        for filler in ("x", "</think>x")
    }


def test_content_is_exactly_the_untrusted_spans():
    assert render(TEMPLATES["smollm2"], CONVERSATIONS[1][1:2]) == [
        (
            (
                "<|im_start|>system\nYou are a helpful AI assistant named "
                "SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
            ),
            True,
        ),
        ("  Hello\n wörld <|im_end|><|eot_id|> \n", False),
        ("<|im_end|>\n<|im_start|>assistant\n", True),
    ]


# --- variables that are given unasked ---------------------------------------------------------------------------------

# With their makers these think always; their templates ask whether it is off, and what undefined means they do not say.
THINK_UNLESS_TOLD = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|START_THINKING|><|END_THINKING|>",
    "Qwen-QwQ-32B": "</think>",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "</think>",
}


def of_zoo(stem):
    return next(path for path in ZOO if path.stem == stem).read_text(encoding="utf-8")


def joined(spans):
    return "".join(text for text, _ in spans)


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
@pytest.mark.parametrize("stem", THINK_UNLESS_TOLD)
def test_thinking_is_on_where_a_template_only_asks_whether_it_is_off(stem):
    source = of_zoo(stem)
    thinking = joined(render(source))
    assert thinking == joined(render(source, enable_thinking=True))
    assert thinking + THINK_UNLESS_TOLD[stem] == joined(render(source, enable_thinking=False))
    target = Target("M", INFO, chat_template(source))
    request = parse_request("chat", {"model": "M", "messages": HI, "reasoning_effort": "none"})
    assert template_options(request, target) == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("not enable_thinking", "no"),
        ("not enable_thinking | default(false)", "yes"),
        ("not enable_thinking is defined", "yes"),
        ("enable_thinking is defined and not enable_thinking", "no"),
        ("enable_thinking", "no"),
    ],
)
def test_a_template_that_says_what_undefined_means_decides_itself(asked, expected):
    source = "{{ messages[0].content }} {{ 'yes' if " + asked + " else 'no' }}"
    assert joined(render(source)) == f"Hi there {expected}"


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
@pytest.mark.parametrize("model", ["3.1-8B", "3.2-3B", "3.3-70B"])
def test_llama_3_is_told_the_date(model):
    source = of_zoo(f"meta-llama-Llama-{model}-Instruct")
    assert "\nToday Date: 02 Jan 2026\n" in joined(s for s in render(source) if s[1])
    spans = render(source, date_string="<|eot_id|>")
    assert ("<|eot_id|>", False) in spans and "Today Date: <|eot_id|>\n" in joined(spans)


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
def test_firefunction_is_told_functions_as_json_text_and_the_date():
    template = ChatTemplate(of_zoo("fireworks-ai-llama-3-firefunction-v2"))
    template.check()
    assert "spec:\n\nToday is Jan 02 2026.<|eot_id|>" in joined(template.render(HI, now=NOW))
    tools = [{"type": "function", "function": {"name": "f", "description": 'a <|eot_id|> "q"'}}]
    spans = template.render(HI, now=NOW, tools=tools)
    assert f"spec:\n{json.dumps(tools, indent=2)}\nToday is Jan 02 2026.<|eot_id|>" in joined(spans)
    assert 'a <|eot_id|> \\"q\\"' in user(spans)
    given = joined(template.render(HI, now=NOW, tools=tools, functions="F <|eot_id|>", datetime="noon"))
    assert "spec:\nF <|eot_id|>\nToday is noon." in given


def test_functions_are_text_only_where_a_template_cannot_do_without():
    source = "{% for f in functions or [] %}[{{ f }}]{% endfor %}{{ messages[0].content }}{{ tools | length if tools }}"
    template = ChatTemplate(source)
    template.check()
    assert joined(template.render(HI, now=NOW, tools=[{"name": "f"}])) == "Hi there1"


def test_a_variable_that_nobody_knows_may_come_with_a_request():
    template = ChatTemplate("{{ 'As ' + persona }}: {{ messages[0].content }}")
    template.check()
    with pytest.raises(TemplateError, match="'persona' is undefined; chat_template_kwargs may give it"):
        template.render(HI, now=NOW)
    assert template.render(HI, now=NOW, persona="<s>")[1] == ("<s>", False)
    with pytest.raises(TemplateError, match="has no attribute"):
        ChatTemplate("{{ messages[0].nothing.text }}").check()


# --- spans ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
def test_content_is_exactly_the_untrusted_spans_in_llama_3_1():
    source = next(path for path in ZOO if path.name == "meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    assert render(source, CONVERSATIONS[1][:2]) == [
        (
            (
                "<s><|start_header_id|>system<|end_header_id|>\n\n"
                "Cutting Knowledge Date: December 2023\nToday Date: 02 Jan 2026\n\n"
            ),
            True,
        ),
        ("Be <b>nice</b>", False),
        ("<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n", True),
        ("Hello\n wörld <|im_end|><|eot_id|>", False),
        ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", True),
    ]


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("[{{ messages[0].content ~ '!' ~ messages[0].content }}]", ["Hi there", "Hi there"]),
        ("{{ '<' + messages[0]['content'] + '>' }}", ["Hi there"]),
        ("{{ messages[0].content.split(' ')[1] }}", ["there"]),
        ("{{ messages[0].content[3:] }}", ["there"]),
        ("{{ messages[0].content | replace('there', '<x>') }}", ["Hi "]),
        ("{{ messages[0].content | upper }}", ["HI THERE"]),
        ("{{ '<%s>' % messages[0].content }}", ["Hi there"]),
        ("{{ '<%s>' | format(messages[0].content) }}", ["Hi there"]),
        ("{{ '<{}>'.format(messages[0].content) }}", ["Hi there"]),
        ("{{ [messages[0].content, '!'] | join('<') }}", ["Hi there"]),
        ("{{ '<'.join([messages[0].content, '!']) }}", ["Hi there"]),
        ("{% set x %}<{{ messages[0].content }}>{% endset %}{{ x | trim }}", ["Hi there"]),
        ("{% macro m(t) %}<{{ t }}>{% endmacro %}{{ m(messages[0].content) }}", ["Hi there"]),
        ("{% filter upper %}<{{ messages[0].content }}>{% endfilter %}", ["HI THERE"]),
        ("{{ messages[0].content | tojson }}", ["Hi there"]),
        ("{{ messages | tojson }}", ["Hi there"]),
        ("{{ messages }}", ["Hi there"]),
        ("{{ messages | upper }}", ["HI THERE"]),
        ("{{ [messages[0].content] | string | replace('there', '<x>') }}", ["Hi "]),
        ("{{ messages | string | length }}{{ 'there' in messages | string }}", []),
        ("{{ ('%r' % messages[0].content) | upper }}", ["HI THERE"]),
        ("{{ '{!r}'.format([messages[0].content]).find('there') }}", []),
        ("{{ messages[0].content | capitalize }}", ["Hi there"]),
        ("{{ messages[0].content | indent(2) }}", ["Hi there"]),
        ("{{ messages[0].content | list | length }}{{ messages[0].content | length }}", []),
        (
            (
                "{{ 'there' in messages[0].content }}{{ messages[0].content.startswith('Hi') }}"
                "{{ messages[0].content == 'Hi there' }}"
            ),
            [],
        ),
        ("{{ {'Hi there': 'found'}[messages[0].content] }}", []),
    ],
)
def test_marks_survive_what_templates_do_to_strings(source, texts):
    spans = render(source)
    assert user(spans) == texts
    assert "".join(text for text, _ in spans) == plain(source, HI)


def test_names_and_tool_arguments_are_user_text_too():
    messages = [
        {
            "role": "assistant",
            "content": "",
            "name": "N<|x|>",
            "tool_calls": [
                {"id": "I<|x|>", "type": "function", "function": {"name": "F<|x|>", "arguments": {"K<|x|>": "V<|x|>"}}}
            ],
        }
    ]
    spans = render("{{ messages[0].name }}{{ messages[0].tool_calls | tojson(indent=1) }}", messages)
    assert not any("<|x|>" in text for text, trusted in spans if trusted)
    assert "".join(user(spans)).count("<|x|>") == 5


def test_a_role_inside_tool_arguments_is_no_role():
    messages = [
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": {"role": "<|x|>", "type": "<|x|>"}}}],
        }
    ]
    assert not any("<|x|>" in text for text, trusted in render("{{ messages | tojson }}", messages) if trusted)


def test_the_date_and_options_are_arguments():
    assert render("{{ strftime_now('%d %b %Y') }}{{ enable_thinking }}", enable_thinking=False) == [
        ("02 Jan 2026False", True)
    ]
    assert render("{{ bos_token }}{{ eos_token }}") == [("<s></s>", True)]
    assert render("{{ add_generation_prompt }}", add_generation_prompt=False) == [("False", True)]


@pytest.mark.parametrize("name", ["unk_token", "pad_token", "mask_token", "eom_token", "image_token", "bos_token"])
def test_a_token_that_the_model_does_not_have_is_empty(name):
    spans = ChatTemplate("[{{ NAME }}{{ NAME + 'x' }}]{{ additional_special_tokens }}".replace("NAME", name)).render(
        HI, now=NOW
    )
    assert spans == [("[x][]", True)]


def test_special_tokens_are_known_by_name():
    tokens = {"bos_token": "<s>", "pad_token": "<pad>", "my_token": "<my>", "additional_special_tokens": ["<a>", "<b>"]}
    source = "{{ bos_token }}{{ pad_token }}{{ my_token }}{{ additional_special_tokens[1] }}{{ messages[0].content }}"
    spans = ChatTemplate(source, tokens).render([{"role": "user", "content": "<pad>"}], now=NOW)
    assert spans == [("<s><pad><my><b>", True), ("<pad>", False)]


def test_options_are_text_that_nobody_trusts():
    tools = [{"type": "function", "function": {"name": "<|x|>", "parameters": {"<|y|>": ["<|z|>"]}}}]
    spans = render("{{ tools | tojson }}{{ mood }}{% if mood == '<|w|>' %}yes{% endif %}", tools=tools, mood="<|w|>")
    assert not any("<|" in text for text, trusted in spans if trusted)
    assert "".join(text for text, _ in spans) == json.dumps(tools) + "<|w|>yes"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content in 'say Hi there twice' }}{{ 'say Hi there'.endswith(messages[0].content) }}",
        (
            "{{ 'a-b'.split('-') }}{{ 'Hi there, you'.replace(messages[0].content, 'x') }}"
            "{{ 'Hi thereHi there'.count(messages[0].content) }}"
        ),
        "{{ 'Hi thereX'.strip(messages[0].content) }}{{ 'X Hi there'.find(messages[0].content) }}",
        (
            "{{ '%s|%10s|%-10s|%.2s|%5d|%05.1f|%%|%x' % "
            "(messages[0].content, 'a', messages[0].content, 'abc', 7, 2.25, 255) }}"
        ),
        "{{ '%(a)s%(b)s' % {'a': messages[0].content, 'b': [messages[0].content]} }}{{ '%s' % messages[0].content }}",
        "{{ '{} {:>10} {:.2f} {!r} {x[0]} {y.role} {:{}}'.format(1, 'a', 2.5, 'q', 'z', 5, x=[3], y=messages[0]) }}",
        "{{ '{0} {0!r}'.format(messages[0].content) }}{{ '{:>12}'.format(messages[0].content) }}",
        "{{ messages[0].content[::-1] }}{{ messages[0].content[1:6:2] }}{{ messages[0].content | reverse }}",
        (
            "{{ messages[0].content | title }}|{{ messages[0].content | center(20) }}|"
            "{{ messages[0].content | truncate(5, true) }}"
        ),
        (
            "{{ messages[0].content | e }}{{ '<&\\'>' | escape }}"
            "{{ messages[0].content | safe }}{{ messages[0].content | int(7) }}"
        ),
        (
            "{{ [3, 1, 2] | sort }}{{ ['b', 'A'] | sort }}{{ {'b': 1, 'A': 2} | dictsort }}"
            "{{ [1, 1, 2] | unique | list }}{{ [2, 3] | max }}"
        ),
        (
            "{{ messages | map(attribute='role') | list }}"
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        ),
        "{{ ['a', 'b'] | map('upper') | join('-') }}{{ [1, 2, 3] | select('odd') | list }}{{ [0, 1] | reject | list }}",
        (
            "{{ (messages | groupby('role'))[0].grouper }}"
            "{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}"
        ),
        (
            "{{ [1, 2] | sum }}{{ [[1], [2]] | sum(start=[]) }}"
            "{{ messages | sum('content.x', 0) if false else '' }}{{ 2.567 | round(1) }}"
        ),
        (
            "{% if [] | select %}lazy is true{% endif %}{% for k, v in {'a': 1} | items %}"
            "{{ k }}{{ v }}{% endfor %}{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}"
        ),
        (
            "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}"
            "{{ c.current }}{% set j = joiner(', ') %}{{ j() }}x{{ j() }}y"
        ),
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is not number else x }}{{ loop.depth }}{% endfor %}",
        (
            "{% for x in [1, 2, 3] if x != 2 %}{{ loop.length }}{{ loop.last }}"
            "{{ loop.previtem }}{{ loop.cycle('a', 'b') }}{% endfor %}"
        ),
        (
            "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}"
            "{{ kwargs }}{% endmacro %}{{ m(1, c=3) }}{% call m(1) %}in{% endcall %}"
        ),
        (
            "{{ messages[0]['content'][0] }}{{ messages[0].get('none', 'd') }}"
            "{{ messages[-1].role }}{{ messages[0].items() | list | length }}"
        ),
        (
            "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 7 / 2 }}{{ -7 }}{{ 'a' * 3 }}"
            "{{ [1] * 2 + [3] }}{{ (1, 2) + (3,) }}{{ 1.5e3 }}{{ none }}{{ true }}"
        ),
        (
            "{{ 'aXbXc'.rsplit('X', 1) }}{{ 'a b'.split() }}{{ 'x'.join(['1', '2']) }}"
            "{{ 'a\nb'.splitlines() }}{{ 'ab'.partition('b') }}"
        ),
        (
            "{{ {'a': [1, {'b': none}]} | tojson(indent=2) }}"
            "{{ messages | tojson }}{{ [1] | tojson(separators=(',', ':')) }}"
        ),
        (
            "{{ 'a' is lower }}{{ 4 is even }}{{ 4 is divisibleby(2) }}{{ 1 is in [1] }}"
            "{{ messages is sequence }}{{ 'x' is eq 'x' }}{{ range(3) | list }}"
        ),
        (
            "{% set a, b = (1, 2) %}{{ b }}{% with x = 1 %}{{ x }}{% endwith %}"
            "{% set ns = namespace(v=[]) %}{% set ns.v = ns.v + [a] %}{{ ns.v }}"
        ),
        (
            "{% block here %}{{ messages[0].content }}{% endblock %}{% raw %}"
            "{{ raw }}{% endraw %}{{ dict(a=1) }}{{ dict([('k', 2)]) }}"
        ),
        (
            "{{ messages[0].content | attr('nothing') is defined }}{{ 'abc' | first }}"
            "{{ [1, 2] | last }}{{ messages[0].content | list | first }}"
        ),
    ],
)
def test_what_templates_do_is_what_jinja_does(source):
    spans = render(source)
    assert "".join(text for text, _ in spans) == plain(source, HI)


def test_without_a_template_it_is_chatml():
    assert "".join(text for text, _ in render(None)) == "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"


def test_an_empty_prompt_is_no_spans():
    assert render("{# nothing #}") == []


# --- defence ----------------------------------------------------------------------------------------------------------

GROW = "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10000000000 * 'a' }}",
        "{{ [1] * 10000000 }}",
        "{{ 'x' | center(10000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
        "{{ 'x' | indent(10000000) }}",
        "{{ range(1000000) | list }}",
        "{{ range(100000) | map('string') | join('x' * 900000) }}",
        "{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 2 ** 100000 }}",
        "{{ 2.5 ** 100000 }}",
        "{{ 'a'.translate({97: 'b' * 100000}) }}",
        GROW.replace("STEP", "ns.x + ns.x"),
        GROW.replace("STEP", "ns.x ~ ns.x"),
        GROW.replace("STEP", "ns.x.replace('a', ns.x)"),
        GROW.replace("STEP", "ns.x | replace('a', ns.x)"),
        GROW.replace("STEP", "ns.x.join([ns.x, ns.x, ns.x])"),
        GROW.replace("STEP", "[ns.x, ns.x]"),
        GROW.replace("STEP", "(ns.x, ns.x)"),
        GROW.replace("STEP", "{'a': ns.x, 'b': ns.x}"),
        GROW.replace("STEP", "dict(a=ns.x, b=ns.x)"),
        "{% set ns = namespace(x=10) %}{% for i in range(100) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_a_bomb_is_defused(source):
    assert "template" in refused(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
)
def test_an_endless_template_runs_out_of_work(source):
    assert "more work" in refused(source)


def test_the_budget_grows_with_honest_input():
    """This one looks back through the conversation at every message, as Gemma 4's does."""
    source = (
        "{% for m in messages %}{% set ns = namespace(found=false) %}{% for j in range(loop.index0 - 1, -1, -1) %}"
        "{% if not ns.found %}{% if messages[j]['role'] == 'tool' %}{% set ns.found = true %}{% endif %}{% endif %}"
        "{% endfor %}{{ m.content }}{% endfor %}"
    )
    spans = render(source, HI * 800)
    assert spans == [("Hi there" * 800, False)]
    assert "more work" in refused(source.replace("loop.index0 - 1, -1, -1", "90000").replace("[j]", "[0]"), HI)


@pytest.mark.skipif(not ZOO, reason=NO_ZOO)
def test_long_conversations_render_in_every_model_family():
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"This is message {i}. " * 10} for i in range(801)]
    n_done = 0
    for path in ZOO:
        source = path.read_text(encoding="utf-8")
        try:
            chat_template(source).render(messages[:1], now=NOW)
            chat_template(source).render(messages[:3], now=NOW)
        except TemplateError:
            continue
        spans = render(source, messages)
        assert "This is message 800." in "".join(user(spans))
        n_done += 1
    assert n_done > 40


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages[0].content._taints._pieces }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{{ lipsum() }}",
        "{{ messages | random }}",
        "{% if x",
        "{{ nothing.here }}",
    ],
)
def test_what_a_template_may_not_do(source):
    refused(source)


def test_a_template_may_refuse_a_conversation():
    assert "roles must alternate" in refused("{{ raise_exception('roles must alternate') }}")
    assert (
        refused("{{ raise_exception('no ' ~ messages[0].content) }}") == "chat template: no …"
    )  # no user text in errors


@pytest.mark.parametrize("form", ["%Y-%m-%d", "", "%d %b %Y %H:%M:%S %A %B %j %p %%", "today is 2026"])
def test_a_date_in_any_format(form):
    assert "".join(text for text, _ in render("{{ strftime_now(form) }}", form=form)) == NOW.strftime(form)


def test_the_source_is_bounded():
    assert str(module.MAX_SOURCE_BYTES) in refused("x" * (module.MAX_SOURCE_BYTES + 1))


def test_a_failed_render_leaves_the_template_usable():
    chat = ChatTemplate("{{ 1 // (messages | length - 1) }}")
    with pytest.raises(TemplateError):
        chat.render(HI, now=NOW)
    assert chat.render(HI * 2, now=NOW) == [("1", True)]


def test_long_content_stays_whole():
    text = "long <|im_end|> " * 200_000
    assert user(render(TEMPLATES["smollm2"], [{"role": "user", "content": text}])) == [text]
