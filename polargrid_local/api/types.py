"""The words: request models, the shapes of chunks and responses, the event a native engine delivers.

A request is validated here and nowhere else. Its fields, ranges and defaults are those of the official SDK; what the
SDK lacks (seed in text completions, logprobs, logit_bias, ...) follows OpenAI.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, Protocol, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic import ValidationError as PydanticError
from pydantic_core import PydanticCustomError
from typing_extensions import NotRequired, TypeVar  # with defaults, which typing has since Python 3.13
from typing_extensions import TypedDict  # pydantic describes no other before Python 3.12

from polargrid_local.errors import ValidationError, did_you_mean

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

MAX_TOKENS = 4096  # the SDK's limit on max_tokens; a server passes None and lets the context be the limit
MAX_MESSAGES = 1024
MAX_STOP = 16
MAX_STOP_BYTES = 256
MAX_PROMPTS = 2048
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_FILTER = 64
MAX_DEPTH = 64
MAX_VALUES = 100_000  # in one request, every item of every list and mapping counted: more than any client sends


# --- events -----------------------------------------------------------------------------------------------------------


class TokenLogprob(TypedDict):
    """A token as `_core` reports it: the one sampled, with the likeliest at its place in `top`, whose own `top` is empty."""

    token: int
    logprob: float
    bytes: bytes
    top: list[TokenLogprob]


class Event(Protocol):
    """What the native engine says about a request, as `_core.Event` has it. Times in ms since submit, < 0 = not reached."""

    @property
    def id(self) -> int: ...
    @property
    def kind(self) -> str: ...  # progress | loaded | text | finished | embedding | error
    @property
    def text(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def details(self) -> dict[str, str]: ...
    @property
    def reason(self) -> str: ...  # "" | stop | length | content_filter
    @property
    def progress(self) -> float: ...
    @property
    def n_prompt(self) -> int: ...
    @property
    def n_cached(self) -> int: ...
    @property
    def n_generated(self) -> int: ...
    @property
    def queue_ms(self) -> float: ...
    @property
    def prefill_ms(self) -> float: ...
    @property
    def first_token_ms(self) -> float: ...
    @property
    def total_ms(self) -> float: ...
    @property
    def logprobs(self) -> list[TokenLogprob]: ...
    @property
    def embedding(self) -> Any: ...  # a vector of float32


# --- replies ----------------------------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PGMetadata(TypedDict, total=False):
    region: str
    latency_ms: int
    model_load_time_ms: int | None
    queue_time_ms: int
    inference_time_ms: int
    seed: int
    cached_tokens: int


class Timings(TypedDict):
    """Milliseconds since submit (None = not reached), the decode rate, and prompt tokens taken from the prefix cache."""

    queue_ms: float | None
    prefill_ms: float | None
    first_token_ms: float | None
    total_ms: float | None
    tokens_per_second: float | None
    cached_tokens: int


class ChatTopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(TypedDict):
    """`content`: one entry per token."""

    content: list[ChatTokenLogprob]


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: NotRequired[ChatLogprobs]
    finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage]  # in the last chunk, which has no choice, where `stream_options` asked for it


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: NotRequired[ChatLogprobs]
    finish_reason: FinishReason


class ChatCompletionResponse(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    pg_metadata: PGMetadata


class TextLogprobs(TypedDict):
    """Four lists with one entry per token; offsets are in characters of the answer's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChunkChoice(TypedDict):
    text: str
    index: int
    logprobs: NotRequired[TextLogprobs]
    finish_reason: FinishReason | None


class CompletionChunk(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage]  # as in a chat's last chunk


