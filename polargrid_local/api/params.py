"""Params: the keyword arguments and the dicts that requests are made of, as TypedDicts for type checkers and editors.

Nothing is checked here: `parse.parse_request` does that, and a test compares these fields with its models. None stands
for a field that is left out. Of each request there are two: its fields as keywords or as a dict (`ChatParams`), and the
same, none of them required, as keywords on top of a dict or an SDK object (`ChatChanges`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from typing_extensions import TypedDict

from polargrid_local.api.replies import ChatMessage


class Dumpable(Protocol):
    """A request object of the official SDK, of OpenAI's, or any pydantic model with a request's fields."""

    def model_dump(self) -> dict[str, Any]: ...


# (token ids of the prompt and the answer so far, int32; logits (n_vocab,), float32, to be changed) -> logits, or None
LogitsProcessor = Callable[[Any, Any], Any]

# --- messages ---------------------------------------------------------------------------------------------------------


class TextPartParam(TypedDict):
    type: Literal["text"]
    text: str


class ImagePartParam(TypedDict):
    type: Literal["image_url"]
    image_url: Mapping[str, Any]


class PredictionParam(TypedDict):
    type: Literal["content"]
    content: str | Sequence[TextPartParam]


class FunctionCallParam(TypedDict):
    name: str
    arguments: str


class _ToolCall(TypedDict, total=False):
    type: Literal["function"]
    index: int | None


class ToolCallParam(_ToolCall):
    id: str
    function: FunctionCallParam


class _Message(TypedDict, total=False):
    content: str | Sequence[TextPartParam | ImagePartParam] | None
    name: str | None
    tool_calls: Sequence[ToolCallParam] | None
    tool_call_id: str | None
    reasoning_content: str | None


class MessageParam(_Message):
    role: Literal["system", "user", "assistant", "tool", "developer"]


Messages = Sequence[MessageParam | ChatMessage | Dumpable]


# --- requests ---------------------------------------------------------------------------------------------------------


class _Function(TypedDict, total=False):
    description: str | None
    parameters: Mapping[str, Any] | None
    strict: bool | None


class FunctionParam(_Function):
    name: str


class _Tool(TypedDict, total=False):
    type: Literal["function"]


class ToolParam(_Tool):
    function: FunctionParam


class LogitBiasParam(TypedDict):
    """An item of llama-server's lists; a bias of False is a token that must not come."""

    id: int | str  # or a text, whose tokens are meant
    bias: float | Literal[False]


class StreamOptions(TypedDict, total=False):
    include_usage: bool | None
    continuous_usage_stats: bool | None


class _InfillExtra(TypedDict, total=False):
    filename: str | None


class InfillExtraParam(_InfillExtra):
    text: str


class _LoraScale(TypedDict, total=False):
    scale: float


class LoraScaleParam(_LoraScale):
    id: int


class _GeneratingParams(TypedDict, total=False):
    model: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    max_tokens: int | None
    max_completion_tokens: int | None  # max_tokens by its later name
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    min_p: float | None
    typical_p: float | None
    repeat_last_n: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: str | Sequence[str] | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    allowed_token_ids: Sequence[int] | None
    bad_words: str | Sequence[str] | None
    logit_bias: (
        Mapping[int, float]
        | Mapping[str, float]
        | Sequence[tuple[int | str, float | Literal[False]] | list[int | str | float] | LogitBiasParam]
        | None
    )
    samplers: str | Sequence[str] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool | None
    min_tokens: int | None
    truncate_prompt_tokens: int | None
    truncation_side: Literal["left", "right"] | None
    prediction: str | PredictionParam | None  # text that the answer may repeat: it comes faster, and stays the same
    stream_options: StreamOptions | None
    user: str | None
    ignore_eos: bool | None
    skip_special_tokens: bool | None
    return_token_ids: bool | None
    return_tokens_as_token_ids: bool | None
    logprob_token_ids: Sequence[int] | None
    post_sampling_probs: bool | None
    prompt_logprobs: int | None
    timings_per_token: bool | None
    return_progress: bool | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    content_filter: str | Sequence[str] | Callable[[str], Any] | None
    lora: Sequence[LoraScaleParam] | None  # of the adapters that the model was loaded with
    n: int | None
    response_format: Mapping[str, Any] | None  # or a class: the engines have signatures of their own for that
    structured_outputs: Mapping[str, Any] | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None
    guided_json: Mapping[str, Any] | str | None
    guided_regex: str | None
    guided_choice: Sequence[str] | None
    guided_grammar: str | None


class ToolRunOptions(_GeneratingParams, total=False):
    """All but `messages`, `tools` and `stream`, which have places of their own in `run_tools()`, and the older names
    of tools."""

    logprobs: bool | None
    top_logprobs: int | None
    enable_thinking: bool | None
    reasoning_effort: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    echo: bool | None
    chat_template: str | None
    documents: Sequence[Mapping[str, Any]] | None
    return_prompt_text: bool | None
    thinking_token_budget: int | None
    include_reasoning: bool | None
    reasoning_format: Literal["none", "deepseek"] | None
    tool_choice: Literal["none", "auto", "required", "any"] | Mapping[str, Any] | None
    parallel_tool_calls: bool | None


class _Chat(ToolRunOptions, total=False):
    stream: bool | None
    tools: Sequence[ToolParam] | None
    functions: Sequence[FunctionParam] | None
    function_call: Literal["none", "auto"] | Mapping[str, Any] | None


class ChatParams(_Chat):
    messages: Messages


class ChatChanges(_Chat, total=False):
    messages: Messages | None


class _Completion(_GeneratingParams, total=False):
    stream: bool | None
    logprobs: int | None
    echo: bool | None
    best_of: int | None
    suffix: str | None  # for models that fill gaps
    input_extra: Sequence[InfillExtraParam] | None
    spm_infill: bool | None
    parse_special: bool | None


class CompletionParams(_Completion):
    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


class CompletionChanges(_Completion, total=False):
    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | None


class EmbeddingOptions(TypedDict, total=False):
    """All but `input` and `encoding_format`, which the type of the answer hangs on."""

    messages: Messages | None  # in place of `input`
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    model: str | None
    user: str | None
    dimensions: int | None
    truncate_prompt_tokens: int | None  # -1 = what the model takes
    truncation_side: Literal["left", "right"] | None


class EmbeddingParams(EmbeddingOptions, total=False):
    input: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Sequence[str | Sequence[int]] | None
    encoding_format: Literal["float", "base64", "numpy"] | None


class RerankOptions(TypedDict, total=False):
    """All but `query` and `documents`, which have places of their own in `rerank()`."""

    model: str | None
    top_n: int | None
    return_documents: bool | None
    max_tokens_per_doc: int | None
    truncate_prompt_tokens: int | None  # of query and document together; -1 = what the model takes
    truncation_side: Literal["left", "right"] | None
    use_activation: bool | None
    user: str | None


class DocumentParam(TypedDict):
    text: str


class RerankParams(RerankOptions):
    query: str | Sequence[str]
    documents: Sequence[str | DocumentParam]


class GenerateOptions(TypedDict, total=False):
    """All but `prompt`, which has a place of its own in `generate()`."""

    model: str | None
    max_tokens: int | None
    max_completion_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: str | Sequence[str] | None
    prediction: str | PredictionParam | None
    request_id: str | None


class GenerateParams(GenerateOptions):
    prompt: str


class UnloadModelParams(TypedDict):
    model_name: str


class _LoadModel(TypedDict, total=False):
    force_reload: bool | None


class LoadModelParams(_LoadModel):
    model_name: str


class PurgeParams(TypedDict, total=False):
    force: bool | None
