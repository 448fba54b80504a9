"""Messages as a chat template takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polargrid_local.api.history import History
from polargrid_local.api.requests import FunctionDefinition, Message
from polargrid_local.chat.capabilities import Capabilities, text_parts
from polargrid_local.chat.tool_formats import GENERIC, ToolFormat
from polargrid_local.chat.tool_prompt import describe


def messages_of(
    messages: Sequence[Message],
    capabilities: Capabilities,
    format: ToolFormat = GENERIC,
    tools: Sequence[FunctionDefinition] = (),
) -> list[dict[str, Any]]:
    """One dict per message, or fewer where system messages are folded into user ones, or more where a turn may have one
    call only. The role `developer` is `system`. `tools`: those that the template does not show itself; the system
    message does."""
    history = History(capabilities, format, described=bool(tools))
    plain: list[dict[str, Any]] = []
    held: list[str] = []  # system texts on their way into the user's next turn
    for message in history.adapted(_with_description(messages, tools, format)):
        role = "system" if message.role == "developer" else message.role
        content = message.content
        texts = message.texts
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
            entry["tool_call_id"] = history.id_of(message.tool_call_id)
        if message.reasoning_content is not None:
            entry["reasoning_content"] = message.reasoning_content
            if format.channels:
                entry["thinking"] = message.reasoning_content
        if message.tool_calls:
            entry["tool_calls"] = [history.call(call) for call in message.tool_calls]
        plain.append(entry)
    if held:  # the last system texts were followed by no user's turn
        text = "\n".join(held)
        plain.append({"role": "user", "content": text_parts(text) if "user" in capabilities.parts else text})
    return plain


def _with_description(
    messages: Sequence[Message], tools: Sequence[FunctionDefinition], format: ToolFormat
) -> Sequence[Message]:
    """The messages with the tools described in the first system message, or in one of their own."""
    if not tools:
        return messages
    text = describe([tool.model_dump(exclude_none=True, exclude={"strict"}) for tool in tools], format)
    first = messages[0]
    if first.role in ("system", "developer"):
        said = "\n".join(first.texts)
        return [first.model_copy(update={"content": f"{said}\n\n{text}"}), *messages[1:]]
    return [Message(role="system", content=text), *messages]


def texts_of(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """What a template has to show, before it is rendered: enough to see that it cannot fit."""
    return [(text, False) for message in messages for text in message.texts]
