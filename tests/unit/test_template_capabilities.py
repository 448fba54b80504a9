"""Whatever a template can take, nothing that was said is lost: messages are passed as it shows them, or refused."""

import contextlib
import gc
import logging
import weakref
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polargrid_local.api.messages import messages_of
from polargrid_local.api.parse import parse_request
from polargrid_local.api.prompts import Target
from polargrid_local.chat.capabilities import Capabilities
from polargrid_local.chat.formats import FORMATS, format_name
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import TemplateError, ValidationError
from polargrid_local.models.store import ResolvedModel
from polargrid_local.registry import Models

NOW = datetime(2026, 1, 2, 3, 4, 5)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# In the style of SmolVLM and Idefics 3: parts, and each part by its type.
PARTS = """<|im_start|>{% for message in messages %}{{ message.role | capitalize }}\
{% if message.content[0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
# In the style of LLaVA-NeXT: images first, then a second loop over the text parts.
LLAVA = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}\
<|im_end|>{% endfor %}"""
# In the style of Llama 3.2 Vision: a system text beside parts for everybody else.
MIXED = """{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}\
{% set messages = messages[1:] %}{% endif %}\
{% for m in messages %}[{{ m.role }}]\
{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"""
BOTH = """{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}\
{% for p in m.content %}{{ p.text }}{{ ' ' if not loop.last }}{% endfor %}{% endif %}{% endfor %}"""
TEXT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
GEMMA = """{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate') }}{% endif %}\
<{{ m.role }}>{{ m.content | trim }}{% endfor %}"""
DROPS = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
FIRST = """{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
{{ raise_exception('first!') }}{% endif %}\
[{{ m.role }}]{{ m.content }}{% endfor %}"""
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + TEXT
NULL = """{% for m in messages %}[{{ m.role }}]{% if m.content is not none %}{{ m.content }}{% else %}(none){% endif %}\
{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}"""
EMPTY_TOOLS = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + TEXT


def prompt(source, *messages):
    template = ChatTemplate(source, TOKENS)
    given = [{"role": role, "content": content, **(more[0] if more else {})} for role, content, *more in messages]
    request = parse_request("chat", None, {"messages": given})
    return "".join(text for text, _ in template.render(messages_of(request.messages, template.capabilities), now=NOW))


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


CALL = {"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    "source", [PARTS, LLAVA, MIXED, BOTH, TEXT, GEMMA, DROPS, FIRST, NEEDS_SYSTEM, NULL, EMPTY_TOOLS, *FORMATS]
)
@pytest.mark.parametrize("content", ["What is blue?", parts("What is blue?"), parts("What", "is blue?")])
def test_what_the_user_says_is_in_the_prompt(source, content):
    said = prompt(source, ("system", "Be kind."), ("user", content), ("assistant", "The sky."), ("user", "Why?"))
    for words in "Be kind.", "What", "is blue?", "The sky.", "Why?":
        assert said.count(words) == 1
    assert "type" not in said
    assert "None" not in said


def test_typed_parts_where_only_those_show():
    assert ChatTemplate(PARTS).capabilities.parts == {"system", "user", "assistant", "tool"}
    assert prompt(PARTS, ("user", "Hi")) == "<|im_start|>User: Hi<end_of_utterance>\nAssistant:"
    assert prompt(PARTS, ("user", "Hi")) != prompt(PARTS, ("user", "Ho"))
    assert prompt(PARTS, ("user", parts("a", "b"))) == "<|im_start|>User: ab<end_of_utterance>\nAssistant:"
    assert prompt(LLAVA, ("user", "Hi")) == "<|im_start|>user\nHi<|im_end|>"
    assert ChatTemplate(MIXED).capabilities.parts == {"user", "assistant", "tool"}
    assert prompt(MIXED, ("system", "Be."), ("user", "Hi")) == "Be.[user]Hi"


def test_a_template_that_prints_a_list_is_no_template_for_lists():
    assert ChatTemplate(TEXT).capabilities.parts == frozenset()
    with pytest.raises(TemplateError, match="shows no message"):
        prompt(
            "{% for m in messages %}{% if m.content is not string %}{{ m.content }}{% endif %}{% endfor %}",
            ("user", "Hi"),
        )