class CompletionChoice(TypedDict):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class CompletionResponse(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    pg_metadata: PGMetadata


class GenerateResponse(TypedDict):
    id: str
    model: str
    content: str
    usage: Usage
    created_at: str  # local time, ISO 8601 without a zone
    processing_time_ms: int


# A vector of n_embd numbers as `encoding_format` asked for it; by default as it may come over HTTP.
Vector = TypeVar("Vector", default=Union[list[float], str])
if TYPE_CHECKING:
    FloatArray = NDArray[numpy.float32]  # shape (n_embd,)


class EmbeddingData(TypedDict, Generic[Vector]):
    """`embedding`: n_embd numbers as `encoding_format` asked for them; base64 is that of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: Vector


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(TypedDict, Generic[Vector]):
    object: Literal["list"]
    data: list[EmbeddingData[Vector]]
    model: str
    usage: EmbeddingUsage


class RerankDocument(TypedDict):
    text: str


class RerankResult(TypedDict):
    index: int  # of the document in the request
    relevance_score: float
    document: NotRequired[RerankDocument]


class RerankResponse(TypedDict):
    id: str
    object: Literal["list"]
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage


# --- replies about models and the machine -----------------------------------------------------------------------------

LoadStatus = Literal["loading", "loaded", "unloaded", "failed"]
Task = Literal["generate", "embed", "rank"]


class ModelInfo(TypedDict):
    """A model as lists show it. `tasks`, what it can be asked for, is ours; none of a file that cannot be loaded."""

    id: str
    object: Literal["model"]
    created: int  # Unix time
    owned_by: str
    permission: list[Any]
    root: str
    parent: str | None
    tasks: list[Task]


class ListModelsResponse(TypedDict):
    object: Literal["list"]
    data: list[ModelInfo]


class LoadModelResponse(TypedDict):
    status: Literal["success", "loading", "failed"]
    model: str
    force_reload: bool
    message: str


class UnloadModelResponse(TypedDict):
    status: Literal["success", "failed"]
    model: str
    message: str


class UnloadAllModelsResponse(TypedDict):
    status: Literal["success", "partial", "failed"]
    unloaded_models: list[str]
    errors: list[str]
    total_unloaded: int


class ModelStatusResponse(TypedDict):
    loaded: list[str]
    loading_status: dict[str, LoadStatus]
    repository: str
    progress: NotRequired[dict[str, float]]  # 0..1 of each load under way; a server's answer only


class HealthFeatures(TypedDict):
    dynamic_loading: bool
    huggingface_support: bool


class BackendInfo(TypedDict):
    name: str
    version: str
    extensions: list[str]


class BackendStatus(TypedDict):
    healthy: bool
    info: BackendInfo


class HealthResponse(TypedDict):
    """`degraded`: a server whose configured models are not loaded yet."""

    status: Literal["healthy", "degraded", "unhealthy"]
    node: str
    runtime: str
    timestamp: str
    features: HealthFeatures
    backend: BackendStatus


class GPUMemoryInfo(TypedDict):
    total_mb: int
    used_mb: int
    free_mb: int
    total_gb: float
    used_gb: float
    free_gb: float
    percent_used: float


class GPUUtilization(TypedDict):
    gpu_percent: int
    memory_percent: int


class GPUInfo(TypedDict):
    index: int
    name: str
    memory: GPUMemoryInfo
    utilization: GPUUtilization
    temperature_c: int


class GPUProcess(TypedDict):
    pid: int
    name: str
    memory_mb: int


class GPUStatusResponse(TypedDict):
    status: Literal["success"]
    timestamp: str
    gpus: list[GPUInfo]
    processes: list[GPUProcess]
    total_gpus: int


class GPUMemorySimple(TypedDict):
    total_gb: float
    used_gb: float
    free_gb: float
    percent_used: float
    percent_free: float


class GPUMemoryResponse(TypedDict):
    status: Literal["success"]
    timestamp: str
    memory: list[GPUMemorySimple]


class GPUMemoryState(TypedDict):
    used_gb: float
    total_gb: float
    percent_used: float


class GPUPurgeResponse(TypedDict):
    status: Literal["success", "partial", "failed"]
    timestamp: str
    actions: list[str]
    memory_before: GPUMemoryState
    memory_after: GPUMemoryState
    memory_freed_gb: float
    models_unloaded: list[str]
    errors: list[str]
    recommendation: str


# --- what the native module says of models and the machine ------------------------------------------------------------


class Device(TypedDict):
    name: str
    description: str
    gpu: bool
    memory_bytes: int
    free_bytes: int


class SystemInfo(TypedDict):
    """This machine, as this process may use it."""

    devices: list[Device]
    cpu_features: list[str]
    n_threads: int
    available_bytes: int
    kernels: str  # instruction set of this package's own CPU kernels, "off" = those of llama.cpp
    build: str


class FileSummary(TypedDict):
    """What a GGUF file says about itself. Cache sizes are of one token."""

    file_bytes: int
    tensor_bytes: int
    n_params: int
    n_splits: int
    vocab_only: bool
    architecture: str
    name: str
    tasks: list[Task]
    labels: list[str]
    quantization: str
    chat_template: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ctx_train: int
    n_vocab: int
    cache_bytes_f16: int
    cache_bytes_q8_0: int
    metadata: dict[str, str]


class NativeInfo(TypedDict):
    """A loaded model, as `_core` has it. `n_ctx` is the context of each of `max_streams` streams, in tokens."""

    path: str
    architecture: str
    description: str
    quantization: str
    chat_template: str
    rerank_template: str
    tasks: list[Task]
    labels: list[str]
    bos_text: str
    eos_text: str
    special_tokens: dict[str, str]
    additional_special_tokens: list[str]
    longest_piece: int  # bytes
    n_params: int
    file_bytes: int
    weights_bytes: int
    cache_bytes: int
    prefix_cache_bytes: int
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_layer: int
    max_streams: int
    n_threads: int
    n_gpu_layers: int
    n_batch: int
    add_bos: bool
    flash_attention: bool
    cache_type: Literal["f16", "q8_0"]
    kernels: str  # as in SystemInfo
    build: str
    load_ms: float
    devices: list[Device]
    metadata: dict[str, str]


class LoadedModelInfo(NativeInfo):
    """What `info()` gives. `chat_format`: whose chat template it is, or the name of a known one."""

    chat_format: str


class ModelStats(TypedDict):
    """Counters of one loaded model since its load, and what it holds now; cells are tokens of its KV cache."""

    n_running: int
    n_waiting: int
    n_requests: int
    n_finished: int
    n_cancelled: int
    n_failed: int
    n_prompt_tokens: int
    n_cached_tokens: int
    n_generated_tokens: int
    n_steps: int
    n_cells: int
    n_cells_used: int
    prefix_cache_bytes: int


# --- field types ------------------------------------------------------------------------------------------------------


def _whole(value: Any) -> Any:
    """Some JSON writers print every number with a fraction: 150.0 is 150, 150.5 is an error, True never a number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _strings(limit: int, what: str) -> Callable[[Any], Any]:
    def check(value: list[str]) -> list[str]:
        if len(value) > limit:
            raise PydanticCustomError("too_long", f"at most {limit} {what}, got {len(value)}")
        for i, text in enumerate(value):
            if not text or len(text.encode()) > MAX_STOP_BYTES:
                raise PydanticCustomError("length", f"item {i} must have 1 to {MAX_STOP_BYTES} bytes")
        return value

    return check


def _bias(value: dict[int, float]) -> dict[int, float]:
    if len(value) > MAX_LOGIT_BIAS:
        raise PydanticCustomError("too_long", f"at most {MAX_LOGIT_BIAS} entries, got {len(value)}")
    for token, bias in value.items():
        if not 0 <= token < 2**31 or not -100 <= bias <= 100:
            raise PydanticCustomError("bias", "token ids are 0 or more, biases lie in -100..100")
    return value


def _bias_keys(value: Any) -> Any:
    """JSON has string keys only."""
    if not isinstance(value, Mapping):
        return value
    return {
        int(k) if isinstance(k, str) and k.isascii() and k.isdigit() and len(k) < 11 else k: v for k, v in value.items()
    }


def _filter(value: Any) -> Any:
    if value is None or callable(value):
        return value
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise PydanticCustomError("filter", "must be a list of phrases or a callable(text) -> bool")
    return _strings(MAX_FILTER, "phrases")(list(value))


def _max_tokens(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("max_tokens", "must be 1 or more, or -1 for what the context leaves", {"ge": 1})
    return value


def _encoding(value: Any) -> Any:
    if value not in ("float", "base64", "numpy"):
        raise PydanticCustomError("encoding_format", "must be 'float' or 'base64', in process also 'numpy'")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, Field(min_length=1)]
ModelName = Annotated[str, Field(min_length=1, max_length=4096)]  # the longest path
Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TopK = Annotated[Whole, Field(ge=-(2**31), lt=2**31)]
MaxTokens = Annotated[Whole, Field(ge=-1, lt=2**31), AfterValidator(_max_tokens)]
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**64)]
Stop = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else _as_list(value)),
    AfterValidator(_strings(MAX_STOP, "stop strings")),
]
LogitBias = Annotated[dict[int, float], BeforeValidator(_bias_keys), AfterValidator(_bias)]


