"""The public facade: Engine and AsyncEngine, with the methods of the remote SDK."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .errors import EngineClosed, ValidationError
from .pipeline import Assembler, Job
from .registry import Models, Progress
from .runtime import LoadedModel, inspect, rest_if_leaving, system
from .streams import AsyncChatStream, Batch, ChatStream, sentences, text_of
from .types import parse_filter

__all__ = ["AsyncChatStream", "AsyncEngine", "ChatStream", "Engine", "inspect_model", "sentences", "system_info", "text_of"]

T = TypeVar("T")


def inspect_model(path: str | Path) -> dict[str, Any]:
    """Metadata of a GGUF file, read and checked without loading it. Raises InvalidModelError, NotFoundError."""
    return inspect(path)


def system_info() -> dict[str, Any]:
    """Devices, CPU features and build of the native module."""
    return system()


class _Settings:
    """The constructor of both engines."""

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        models_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
        n_gpu_layers: int = -1,
        n_ctx: int = 0,
        max_streams: int = 4,
        max_queue: int = 32,
        n_threads: int = 0,
        n_batch: int = 512,
        cache_type: str = "f16",
        flash_attention: bool = True,
        mmap: bool = True,
        kernels: bool = True,
        prefix_cache_bytes: int = -1,
        check_tensors: bool = False,
        embeddings: bool = True,
        lora: Iterable[Any] = (),
        content_filter: Any = None,
        chat_template: str | None = None,
        on_load_progress: Progress | None = None,
        engine_factory: Callable[..., Any] | None = None,
    ) -> None:
        """`model`: catalogue name or alias, or a path to a .gguf; None = load one later. The rest holds for every model
        this engine loads. `device` auto | cpu | gpu; `n_gpu_layers` -1 = all; `n_ctx` tokens per stream, 0 = the model's
        own; `max_streams` run at once, `max_queue` more wait; `n_threads` 0 = what this process may use; `cache_type`
        f16 | q8_0; `prefix_cache_bytes` -1 = a share of free memory; `lora` paths or (path, scale); `content_filter`
        phrases or callable(text) -> bool; `chat_template` (Jinja source, or a name such as "chatml") replaces the model's;
        `on_load_progress(0..1)`."""
        choices = {"device": ("auto", "cpu", "gpu"), "cache_type": ("f16", "q8_0")}
        limits = {
            "n_gpu_layers": (-1, 10_000), "n_ctx": (0, 2**30), "max_streams": (1, 256), "max_queue": (0, 65_536),
            "n_threads": (0, 512), "n_batch": (1, 65_536), "prefix_cache_bytes": (-1, 2**62),
        }
        values = locals()
        for name, allowed in choices.items():
            if values[name] not in allowed:
                raise ValidationError(f"{name}: must be one of {', '.join(allowed)}, got {values[name]!r}", param=name)
        for name, (low, high) in limits.items():
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValidationError(f"{name}: must be an integer in {low}..{high}, got {value!r}", param=name)
        flags = ("flash_attention", "mmap", "kernels", "check_tensors", "embeddings")
        options = {name: values[name] for name in (*choices, *limits)} | {name: bool(values[name]) for name in flags}
        adapters = (item if isinstance(item, (tuple, list)) else (item, 1.0) for item in lora)
        options["lora"] = [(str(path), float(scale)) for path, scale in adapters]
        self._models = Models(models_dir, options, parse_filter(content_filter), chat_template, engine_factory)
        self._first = model if model is None or isinstance(model, str) else Path(model)
        self._on_load_progress = on_load_progress


class Engine(_Settings):
    """The remote API on this machine. The constructor loads the model; Ctrl-C cancels that. Safe from any thread.

    Requests are dicts, SDK request objects, or keyword arguments; see `types.ChatCompletionRequest` and its neighbours.
    Methods raise ValidationError, ContextLengthError, TemplateError, NotFoundError, RateLimitError (queue full),
    EngineClosed, ForkedEngineError, ServerError."""

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        if self._first is not None:
            self._models.load(self._first, on_progress=self._on_load_progress)

    __init__.__wrapped__ = _Settings.__init__  # type: ignore[attr-defined]  # for help() and signature()

    def chat_completion_stream(self, request: Any = None, **kwargs: Any) -> ChatStream:
        """Chunks of a chat answer, as they are produced. What is wrong with the request is raised here."""
        return ChatStream(*self._begin("chat", request, kwargs))

    def completion_stream(self, request: Any = None, **kwargs: Any) -> ChatStream:
        """Chunks that continue a prompt; of several prompts, interleaved, told apart by `choices[0]["index"]`."""
        return ChatStream(*self._begin("completion", request, kwargs))

    def chat_completion(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        """A chat answer in one piece: the joined stream."""
        return self._answer("chat", request, kwargs).response()

    def completion(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The continuation of a prompt, or of a list of prompts with one choice each."""
        return self._answer("completion", request, kwargs).response()

    def generate(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        """One prompt as one user message: id, model, content, usage, created_at, processing_time_ms."""
        return self._answer("generate", *_prompted(request, kwargs)).generate_response()

    def embeddings(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        """One vector per input text."""
        return Batch().run(*self._begin("embedding", request, kwargs)).response()

    def _begin(self, kind: str, request: Any, kwargs: dict[str, Any]) -> tuple[LoadedModel, Job]:
        try:
            return self._models.begin(kind, request, kwargs)
        except EngineClosed:
            rest_if_leaving()
            raise

    def _answer(self, kind: str, request: Any, kwargs: dict[str, Any]) -> Assembler:
        model, job = self._begin(kind, request, kwargs)
        with ChatStream(model, job, quiet=not job.assembler.watches) as stream:
            for _ in stream:
                pass
        return job.assembler

    def list_models(self) -> dict[str, Any]:
        """Loaded models, then the others on this disk."""
        return self._models.models()

    def get_model(self, model_id: str) -> dict[str, Any]:
        return self._models.get(model_id)

    def load_model(self, name: Any, force_reload: bool = False, on_progress: Progress | None = None) -> dict[str, Any]:
        """`name`, or an SDK request (dict or object) with model_name and force_reload."""
        return self._models.load(*_named(name, force_reload), on_progress=on_progress)

    def unload_model(self, name: Any) -> dict[str, Any]:
        """Its running streams end with EngineClosed."""
        return self._models.unload(_named(name)[0])

    def unload_all_models(self) -> dict[str, Any]:
        return self._models.unload_all()

    def get_model_status(self) -> dict[str, Any]:
        return self._models.status()

    def health(self) -> dict[str, Any]:
        return self._models.health()

    def get_gpu_status(self) -> dict[str, Any]:
        return self._models.gpu_status()

    def get_gpu_memory(self) -> dict[str, Any]:
        return self._models.gpu_memory()

    def purge_gpu(self, request: Any = None, *, force: bool = False) -> dict[str, Any]:
        """Unloads the models nobody uses; with `force` all."""
        return self._models.purge(_forced(request, force))

    def tokenize(self, text: str | None = None, *, messages: Any = None, model: str | None = None) -> list[int]:
        """Token ids of a text (where nothing is a control token), or of messages through the chat template."""
        return self._models.tokens(text, messages, model)

    def stats(self) -> dict[str, Any]:
        """Counters of every loaded model, by name."""
        return self._models.stats()

    def info(self, model: str | None = None) -> dict[str, Any]:
        """What is loaded and how: sizes, context, devices, threads, metadata."""
        return self._models.info(model)

    def close(self) -> None:
        """Running streams end with EngineClosed; so does every later call. Idempotent."""
        self._models.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncEngine(_Settings):
    """Engine for asyncio: the same methods, `async with AsyncEngine("...") as engine` or `await AsyncEngine.create("...")`.
    The event loop is never blocked: loading, checking and tokenizing happen in worker threads."""

    @classmethod
    async def create(cls, model: str | os.PathLike[str] | None = None, **options: Any) -> AsyncEngine:
        """An engine with its model loaded. Cancelling the task cancels the load."""
        return await cls(model, **options).start()

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

    async def _load(self, name: str | Path, force: bool, on_progress: Progress | None) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(self._models.load, name, force, on_progress)
        except asyncio.CancelledError:
            self._models.abort(name)
            raise

    async def __aenter__(self) -> AsyncEngine:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def chat_completion_stream(self, request: Any = None, **kwargs: Any) -> AsyncChatStream:
        """Chunks of a chat answer. What is wrong with the request is raised by `await stream.start()` or the first step."""
        return AsyncChatStream(lambda: self._models.begin("chat", request, kwargs))

    def completion_stream(self, request: Any = None, **kwargs: Any) -> AsyncChatStream:
        """Chunks that continue a prompt; of several prompts, interleaved, told apart by `choices[0]["index"]`."""
        return AsyncChatStream(lambda: self._models.begin("completion", request, kwargs))

    async def chat_completion(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        return (await self._answer("chat", request, kwargs)).response()

    async def completion(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        return (await self._answer("completion", request, kwargs)).response()

    async def generate(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        return (await self._answer("generate", *_prompted(request, kwargs))).generate_response()

    async def embeddings(self, request: Any = None, **kwargs: Any) -> dict[str, Any]:
        batch = Batch()
        try:
            return (await asyncio.to_thread(lambda: batch.run(*self._models.begin("embedding", request, kwargs)))).response()
        except asyncio.CancelledError:
            batch.cancel()
            raise

    async def _answer(self, kind: str, request: Any, kwargs: dict[str, Any]) -> Assembler:
        async with AsyncChatStream(lambda: self._models.begin(kind, request, kwargs), quiet=True) as stream:
            async for _ in stream:
                pass
            return stream.assembler

    async def list_models(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._models.models)

    async def get_model(self, model_id: str) -> dict[str, Any]:
        return await asyncio.to_thread(self._models.get, model_id)

    async def load_model(self, name: Any, force_reload: bool = False, on_progress: Progress | None = None) -> dict[str, Any]:
        """`on_progress` is called in the worker thread that loads."""
        return await self._load(*_named(name, force_reload), on_progress)

    async def unload_model(self, name: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self._models.unload, _named(name)[0])

    async def unload_all_models(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._models.unload_all)

    async def get_model_status(self) -> dict[str, Any]:
        return self._models.status()

    async def health(self) -> dict[str, Any]:
        return self._models.health()

    async def get_gpu_status(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._models.gpu_status)

    async def get_gpu_memory(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._models.gpu_memory)

    async def purge_gpu(self, request: Any = None, *, force: bool = False) -> dict[str, Any]:
        return await asyncio.to_thread(self._models.purge, _forced(request, force))

    async def tokenize(self, text: str | None = None, *, messages: Any = None, model: str | None = None) -> list[int]:
        return await asyncio.to_thread(self._models.tokens, text, messages, model)

    def stats(self) -> dict[str, Any]:
        return self._models.stats()

    def info(self, model: str | None = None) -> dict[str, Any]:
        return self._models.info(model)

    async def close(self) -> None:
        await asyncio.to_thread(self._models.close)

    aclose = close


def _prompted(request: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """generate("text", ...) beside generate({"prompt": "text"}) and generate(prompt="text")."""
    return (None, {"prompt": request, **kwargs}) if isinstance(request, str) else (request, kwargs)


def _plain(request: Any) -> Any:
    return request.model_dump() if hasattr(request, "model_dump") else request


def _named(request: Any, force_reload: bool = False) -> tuple[str | Path, bool]:
    """(model name, force_reload) of a name, a path, or an SDK load/unload request."""
    request = _plain(request)
    if isinstance(request, dict):
        force_reload = bool(request.get("force_reload", request.get("forceReload", force_reload)))
        request = request.get("model_name", request.get("modelName"))
    if isinstance(request, os.PathLike):
        return Path(request), force_reload
    if not isinstance(request, str) or not request:
        raise ValidationError("model_name: required, a non-empty string", param="model_name")
    return request, force_reload


def _forced(request: Any, force: bool) -> bool:
    request = _plain(request)
    return bool(request.get("force", force)) if isinstance(request, dict) else bool(request) or force
