"""Described: the requests of other APIs as models, for the documentation and for telling what nobody reads.

What they have in common with our own requests is taken from those, ranges and defaults too. What is refused whatever it
says, and what is only told to be ignored, is no field here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.requests import (
    ChatCompletionRequest,
    CompletionPrompts,
    CompletionRequest,
    EmbeddingInput,
    EmbeddingRequest,
    InfillExtra,
    MaxTokens,
    ModelName,
    NonEmptyText,
    TokenId,
    Whole,
)
from polargrid_local.api.requests import RerankRequest as OurRerankRequest
from polargrid_local.dialects import cohere, llama_server, message_request, ollama_request
from polargrid_local.dialects.score import ACTIVATION, ITEMS, PAIRS

NO_EFFECT = "accepted: changes no answer"


def described(
    name: str,
    ours: type[BaseModel],
    /,
    same: Iterable[str] = (),
    renamed: Mapping[str, str] | None = None,
    harmless: Iterable[str] = (),
    **own: Any,
) -> type[BaseModel]:
    """A model of a request. `same`: fields of `ours`. `renamed`: their names here -> in `ours`. `own`: of that API
    alone, each a type and a default."""
    taken = {**{field: field for field in same}, **(renamed or {})}
    fields: dict[str, Any] = {
        theirs: (ours.model_fields[field].annotation, copy(ours.model_fields[field])) for theirs, field in taken.items()
    }
    fields |= {field: (Any, Field(None, description=NO_EFFECT)) for field in harmless}
    made: type[BaseModel] = create_model(
        name, __config__=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True), **fields, **own
    )
    return made


# --- llama-server and vLLM --------------------------------------------------------------------------------------------


class PromptObject(TypedDict):
    prompt_string: str


_LLAMA: dict[str, Any] = {
    "stream": (bool, False),
    "return_tokens": (bool, False),
    "response_fields": (list[str], Field([], description="these alone are told: keys, or paths with /")),
    "n_probs": (Annotated[Whole, Field(ge=0)], 0),
    "timings_per_token": (bool, False),
}
LlamaCompletionRequest = described(
    "LlamaCompletionRequest",
    CompletionRequest,
    ("model", "logit_bias", *llama_server.SAME),
    llama_server.RENAMED,
    llama_server.HARMLESS,
    **_LLAMA,
    prompt=(CompletionPrompts | PromptObject, ...),
)
LlamaEmbeddingRequest = described(
    "LlamaEmbeddingRequest",
    EmbeddingRequest,
    ("model", "dimensions"),
    harmless=("user",),
    content=(EmbeddingInput, ...),
)
InfillRequest = described(
    "InfillRequest",
    CompletionRequest,
    ("model", "logit_bias", "spm_infill", *llama_server.SAME),
    llama_server.RENAMED,
    llama_server.HARMLESS,
    **_LLAMA,
    input_prefix=(str, ...),
    input_suffix=(str, ...),
    input_extra=(list[InfillExtra], []),
    prompt=(str, Field("", description="what has been typed at the gap")),
)
# Of `messages` the prompt is what the template makes of them, and of what else it is shown.
TokenizeRequest = described(
    "TokenizeRequest",
    ChatCompletionRequest,
    (
        "model",
        "tools",
        "tool_choice",
        "documents",
        "chat_template",
        "chat_template_kwargs",
        "enable_thinking",
        "reasoning_effort",
        "add_generation_prompt",
        "continue_final_message",
    ),
    content=(str | None, None),
    prompt=(str | None, None),
    messages=(ChatCompletionRequest.model_fields["messages"].annotation, None),
    add_special=(bool, False),
    add_special_tokens=(bool, True),
    parse_special=(bool, True),
    with_pieces=(bool, False),
    return_token_strs=(bool, False),
)
DetokenizeRequest = described(
    "DetokenizeRequest", CompletionRequest, ("model",), tokens=(list[TokenId], ...), skip_special_tokens=(bool, False)
)

PoolingRequest = described(
    "PoolingRequest",
    EmbeddingRequest,
    tuple(EmbeddingRequest.model_fields),
    task=(Literal["embed"], "embed"),
)
_TEXTS = NonEmptyText | Annotated[list[NonEmptyText], Field(min_length=1)]
_SCORED: dict[str, Any] = {name: (_TEXTS | None, None) for pair in (*PAIRS, (ITEMS,)) for name in pair}
ScoreRequest = described(
    "ScoreRequest",
    OurRerankRequest,
    ("model", "max_tokens_per_doc", "truncate_prompt_tokens", "truncation_side"),
    dict.fromkeys(ACTIVATION, "use_activation"),
    harmless=("user", "priority", "request_id"),
    **_SCORED,
)
# Our own, and TEI's.
RerankRequest = described(
    "RerankRequest",
    OurRerankRequest,
    [name for name in OurRerankRequest.model_fields if name != "documents"],
    dict.fromkeys(ACTIVATION, "use_activation"),
    documents=(_TEXTS | None, Field(None, description="required, unless there are texts")),
    texts=(_TEXTS | None, Field(None, description="documents by the name at TEI; the answer is then a bare list")),
    return_text=(bool, False),
    raw_scores=(bool, Field(True, description="false: use_activation, by the name at TEI")),
)

# --- Anthropic --------------------------------------------------------------------------------------------------------


class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: NotRequired[str]


class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(TypedDict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: NotRequired[str | list[TextBlock]]
    is_error: NotRequired[bool]


class MessageTurn(TypedDict):
    role: Literal["user", "assistant", "system"]
    content: str | list[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock]


class MessageTool(TypedDict):
    type: NotRequired[Literal["custom"]]
    name: str
    description: NotRequired[str]
    input_schema: dict[str, Any]
    strict: NotRequired[bool]


class MessageToolChoice(TypedDict):
    type: Literal["auto", "any", "tool", "none"]
    name: NotRequired[str]  # of the type tool
    disable_parallel_tool_use: NotRequired[bool]


class MessageThinking(TypedDict):
    type: Literal["enabled", "adaptive", "disabled"]
    display: NotRequired[Literal["summarized", "omitted"]]


class MessageSchema(TypedDict):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(TypedDict):
    format: NotRequired[MessageSchema]


_MESSAGES: dict[str, Any] = {
    "messages": (Annotated[list[MessageTurn], Field(min_length=1)], ...),
    "system": (str | list[TextBlock] | None, None),
    "tools": (list[MessageTool], []),
    "tool_choice": (MessageToolChoice | None, None),
    "stop_sequences": (list[str], []),
    "thinking": (MessageThinking | None, None),
    "output_config": (OutputConfig | None, None),
    "output_format": (MessageSchema | None, Field(None, description="output_config.format by its older name")),
}
CountTokensRequest = described(
    "CountTokensRequest", ChatCompletionRequest, message_request.SAME, harmless=message_request.HARMLESS, **_MESSAGES
)
MessagesRequest = described(
    "MessagesRequest",
    ChatCompletionRequest,
    message_request.SAME,
    harmless=message_request.HARMLESS,
    max_tokens=(Annotated[Whole, Field(ge=0, lt=2**31)], ...),
    **_MESSAGES,
)

# --- Cohere -----------------------------------------------------------------------------------------------------------


class CohereInput(TypedDict):
    content: Annotated[list[TextBlock], Field(min_length=1)]


CohereEmbedRequest = described(
    "CohereEmbedRequest",
    EmbeddingRequest,
    ("model",),
    {"output_dimension": "dimensions"},
    harmless=("priority",),
    texts=(_TEXTS | None, Field(None, description="required, unless there are inputs")),
    inputs=(list[CohereInput] | None, None),
    embedding_types=(list[cohere.VectorType], ["float"]),
    max_tokens=(Annotated[Whole, Field(ge=1, lt=2**30)] | None, Field(None, description="of each text")),
    truncate=(Literal["NONE", "START", "END"], "END"),
)
CohereRerankRequest = described(
    "CohereRerankRequest",
    OurRerankRequest,
    [name for name in cohere.RERANK_SAME if name != "use_activation"],
    harmless=("priority",),
    use_activation=(bool, True),
)

# --- Ollama -----------------------------------------------------------------------------------------------------------

OllamaOptions = described(
    "OllamaOptions",
    ChatCompletionRequest,
    ollama_request.SAME_OPTIONS,
    {"repeat_penalty": "repetition_penalty"},
    ollama_request.HARMLESS_OPTIONS,
    num_predict=(MaxTokens, -1),
)


class OllamaCallParam(TypedDict):
    id: NotRequired[str]
    function: dict[str, Any]  # name, and arguments as an object


class OllamaTurn(TypedDict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[OllamaCallParam]]
    tool_name: NotRequired[str]
    tool_call_id: NotRequired[str]


_KEEP_ALIVE: dict[str, Any] = {
    "keep_alive": (
        str | float | None,
        Field(None, description='how long the model then stays in memory: seconds, or "5m"; negative: always'),
    )
}
_OLLAMA: dict[str, Any] = {
    "model": (ModelName | None, None),
    **_KEEP_ALIVE,
    "stream": (bool, True),
    "options": (OllamaOptions | None, None),
    "format": (Literal["json", ""] | dict[str, Any] | None, None),
    "think": (bool | str | None, Field(None, description="or a level, for models that know of levels")),
}
_LOGPROBS = ("logprobs", "top_logprobs")
OllamaChatRequest = described(
    "OllamaChatRequest",
    ChatCompletionRequest,
    ("tools", *_LOGPROBS),
    harmless=ollama_request.HARMLESS,
    messages=(list[OllamaTurn], Field([], description="none: the model is loaded")),
    **_OLLAMA,
)
OllamaGenerateRequest = described(
    "OllamaGenerateRequest",
    ChatCompletionRequest,
    _LOGPROBS,
    harmless=ollama_request.HARMLESS,
    prompt=(str, Field("", description="none: the model is loaded")),
    system=(str | None, None),
    suffix=(str | None, Field(None, description="what comes behind the answer, for models that fill gaps")),
    raw=(bool, False),
    **_OLLAMA,
)
OllamaEmbedRequest = described(
    "OllamaEmbedRequest",
    EmbeddingRequest,
    ("model", "dimensions"),
    harmless=(*ollama_request.HARMLESS, "options"),
    input=(EmbeddingInput, ...),
    **_KEEP_ALIVE,
)
OllamaEmbeddingsRequest = described(
    "OllamaEmbeddingsRequest",
    EmbeddingRequest,
    ("model", "dimensions"),
    harmless=(*ollama_request.HARMLESS, "options"),
    prompt=(EmbeddingInput, ...),
    **_KEEP_ALIVE,
)
OllamaShowRequest = described(
    "OllamaShowRequest",
    ChatCompletionRequest,
    model=(str, ...),
    name=(str | None, Field(None, description="model by its older name")),
    verbose=(bool, Field(False, description=NO_EFFECT)),
)