class Model(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, arbitrary_types_allowed=True)


# --- messages ---------------------------------------------------------------------------------------------------------


class TextPart(Model):
    type: Literal["text"]
    text: str


class ImagePart(Model):
    type: Literal["image_url"]
    image_url: dict[str, Any]


class FunctionCall(Model):
    name: str
    arguments: str


class ToolCall(Model):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # of a call that came in a stream; the order of the list says the same


def _one_of(tags: dict[type, str], message: str) -> Discriminator:
    def tag(value: Any) -> str | None:
        return next((name for cls, name in tags.items() if isinstance(value, cls)), None)

    return Discriminator(tag, custom_error_type="type", custom_error_message=message)


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image_url") else None


# Tags in angle brackets: they show up in pydantic's paths and are taken out of ours.
_Part = Annotated[
    Union[Annotated[TextPart, Tag("<text>")], Annotated[ImagePart, Tag("<image_url>")]],
    Discriminator(_part_tag, custom_error_type="type", custom_error_message="type must be 'text' or 'image_url'"),
]
Content = Annotated[
    Union[
        Annotated[str, Tag("<str>")],
        Annotated[list[_Part], BeforeValidator(_as_list), Tag("<parts>")],
        Annotated[None, Tag("<null>")],
    ],
    _one_of(
        {str: "<str>", list: "<parts>", tuple: "<parts>", type(None): "<null>"},
        "must be a string, null or a list of content parts",
    ),
]
Strings = Annotated[
    Union[
        Annotated[str, Field(min_length=1), Tag("<str>")],
        Annotated[list[Text], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_PROMPTS), Tag("<list>")],
    ],
    _one_of({str: "<str>", list: "<list>", tuple: "<list>"}, "must be a string or a list of strings"),
]


