"""ResponseRequest: a request of the Responses API, as its clients send it, and the chat that its items make.

Keys that no model here reads are let through; `unread` finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter
from pydantic import ValidationError as PydanticError

from polargrid_local.api.parse import explained
from polargrid_local.api.plain import path, shown
from polargrid_local.api.requests import (
    MAX_LOGPROBS,
    MaxTokens,
    ModelName,
    NonEmptyText,
    Sampling,
    StrictModel,
    ToolChoice,
    Whole,
)
from polargrid_local.errors import ValidationError, refused

Words = dict[str, Any]

# Keys of items and parts that say nothing to a model. Answers carry them, and clients send answers back.
LABELS = {"id", "status", "annotations", "logprobs", "phase", "caller", "namespace", "parsed", "parsed_arguments"}


class Lenient(StrictModel):
    model_config = ConfigDict(extra="allow")


# --- items ------------------------------------------------------------------------------------------------------------


class TextPiece(Lenient):
    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str


class RefusalPiece(Lenient):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def _piece_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "refusal":
        return "<refusal>"
    return "<text>" if kind in ("input_text", "output_text", "text", "reasoning_text", "summary_text") else None


def _content_tag(value: Any) -> str | None:
    return "<str>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


Piece = Annotated[
    Annotated[TextPiece, Tag("<text>")] | Annotated[RefusalPiece, Tag("<refusal>")],
    Discriminator(
        _piece_tag,
        custom_error_type="kind",
        custom_error_message="its type must be 'input_text' or 'output_text': this engine reads text only",
    ),
]
PieceContent = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[list[Piece], Tag("<list>")],
    Discriminator(_content_tag, custom_error_type="type", custom_error_message="must be a string or a list of parts"),
]


class MessageItem(Lenient):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: PieceContent


class FunctionCallItem(Lenient):
    type: Literal["function_call"]
    call_id: NonEmptyText
    name: NonEmptyText
    arguments: str


class FunctionCallOutputItem(Lenient):
    type: Literal["function_call_output"]
    call_id: NonEmptyText
    output: PieceContent


class ReasoningItem(Lenient):
    """What the model thought. Where only a summary of it is known, that stands for it."""

    type: Literal["reasoning"]
    content: list[TextPiece] | None = None
    summary: list[TextPiece] | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.content or self.summary or ())


class ItemReference(Lenient):
    """An item of an earlier response, which is kept here."""

    type: Literal["item_reference"] | None = None
    id: NonEmptyText


_ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _item_tag(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type") or ("message" if "role" in value else "item_reference" if "id" in value else None)
    return f"<{kind}>" if kind in _ITEMS else None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(
        _item_tag, custom_error_type="kind", custom_error_message=f"its type must be one of {', '.join(_ITEMS)}"
    ),
]
_ITEM_LIST: TypeAdapter[list[Any]] = TypeAdapter(list[Item])
Input = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[list[Item], Tag("<list>")],
    Discriminator(_content_tag, custom_error_type="type", custom_error_message="must be a string or a list of items"),
]


# --- the request ------------------------------------------------------------------------------------------------------


class ResponseFunction(Lenient):
    type: Literal["function"]
    name: NonEmptyText
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseText(Lenient):
    format: ResponseFormat | None = None
    verbosity: Literal["medium"] | None = None  # no other can be asked of a model here


class ResponseReasoning(Lenient):
    """No summaries are made, whatever `summary` says: the reasoning itself is told."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "default"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ResponseRequest(Sampling):
    """Further fields of a chat request may stand beside these."""

    model_config = ConfigDict(extra="allow")

    input: Input
    instructions: str | None = None
    model: ModelName | None = None
    max_output_tokens: MaxTokens | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    tools: list[ResponseFunction] = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: Whole | None = None  # of tools that OpenAI runs, which are not here
    text: ResponseText = ResponseText()
    reasoning: ResponseReasoning = ResponseReasoning()
    include: list[str] = []
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] = 0
    previous_response_id: NonEmptyText | None = None
    store: bool = True
    background: bool = False
    truncation: Literal["disabled"] = "disabled"
    metadata: dict[str, str] = {}
    user: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None


class CountedResponseRequest(Lenient):
    """Those fields that make the prompt, for a count of its tokens. Not read by itself: a whole request is."""

    input: Input = []
    instructions: str | None = None
    model: ModelName | None = None
    tools: list[ResponseFunction] = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: ResponseText = ResponseText()
    reasoning: ResponseReasoning = ResponseReasoning()
    previous_response_id: NonEmptyText | None = None
    truncation: Literal["disabled"] = "disabled"


