"""The public facade: Engine and AsyncEngine, with the methods of the remote SDK."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from typing_extensions import Never, Unpack

from polargrid_local.api.answer_type import ParsedReply
from polargrid_local.api.assemble import Assembler
from polargrid_local.api.functions import Tool
from polargrid_local.api.params import (
    ChatChanges,
    ChatParams,
    CompletionChanges,
    CompletionParams,
    DocumentParam,
    Dumpable,
    EmbeddingOptions,
    EmbeddingParams,
    GenerateOptions,
    GenerateParams,
    LoadModelParams,
    Messages,
    PurgeParams,
    RerankOptions,
    RerankParams,
    UnloadModelParams,
)
from polargrid_local.api.parse import parse_filter
from polargrid_local.api.prepare import CHAT, COMPLETION, EMBEDDING, GENERATE, RERANK, Job, Kind
from polargrid_local.api.replies import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    EmbeddingResponse,
    FileSummary,
    GenerateResponse,
    GPUMemoryResponse,
    GPUPurgeResponse,
    GPUStatusResponse,
    HealthResponse,
    ListModelsResponse,
    LoadedModelInfo,
    LoadModelResponse,
    MemoryEstimate,
    ModelInfo,
    ModelStats,
    ModelStatusResponse,
    RerankResponse,
    Score,
    SystemInfo,
    UnloadAllModelsResponse,
    UnloadModelResponse,
)
from polargrid_local.api.scoring import score_fields, scored
from polargrid_local.arguments import (
    adapters_of,
    chat_templates,
    force_request,
    load_request,
    model_name,
    path_of,
    prompt_or_request,
    query_or_request,
    refuse_options,
    wrong_type,
)
from polargrid_local.errors import EngineClosed
from polargrid_local.native.core import inspect, system
from polargrid_local.native.delivery import rest_if_leaving
from polargrid_local.native.loaded_model import LoadedModel
from polargrid_local.options import EngineKeywords, EngineOptions, described
from polargrid_local.registry import Models, Progress
from polargrid_local.streams import AsyncChatStream, BulkCall, ChatStream
from polargrid_local.text import sentences, text_of
from polargrid_local.tool_run import AsyncRunsTools, AsyncToolRun, RunsTools, ToolRun

if TYPE_CHECKING:
    from polargrid_local.api.replies import FloatArray
    from polargrid_local.api.requests import ChatCompletionRequest

__all__ = [
    "AsyncChatStream",
    "AsyncEngine",
    "AsyncToolRun",
    "ChatStream",
    "Engine",
    "Tool",
    "ToolRun",
    "inspect_model",
    "sentences",
    "system_info",
    "text_of",
]


C = TypeVar("C", bound=Mapping[str, Any])  # a chunk
R = TypeVar("R")  # the whole answer
T = TypeVar("T")  # the class that an answer is parsed as


def inspect_model(path: str | bytes | os.PathLike[str]) -> FileSummary:
    """Metadata of a GGUF file, read and checked without loading it. Raises InvalidModelError, NotFoundError,
    ValidationError (a name that is not UTF-8)."""
    return inspect(path)


def system_info() -> SystemInfo:
    """Devices, CPU features and build of the native module."""
    return system()


class _Settings:
    """The constructor of both engines."""

    @described
    def __init__(self, model: str | os.PathLike[str] | None = None, **keywords: Unpack[EngineKeywords]) -> None:
        """`model`: catalogue name or alias, or a path to a .gguf; None = load one later. The options hold for every
        model this engine loads; an unknown name and a value out of range are ValidationErrors. Beside those of the
        table:
        `models_dir` where model files lie; `lora` adapters, each a path or (path, scale); `adapters` that are asked for
        by name, {"MODEL:NAME": path or (path, scale)}: each is a model of that name, computed by MODEL's engine beside
        MODEL without it; `content_filter` phrases or callable(text) -> bool; `chat_template` (Jinja source, or a name
        such as "chatml"; or a mapping of models to such) replaces the model's; `on_load_progress(0..1)`."""
        given: dict[str, Any] = dict(keywords)
        own = {
            name: given.pop(name, None)
            for name in EngineKeywords.__annotations__
            if name not in EngineOptions.model_fields
        }
        options = EngineOptions.of(given)
        native = options.native()
        adapters, templates = adapters_of(own["lora"], own["adapters"]), chat_templates(own["chat_template"])
        progress = own["on_load_progress"]
        if progress is not None and not callable(progress):
            raise wrong_type("on_load_progress", "must be callable(share)", progress)
        models_dir = None if own["models_dir"] is None else path_of(own["models_dir"], "models_dir")
        self._models = Models(
            models_dir,
            native,
            parse_filter(own["content_filter"]),
            templates,
            own["engine_factory"],
            None if options.tool_format == "auto" else options.tool_format,
            options.isolation,
            adapters,
        )
        self._first = None if model is None else model_name(model, "model")
        self._models.expect(self._first)
        self._on_load_progress = progress
        self._begun()

    def _begun(self) -> None:
        """The rest of a constructor that may block."""

    @classmethod
    def _estimate(cls, model: str | os.PathLike[str], keywords: EngineKeywords) -> MemoryEstimate:
        return _Settings(**keywords)._models.estimate(model_name(model, "model"))

    def __repr__(self) -> str:
        models = getattr(self, "_models", None)  # none yet in a constructor that has failed
        return f"<{type(self).__name__}: {models.summary() if models else 'not made'}>"