class Message(Model):
    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: Content = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], BeforeValidator(_as_list)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


# --- requests ---------------------------------------------------------------------------------------------------------


class Sampling(Model):
    """What the native sampler takes as it is, by the same names."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Unit = 0.9
    top_k: TopK = 0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    min_p: Unit = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class _Sampled(Sampling):
    """What every generating request has in common."""

    model: ModelName | None = None
    logit_bias: LogitBias = {}
    seed: Seed | None = None
    stop: Stop = []
    stream: bool = False
    stream_options: dict[str, bool] = {}
    user: str | None = None
    ignore_eos: bool = False
    content_filter: Annotated[Any, BeforeValidator(_filter)] = None
    n: Whole = 1
    grammar: Any = (
        None  # constraints of other engines: refused by name, since an answer without them would be a wrong one
    )
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options.get("include_usage") is True


class ChatCompletionRequest(_Sampled):
    messages: Annotated[list[Message], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: MaxTokens = 150
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] = 0
    enable_thinking: bool | None = None
    tools: Any = None
    tool_choice: Any = None
    response_format: Any = None

    @property
    def n_logprobs(self) -> int:
        """Alternatives per token; -1 = no logprobs at all."""
        return self.top_logprobs if self.logprobs else -1


class CompletionRequest(_Sampled):
    prompt: Strings
    max_tokens: MaxTokens = 100
    top_k: TopK = 50
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    best_of: Whole = 1
    suffix: str = ""
    parse_special: bool = True  # control tokens written in the prompt are honoured; False = they are text

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def n_logprobs(self) -> int:
        return -1 if self.logprobs is None else self.logprobs


class EmbeddingRequest(Model):
    input: Strings
    model: ModelName | None = None
    user: str | None = None
    encoding_format: Annotated[Literal["float", "base64", "numpy"], BeforeValidator(_encoding)] = "float"
    dimensions: Whole | None = None

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


def _document(value: Any) -> Any:
    """A text, or {"text": ...} as some clients wrap it."""
    return value["text"] if isinstance(value, Mapping) and isinstance(value.get("text"), str) else value


class RerankRequest(Model):
    """How well each document answers the query; the best first."""

    query: Text
    documents: Annotated[
        list[Annotated[Text, BeforeValidator(_document)]],
        BeforeValidator(_as_list),
        Field(min_length=1, max_length=MAX_PROMPTS),
    ]
    model: ModelName | None = None
    top_n: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None  # results, None = all
    return_documents: bool = False
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        return self.documents


class GenerateRequest(Model):
    prompt: Text
    model: ModelName | None = None
    max_tokens: MaxTokens = 150
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Unit = 0.9
    stop: Stop = []
    request_id: str | None = None  # a note of the caller's: the SDK's class has it, and nothing reads it there either


Request = Union[ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest, GenerateRequest]
KINDS: dict[str, type[Any]] = {
    "chat": ChatCompletionRequest,
    "completion": CompletionRequest,
    "embedding": EmbeddingRequest,
    "rerank": RerankRequest,
    "generate": GenerateRequest,
}
R = TypeVar("R", bound=Model)

# The fields of OpenAI's clients that the models above have not. These never change an answer, and are accepted:
NO_EFFECT = frozenset(
    (
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
    )
)
# These ask for another answer than the one given here. Only the values that ask for nothing are accepted:
ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"], []),
    "moderation": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# So do these fields of other engines, which their clients send:
OTHERS_ASK: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),  # enable_thinking is a field of its own
    "continue_final_message": (False,),
    "ebnf": (),
    "json_schema": (),
    "min_tokens": (0,),
    "regex": (),
    "stop_token_ids": ([],),
    "structured_outputs": (),
}


# --- parsing ----------------------------------------------------------------------------------------------------------


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)


class _Keys(NamedTuple):
    """The keys of one kind of mapping: those that mean something, and those that others' replies carry and that pass empty."""

    fields: frozenset[str]
    aliases: dict[str, str]
    idle: frozenset[str]