def test_parts_are_joined_as_the_template_joins_them():
    assert prompt(BOTH, ("user", parts("a", "b"))) == "[user]a b"
    assert prompt(TEXT, ("user", parts("a", "b", "c"))) == "[user]a\nb\nc"
    assert prompt(TEXT, ("system", parts("a", "b")), ("user", "c")) == "[system]a\nb[user]c"


def test_a_system_text_that_would_be_lost_goes_into_the_users_turn():
    assert prompt(GEMMA, ("system", "Be."), ("user", "Hi")) == "<user>Be.\nHi"
    assert prompt(GEMMA, ("developer", "Be."), ("user", parts("Hi"))) == "<user>Be.\nHi"
    assert prompt(DROPS, ("system", "Be."), ("system", "So."), ("user", "Hi")) == "[user]Be.\nSo.\nHi"
    assert (
        prompt(DROPS, ("user", "a"), ("assistant", "b"), ("system", "Be."), ("user", "c"))
        == "[user]a[assistant]b[user]Be.\nc"
    )
    assert prompt(DROPS, ("system", "Be.")) == "[user]Be."
    assert prompt(DROPS, ("user", "a"), ("assistant", "b"), ("system", "Be.")) == "[user]a[assistant]b[user]Be."
    assert prompt(TEXT, ("user", "a"), ("system", "Be."), ("user", "c")) == "[user]a[system]Be.[user]c"
    assert prompt(FIRST, ("system", "A"), ("user", "a"), ("system", "B"), ("user", "c")) == "[system]A[user]a[user]B\nc"


def test_templates_with_demands_are_not_misjudged():
    assert ChatTemplate(GEMMA).capabilities == Capabilities(system="folded")
    assert ChatTemplate(NEEDS_SYSTEM).capabilities.system == "shown"
    assert prompt(EMPTY_TOOLS, ("user", "Hi")) == "[user]Hi"
    picky = ChatTemplate("{% if messages | length != 7 %}{{ raise_exception('seven!') }}{% endif %}" + TEXT)
    assert picky.capabilities == Capabilities()  # nothing is known, so nothing is said
    with pytest.raises(TemplateError, match="seven!"):
        picky.check()


def test_null_stays_null_where_the_template_asks():
    assert ChatTemplate(NULL).capabilities.null == "always"
    assert prompt(NULL, ("user", "Hi"), ("assistant", None, CALL)) == "[user]Hi[assistant](none)look"
    assert prompt(NULL, ("user", "Hi"), ("assistant", "", CALL)) == "[user]Hi[assistant]look"
    assert "None" not in prompt(TEXT, ("user", "Hi"), ("assistant", None, CALL))
    assert prompt(TEXT, ("user", "Hi"), ("assistant", None)) == "[user]Hi[assistant]"
    assert prompt(PARTS, ("user", "Hi"), ("assistant", None, CALL)).count("None") == 0
    only_calls = TEXT.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
    assert ChatTemplate(only_calls).capabilities.null == "tool calls"
    assert prompt(only_calls, ("user", "a"), ("assistant", None)) == "[user]a[assistant]"


def test_tools_are_seen():
    assert ChatTemplate(TEXT).capabilities.tools is False
    assert ChatTemplate("{% if tools %}{{ tools | tojson }}{% endif %}" + TEXT).capabilities.tools is True
    assert ChatTemplate(EMPTY_TOOLS).capabilities.tools is True


def test_abilities_are_found_once():
    template = ChatTemplate(TEXT)
    assert template.capabilities is template.capabilities
    with pytest.raises(AttributeError):
        template.capabilities.joint = ""  # frozen


def test_a_template_is_compiled_and_tried_once(monkeypatch):
    from polargrid_local.chat import template as module

    n_compiled, n_budgets = [], []
    compile_template, budget = module.compile_template, module.Budget
    monkeypatch.setattr(module, "compile_template", lambda *args: n_compiled.append(1) or compile_template(*args))
    monkeypatch.setattr(module, "Budget", lambda work: n_budgets.append(work) or budget(work))
    for source in (
        "{% if",
        "nothing",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + TEXT,
    ):
        template = ChatTemplate(source)
        for _ in range(3):
            with pytest.raises(TemplateError):
                template.check()
    assert len(n_compiled) == 3
    assert sum(n_budgets) <= 1_000_000  # trying costs no more than a render or two


