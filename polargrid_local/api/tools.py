"""The tools of a request: which of them may be called, and whether one must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from polargrid_local.api.requests import ChatCompletionRequest, FunctionDefinition
from polargrid_local.errors import did_you_mean, refused


class ToolsAsked(NamedTuple):
    """What a request asks for. `fields` are the request's own names of the tools."""

    shown: list[FunctionDefinition]  # what the model is told of
    callable: list[FunctionDefinition]  # of those
    fields: dict[str, str]  # tool name -> path in the request
    calls: Literal["none", "auto", "required"]
    several: bool  # more than one call in an answer
    legacy: bool  # asked, and so answered, by the older names


def tools_asked(request: ChatCompletionRequest) -> ToolsAsked:
    """Raises ValidationError for two tools of one name, and for a choice that there is not."""
    legacy = bool(request.functions)
    if legacy and request.tools:
        raise refused("functions", "is the older name of tools, which are given too: give one of them")
    if legacy:
        given = {f"functions[{i}]": function for i, function in enumerate(request.functions or ())}
    else:
        given = {f"tools[{i}].function": tool.function for i, tool in enumerate(request.tools or ())}
    functions = list(given.values())
    fields: dict[str, str] = {}
    for field, function in given.items():
        if function.name in fields:
            raise refused(f"{field}.name", f"'{function.name}' is the name of {fields[function.name]} too")
        fields[function.name] = field
    choice: Any = request.function_call if legacy else request.tool_choice
    where = "function_call" if legacy else "tool_choice"
    if not legacy and request.function_call not in (None, "none", "auto"):
        raise refused("function_call", "needs functions to choose from")
    calls, names = _choice(choice, where, fields)
    if not functions:
        if calls == "required":
            raise refused(where, "needs tools to choose from")
        calls = "none"
    chosen = [function for function in functions if names is None or function.name in names]
    several = request.parallel_tool_calls and not legacy and not _names_one(choice)
    return ToolsAsked(functions if calls != "none" else [], chosen, fields, calls, several, legacy)


def _names_one(choice: Any) -> bool:
    return isinstance(choice, Mapping) and choice.get("type") != "allowed_tools"


def _choice(
    choice: Any, where: str, fields: dict[str, str]
) -> tuple[Literal["none", "auto", "required"], list[str] | None]:
    """Whether calls may or must come, and of which tools; None = all."""
    if choice is None or choice == "auto":
        return "auto", None
    if choice == "none":
        return "none", None
    if choice in ("required", "any"):
        return "required", None
    if isinstance(choice, Mapping):
        if choice.get("type") == "allowed_tools":
            return _allowed(choice.get("allowed_tools", choice), fields)
        name = choice.get("name") if where == "function_call" else _function_name(choice)
        if isinstance(name, str):
            return "required", [_known(name, where, fields)]
    forms = "'none', 'auto' or {'name': ...}"
    if where == "tool_choice":
        forms = "'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}"
    raise refused(where, f"must be {forms}")


def _allowed(allowed: Any, fields: dict[str, str]) -> tuple[Literal["none", "auto", "required"], list[str] | None]:
    """OpenAI's choice of some of the tools."""
    where = "tool_choice.allowed_tools"
    if not isinstance(allowed, Mapping) or allowed.get("mode", "auto") not in ("auto", "required"):
        raise refused(f"{where}.mode", "must be 'auto' or 'required'")
    tools = allowed.get("tools")
    names = [_function_name(tool) for tool in tools] if isinstance(tools, list) else []
    if not names:
        raise refused(f"{where}.tools", "must be a list of tools, each with its name")
    known = [_known(name, f"{where}.tools[{i}]", fields) for i, name in enumerate(names)]
    return ("required" if allowed.get("mode") == "required" else "auto"), known


def _function_name(tool: Any) -> Any:
    """Of {"type": "function", "function": {"name": ...}}, or of the same without the inner mapping."""
    if not isinstance(tool, Mapping):
        return None
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else tool.get("name")


def _known(name: Any, where: str, fields: dict[str, str]) -> str:
    if not isinstance(name, str) or name not in fields:
        hint = did_you_mean(name, fields) if isinstance(name, str) else ""
        raise refused(where, f"there is no tool of the name {str(name)[:80]!r}{hint}")
    return name