def _keys(fields: Iterable[str], idle: Iterable[str] = (), **aliases: str) -> _Keys:
    fields = frozenset(fields)
    return _Keys(fields, {_camel(name): name for name in fields if "_" in name} | aliases, frozenset(idle))


_EXTRA = ("max_completion_tokens", *NO_EFFECT, *ASKS_NOTHING, *OTHERS_ASK)
_REQUEST = {kind: _keys((*cls.model_fields, *_EXTRA)) for kind, cls in KINDS.items()}
# An answer of this or another server may be sent back as it came.
_MESSAGE = _keys(
    Message.model_fields,
    (
        "refusal",
        "annotations",
        "audio",
        "function_call",
        "logprobs",
        "parsed",
        "reasoning_details",
        "thinking_blocks",
        "provider_specific_fields",
        "images",
    ),
    reasoning="reasoning_content",
)
_SPOKEN = {"refusal", "audio", "function_call", "images"}  # of those, what a model should have been told
# Unknown keys that say nothing to a model.
_LABELS = {"id", "type", "object", "status", "model", "created_at", "timestamp", "tool_name"}
_PARTS = {"text": _keys(TextPart.model_fields, ("annotations",)), "image_url": _keys(ImagePart.model_fields)}
_TOOL_CALL = _keys(ToolCall.model_fields)
_FUNCTION = _keys(FunctionCall.model_fields, ("parsed_arguments",))
_DOCUMENT = _keys(("text",))
_STREAM_OPTIONS = _keys(("include_usage",))
_RESPONSE_FORMAT = _keys(("type", "json_schema", "schema"))


def _known(value: Any, keys: _Keys, loc: tuple[Any, ...], strict: bool) -> Any:
    """A mapping's known keys, camelCase renamed (snake_case wins) and nulls dropped; anything else as it is. Other keys
    are refused when `strict`, dropped when not and nothing is lost with them."""
    if not isinstance(value, dict):
        return value
    known: dict[str, Any] = {}
    for key, item in value.items():
        name = keys.aliases.get(key, key)
        if item is None:
            continue
        if name in keys.fields:
            known[name] = known.get(name, item) if name != key else item
            continue
        given = key[:80] if isinstance(key, str) else _shown(key)
        where = f"{path(loc)}.{given}" if loc else given or "request"
        if name in keys.idle:
            if (strict or name in _SPOKEN) and not (isinstance(item, (str, list, dict)) and not item):
                raise _refuse(where, "not supported by this engine")
        elif strict:
            raise _refuse(where, f"unknown key{did_you_mean(given, keys.fields)}")
    return known


