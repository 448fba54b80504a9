"""Endpoint: path, words and types of one thing the API offers; ENDPOINTS is the one list of them.

The server's routes, its OpenAPI document and the SDK drop-in are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from pydantic import BaseModel

from polargrid_local.api.keys import keys_of
from polargrid_local.api.parse import parse_request
from polargrid_local.api.replies import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    EmbeddingResponse,
    GPUMemoryResponse,
    GPUPurgeResponse,
    GPUStatusResponse,
    HealthResponse,
    ListModelsResponse,
    LoadModelResponse,
    ModelInfo,
    ModelStatusResponse,
    RerankResponse,
    UnloadAllModelsResponse,
    UnloadModelResponse,
)
from polargrid_local.api.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from polargrid_local.dialects.cohere import CohereEmbed, CohereEmbedReply, CohereRerank, CohereRerankReply
from polargrid_local.dialects.described import (
    CohereEmbedRequest,
    CohereRerankRequest,
    CountTokensRequest,
    DetokenizeRequest,
    InfillRequest,
    LlamaCompletionRequest,
    LlamaEmbeddingRequest,
    MessagesRequest,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
)
from polargrid_local.dialects.exchange import AlwaysStreams, Exchange
from polargrid_local.dialects.llama_server import (
    LlamaCompletion,
    LlamaCompletionReply,
    LlamaEmbedding,
    LlamaEmbeddingReply,
    LlamaExchange,
    LlamaInfill,
)
from polargrid_local.dialects.message_events import MessageEvent, MessageReply, TokenCount
from polargrid_local.dialects.message_models import model_words, models_page
from polargrid_local.dialects.message_request import chat_fields
from polargrid_local.dialects.messages import MessagesExchange
from polargrid_local.dialects.ollama import OllamaChat, OllamaEmbed, OllamaEmbeddings, OllamaExchange, OllamaGenerate
from polargrid_local.dialects.ollama_replies import (
    OllamaChatReply,
    OllamaEmbeddingReply,
    OllamaEmbedReply,
    OllamaGenerateReply,
    OllamaModel,
    OllamaModels,
    OllamaRunning,
    OllamaVersion,
)
from polargrid_local.dialects.pooling import Pooling, PoolingReply
from polargrid_local.dialects.response_request import CountedResponseRequest, ResponseRequest
from polargrid_local.dialects.responses import ResponseEvent, ResponseReply, ResponsesExchange
from polargrid_local.dialects.score import PAIRS, Rerank, Score, ScoreReply
from polargrid_local.errors import ValidationError
from polargrid_local.service import llama_server, ollama, responses
from polargrid_local.service.given import Given
from polargrid_local.service.kept import DeletedResponse, ResponseItems
from polargrid_local.service.llama_server import (
    ListedAdapter,
    Load,
    Prompt,
    Props,
    Slot,
    Text,
    TokenizerInfo,
    Tokens,
    Version,
)
from polargrid_local.service.responses import InputTokens
from polargrid_local.service.service import Kind, Service, StatusResponse
from polargrid_local.service.usage import UsageResponse


class LoadModelRequest(BaseModel):
    model_name: str
    force_reload: bool = False


class UnloadModelRequest(BaseModel):
    model_name: str


class GPUPurgeRequest(BaseModel):
    force: bool = False


class Endpoint(NamedTuple):
    """Answered by `kind`, a request for text that takes a lease on a model, or by `answer`; by the server itself where
    both are None. `chunk` is what its event stream consists of, if it has one. Types are TypedDicts of the replies."""

    name: str
    method: Literal["GET", "POST", "DELETE"]
    path: str  # {model_id} stands for the rest of the path
    tag: str
    summary: str
    kind: Kind | None = None
    answer: Callable[[Service, Given], Coroutine[Any, Any, Any]] | None = None
    request: type[BaseModel] | None = None
    reply: Any = None  # or a list of them; None: it is not JSON
    chunk: Any = None
    text: str = ""  # what else the documentation says
    exchange: type[Exchange] = Exchange  # whose words these are
    query: tuple[str, ...] = ()  # parameters that an address may have
    dates: tuple[str, ...] = ()  # those that are dates
    other_path: str | None = None  # as of clients whose base URL has no version; served too, not documented
    reads_all: bool = False  # `answer` itself tells which of the fields it does not know
    to_anthropic: Callable[[Any, Given], Any] | None = None  # the reply in the words of that API, for its clients
    takes_any: bool = False  # its body may be that of several other endpoints; meant_by() tells of which

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The parameters in `path` where it is this endpoint's, None where it is not."""
        if method != self.method:
            return None
        found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>.*)", self.path), path, re.DOTALL)
        return None if found is None else {name: unquote(value) for name, value in found.groupdict().items()}

    @property
    def parameters(self) -> list[str]:
        """Those in the path."""
        return re.findall(r"\{(\w+)\}", self.path)

    def unread(self, given: Mapping[str, Any]) -> list[str]:
        """Which of the fields that came with a request this endpoint does not know."""
        if self.reads_all:
            return []
        known = keys_of(self.request.model_fields if self.request is not None else ())
        names = {*known.fields, *known.aliases, *self.query, *self.dates, *self.parameters}
        return [name[:80] for name, value in given.items() if value is not None and name not in names]


