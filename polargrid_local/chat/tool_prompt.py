"""Tools as text of a prompt, for templates that show no tools, calls or results of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from polargrid_local.chat.tool_formats import ToolFormat, written


def describe(tools: Sequence[dict[str, Any]], format: ToolFormat) -> str:
    """What a system message says of `tools`, each {"name", "description"?, "parameters"?}."""
    example = write_calls([("NAME", '{"PARAMETER": "VALUE"}')], format)
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You can call these functions. Each is described by its name and a JSON schema of its parameters:\n"
        f"{listed}\n"
        "To call a function, answer in this form, with its name and your values:\n"
        f"{example}"
    )


def write_calls(calls: Sequence[tuple[str, str]], format: ToolFormat) -> str:
    """Calls, (name, arguments in JSON), as a model would write them."""
    texts = [
        written(format.heads[0], name)
        + (_tags(arguments) if format.parameters else arguments)
        + written(format.tails[0], name)
        for name, arguments in calls
    ]
    return written(format.openings[0]) + written(format.separator).join(texts) + written(format.closing)


def _tags(arguments: str) -> str:
    try:
        values = json.loads(arguments)
    except ValueError:
        values = {}
    items = values.items() if isinstance(values, dict) else ()
    return "".join(
        f"\n<parameter={name}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>"
        for name, value in items
    )


def write_result(content: str) -> str:
    """What a tool answered."""
    return f"<tool_response>\n{content}\n</tool_response>"