def _fields(value: Any, keys: _Keys, strict: bool) -> dict[str, Any]:
    """The top-level fields of one source; `max_completion_tokens` wins over `max_tokens`, its older name, as at OpenAI."""
    fields: dict[str, Any] = _known(value, keys, (), strict)
    if "max_completion_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    return fields


def _message(given: Any, loc: tuple[Any, ...], strict: bool) -> Any:
    message = _known(given, _MESSAGE, loc, strict)
    if not isinstance(message, dict):
        return message
    if isinstance(message.get("content"), list):
        message["content"] = [_part(part, (*loc, "content", i), strict) for i, part in enumerate(message["content"])]
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [
            _call(call, (*loc, "tool_calls", i), strict) for i, call in enumerate(message["tool_calls"])
        ]
    # A message without words is a mistake, or has them under a key that is not ours; only an answer may be empty.
    others = [
        key for key, item in given.items() if item is not None and _MESSAGE.aliases.get(key, key) not in _MESSAGE.fields
    ]
    if message.get("role") in ("assistant", "tool"):
        said = not others or "content" in given or message.get("tool_calls") or message.get("reasoning_content")
    else:
        said = "content" in message
    if not said:
        hint = f"; {_shown(others[0])} is no key of a message" if others else ""
        raise _refuse(path((*loc, "content")), f"required{hint}")
    if not (message.get("content") or message.get("tool_calls") or message.get("reasoning_content")):
        _check_no_words(given, _MESSAGE, loc, "content")
    return message


def _check_no_words(given: dict[Any, Any], keys: _Keys, loc: tuple[Any, ...], field: str) -> None:
    """Of a mapping whose `field` is empty: what stands under an unknown key was meant to be said, and would be lost."""
    for key, item in given.items():
        known = keys.aliases.get(key, key) in (*keys.fields, *keys.idle, *_LABELS)
        if not known and isinstance(item, (str, list)) and item:
            shown = key[:80] if isinstance(key, str) else _shown(key)
            raise _refuse(f"{path(loc)}.{shown}", f"unknown key, and {field} is empty; did you mean '{field}'?")


def _part(part: Any, loc: tuple[Any, ...], strict: bool) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    keys = _PARTS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        return part
    if kind == "text" and part.get("text") == "":
        _check_no_words(part, keys, loc, "text")
    return _known(part, keys, loc, strict)


def _call(call: Any, loc: tuple[Any, ...], strict: bool) -> Any:
    call = _known(call, _TOOL_CALL, loc, strict)
    if isinstance(call, dict) and "function" in call:
        call["function"] = _known(call["function"], _FUNCTION, (*loc, "function"), strict)
    return call


def path(loc: tuple[Any, ...]) -> str:
    """('messages', 2, 'content') -> messages[2].content"""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]" if abs(part) < 2**80 else "[...]"
        elif not part.startswith("<") and part != "[key]":
            text += f".{part[:80]}" if text else part[:80]
    return text


def _refuse(field: str, problem: str, **details: Any) -> ValidationError:
    return ValidationError(f"{field}: {problem}", param=field, details={"field": field, **details})


def _explain(error: PydanticError) -> ValidationError:
    first = error.errors(include_url=False)[0]
    field = path(first["loc"]) or "request"
    limits = {key: value for key, value in first.get("ctx", {}).items() if isinstance(value, (int, float))}
    problem = "required" if first["type"] == "missing" else first["msg"].replace(" after validation", "")
    for limit in first.get("ctx", {}).values():
        if isinstance(limit, int) and limit >= 2**53:  # pydantic writes it as a fraction, and wrong
            problem = re.sub(r"\d{16,}", str(limit), problem)
    for start in ("Input should ", "Value should ", "String should ", "List should ", "Dictionary should "):
        problem = problem.replace(start, "must ", 1)
    given = first["input"]
    if isinstance(given, str):
        given = given[:80]
    if first["type"] == "string_type" and first["loc"][0] in ("input", "prompt") and isinstance(given, (int, list)):
        return _refuse(field, "token ids are not accepted: another tokenizer's would be another text; send the text")
    if first["type"] != "missing" and (given is None or isinstance(given, (bool, int, float, str))):
        problem += f", got {_shown(given)}"
    return _refuse(field, problem, **limits)