def _model_name(given: Given) -> str:
    name = given.get("model_name", given.get("modelName"))
    if not isinstance(name, str) or not name:
        raise ValidationError("model_name: required, a non-empty string", param="model_name")
    return name


def _flag(given: Given, field: str, other_name: str = "") -> bool:
    flag = given.get(field, given.get(other_name))
    if not isinstance(flag, (bool, type(None))):
        raise ValidationError(f"{field}: expected true or false", param=field)
    return bool(flag)


async def _load(service: Service, given: Given) -> LoadModelResponse:
    force = _flag(given, "force_reload", "forceReload")
    return await service.load_model(_model_name(given), force)


async def _count_tokens(service: Service, given: Given) -> TokenCount:
    fields = chat_fields(given, given.ignored, counted=True)
    request = parse_request("chat", fields, max_tokens_limit=None)
    return {"input_tokens": await service.count_tokens(request)}


async def _count_chat_tokens(service: Service, given: Given) -> TokenCount:
    request = parse_request("chat", given, max_tokens_limit=None, ignored=given.ignored)
    return {"input_tokens": await service.count_tokens(request)}


_LINES = "Lines of JSON, the last with `done: true`. With `stream: false`: one object."
_STREAMS = "With `stream: true`: Server-Sent Events, one chunk each, then [DONE]."