# Fields of a chat whose answer tells more than this API has words for.
TOLD_BESIDE = (
    "n_probs",
    "prompt_logprobs",
    "return_progress",
    "return_token_ids",
    "return_tokens",
    "timings_per_token",
)
# Fields that ask for what is not here.
NOT_HERE = {
    "conversation": "conversations are not kept here: send previous_response_id, or all items as input",
    "prompt": "stored prompts are not kept here: send instructions and input",
    "context_management": "not supported by this engine",
    "moderation": "not supported by this engine",
    **dict.fromkeys(TOLD_BESIDE, "a response has no place for it; /v1/chat/completions has"),
}
# Fields of the older API, each of which has another name in this one.
MEANT = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "functions": "tools",
    "function_call": "tool_choice",
    "logprobs": "include",
}
NO_EFFECT = {"prompt_cache_options"}


def read_response_request(body: Words) -> ResponseRequest:
    """Nulls are left out. Raises ValidationError naming the path of what is wrong, or of what is not here."""
    given = {name: value for name, value in body.items() if value is not None and name not in NO_EFFECT}
    for name, why in NOT_HERE.items():
        if given.pop(name, None):
            raise refused(name, why)
    for name, other in MEANT.items():
        if name in given:
            raise refused(name, f"is no field of this API; its name here is {other}")
    try:
        request = ResponseRequest.model_validate(given)
    except PydanticError as error:
        raise _explain(error) from None
    if request.background:
        raise refused("background", "must be false: an answer is given to the request that asks for it")
    if given.get("n", 1) != 1:
        raise refused("n", "a response is one answer, so only 1 is accepted", limit=1)
    choice = request.tool_choice
    if isinstance(choice, dict) and choice.get("type") not in ("function", "allowed_tools"):
        problem = f"must be 'function' or 'allowed_tools', got {shown(choice.get('type'))}: no other tools are here"
        raise refused("tool_choice.type", problem)
    return request


def _explain(error: PydanticError, *where: str) -> ValidationError:
    """The first thing that is wrong, by its path; of an item of another kind, which that is."""
    first = error.errors(include_url=False)[0]
    given = first["input"]
    if first["type"] == "kind" and isinstance(given, dict):
        return refused(path((*where, *first["loc"])), f"{first['msg']}, got {shown(given.get('type'))}")
    return explained(error, *where)


def unread(value: Any, where: str = "") -> Iterator[str]:
    """The paths of keys inside a request that no model here reads, but for LABELS. Those of the request itself are
    not among them."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from unread(item, f"{where}[{i}]")
    elif isinstance(value, BaseModel):
        extra = value.model_extra or {}
        if where:
            yield from (f"{where}.{key[:80]}" for key, item in extra.items() if key not in LABELS and item is not None)
        for name in value.model_fields_set - set(extra):
            yield from unread(getattr(value, name), f"{where}.{name}" if where else name)


def read_items(items: list[Words]) -> list[Any]:
    """Models of items. Raises ValidationError naming the path of what is wrong."""
    try:
        return _ITEM_LIST.validate_python(items)
    except PydanticError as error:
        raise _explain(error, "input") from None


# --- the chat ---------------------------------------------------------------------------------------------------------


def chat_messages(items: Sequence[Any]) -> list[Words]:
    """The messages of a chat that models of items make. What a model gave in one turn, its thought, words and calls,
    is one message."""
    messages: list[Words] = []
    turn: Words | None = None  # of the model, while it may grow
    for item in items:
        if isinstance(item, MessageItem) and item.role != "assistant":
            messages.append({"role": item.role, "content": _content(item.content)})
            turn = None
            continue
        if isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
            turn = None
            continue
        if isinstance(item, ReasoningItem) and not item.text:
            continue
        is_call = isinstance(item, FunctionCallItem)
        if turn is None or (turn["content"] and "tool_calls" not in turn and not is_call):
            turn = {"role": "assistant", "content": ""}
            messages.append(turn)
        if isinstance(item, FunctionCallItem):
            function = {"name": item.name, "arguments": item.arguments}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
        elif isinstance(item, ReasoningItem):
            turn["reasoning_content"] = turn.get("reasoning_content", "") + item.text
        else:
            turn["content"] += _joined(item.content)
    return messages


def _content(content: str | list[Any]) -> Any:
    return content if isinstance(content, str) else [{"type": "text", "text": piece.text} for piece in content]


def _joined(content: str | list[Any]) -> str:
    return content if isinstance(content, str) else "".join(piece.text for piece in content)
