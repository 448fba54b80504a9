"""The chat formats that people call by name, as templates written from their published descriptions. Pure."""

from __future__ import annotations

import re

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

# A system text is held until the user's turn that it belongs to; one that is left at the end is a turn of its own.
_HELD = """\
{%- set eos = eos_token or '</s>' -%}
{%- set held = namespace(text='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set held.text = held.text + SYSTEM -%}
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
"""

# One turn after another, each with a role's own text around it.
_TURNS = """\
{{- bos_token -}}
{%- set eos = eos_token or '</s>' -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{- SYSTEM -}}
    {%- elif message.role == 'user' -%}
        {{- USER -}}
    {%- elif message.role == 'assistant' -%}
        {{- ASSISTANT -}}
    {%- else -%}
        {{- raise_exception('this chat format has no role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
"""

# Formats in which every role looks alike.
_ROLES = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- START + message.role + MIDDLE + message.content + END -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- START + 'assistant' + MIDDLE -}}
{%- endif -%}
"""

_OPENING = "{%- if add_generation_prompt -%}{{- OPENING -}}{%- endif -%}\n"


def _filled(frame: str, opening: str = "", **parts: str) -> str:
    parts["OPENING"] = opening
    return re.sub(rf"\b({'|'.join(parts)})\b", lambda found: parts[found[0]], frame + (_OPENING if opening else ""))


NAMES: dict[str, str] = {
    "chatml": CHATML,
    "llama2": _filled(
        _HELD,
        SYSTEM="'<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n'",
        USER="bos_token + '[INST] ' + held.text + message.content | trim + ' [/INST]'",
        ASSISTANT="' ' + message.content | trim + ' ' + eos",
    ),
    "llama3": _filled(
        _ROLES,
        START="'<|start_header_id|>'",
        MIDDLE="'<|end_header_id|>\\n\\n'",
        END="'<|eot_id|>'",
    ).replace("message.content", "message.content | trim"),
    "mistral-v1": "{{- bos_token -}}\n"
    + _filled(
        _HELD,
        SYSTEM="message.content + '\\n\\n'",
        USER="' [INST] ' + held.text + message.content + ' [/INST]'",
        ASSISTANT="' ' + message.content + eos",
    ),
    "mistral-v3": "{{- bos_token -}}\n"
    + _filled(
        _HELD,
        SYSTEM="message.content + '\\n\\n'",
        USER="'[INST] ' + held.text + message.content + '[/INST]'",
        ASSISTANT="' ' + message.content | trim + eos",
    ),
    "mistral-v3-tekken": "{{- bos_token -}}\n"
    + _filled(
        _HELD,
        SYSTEM="message.content + '\\n\\n'",
        USER="'[INST]' + held.text + message.content + '[/INST]'",
        ASSISTANT="message.content + eos",
    ),
    "mistral-v7": _filled(
        _TURNS,
        SYSTEM="'[SYSTEM_PROMPT] ' + message.content + '[/SYSTEM_PROMPT]'",
        USER="'[INST] ' + message.content + '[/INST]'",
        ASSISTANT="' ' + message.content + eos",
    ),
    "mistral-v7-tekken": _filled(
        _TURNS,
        SYSTEM="'[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]'",
        USER="'[INST]' + message.content + '[/INST]'",
        ASSISTANT="message.content + eos",
    ),
    "phi3": _filled(_ROLES, START="'<|'", MIDDLE="'|>\\n'", END="'<|end|>\\n'"),
    "phi4": _filled(_ROLES, START="'<|im_start|>'", MIDDLE="'<|im_sep|>'", END="'<|im_end|>'"),
    "gemma": "{{- bos_token -}}\n"
    + _filled(
        _HELD,
        "'<start_of_turn>model\\n'",
        SYSTEM="message.content | trim + '\\n\\n'",
        USER="'<start_of_turn>user\\n' + held.text + message.content | trim + '<end_of_turn>\\n'",
        ASSISTANT="'<start_of_turn>model\\n' + message.content | trim + '<end_of_turn>\\n'",
    ),
    "zephyr": _filled(
        _TURNS,
        "'<|assistant|>\\n'",
        SYSTEM="'<|system|>\\n' + message.content + eos + '\\n'",
        USER="'<|user|>\\n' + message.content + eos + '\\n'",
        ASSISTANT="'<|assistant|>\\n' + message.content + eos + '\\n'",
    ),
    "vicuna": _filled(
        _TURNS,
        "'ASSISTANT:'",
        SYSTEM="message.content + ' '",
        USER="'USER: ' + message.content + ' '",
        ASSISTANT="'ASSISTANT: ' + message.content + eos",
    ),
    "deepseek": _filled(
        _TURNS,
        "'### Response:\\n'",
        SYSTEM="message.content",
        USER="'### Instruction:\\n' + message.content + '\\n'",
        ASSISTANT="'### Response:\\n' + message.content + '\\n<|EOT|>\\n'",
    ),
    "deepseek3": _filled(
        _TURNS,
        "'<｜Assistant｜>'",
        SYSTEM="message.content",
        USER="'<｜User｜>' + message.content",
        ASSISTANT="'<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>'",
    ),
    "command-r": _filled(
        _TURNS,
        "'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'",
        SYSTEM="'<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>'",
        USER="'<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>'",
        ASSISTANT="'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>'",
    ),
    "granite": _filled(_ROLES, START="'<|start_of_role|>'", MIDDLE="'<|end_of_role|>'", END="'<|end_of_text|>\\n'"),
}
_SPELLINGS = {re.sub(r"[^a-z0-9]", "", name): name for name in NAMES}


def named(text: str) -> str:
    """The name of NAMES that `text` means, however it writes dashes and capitals; "" when it means none."""
    return _SPELLINGS.get(re.sub(r"[-_. ]", "", text.strip().lower()), "") if len(text) < 40 else ""