def _shown(value: Any) -> str:
    """For messages; Python itself refuses to write out an integer of thousands of digits."""
    return "a huge number" if isinstance(value, int) and abs(value) >= 2**80 else repr(value)[:80]


def plain(value: Any, *loc: str | int) -> Any:
    """`value` in dicts, lists, strings and numbers of our own, whatever mappings and objects with `model_dump` it came in.

    One bounded walk: what holds itself, what is shared a million times and a mapping whose iteration never ends are all
    refused after MAX_VALUES steps or MAX_DEPTH levels. So is half a surrogate pair, which no tokenizer and no encoder
    takes. Raises ValidationError naming the place."""
    left, place = MAX_VALUES, list(loc)

    def refuse(problem: str, *, whole: bool = False) -> ValidationError:
        """`whole`: not this place is to blame, but the field that it lies in."""
        where = place[:1] if whole and place and isinstance(place[0], str) else [] if whole else place
        return _refuse(path(tuple(where)) or "request", problem)

    def read(items: Iterable[Any]) -> list[Any]:
        try:
            found = list(islice(items, left + 1))  # one more than may be: enough to see it
        except Exception as error:
            raise refuse(f"cannot be read: {type(error).__name__}: {str(error)[:200]}") from None
        if len(found) > left:
            raise refuse(f"holds more than {MAX_VALUES} values", whole=True)
        return found

    def inside(key: str | int, value: Any, depth: int) -> Any:
        place.append(key)
        value = copy(value, depth)
        place.pop()
        return value

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise refuse(f"holds more than {MAX_VALUES} values", whole=True)
        if isinstance(value, str):
            try:
                value.isascii() or value.encode()
            except UnicodeEncodeError as error:
                raise refuse(f"lone surrogate at character {error.start}") from None
            return str.__str__(value)
        if value is None or isinstance(value, (int, float, type)):
            return value
        if depth > MAX_DEPTH:
            raise refuse(f"nested deeper than {MAX_DEPTH}", whole=True)
        if isinstance(value, (list, tuple)):
            return [inside(i, item, depth + 1) for i, item in enumerate(read(value))]
        if isinstance(value, Mapping):
            fresh = {}
            for key, item in read(_items(value)):
                if isinstance(key, bool) or not isinstance(key, (str, int)):
                    raise refuse(f"keys must be strings, got {type(key).__name__}")
                key = copy(key, depth)
                fresh[key] = inside(key, item, depth + 1)
            return fresh
        if hasattr(value, "model_dump"):
            if isinstance(value, BaseModel):
                copy(dict(value), depth + 1)  # what it holds is bounded, and so is what dumps it
            (dumped,) = read(value.model_dump() for _ in range(1))
            return copy(dumped, depth + 1)
        if isinstance(value, Real):  # numpy's
            return int(value) if isinstance(value, Integral) else float(value)
        if not callable(value):
            raise refuse(f"must be plain data, got {type(value).__name__}")
        return value

    return copy(value, 0 if loc else -1)


