"""Messages as a chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from polargrid_local.api.requests import Message, TextPart
from polargrid_local.chat.capabilities import Capabilities, text_parts


def messages_of(messages: Sequence[Message], capabilities: Capabilities) -> list[dict[str, Any]]:
    """One dict per message, or fewer where system messages are folded into user ones. The role `developer` is `system`,
    and the arguments of tool calls are parsed where they are JSON."""
    plain: list[dict[str, Any]] = []
    held: list[str] = []  # system texts on their way into the user's next turn
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        content = message.content
        if isinstance(content, list):
            texts = [part.text for part in content if isinstance(part, TextPart)]  # `parse` has refused images
        else:
            texts = [] if content is None else [content]
        if role == "system" and (capabilities.system == "folded" or (capabilities.system == "first" and plain)):
            held += texts
            continue
        if role == "user" and held:
            texts, held = ["\n".join([*held, capabilities.joint.join(texts)])], []
        entry: dict[str, Any] = {"role": role}
        if (
            content is None
            and role == "assistant"
            and capabilities.null in ("always", message.tool_calls and "tool calls")
        ):
            entry["content"] = None
        elif role in capabilities.parts:
            entry["content"] = [part for text in texts or [""] for part in text_parts(text)]
        else:
            entry["content"] = capabilities.joint.join(texts)
        if message.name is not None:
            entry["name"] = message.name
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        if message.reasoning_content is not None:
            entry["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                try:
                    arguments = json.loads(call.function.arguments)
                except (ValueError, RecursionError):
                    arguments = call.function.arguments
                calls.append(
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": arguments},
                    }
                )
            entry["tool_calls"] = calls
        plain.append(entry)
    if held:  # the last system texts were followed by no user's turn
        text = "\n".join(held)
        plain.append({"role": "user", "content": text_parts(text) if "user" in capabilities.parts else text})
    return plain


def texts_of(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """What a template has to show, before it is rendered: enough to see that it cannot fit."""
    texts = []
    for message in messages:
        parts = message.content if isinstance(message.content, list) else [message.content]
        texts += [part.text if isinstance(part, TextPart) else part for part in parts]
    return [(text, False) for text in texts if isinstance(text, str)]