# The first that fits answers: /v1/models/status comes before /v1/models/{model_id}.
ENDPOINTS = (
    Endpoint(
        "chat_completions", "POST", "/v1/chat/completions", "Text", "Chat completion",
        kind="chat", text=_STREAMS, other_path="/chat/completions",
        request=ChatCompletionRequest, reply=ChatCompletionResponse, chunk=ChatCompletionChunk,
    ),
    Endpoint(
        "count_chat_tokens", "POST", "/v1/chat/completions/input_tokens", "Text", "How many tokens a prompt has",
        answer=_count_chat_tokens, other_path="/chat/completions/input_tokens",
        request=ChatCompletionRequest, reply=TokenCount, reads_all=True,
    ),
    Endpoint(
        "completions", "POST", "/v1/completions", "Text", "Text completion",
        kind="completion", text=_STREAMS, other_path="/completions",
        request=CompletionRequest, reply=CompletionResponse, chunk=CompletionChunk,
    ),
    Endpoint(
        "completions_stream", "POST", "/v1/completions/stream", "Text", "Text completion, always streamed",
        kind="completion", exchange=AlwaysStreams, request=CompletionRequest, chunk=CompletionChunk,
    ),
    Endpoint(
        "responses", "POST", "/v1/responses", "Responses", "An answer, as OpenAI's Responses API gives it",
        kind="chat", exchange=ResponsesExchange, text="With `stream: true`: Server-Sent Events, to response.completed.",
        other_path="/responses",
        request=ResponseRequest, reply=ResponseReply, chunk=ResponseEvent,
    ),
    Endpoint(
        "count_response_tokens", "POST", "/v1/responses/input_tokens", "Responses", "How many tokens an input has",
        answer=responses.count_input_tokens, exchange=ResponsesExchange,
        request=CountedResponseRequest, reply=InputTokens,
    ),
    Endpoint(
        "response_input_items", "GET", "/v1/responses/{response_id}/input_items", "Responses", "What was asked",
        answer=lambda service, given: service.kept.input_items(given), reply=ResponseItems,
        query=("limit", "order", "after"),
    ),
    Endpoint(
        "cancel_response", "POST", "/v1/responses/{response_id}/cancel", "Responses", "A refusal: it has ended",
        answer=responses.cancel, text="An answer under way ends when its connection is closed.",
    ),
    Endpoint(
        "get_response", "GET", "/v1/responses/{response_id}", "Responses", "A response that is kept",
        answer=lambda service, given: service.kept.retrieve(given), reply=ResponseReply, query=("stream",),
    ),
    Endpoint(
        "delete_response", "DELETE", "/v1/responses/{response_id}", "Responses", "Keep a response no longer",
        answer=lambda service, given: service.kept.delete(given), reply=DeletedResponse,
    ),
    Endpoint(
        "messages", "POST", "/v1/messages", "Anthropic", "An answer, as Anthropic's Messages API gives it",
        kind="chat", exchange=MessagesExchange, text="With `stream: true`: Server-Sent Events, to message_stop.",
        other_path="/messages",
        request=MessagesRequest, reply=MessageReply, chunk=MessageEvent,
    ),
    Endpoint(
        "count_message_tokens", "POST", "/v1/messages/count_tokens", "Anthropic", "How many tokens a prompt has",
        answer=_count_tokens, exchange=MessagesExchange, request=CountTokensRequest, reply=TokenCount,
        other_path="/messages/count_tokens",
    ),
    Endpoint(
        "embeddings", "POST", "/v1/embeddings", "Text", "Embeddings: one vector of floats per input",
        text="With `messages` in place of `input`: the vector of the chat's prompt.",
        kind="embedding", request=EmbeddingRequest, reply=EmbeddingResponse, other_path="/embeddings",
    ),
    Endpoint(
        "invocations", "POST", "/invocations", "Text", "One path for all: the fields say which request it is",
        kind="chat", takes_any=True, text="As /v1/chat/completions with `messages`, /v1/completions with `prompt`, "
        "/v1/embeddings with `input`, /v1/rerank with `query`, else /v1/score.",
    ),
    Endpoint(
        "pooling", "POST", "/pooling", "Text", "Embeddings, as vLLM gives what it pools",
        kind="embedding", exchange=Pooling, request=PoolingRequest, reply=PoolingReply,
    ),
    Endpoint(
        "rerank", "POST", "/v1/rerank", "Text", "Documents by how well they answer a query",
        kind="rerank", exchange=Rerank, request=RerankRequest, reply=RerankResponse, other_path="/rerank",
        text="With `texts` in place of `documents`: a bare list of `index`, `score` and `text`, as TEI gives it.",
    ),
    Endpoint(
        "score", "POST", "/v1/score", "Text", "How well each text goes with another one, as vLLM gives it",
        kind="rerank", exchange=Score, request=ScoreRequest, reply=ScoreReply, other_path="/score",
    ),
    Endpoint(
        "cohere_embed", "POST", "/v2/embed", "Cohere", "A vector for each text, as Cohere's API gives it",
        kind="embedding", exchange=CohereEmbed, request=CohereEmbedRequest, reply=CohereEmbedReply,
    ),
    Endpoint(
        "cohere_rerank", "POST", "/v2/rerank", "Cohere", "Documents by how well they answer a query",
        kind="rerank", exchange=CohereRerank, request=CohereRerankRequest, reply=CohereRerankReply,
        text="Scores are numbers of 0 to 1.",
    ),
    Endpoint(
        "list_models", "GET", "/v1/models", "Models", "Models of this machine",
        answer=lambda service, given: service.list_models(), reply=ListModelsResponse, other_path="/models",
        to_anthropic=models_page,
    ),
    Endpoint(
        "model_status", "GET", "/v1/models/status", "Models", "What is loaded, and how far a load has come",
        answer=lambda service, given: service.model_status(), reply=ModelStatusResponse,
    ),
    Endpoint(
        "load", "POST", "/v1/models/load", "Models", "Load a model; answers when it is loaded",
        answer=_load, request=LoadModelRequest, reply=LoadModelResponse,
    ),
    Endpoint(
        "unload", "POST", "/v1/models/unload", "Models", "Unload a model",
        answer=lambda service, given: service.unload_model(_model_name(given)),
        request=UnloadModelRequest, reply=UnloadModelResponse,
    ),
    Endpoint(
        "unload_all", "POST", "/v1/models/unload-all", "Models", "Unload all models",
        answer=lambda service, given: service.unload_all_models(), reply=UnloadAllModelsResponse,
    ),
    Endpoint(
        "get_model", "GET", "/v1/models/{model_id}", "Models", "One model",
        answer=lambda service, given: service.get_model(given["model_id"]), reply=ModelInfo,
        to_anthropic=lambda model, given: model_words(model),
    ),
    Endpoint(
        "gpu_status", "GET", "/v1/gpu/status", "Machine", "GPUs",
        answer=lambda service, given: service.gpu_status(), reply=GPUStatusResponse,
    ),
    Endpoint(
        "gpu_memory", "GET", "/v1/gpu/memory", "Machine", "GPU memory",
        answer=lambda service, given: service.gpu_memory(), reply=GPUMemoryResponse,
    ),
    Endpoint(
        "gpu_purge", "POST", "/v1/gpu/purge", "Machine", "Unload models to free GPU memory",
        answer=lambda service, given: service.purge_gpu(_flag(given, "force")),
        request=GPUPurgeRequest, reply=GPUPurgeResponse,
    ),
    Endpoint(
        "health", "GET", "/health", "Machine", "Health, 503 unless healthy; needs no API key",
        answer=lambda service, given: service.health(), reply=HealthResponse,
        text="degraded: the configured models are not loaded yet", other_path="/ping",
    ),
    Endpoint(
        "live", "GET", "/livez", "Machine", "Health, 503 only when unhealthy; needs no API key",
        answer=lambda service, given: service.health(), reply=HealthResponse,
        text="unhealthy: a model's engine has failed",
    ),
    Endpoint(
        "status", "GET", "/v1/status", "Machine", "Models with latency and queue",
        answer=lambda service, given: service.status(), reply=StatusResponse,
    ),
    Endpoint(
        "usage", "GET", "/v1/usage", "Machine", "Requests and tokens since the start",
        answer=lambda service, given: service.usage(given.get("start_date"), given.get("end_date")),
        reply=UsageResponse, dates=("start_date", "end_date"),
    ),
    Endpoint("metrics", "GET", "/metrics", "Machine", "Prometheus metrics"),
    Endpoint(
        "llama_completion", "POST", "/completion", "llama-server", "Text completion, as llama-server gives it",
        kind="completion", exchange=LlamaCompletion,
        request=LlamaCompletionRequest, reply=LlamaCompletionReply, chunk=LlamaCompletionReply,
        text="To several prompts: a list of these. With `stream: true`: Server-Sent Events, the last of each answer "
        "with `stop: true`.",
    ),
    Endpoint(
        "llama_infill", "POST", "/infill", "llama-server", "The text between two others, for models that fill gaps",
        kind="completion", exchange=LlamaInfill,
        request=InfillRequest, reply=LlamaCompletionReply, chunk=LlamaCompletionReply,
        text="With `stream: true`: Server-Sent Events, the last with `stop: true`.",
    ),
    Endpoint(
        "llama_embedding", "POST", "/embedding", "llama-server", "Embeddings, as llama-server gives them",
        kind="embedding", exchange=LlamaEmbedding, request=LlamaEmbeddingRequest, reply=list[LlamaEmbeddingReply],
    ),
    Endpoint(
        "tokenize", "POST", "/tokenize", "llama-server", "The tokens of a text, or of a chat's prompt",
        answer=llama_server.tokenize, exchange=LlamaExchange, request=TokenizeRequest, reply=Tokens,
        reads_all=True,
    ),
    Endpoint(
        "detokenize", "POST", "/detokenize", "llama-server", "The text of tokens",
        answer=llama_server.detokenize, exchange=LlamaExchange, request=DetokenizeRequest, reply=Text,
        reads_all=True,
    ),
    Endpoint(
        "apply_template", "POST", "/apply-template", "llama-server", "The prompt that is made of a chat",
        answer=llama_server.apply_template, exchange=LlamaExchange, request=ChatCompletionRequest, reply=Prompt,
        reads_all=True,
    ),
    Endpoint(
        "props", "GET", "/props", "llama-server", "How a model is served",
        answer=llama_server.props, exchange=LlamaExchange, reply=Props, query=("model",),
    ),
    Endpoint(
        "lora_adapters", "GET", "/lora-adapters", "llama-server", "The adapters that a model was loaded with",
        answer=llama_server.adapters, exchange=LlamaExchange, reply=list[ListedAdapter], query=("model",),
    ),
    Endpoint(
        "tokenizer_info", "GET", "/tokenizer_info", "llama-server", "Special tokens and template, as vLLM tells them",
        answer=llama_server.tokenizer_info, exchange=LlamaExchange, reply=TokenizerInfo, query=("model",),
    ),
    Endpoint(
        "version", "GET", "/version", "llama-server", "The release of this server, where vLLM tells its own",
        answer=llama_server.version, exchange=LlamaExchange, reply=Version,
    ),
    Endpoint(
        "server_load", "GET", "/load", "llama-server", "How many requests there are, as vLLM tells it",
        answer=llama_server.load, exchange=LlamaExchange, reply=Load,
    ),
    Endpoint(
        "slots", "GET", "/slots", "llama-server", "The streams that a model may have",
        answer=llama_server.slots, exchange=LlamaExchange, reply=list[Slot], query=("model",),
    ),
    Endpoint(
        "ollama_chat", "POST", "/api/chat", "Ollama", "Chat, as Ollama's API gives it",
        kind="chat", exchange=OllamaChat, text=_LINES, request=OllamaChatRequest, reply=OllamaChatReply,
    ),
    Endpoint(
        "ollama_generate", "POST", "/api/generate", "Ollama", "An answer to one prompt",
        kind="chat", exchange=OllamaGenerate, text=_LINES, request=OllamaGenerateRequest, reply=OllamaGenerateReply,
    ),
    Endpoint(
        "ollama_embed", "POST", "/api/embed", "Ollama", "A vector for each input",
        kind="embedding", exchange=OllamaEmbed, request=OllamaEmbedRequest, reply=OllamaEmbedReply,
    ),
    Endpoint(
        "ollama_embeddings", "POST", "/api/embeddings", "Ollama", "The vector of one prompt",
        kind="embedding", exchange=OllamaEmbeddings, request=OllamaEmbeddingsRequest, reply=OllamaEmbeddingReply,
    ),
    Endpoint(
        "ollama_tags", "GET", "/api/tags", "Ollama", "Models of this machine",
        answer=lambda service, given: ollama.tags(service), exchange=OllamaExchange, reply=OllamaModels,
    ),
    Endpoint(
        "ollama_show", "POST", "/api/show", "Ollama", "What a model's file says of itself",
        answer=ollama.show, exchange=OllamaExchange, request=OllamaShowRequest, reply=OllamaModel,
    ),
    Endpoint(
        "ollama_ps", "GET", "/api/ps", "Ollama", "Models in memory",
        answer=lambda service, given: ollama.ps(service), exchange=OllamaExchange, reply=OllamaRunning,
    ),
    Endpoint(
        "ollama_version", "GET", "/api/version", "Ollama", "The release of Ollama whose API this is",
        answer=lambda service, given: ollama.version(), exchange=OllamaExchange, reply=OllamaVersion,
    ),
)  # fmt: skip


# The path whose requests alone have a field.
_MEANT = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
    "query": "/v1/rerank",
    **dict.fromkeys((name for pair in PAIRS for name in pair if name != "documents"), "/v1/score"),
}


def meant_by(body: Mapping[str, Any]) -> Endpoint:
    """The endpoint that a body is for, which came to a path for all. Raises ValidationError where none can be told."""
    path = next((path for field, path in _MEANT.items() if body.get(field) is not None), None)
    if path is None:
        raise ValidationError(f"the body must have one of {', '.join(_MEANT)}: they say which request it is")
    return next(endpoint for endpoint in ENDPOINTS if endpoint.path == path)


def find_endpoint(method: str, path: str) -> tuple[Endpoint, dict[str, str]] | None:
    """The endpoint of `path`, percent-encoded as a client sends it, and the parameters in it."""
    for endpoint in ENDPOINTS:
        if (found := endpoint.match(method, path)) is not None:
            return endpoint, found
    return None
