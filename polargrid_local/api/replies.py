"""Replies: the TypedDicts of chunks and answers, and of what is said of models and of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, Union

# typing's TypeVar has defaults since Python 3.13, and pydantic describes typing's TypedDict only since 3.12.
from typing_extensions import NotRequired, TypedDict, TypeVar

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class CompletionTokensDetails(TypedDict):
    """Draft tokens that came true, and those that did not, which are no part of `completion_tokens`; tokens of
    thoughts, of chats that have these in `reasoning_content`."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: NotRequired[int]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: NotRequired[CompletionTokensDetails]  # with a `prediction`, or reasoning told apart
    prompt_tokens_details: NotRequired[PromptTokensDetails]  # over HTTP, as OpenAI has it; in process pg_metadata tells


class PGMetadata(TypedDict, total=False):
    region: str
    latency_ms: int
    model_load_time_ms: int | None
    queue_time_ms: int
    inference_time_ms: int
    seed: int
    cached_tokens: int
    system_fingerprint: str  # equal where all that fixes an answer's bits, the request aside, is equal
    dropped_keywords: list[str]  # paths in a schema that asked for more than the answer could be held to
    ignored_fields: list[str]  # of the request, which change no answer of this model


class Timings(TypedDict):
    """Milliseconds since submit (None = not reached), the decode rate, prompt tokens from the prefix cache, and the
    tokens of all drafts, whatever they were taken from: those that came true, and those that did not."""

    queue_ms: float | None
    prefill_ms: float | None
    first_token_ms: float | None
    total_ms: float | None
    tokens_per_second: float | None
    cached_tokens: int
    accepted_draft_tokens: int
    rejected_draft_tokens: int


class ServerTimings(TypedDict):
    """How fast an answer comes, as llama-server tells it: tokens that are counted, and milliseconds. What is not known
    yet is left out."""

    cache_n: int  # of the prompt, taken from the cache
    prompt_n: int  # of the prompt, read
    predicted_n: int
    prompt_ms: NotRequired[float]
    prompt_per_token_ms: NotRequired[float]
    prompt_per_second: NotRequired[float]
    predicted_ms: NotRequired[float]
    predicted_per_token_ms: NotRequired[float]
    predicted_per_second: NotRequired[float]
    draft_n: NotRequired[int]
    draft_n_accepted: NotRequired[int]


class PromptProgress(TypedDict):
    """How much of a prompt has been read, in tokens."""

    total: int
    cache: int  # of those processed, taken from the cache
    processed: int
    time_ms: NotRequired[float]  # since submit


class PromptLogprob(TypedDict):
    """What the model says of a token at its place in the prompt, as at vLLM."""

    logprob: float
    rank: int | None  # 1 = the likeliest of all; None where it is not known
    decoded_token: str


# One entry per token of a prompt: token id -> what is said of it, for the token itself and the likeliest at its place.
# The first is None, which nothing foretold.
PromptLogprobs = list[Union[dict[int, PromptLogprob], None]]


class ChatTopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(TypedDict):
    """`content`: one entry per token."""

    content: list[ChatTokenLogprob]


class FunctionCallReply(TypedDict):
    name: str
    arguments: str  # JSON; of an answer cut by its length as much of it as there is


class ToolCallReply(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCallReply


class FunctionCallDelta(TypedDict, total=False):
    """`name` comes whole, once; `arguments` in pieces."""

    name: str
    arguments: str


class ToolCallDelta(TypedDict):
    """A piece of the call number `index`: the first one has its id, type and name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[ToolCallDelta]
    function_call: FunctionCallDelta


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: NotRequired[ChatLogprobs]
    token_ids: NotRequired[list[int]]
    finish_reason: FinishReason | None
    stop_reason: NotRequired[str | int]  # the stop string or token that ended the answer


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage]  # where `stream_options` asked: in the last chunk, which has no choices, or in each
    system_fingerprint: NotRequired[str]  # over HTTP, in the last chunk, which has no choices
    prompt_token_ids: NotRequired[list[int]]  # in the first chunk alone
    prompt_logprobs: NotRequired[PromptLogprobs]  # likewise
    prompt_progress: NotRequired[PromptProgress]
    prompt_text: NotRequired[str]  # in the first chunk alone, where `return_prompt_text` asks for it
    timings: NotRequired[ServerTimings]


class ChatMessage(TypedDict):
    """`content` is None where there are only calls. `function_call` answers requests that gave `functions`."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallReply]]
    function_call: NotRequired[FunctionCallReply]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: NotRequired[ChatLogprobs]
    token_ids: NotRequired[list[int]]
    finish_reason: FinishReason
    stop_reason: NotRequired[str | int]  # the stop string or token that ended the answer


class ChatCompletionResponse(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    pg_metadata: PGMetadata
    system_fingerprint: NotRequired[str]  # over HTTP, as OpenAI has it; in process pg_metadata tells it
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]
    prompt_text: NotRequired[str]
    timings: NotRequired[ServerTimings]


class ToolChunkEvent(TypedDict):
    """A chunk of the answer of the round that runs."""

    kind: Literal["chunk"]
    chunk: ChatCompletionChunk


class ToolCallEvent(TypedDict):
    """A call that is about to run."""

    kind: Literal["call"]
    call: ToolCallReply


class ToolResultEvent(TypedDict):
    """What the model is told of a call that has run; `failed`: that is an error."""

    kind: Literal["result"]
    call: ToolCallReply
    result: str
    failed: bool


ToolEvent = Union[ToolChunkEvent, ToolCallEvent, ToolResultEvent]


class TextLogprobs(TypedDict):
    """Lists with one entry per token; offsets are in characters of the answer's text. With `return_token_ids` also the
    numbers of the tokens, and of those in `top_logprobs`, in the same order."""

    tokens: list[str]
    token_logprobs: list[float | None]  # None: of the first token of a prompt, which nothing foretold
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    token_ids: NotRequired[list[int]]
    top_token_ids: NotRequired[list[list[int] | None]]


class CompletionChunkChoice(TypedDict):
    text: str
    index: int
    logprobs: NotRequired[TextLogprobs]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]  # in the first chunk of each choice alone
    prompt_logprobs: NotRequired[PromptLogprobs]  # likewise
    finish_reason: FinishReason | None
    stop_reason: NotRequired[str | int]  # the stop string or token that ended the answer


