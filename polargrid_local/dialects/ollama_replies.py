"""What Ollama's API answers: the types of its objects, which of a streamed answer are its lines too."""

from __future__ import annotations

from typing import Any

from typing_extensions import NotRequired, TypedDict


class OllamaFunction(TypedDict):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCall(TypedDict):
    id: str
    function: OllamaFunction


class OllamaMessage(TypedDict):
    role: str
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[OllamaCall]]


class OllamaAnswer(TypedDict):
    """What all answers of text have. Counts and durations, in nanoseconds, stand in the last line."""

    model: str
    created_at: str
    done: bool
    done_reason: NotRequired[str]
    logprobs: NotRequired[list[dict[str, Any]]]
    total_duration: NotRequired[int]
    load_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    prompt_eval_duration: NotRequired[int]
    eval_count: NotRequired[int]
    eval_duration: NotRequired[int]


class OllamaChatReply(OllamaAnswer):
    message: OllamaMessage


class OllamaGenerateReply(OllamaAnswer):
    response: str
    thinking: NotRequired[str]


class OllamaEmbedReply(TypedDict):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingReply(TypedDict):
    embedding: list[float]


class OllamaDetails(TypedDict):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaListed(TypedDict):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(TypedDict):
    models: list[OllamaListed]


class OllamaLoaded(TypedDict):
    name: str
    model: str
    digest: str
    size: int
    size_vram: int
    context_length: int
    details: OllamaDetails
    expires_at: NotRequired[str]  # not of one that stays


class OllamaRunning(TypedDict):
    models: list[OllamaLoaded]


class OllamaModel(TypedDict):
    modelfile: str
    parameters: str
    license: str
    template: str
    modified_at: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]


class OllamaVersion(TypedDict):
    version: str