class Engine(_Settings, RunsTools):
    """The remote API on this machine. The constructor loads the model; Ctrl-C cancels that. Safe from any thread.

    Requests are dicts, SDK request objects, or keyword arguments; see `types.ChatCompletionRequest` and its neighbours.
    Without `max_tokens` an answer ends after the remote SDK's 150 tokens (completions: 100); -1 is what the context
    leaves. Methods raise ValidationError, ContextLengthError, TemplateError, NotFoundError, RateLimitError (queue
    full), EngineClosed, ForkedEngineError, ServerError."""

    def _begun(self) -> None:
        if self._first is not None:
            self._models.load(self._first, on_progress=self._on_load_progress)

    @classmethod
    @described
    def estimate(cls, model: str | os.PathLike[str], **keywords: Unpack[EngineKeywords]) -> MemoryEstimate:
        """What a model would take of memory with these options, in bytes, found in a second or less without loading it.
        Raises NotFoundError, InvalidModelError, ValidationError."""
        return cls._estimate(model, keywords)

    @overload
    def chat_completion_stream(self, **fields: Unpack[ChatParams]) -> ChatStream[ChatCompletionChunk]: ...
    @overload
    def chat_completion_stream(
        self, request: ChatParams | Dumpable, **changes: Unpack[ChatChanges]
    ) -> ChatStream[ChatCompletionChunk]: ...
    @overload
    def chat_completion_stream(
        self, *, messages: Messages, response_format: type[Any], **fields: Any
    ) -> ChatStream[ChatCompletionChunk]: ...
    def chat_completion_stream(self, request: Any = None, **kwargs: Any) -> ChatStream[ChatCompletionChunk]:
        """Chunks of a chat answer, as they are produced. What is wrong with the request is raised here."""
        return ChatStream(*self._begin(CHAT, request, kwargs))

    @overload
    def completion_stream(self, **fields: Unpack[CompletionParams]) -> ChatStream[CompletionChunk]: ...
    @overload
    def completion_stream(
        self, request: CompletionParams | Dumpable, **changes: Unpack[CompletionChanges]
    ) -> ChatStream[CompletionChunk]: ...
    def completion_stream(self, request: Any = None, **kwargs: Any) -> ChatStream[CompletionChunk]:
        """Chunks that continue a prompt; of several prompts, interleaved, told apart by `choices[0]["index"]`."""
        return ChatStream(*self._begin(COMPLETION, request, kwargs))

    @overload
    def chat_completion(self, **fields: Unpack[ChatParams]) -> ChatCompletionResponse: ...
    @overload
    def chat_completion(
        self, request: ChatParams | Dumpable, **changes: Unpack[ChatChanges]
    ) -> ChatCompletionResponse: ...
    @overload
    def chat_completion(self, *, messages: Messages, response_format: type[T], **fields: Any) -> ParsedReply[T]: ...
    def chat_completion(self, request: Any = None, **kwargs: Any) -> Any:
        """A chat answer in one piece: the joined stream. With a class as `response_format` the reply has `parsed`."""
        return self._answer(CHAT, request, kwargs).response()

    @overload
    def completion(self, **fields: Unpack[CompletionParams]) -> CompletionResponse: ...
    @overload
    def completion(
        self, request: CompletionParams | Dumpable, **changes: Unpack[CompletionChanges]
    ) -> CompletionResponse: ...
    def completion(self, request: Any = None, **kwargs: Any) -> CompletionResponse:
        """The continuation of a prompt, or of a list of prompts with one choice each."""
        return self._answer(COMPLETION, request, kwargs).response()

    @overload
    def generate(
        self, request: str | GenerateParams | Dumpable, **options: Unpack[GenerateOptions]
    ) -> GenerateResponse: ...
    @overload
    def generate(self, **fields: Unpack[GenerateParams]) -> GenerateResponse: ...
    def generate(self, request: Any = None, **kwargs: Any) -> GenerateResponse:
        """One prompt as one user message: id, model, content, usage, created_at, processing_time_ms."""
        return self._answer(GENERATE, *prompt_or_request(request, kwargs)).generate_response()

    @overload
    def embeddings(
        self,
        request: EmbeddingParams | Dumpable,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["float", "base64", "numpy"] | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[Any]: ...
    @overload
    def embeddings(
        self,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["float"] | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[list[float]]: ...
    @overload
    def embeddings(
        self,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["base64"],
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[str]: ...
    @overload
    def embeddings(
        self,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["numpy"],
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[FloatArray]: ...
    def embeddings(self, request: Any = None, **kwargs: Any) -> EmbeddingResponse[Any]:
        """One vector per input text, or that of a chat's prompt with `messages` in place of `input`, in
        `data[i]["embedding"]`: a list of n_embd floats, with `encoding_format="base64"` the base64 of little-endian
        float32, with "numpy" a float32 array of shape (n_embd,)."""
        return BulkCall().run(*self._begin(EMBEDDING, request, kwargs))

    @overload
    def rerank(
        self, query: str, documents: Sequence[str | DocumentParam], **options: Unpack[RerankOptions]
    ) -> RerankResponse: ...
    @overload
    def rerank(
        self,
        query: RerankParams | Dumpable,
        documents: Sequence[str | DocumentParam] | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse: ...
    def rerank(self, query: Any = None, documents: Any = None, **kwargs: Any) -> RerankResponse:
        """Documents by how well they answer the query, the best first: `results` of index and relevance_score (what the
        model computes, higher is better). For reranking models, and for those that only embed, by the cosine of their
        vectors; `query` may be a whole request too."""
        return BulkCall().run(*self._begin(RERANK, *query_or_request(query, documents, kwargs)))

    def _begin(self, kind: Kind[C, R], request: Any, kwargs: dict[str, Any]) -> tuple[LoadedModel, Job[C, R]]:
        try:
            return self._models.begin(kind, request, kwargs)
        except EngineClosed:
            rest_if_leaving()
            raise

    def _answer(self, kind: Kind[C, R], request: Any, kwargs: dict[str, Any]) -> Assembler[C, R]:
        model, job = self._begin(kind, request, kwargs)
        with ChatStream(model, job, quiet=not job.assembler.watches) as stream:
            for _ in stream:
                pass
        return job.assembler

    def list_models(self) -> ListModelsResponse:
        """Loaded models, then the others on this disk."""
        return self._models.models()

    def get_model(self, model_id: str) -> ModelInfo:
        return self._models.get(model_id)

    def load_model(
        self,
        name: str | os.PathLike[str] | LoadModelParams | Dumpable,
        force_reload: bool = False,
        on_progress: Progress | None = None,
        **unknown: Never,
    ) -> LoadModelResponse:
        """`name`, or an SDK request (dict or object) with model_name and force_reload."""
        refuse_options(unknown)
        return self._models.load(*load_request(name, force_reload), on_progress=on_progress)

    def unload_model(self, name: str | os.PathLike[str] | UnloadModelParams | Dumpable) -> UnloadModelResponse:
        """Its running streams end with EngineClosed."""
        return self._models.unload(load_request(name)[0])

    def unload_all_models(self) -> UnloadAllModelsResponse:
        return self._models.unload_all()

    def get_model_status(self) -> ModelStatusResponse:
        return self._models.status()

    def health(self) -> HealthResponse:
        return self._models.health()

    def get_gpu_status(self) -> GPUStatusResponse:
        return self._models.gpu_status()

    def get_gpu_memory(self) -> GPUMemoryResponse:
        return self._models.gpu_memory()

    def gpu_bytes(self) -> int:
        """Memory, in bytes, of all GPUs that models may be placed on: none with device="cpu"."""
        return self._models.gpu_bytes()

    def bytes_to_load(self, model: str | os.PathLike[str]) -> int:
        """Memory, in bytes, that a model would take with this engine's options and all its streams in use. Raises as
        estimate() does."""
        return self._models.bytes_to_load(model_name(model, "model"))

    def purge_gpu(
        self, request: bool | PurgeParams | Dumpable | None = None, *, force: bool = False
    ) -> GPUPurgeResponse:
        """Unloads the models nobody uses; with `force` all."""
        return self._models.purge(force_request(request, force))

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Messages | ChatCompletionRequest | None = None,
        model: str | None = None,
        unlimited: bool = False,
        add_special: bool = True,
        parse_special: bool = False,
    ) -> list[int]:
        """Token ids of a text (where nothing is a control token, unless `parse_special`), or of messages through the
        chat template; those of a whole request are its prompt's, tools and all. `add_special`: with the token that
        begins every text, where the model has one. More characters than the context could hold are a
        ContextLengthError, unless `unlimited`."""
        return self._models.tokens(text, messages, model, unlimited, add_special, parse_special)

    def score(self, prompt: str, continuation: str, *, model: str | None = None) -> Score:
        """How likely the model finds `continuation` after `prompt`, without generating: of each token of it that
        reaches beyond the prompt. Raises what completion() raises."""
        fields = score_fields(prompt, continuation)
        return scored(self.completion(fields, model=model), prompt)

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None, special: bool = True) -> str:
        """The text of token ids; `special`: control tokens by their names, else left out. A piece of a character is
        U+FFFD. Raises ValidationError for an id that the vocabulary has not."""
        return self.detokenize_bytes(tokens, model=model, special=special).decode("utf-8", "replace")

    def detokenize_bytes(self, tokens: Sequence[int], *, model: str | None = None, special: bool = True) -> bytes:
        """As detokenize, in UTF-8, with pieces of characters as they are."""
        return self._models.bytes_of(tokens, model, special)

    def token_pieces(self, tokens: Sequence[int], *, model: str | None = None, special: bool = True) -> list[bytes]:
        """What each of the tokens stands for; joined, these are detokenize_bytes()."""
        return self._models.pieces_of(tokens, model, special)

    @overload
    def apply_template(self, **fields: Unpack[ChatParams]) -> str: ...
    @overload
    def apply_template(self, request: ChatParams | Dumpable, **changes: Unpack[ChatChanges]) -> str: ...
    def apply_template(self, request: Any = None, **kwargs: Any) -> str:
        """The prompt of a chat request as the model's template writes it, tools and all."""
        return self._models.prompt_text(request, kwargs)

    def stats(self) -> dict[str, ModelStats]:
        """Counters of every loaded model, by name."""
        return self._models.stats()

    def info(self, model: str | None = None) -> LoadedModelInfo:
        """What is loaded and how: sizes, context, devices, threads, metadata."""
        return self._models.info(model)

    def close(self) -> None:
        """Running streams end with EngineClosed; so does every later call. Idempotent."""
        self._models.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncEngine(_Settings, AsyncRunsTools):
    """Engine for asyncio: the same methods, `async with AsyncEngine("...") as engine` or `await
    AsyncEngine.create("...")`. The event loop is never blocked: loading, checking and tokenizing happen in worker
    threads."""

    @classmethod
    @described
    async def create(
        cls, model: str | os.PathLike[str] | None = None, **options: Unpack[EngineKeywords]
    ) -> AsyncEngine:
        """An engine with its model loaded. Cancelling the task cancels the load."""
        return await cls(model, **options).start()

    @classmethod
    @described
    async def estimate(cls, model: str | os.PathLike[str], **keywords: Unpack[EngineKeywords]) -> MemoryEstimate:
        """As Engine.estimate, in a worker thread."""
        return await asyncio.to_thread(cls._estimate, model, keywords)

    async def start(self) -> AsyncEngine:
        """Loads the model named in the constructor, once."""
        if self._first is not None:
            first, self._first = self._first, None
            try:
                await self._load(first, False, self._on_load_progress)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(self._models.close))
                raise
        return self

    async def _load(self, name: str | Path, force: bool, on_progress: Progress | None) -> LoadModelResponse:
        try:
            return await asyncio.to_thread(self._models.load, name, force, on_progress)
        except asyncio.CancelledError:
            self._models.abort(name)
            raise

    async def __aenter__(self) -> AsyncEngine:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @overload
    def chat_completion_stream(self, **fields: Unpack[ChatParams]) -> AsyncChatStream[ChatCompletionChunk]: ...
    @overload
    def chat_completion_stream(
        self, request: ChatParams | Dumpable, **changes: Unpack[ChatChanges]
    ) -> AsyncChatStream[ChatCompletionChunk]: ...
    @overload
    def chat_completion_stream(
        self, *, messages: Messages, response_format: type[Any], **fields: Any
    ) -> AsyncChatStream[ChatCompletionChunk]: ...
    def chat_completion_stream(self, request: Any = None, **kwargs: Any) -> AsyncChatStream[ChatCompletionChunk]:
        """Chunks of a chat answer. What is wrong with the request is raised by `await stream.start()` or the first
        step."""
        return AsyncChatStream(lambda: self._models.begin(CHAT, request, kwargs))

    @overload
    def completion_stream(self, **fields: Unpack[CompletionParams]) -> AsyncChatStream[CompletionChunk]: ...
    @overload
    def completion_stream(
        self, request: CompletionParams | Dumpable, **changes: Unpack[CompletionChanges]
    ) -> AsyncChatStream[CompletionChunk]: ...
    def completion_stream(self, request: Any = None, **kwargs: Any) -> AsyncChatStream[CompletionChunk]:
        """Chunks that continue a prompt; of several prompts, interleaved, told apart by `choices[0]["index"]`."""
        return AsyncChatStream(lambda: self._models.begin(COMPLETION, request, kwargs))

    @overload
    async def chat_completion(self, **fields: Unpack[ChatParams]) -> ChatCompletionResponse: ...
    @overload
    async def chat_completion(
        self, request: ChatParams | Dumpable, **changes: Unpack[ChatChanges]
    ) -> ChatCompletionResponse: ...
    @overload
    async def chat_completion(
        self, *, messages: Messages, response_format: type[T], **fields: Any
    ) -> ParsedReply[T]: ...
    async def chat_completion(self, request: Any = None, **kwargs: Any) -> Any:
        return (await self._answer(CHAT, request, kwargs)).response()

    @overload
    async def completion(self, **fields: Unpack[CompletionParams]) -> CompletionResponse: ...
    @overload
    async def completion(
        self, request: CompletionParams | Dumpable, **changes: Unpack[CompletionChanges]
    ) -> CompletionResponse: ...
    async def completion(self, request: Any = None, **kwargs: Any) -> CompletionResponse:
        return (await self._answer(COMPLETION, request, kwargs)).response()

    @overload
    async def generate(
        self, request: str | GenerateParams | Dumpable, **options: Unpack[GenerateOptions]
    ) -> GenerateResponse: ...
    @overload
    async def generate(self, **fields: Unpack[GenerateParams]) -> GenerateResponse: ...
    async def generate(self, request: Any = None, **kwargs: Any) -> GenerateResponse:
        return (await self._answer(GENERATE, *prompt_or_request(request, kwargs))).generate_response()

    @overload
    async def embeddings(
        self,
        request: EmbeddingParams | Dumpable,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["float", "base64", "numpy"] | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[Any]: ...
    @overload
    async def embeddings(
        self,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["float"] | None = None,
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[list[float]]: ...
    @overload
    async def embeddings(
        self,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["base64"],
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[str]: ...
    @overload
    async def embeddings(
        self,
        *,
        input: str | Sequence[str] | None = None,
        encoding_format: Literal["numpy"],
        **options: Unpack[EmbeddingOptions],
    ) -> EmbeddingResponse[FloatArray]: ...
    async def embeddings(self, request: Any = None, **kwargs: Any) -> EmbeddingResponse[Any]:
        return await self._batch(EMBEDDING, request, kwargs)

    @overload
    async def rerank(
        self, query: str, documents: Sequence[str | DocumentParam], **options: Unpack[RerankOptions]
    ) -> RerankResponse: ...
    @overload
    async def rerank(
        self,
        query: RerankParams | Dumpable,
        documents: Sequence[str | DocumentParam] | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse: ...
    async def rerank(self, query: Any = None, documents: Any = None, **kwargs: Any) -> RerankResponse:
        return await self._batch(RERANK, *query_or_request(query, documents, kwargs))

    async def _batch(self, kind: Kind[dict[str, Any], R], request: Any, kwargs: dict[str, Any]) -> R:
        batch = BulkCall()
        try:
            return await asyncio.to_thread(lambda: batch.run(*self._models.begin(kind, request, kwargs)))
        except asyncio.CancelledError:
            batch.cancel()
            raise

    async def _answer(self, kind: Kind[C, R], request: Any, kwargs: dict[str, Any]) -> Assembler[C, R]:
        async with AsyncChatStream(lambda: self._models.begin(kind, request, kwargs), quiet=True) as stream:
            async for _ in stream:
                pass
            return stream.assembler

    async def list_models(self) -> ListModelsResponse:
        return await asyncio.to_thread(self._models.models)

    async def get_model(self, model_id: str) -> ModelInfo:
        return await asyncio.to_thread(self._models.get, model_id)

    async def load_model(
        self,
        name: str | os.PathLike[str] | LoadModelParams | Dumpable,
        force_reload: bool = False,
        on_progress: Progress | None = None,
        **unknown: Never,
    ) -> LoadModelResponse:
        """`on_progress` is called in the worker thread that loads."""
        refuse_options(unknown)
        return await self._load(*load_request(name, force_reload), on_progress)

    async def unload_model(self, name: str | os.PathLike[str] | UnloadModelParams | Dumpable) -> UnloadModelResponse:
        return await asyncio.to_thread(self._models.unload, load_request(name)[0])

    async def unload_all_models(self) -> UnloadAllModelsResponse:
        return await asyncio.to_thread(self._models.unload_all)

    async def get_model_status(self) -> ModelStatusResponse:
        return self._models.status()

    async def health(self) -> HealthResponse:
        return self._models.health()

    async def get_gpu_status(self) -> GPUStatusResponse:
        return await asyncio.to_thread(self._models.gpu_status)

    async def get_gpu_memory(self) -> GPUMemoryResponse:
        return await asyncio.to_thread(self._models.gpu_memory)

    def gpu_bytes(self) -> int:
        return self._models.gpu_bytes()

    async def bytes_to_load(self, model: str | os.PathLike[str]) -> int:
        return await asyncio.to_thread(self._models.bytes_to_load, model_name(model, "model"))

    async def purge_gpu(
        self, request: bool | PurgeParams | Dumpable | None = None, *, force: bool = False
    ) -> GPUPurgeResponse:
        return await asyncio.to_thread(self._models.purge, force_request(request, force))

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Messages | ChatCompletionRequest | None = None,
        model: str | None = None,
        unlimited: bool = False,
        add_special: bool = True,
        parse_special: bool = False,
    ) -> list[int]:
        return await asyncio.to_thread(
            self._models.tokens, text, messages, model, unlimited, add_special, parse_special
        )

    async def score(self, prompt: str, continuation: str, *, model: str | None = None) -> Score:
        fields = score_fields(prompt, continuation)
        return scored(await self.completion(fields, model=model), prompt)

    async def detokenize(self, tokens: Sequence[int], *, model: str | None = None, special: bool = True) -> str:
        return (await self.detokenize_bytes(tokens, model=model, special=special)).decode("utf-8", "replace")

    async def detokenize_bytes(self, tokens: Sequence[int], *, model: str | None = None, special: bool = True) -> bytes:
        return await asyncio.to_thread(self._models.bytes_of, tokens, model, special)

    async def token_pieces(
        self, tokens: Sequence[int], *, model: str | None = None, special: bool = True
    ) -> list[bytes]:
        return await asyncio.to_thread(self._models.pieces_of, tokens, model, special)

    @overload
    async def apply_template(self, **fields: Unpack[ChatParams]) -> str: ...
    @overload
    async def apply_template(self, request: ChatParams | Dumpable, **changes: Unpack[ChatChanges]) -> str: ...
    async def apply_template(self, request: Any = None, **kwargs: Any) -> str:
        return await asyncio.to_thread(self._models.prompt_text, request, kwargs)

    def stats(self) -> dict[str, ModelStats]:
        return self._models.stats()

    def info(self, model: str | None = None) -> LoadedModelInfo:
        return self._models.info(model)

    async def close(self) -> None:
        await asyncio.to_thread(self._models.close)

    aclose = close