class CompletionChunk(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage]  # as in a chat's last chunk
    system_fingerprint: NotRequired[str]  # over HTTP, in the last chunk, which has no choices
    prompt_progress: NotRequired[PromptProgress]
    timings: NotRequired[ServerTimings]


class CompletionChoice(TypedDict):
    text: str
    index: int
    logprobs: TextLogprobs | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]
    finish_reason: FinishReason
    stop_reason: NotRequired[str | int]  # the stop string or token that ended the answer


class CompletionResponse(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    pg_metadata: PGMetadata
    system_fingerprint: NotRequired[str]  # over HTTP, as OpenAI has it; in process pg_metadata tells it
    timings: NotRequired[ServerTimings]


class Score(TypedDict):
    """`logprob` is the sum of `token_logprobs`; `greedy`: each token was the likeliest at its place."""

    logprob: float
    tokens: list[str]
    token_logprobs: list[float]
    greedy: bool


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
    pg_metadata: NotRequired[PGMetadata]  # where fields were ignored


# --- replies about models and the machine -----------------------------------------------------------------------------

LoadStatus = Literal["loading", "loaded", "unloaded", "failed"]
Task = Literal["generate", "embed", "rank"]
RanksBy = Literal["scores", "cosine"]  # its own scores, or its vectors


class ModelMeta(TypedDict):
    """What a model's file says of itself, under llama-server's names; the last two are ours."""

    n_vocab: int
    n_ctx_train: int  # tokens
    n_embd: int
    n_params: int
    size: int  # of its weights, in bytes
    architecture: str
    quantization: str


class ModelInfo(TypedDict):
    """A model as lists show it, or an adapter, whose `root` and `parent` are its model. `tasks`, what it can be asked
    for, is ours; none of a file that cannot be loaded, which has no `meta` either."""

    id: str
    object: Literal["model"]
    created: int  # Unix time
    owned_by: str
    permission: list[Any]
    root: str
    parent: str | None
    tasks: list[Task]
    ranks_by: NotRequired[RanksBy]  # of what can rank alone
    max_model_len: NotRequired[int]  # tokens of prompt and answer; of a model that is not loaded at most so many
    max_completion_tokens: NotRequired[int]  # of an answer; a server's list only
    max_streams: NotRequired[int]  # that run at once
    meta: NotRequired[ModelMeta]


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
    gpu_problem: str  # why there is no GPU among them, or not every one; "" = nothing is wrong
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
    control_tokens: dict[str, int]  # text -> id
    # Those around a gap that an answer is to fill, by what they stand before: prefix, suffix, middle, and perhaps repo
    # and separator. Empty where one of the first three is missing.
    infill_tokens: dict[str, int]
    lora_scales: list[float]  # of the adapters, as they were loaded
    longest_piece: int  # bytes
    n_params: int
    file_bytes: int
    weights_bytes: int
    cache_bytes: int
    prefix_cache_bytes: int
    compute_bytes: int  # buffers of a pass
    draft_model_bytes: int
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
    process_id: int  # of the process that computes
    sandbox: str  # what keeps that process from more than computing, "seccomp, landlock"; "" = nothing
    load_ms: float
    devices: list[Device]  # that the model uses: the CPU, then GPUs
    placement: str  # in words: which layers run on a GPU, and why not more
    speculation: str  # in words: where drafts come from, or why there are none
    row_invariant: bool  # an answer's bits do not depend on what runs beside it, nor on what was cached
    metadata: dict[str, str]


class MemoryEstimate(TypedDict):
    """What a model would take, in bytes, with all its streams in use. `other_bytes`: the vocabulary, the graph, the
    program; `prefix_cache_bytes`: beyond the total, at most, once prompts were answered. `max_n_ctx`: what fits."""

    n_ctx: int
    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    other_bytes: int
    total_bytes: int
    prefix_cache_bytes: int
    available_bytes: int
    max_n_ctx: int
    fits: bool


class AdapterInfo(TypedDict):
    """A LoRA adapter that a model was loaded with. `id`: by which requests name it. `name`: that of the model it makes,
    "" for one that acts on every answer."""

    id: int
    name: str
    path: str
    scale: float
    file_bytes: int


class LoadedModelInfo(NativeInfo):
    """What `info()` gives. `chat_format`: whose chat template it is, or the name of a known one. `tool_format`: how
    calls of tools are written; "generic" for a notation of ours, which the model is told of in the prompt."""

    chat_format: str
    tool_format: str
    isolation: Literal["thread", "process"]  # where the engine runs: in this process, or in one of its own
    ranks_by: RanksBy | None  # None: it cannot rank
    adapters: list[AdapterInfo]
    system_fingerprint: str  # equal where all that fixes an answer's bits, the request aside, is equal


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
    n_accepted_tokens: int  # of drafts
    n_rejected_tokens: int
    prompt_seconds: float  # of answers that have ended: to read their prompts, and to say them; side by side added up
    generation_seconds: float
    n_cells: int
    n_cells_used: int
    prefix_cache_bytes: int
    device_bytes: dict[str, int]  # held of each GPU, by its name
