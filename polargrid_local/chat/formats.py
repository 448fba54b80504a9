"""Formats: the chat formats that people call by name, as templates written from their published descriptions."""

from __future__ import annotations

import re

# In these shapes the words in capitals stand for Jinja expressions, which each format fills in.

# All roles have the same text around their content.
_SAME_FOR_ALL = """\
{%- for message in messages -%}
    {{- START + message.role + MIDDLE + CONTENT + END -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- START + 'assistant' + MIDDLE -}}
{%- endif -%}
"""

# Each role has a text of its own around its content. `held` are system texts on their way into a user's turn.
_ROLE_BY_ROLE = """\
{%- set eos = eos_token or '</s>' -%}
{%- set held = namespace(text='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        SYSTEM
    {%- elif message.role == 'user' -%}
        {{- USER -}}
        {%- set held.text = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- ASSISTANT -}}
    {%- else -%}
        {{- raise_exception('this chat format has no role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if held.text -%}
    {%- set message = {'content': ''} -%}
    {{- USER -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {{- OPENING -}}
{%- endif -%}
"""

_BOS = "{{- bos_token -}}\n"


def _filled(shape: str, **parts: str) -> str:
    return re.sub(rf"\b({'|'.join(parts)})\b", lambda found: parts[found[0]], shape)


def _same_for_all(start: str, middle: str, end: str, content: str = "message.content") -> str:
    return _filled(_SAME_FOR_ALL, START=start, MIDDLE=middle, END=end, CONTENT=content)


def _system_in_turn(system: str, user: str, assistant: str, opening: str = "''") -> str:
    """A system text has a turn of its own."""
    return _filled(_ROLE_BY_ROLE, SYSTEM=f"{{{{- {system} -}}}}", USER=user, ASSISTANT=assistant, OPENING=opening)


def _system_with_user(system: str, user: str, assistant: str, opening: str = "''") -> str:
    """A system text is part of the user's turn that follows it; what none follows is a user's turn of its own."""
    hold = f"{{%- set held.text = held.text + {system} -%}}"
    return _filled(_ROLE_BY_ROLE, SYSTEM=hold, USER=user, ASSISTANT=assistant, OPENING=opening)


CHATML = _same_for_all("'<|im_start|>'", "'\\n'", "'<|im_end|>\\n'")

FORMATS: dict[str, str] = {
    "chatml": CHATML,
    "llama2": _system_with_user(
        system="'<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n'",
        user="bos_token + '[INST] ' + held.text + message.content | trim + ' [/INST]'",
        assistant="' ' + message.content | trim + ' ' + eos",
    ),
    "llama3": _BOS
    + _same_for_all(
        "'<|start_header_id|>'", "'<|end_header_id|>\\n\\n'", "'<|eot_id|>'", content="message.content | trim"
    ),
    "mistral-v1": _BOS
    + _system_with_user(
        system="message.content + '\\n\\n'",
        user="' [INST] ' + held.text + message.content + ' [/INST]'",
        assistant="' ' + message.content + eos",
    ),
    "mistral-v3": _BOS
    + _system_with_user(
        system="message.content + '\\n\\n'",
        user="'[INST] ' + held.text + message.content + '[/INST]'",
        assistant="' ' + message.content | trim + eos",
    ),
    "mistral-v3-tekken": _BOS
    + _system_with_user(
        system="message.content + '\\n\\n'",
        user="'[INST]' + held.text + message.content + '[/INST]'",
        assistant="message.content + eos",
    ),
    "mistral-v7": _BOS
    + _system_in_turn(
        system="'[SYSTEM_PROMPT] ' + message.content + '[/SYSTEM_PROMPT]'",
        user="'[INST] ' + message.content + '[/INST]'",
        assistant="' ' + message.content + eos",
    ),
    "mistral-v7-tekken": _BOS
    + _system_in_turn(
        system="'[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]'",
        user="'[INST]' + message.content + '[/INST]'",
        assistant="message.content + eos",
    ),
    "phi3": _BOS + _same_for_all("'<|'", "'|>\\n'", "'<|end|>\\n'"),
    "phi4": _BOS + _same_for_all("'<|im_start|>'", "'<|im_sep|>'", "'<|im_end|>'"),
    "gemma": _BOS
    + _system_with_user(
        system="message.content | trim + '\\n\\n'",
        user="'<start_of_turn>user\\n' + held.text + message.content | trim + '<end_of_turn>\\n'",
        assistant="'<start_of_turn>model\\n' + message.content | trim + '<end_of_turn>\\n'",
        opening="'<start_of_turn>model\\n'",
    ),
    "zephyr": _BOS
    + _system_in_turn(
        system="'<|system|>\\n' + message.content + eos + '\\n'",
        user="'<|user|>\\n' + message.content + eos + '\\n'",
        assistant="'<|assistant|>\\n' + message.content + eos + '\\n'",
        opening="'<|assistant|>\\n'",
    ),
    "vicuna": _BOS
    + _system_in_turn(
        system="message.content + ' '",
        user="'USER: ' + message.content + ' '",
        assistant="'ASSISTANT: ' + message.content + eos",
        opening="'ASSISTANT:'",
    ),
    "deepseek": _BOS
    + _system_in_turn(
        system="message.content",
        user="'### Instruction:\\n' + message.content + '\\n'",
        assistant="'### Response:\\n' + message.content + '\\n<|EOT|>\\n'",
        opening="'### Response:\\n'",
    ),
    "deepseek3": _BOS
    + _system_in_turn(
        system="message.content",
        user="'<｜User｜>' + message.content",
        assistant="'<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>'",
        opening="'<｜Assistant｜>'",
    ),
    "command-r": _BOS
    + _system_in_turn(
        system="'<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>'",
        user="'<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>'",
        assistant="'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>'",
        opening="'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'",
    ),
    "granite": _BOS + _same_for_all("'<|start_of_role|>'", "'<|end_of_role|>'", "'<|end_of_text|>\\n'"),
}
_SPELLINGS = {re.sub(r"[^a-z0-9]", "", name): name for name in FORMATS}


def format_name(text: str) -> str:
    """The name of FORMATS that `text` means, however it writes dashes and capitals; "" when it means none."""
    return _SPELLINGS.get(re.sub(r"[-_. ]", "", text.strip().lower()), "") if len(text) < 40 else ""