def _items(mapping: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    for key, item in mapping.items():  # unpacked here, where an entry that is no pair is caught
        yield key, item


def _check_answerable(data: Mapping[str, Any]) -> None:
    """Raises for a field of ASKS_NOTHING or OTHERS_ASK that asks for something."""
    for field, nothing in {**ASKS_NOTHING, **OTHERS_ASK}.items():
        if field in data and data[field] not in nothing:
            only = f"; only {' or '.join(map(repr, nothing))} is accepted" if nothing else ""
            raise _refuse(field, f"not supported by this engine{only}")


def _check_supported(request: Any) -> None:
    """What this engine cannot do yet is refused by name, never ignored."""
    if getattr(request, "n", 1) != 1:
        raise _refuse("n", f"only 1 is supported, got {_shown(request.n)}", limit=1)
    for field in ("grammar", "guided_json", "guided_regex", "guided_choice", "guided_grammar"):
        if getattr(request, field, None) is not None:
            raise _refuse(field, "not supported by this engine")
    if isinstance(request, ChatCompletionRequest):
        if request.tools:
            raise _refuse("tools", "not supported by this engine")
        if request.tool_choice not in (None, "none"):
            raise _refuse("tool_choice", "only 'none' is supported by this engine")
        form = request.response_format
        if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
            raise _refuse("response_format", "only {'type': 'text'} is supported by this engine")
        if request.top_logprobs and not request.logprobs:
            raise _refuse("top_logprobs", "needs logprobs: true")
        for i, message in enumerate(request.messages):
            for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
                if isinstance(part, ImagePart):
                    name = request.model or "this model"
                    raise ValidationError(
                        f"model '{name}' does not support image input",
                        param=f"messages[{i}].content[{j}]",
                        details={"field": f"messages[{i}].content[{j}]"},
                    )
    if isinstance(request, CompletionRequest):
        if request.echo:
            raise _refuse("echo", "not supported by this engine")
        if request.best_of != 1:
            raise _refuse("best_of", f"only 1 is supported, got {_shown(request.best_of)}", limit=1)
        if request.suffix:
            raise _refuse("suffix", "not supported by this engine")
    if isinstance(request, EmbeddingRequest) and request.dimensions is not None:
        raise _refuse("dimensions", "not supported by this engine")


def parse_filter(value: Any) -> Any:
    """A content filter outside a request: phrases or a callable. Raises ValidationError."""
    try:
        return _filter(plain(value, "content_filter"))
    except PydanticCustomError as error:
        raise _refuse("content_filter", error.message()) from None


def parse_fields(obj: Any, *fields: str) -> dict[str, Any]:
    """The `fields` that a small request (a dict or an object) has. Raises ValidationError for anything else in it."""
    obj = plain(obj)
    if not isinstance(obj, dict):
        raise _refuse("request", f"must be a dict or a request object, got {type(obj).__name__}")
    return dict(_known(obj, _keys(fields), (), True))


def parse_request(
    kind: str,
    obj: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    max_tokens_limit: int | None = MAX_TOKENS,
    strict: bool = True,
) -> Any:
    """The request model of `kind` ("chat", "completion", "embedding", "rerank", "generate") for a dict, an SDK object,
    keyword arguments, or a positional object with keywords on top. None means omitted; camelCase is an alias; nothing the
    caller passed is changed. Unknown keys, at any level, are refused with the nearest known one; `strict=False` tolerates
    them, as the remote API does. A request parsed before is returned as it is. Without `max_tokens` an answer has the
    SDK's 150 (chat) or 100 (completion) tokens at most; -1 is as many as the context leaves.

    Raises ValidationError naming the field's path and its limit; `param` and `details["field"]` hold the path."""
    cls = KINDS[kind]
    if isinstance(obj, cls) and not kwargs:
        return obj
    if isinstance(obj, cls):
        obj = obj.model_dump(exclude_unset=True)
    obj = plain(obj)
    if obj is not None and not isinstance(obj, dict):
        raise _refuse("request", f"must be a dict or a request object, got {type(obj).__name__}")
    keys = _REQUEST[kind]
    data = {**_fields(obj or {}, keys, strict), **_fields(plain(kwargs or {}), keys, strict)}
    _check_answerable(data)
    if isinstance(data.get("messages"), list):
        data["messages"] = [_message(message, ("messages", i), strict) for i, message in enumerate(data["messages"])]
    if isinstance(data.get("documents"), list):
        data["documents"] = [
            _known(text, _DOCUMENT, ("documents", i), strict) for i, text in enumerate(data["documents"])
        ]
    for field, known in (("stream_options", _STREAM_OPTIONS), ("response_format", _RESPONSE_FORMAT)):
        if field in data:
            data[field] = _known(data[field], known, (field,), strict)
    data = {key: value for key, value in data.items() if key in cls.model_fields}
    try:
        request = cls.model_validate(data)
    except PydanticError as error:
        raise _explain(error) from None
    limit = max_tokens_limit or math.inf
    if getattr(request, "max_tokens", 0) > limit:
        raise _refuse("max_tokens", f"must be between 1 and {limit}, got {request.max_tokens}", le=limit)
    _check_supported(request)
    return request