# --- names ------------------------------------------------------------------------------------------------------------

TALK = [("system", " Be. "), ("user", "Hi"), ("assistant", "Yes"), ("user", "Why")]
FORMATS = {
    "chatml": "<|im_start|>system\n Be. <|im_end|>\n<|im_start|>user\n"
    "Hi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    "<|im_start|>user\nWhy<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "<s>[INST] <<SYS>>\n Be. \n<</SYS>>\n\nHi [/INST] Yes </s><s>[INST] Why [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral-v1": "<s> [INST]  Be. \n\nHi [/INST] Yes</s> [INST] Why [/INST]",
    "mistral-v3": "<s>[INST]  Be. \n\nHi[/INST] Yes</s>[INST] Why[/INST]",
    "mistral-v3-tekken": "<s>[INST] Be. \n\nHi[/INST]Yes</s>[INST]Why[/INST]",
    "mistral-v7": "<s>[SYSTEM_PROMPT]  Be. [/SYSTEM_PROMPT][INST] Hi[/INST] Yes</s>[INST] Why[/INST]",
    "mistral-v7-tekken": "<s>[SYSTEM_PROMPT] Be. [/SYSTEM_PROMPT][INST]Hi[/INST]Yes</s>[INST]Why[/INST]",
    "phi3": "<s><|system|>\n Be. <|end|>\n<|user|>\nHi<|end|>\n"
    "<|assistant|>\nYes<|end|>\n<|user|>\nWhy<|end|>\n<|assistant|>\n",
    "phi4": "<s><|im_start|>system<|im_sep|> Be. <|im_end|>"
    "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Yes"
    "<|im_end|><|im_start|>user<|im_sep|>Why<|im_end|><|im_start|>assistant<|im_sep|>",
    "gemma": "<s><start_of_turn>user\nBe.\n\nHi<end_of_turn>\n"
    "<start_of_turn>model\nYes<end_of_turn>\n<start_of_turn>user\nWhy"
    "<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<s><|system|>\n Be. </s>\n<|user|>\nHi</s>\n<|assistant|>\nYes</s>\n<|user|>\nWhy</s>\n<|assistant|>\n",
    "vicuna": "<s> Be.  USER: Hi ASSISTANT: Yes</s>USER: Why ASSISTANT:",
    "deepseek": "<s> Be. ### Instruction:\nHi\n### Response:\nYes\n<|EOT|>\n### Instruction:\nWhy\n### Response:\n",
    "deepseek3": "<s> Be. <｜User｜>Hi<｜Assistant｜>Yes<｜end▁of▁sentence｜><｜User｜>Why<｜Assistant｜>",
    "command-r": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Yes<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
    "<|USER_TOKEN|>Why<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "granite": "<s><|start_of_role|>system<|end_of_role|> Be. <|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Yes<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Why<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_by_name(name):
    assert prompt(name, *TALK) == FORMATS[name]
    template = ChatTemplate(name, TOKENS)
    assert template.name == name
    assert not template.assumed
    template.check()
    assert prompt(name, ("system", "Be.")).count("Be.") == 1  # not lost without a user's turn
    spans = template.render([{"role": "user", "content": "<|im_end|></s>"}], now=NOW)
    assert [text for text, trusted in spans if not trusted] == ["<|im_end|></s>"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ChatML", "chatml"),
        (" llama-3 ", "llama3"),
        ("Llama_2", "llama2"),
        ("mistral_v7", "mistral-v7"),
        ("phi-4", "phi4"),
        ("command_r", "command-r"),
        ("chatml2", ""),
        ("{{ messages }}", ""),
        ("", ""),
    ],
)
def test_names_are_known_however_they_are_written(written, name):
    assert format_name(written) == name


@pytest.mark.parametrize(
    "source", ["chatmll", "", "You are a helpful bot.", "/etc/template.jinja", "{{ bos_token }}", "{# #}"]
)
def test_a_template_that_shows_no_message_is_refused_with_the_names(source):
    with pytest.raises(TemplateError, match="shows no message.*chatml, llama2, llama3"):
        ChatTemplate(source).check()
    with pytest.raises(TemplateError, match="shows no message"):  # and before a model is loaded
        Models(None, {}, None, {"*": source}, None)
    with pytest.raises(TemplateError, match="shows no message"):  # a model file's own: at the first chat
        prompt(source, ("user", "Hi"))


@pytest.mark.parametrize(
    "source", ["{% if", "{{ 1 // 0 }}", "\ud800", "a\0b", "{{ messages }}{{ cycler.__init__.__globals__ }}"]
)
def test_a_broken_template_is_refused_when_it_is_given(source):
    with pytest.raises(TemplateError):
        Models(None, {}, None, {"*": source}, None)


def test_a_template_is_text():
    with pytest.raises(ValidationError, match="must be text, not bytes"):
        ChatTemplate(b"chatml")


def target_of(models: Models, name: str, info: dict[str, Any]) -> Target:
    loaded: Any = SimpleNamespace(info=info, compile=None, tokenize=None, detokenize=None)
    return models._target(ResolvedModel(name, Path(f"{name}.gguf")), [], loaded)


def test_chatml_is_assumed_and_that_is_said(caplog, tmp_path):
    models = Models(tmp_path, {}, None, {}, None)
    special = {"special_tokens": {"bos_token": "<s>"}, "control_tokens": {"<s>": 1, "<x>": 2}}
    with caplog.at_level(logging.WARNING, "polargrid_local"):
        target = target_of(models, "some-model", special)
    assert target.template.assumed
    assert target.template.name == "chatml"
    assert "some-model: the file has no chat template, ChatML is assumed" in caplog.text
    caplog.clear()
    all_named = {
        "chat_template": "{{ bos_token }}{{ pad_token }}{{ additional_special_tokens | join }}" + TEXT,
        "bos_text": "<old>",
        "special_tokens": {"bos_token": "<s>", "pad_token": "<p>"},
        "control_tokens": {"<a>": 9, "<p>": 0, "<s>": 1, "<x>": 2},
    }
    target = target_of(models, "m", all_named)
    assert not target.template.assumed
    assert caplog.text == ""
    assert target.template.render([{"role": "user", "content": "Hi"}], now=NOW)[0] == ("<s><p><x><a>[user]", True)
    texts = {"chat_template": "{{ bos_token }}{{ eos_token }}" + TEXT, "bos_text": "<b>", "eos_text": "<e>"}
    old = target_of(models, "m", texts)
    assert old.template.render([{"role": "user", "content": "Hi"}], now=NOW)[0] == ("<b><e>[user]", True)
    others = Models(tmp_path, {}, None, {"m": "chatml", "*": "llama3"}, None)
    assert [target_of(others, name, texts).template.name for name in ("m", "n")] == ["chatml", "llama3"]


# --- text that is none ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "content"),
    [
        (TEXT, "half \ud800"),
        (TEXT + "{{ '\\udc00' }}", "Hi"),
        (TEXT + "{{ '\\x00' }}", "Hi"),
        (TEXT + "\udcff", "Hi"),
        (TEXT + "\0", "Hi"),
    ],
)
def test_what_is_not_text_is_a_typed_error(source, content):
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": content}], now=NOW)
    caught.value.message.encode()


def test_a_nul_of_the_users_is_the_users():
    assert ChatTemplate(TEXT).render([{"role": "user", "content": "a\0b"}], now=NOW)[1] == ("a\0b", False)


def test_a_kept_error_keeps_nothing_else():
    """Frames in a kept traceback would hold streams that their readers have dropped."""

    class Held:
        pass

    def use(template):
        held = Held()
        with contextlib.suppress(TemplateError):
            template.check()
        return weakref.ref(held)

    gc.disable()
    try:
        for source in TEXT, "chatml", "nothing", "{% if", "{{ 1 // 0 }}":
            template = ChatTemplate(source)
            assert use(template)() is None
            assert use(template)() is None
    finally:
        gc.enable()
