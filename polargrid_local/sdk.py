"""The official SDK without the network (extra [sdk]): `from polargrid_local.sdk import PolarGrid` replaces its import.

Same constructors, methods, request and response types, and errors; requests are answered in this process. Keys, URLs,
regions, time-outs and retries are accepted and mean nothing here. Models are found by name on this disk and loaded when
first asked for; clients of one process share them. Settings are the server's POLARGRID_LOCAL_* variables and its file
(service/settings.py), of which matter most: POLARGRID_LOCAL_MODELS (where models lie), POLARGRID_LOCAL_ALIASES
("llama-3.1-8b=smollm2-135m"; "*=NAME" answers for every name that is not on this disk), POLARGRID_LOCAL_N_CTX.
Voice methods raise ServerError with status_code 501.

As with the official classes, an answer without `max_tokens` ends after 150 tokens (completions: 100).
Beyond them: `temperature=0` is greedy, a caller's dict stays as it is, PolarGridSync really streams, and `with` and
`async with` work, with nothing to close: what is loaded is the process's, and stays for its other clients.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import parse_qsl

import pydantic

from polargrid_local.extras import how_to_install

if how := how_to_install("sdk"):
    raise ModuleNotFoundError(f"polargrid_local.sdk {how}", name="polargrid")

import polargrid
from polargrid import *  # noqa: F403  # whatever else a program imports from the official package
from polargrid import types
from polargrid.errors import create_error_from_response

from polargrid_local.errors import NotFoundError, PolarGridError, RateLimitError, ServerError
from polargrid_local.service.backend import Backend, OpenStream
from polargrid_local.service.endpoints import find_endpoint
from polargrid_local.service.given import Given
from polargrid_local.service.settings import ServiceSettings

if TYPE_CHECKING:
    from polargrid_local.engine import AsyncEngine
    from polargrid_local.service.service import Kind, Reply

__all__ = sorted({*polargrid.__all__, "PolarGrid", "PolarGridSync"})

M = TypeVar("M", bound=pydantic.BaseModel)
VOICE = (
    "text_to_speech", "text_to_speech_stream", "transcribe", "transcribe_stream", "transcribe_async",
    "transcribe_and_wait", "get_transcription_job", "get_transcription_result", "translate",
)  # fmt: skip


class LocalBackendInfo(types.BackendInfo):
    """With the member that the official README reads."""

    models_loaded: list[str] = []


class PolarGrid(polargrid.PolarGrid):
    """polargrid.PolarGrid on this machine."""

    @classmethod
    async def create(
        cls,
        api_key: str | None = None,
        base_url: str | None = None,
        auth_url: str | None = None,
        region: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 3,
        debug: bool = False,
        use_mock_data: bool = False,
        routing_scope: Any = "country",
        routing_model: str | None = None,
    ) -> PolarGrid:
        """As the constructor: there is one place to route to."""
        return cls(api_key, base_url, auth_url, region, timeout, max_retries, debug, use_mock_data)

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        auth_url: str | None = None,
        region: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 3,
        debug: bool = False,
        use_mock_data: bool = False,
    ) -> None:
        # No transport knows this URL: a request that slipped past the overrides below could not leave the machine.
        super().__init__(api_key, "in-process:", auth_url, None, timeout, max_retries, debug, use_mock_data)
        self._resolved_region_id, self._resolved_region_name = "local", "Local"

    @functools.cached_property
    def _backend(self) -> Backend:
        return Backend.shared(ServiceSettings.load(env=os.environ))

    @classmethod
    def over(cls, engine: AsyncEngine, settings: ServiceSettings | None = None) -> PolarGrid:
        """A client of an AsyncEngine that you made and will close."""
        client = cls()
        client._backend = Backend(settings or ServiceSettings(), engine)
        return client

    async def __aenter__(self) -> PolarGrid:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def completion(self, request: types.CompletionRequest | dict[str, Any]) -> types.CompletionResponse:
        checked = self._checked(types.CompletionRequest, request)
        if self._use_mock_data:
            return await super().completion(checked)
        return self._convert_completion_response(await self._answer("completion", checked))

    async def completion_stream(
        self, request: types.CompletionRequest | dict[str, Any]
    ) -> AsyncIterator[types.CompletionChunk]:
        checked = self._checked(types.CompletionRequest, request)
        official = super().completion_stream(checked)
        async for chunk in (
            official if self._use_mock_data else self._chunks("completion", checked, types.CompletionChunk)
        ):
            yield chunk

    async def chat_completion(
        self, request: types.ChatCompletionRequest | dict[str, Any]
    ) -> types.ChatCompletionResponse:
        checked = self._checked(types.ChatCompletionRequest, request)
        if self._use_mock_data:
            return await super().chat_completion(checked)
        return self._convert_chat_completion_response(await self._answer("chat", checked))

    async def chat_completion_stream(
        self, request: types.ChatCompletionRequest | dict[str, Any]
    ) -> AsyncIterator[types.ChatCompletionChunk]:
        checked = self._checked(types.ChatCompletionRequest, request)
        official = super().chat_completion_stream(checked)
        async for chunk in (
            official if self._use_mock_data else self._chunks("chat", checked, types.ChatCompletionChunk)
        ):
            yield chunk

    async def generate(self, request: types.GenerateRequest | dict[str, Any]) -> types.GenerateResponse:
        checked = self._checked(types.GenerateRequest, request)
        fields = checked.model_dump(exclude_none=True, include={"model", "max_tokens", "temperature", "top_p", "stop"})
        start = time.monotonic()
        message = types.Message(role="user", content=checked.prompt)
        reply = await self.chat_completion(types.ChatCompletionRequest(messages=[message], **fields))
        return types.GenerateResponse(
            id=reply.id,
            model=reply.model,
            content=reply.choices[0].message.content or "",
            usage=reply.usage,
            created_at=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(reply.created)),
            processing_time_ms=int((time.monotonic() - start) * 1000),
        )

    async def health(self) -> types.HealthResponse:
        health = await super().health()
        if not self._use_mock_data:
            loaded = (await self.get_model_status()).loaded
            health.backend.info = LocalBackendInfo(**health.backend.info.model_dump(), models_loaded=loaded)
        return health

    # --- how the official methods reach the service ---

    def _checked(self, cls: type[M], request: M | dict[str, Any]) -> M:
        """The official checks with the official words, on a copy."""
        if isinstance(request, dict):
            try:
                request = cls(**request)
            except pydantic.ValidationError as error:
                raise polargrid.ValidationError(str(error)) from error
        if isinstance(request, types.CompletionRequest):
            self._validate_completion_request(request)
        elif isinstance(request, types.ChatCompletionRequest):
            self._validate_chat_completion_request(request)
        return request

    async def _answer(self, kind: Kind, request: pydantic.BaseModel) -> Reply:
        with _official_errors():
            return await self._backend.answer(kind, request.model_dump(exclude_none=True))

    async def _open(self, kind: Kind, request: pydantic.BaseModel) -> OpenStream:
        with _official_errors():
            return await self._backend.open(kind, request.model_dump(exclude_none=True))

    async def _chunks(self, kind: Kind, request: pydantic.BaseModel, chunk_type: type[M]) -> AsyncIterator[M]:
        stream = await self._open(kind, request)
        try:
            with _official_errors(streaming=True):
                async for chunk in stream:
                    yield chunk_type(**chunk)
        finally:
            stream.close()

    async def _make_request(
        self,
        endpoint: str,
        method: str = "GET",
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """What the official class would send over HTTP, by the same path."""
        path, _, query = endpoint.partition("?")
        found = find_endpoint(method, path)
        with _official_errors():
            if found is None:
                raise NotFoundError(f"{path} is not served in process")
            asked, in_path = found
            given = Given({**(body or {}), **dict(parse_qsl(query)), **in_path})
            if asked.kind is not None:
                return dict(await self._backend.answer(asked.kind, given))
            if asked.answer is None:
                raise NotFoundError(f"{path} is not served in process")
            return dict(await self._backend.wait(asked.answer(self._backend.service, given)))


class PolarGridSync(polargrid.PolarGridSync):
    """polargrid.PolarGridSync on this machine; its streams yield each chunk when it is there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._async_client: PolarGrid = PolarGrid(*args, **kwargs)

    @classmethod
    def over(cls, engine: AsyncEngine, settings: ServiceSettings | None = None) -> PolarGridSync:
        """A client of an AsyncEngine that you made and will close."""
        client = cls()
        client._async_client = PolarGrid.over(engine, settings)
        return client

    def __enter__(self) -> PolarGridSync:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def completion_stream(self, request: types.CompletionRequest | dict[str, Any]) -> Iterator[types.CompletionChunk]:
        """Raises what is wrong with the request here, not in the first step."""
        if self._async_client._use_mock_data:
            return iter(super().completion_stream(request))
        return SyncStream(
            self._async_client, "completion", self._checked(types.CompletionRequest, request), types.CompletionChunk
        )

    def chat_completion_stream(
        self, request: types.ChatCompletionRequest | dict[str, Any]
    ) -> Iterator[types.ChatCompletionChunk]:
        """Raises what is wrong with the request here, not in the first step."""
        if self._async_client._use_mock_data:
            return iter(super().chat_completion_stream(request))
        return SyncStream(
            self._async_client, "chat", self._checked(types.ChatCompletionRequest, request), types.ChatCompletionChunk
        )

    def _checked(self, cls: type[M], request: M | dict[str, Any]) -> M:
        return self._async_client._checked(cls, request)

    def _run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        return _result(self._async_client, coro)


class SyncStream(Iterator[M], Generic[M]):
    """Chunk objects as they are produced, for one reader at a time. Dropping it, or `close()`, ends the generation."""

    _stream: OpenStream | None = None

    def __init__(self, client: PolarGrid, kind: Kind, request: pydantic.BaseModel, chunk_type: type[M]) -> None:
        self._client = client
        self._chunk_type = chunk_type
        self._turn = threading.Lock()  # held by whoever reads
        self._stream = _result(client, client._open(kind, request))

    def __next__(self) -> M:
        if not self._turn.acquire(blocking=False):
            raise polargrid.ValidationError("this stream has a reader already: one thread at a time")
        try:
            return self._step()
        finally:
            self._turn.release()

    def _step(self) -> M:
        if self._stream is None:
            raise StopIteration
        try:
            with _official_errors(streaming=True):
                chunk = _result(self._client, self._stream.step())
        except BaseException:
            self.close()
            raise
        if chunk is None:
            self.close()
            raise StopIteration
        return self._chunk_type(**chunk)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __del__(self) -> None:
        self.close()


def _result(client: PolarGrid, work: Coroutine[Any, Any, Any]) -> Any:
    with _official_errors():
        future = client._backend.submit(work)
    try:
        return future.result()
    except BaseException:  # Ctrl-C among them
        future.cancel()
        raise


@contextmanager
def _official_errors(streaming: bool = False) -> Iterator[None]:
    """Our errors as the official client would have raised them from our server's answers."""
    try:
        yield
    except PolarGridError as error:
        request_id = f"req_{int(time.time())}_{uuid.uuid4().hex[:9]}"
        if streaming:
            raise polargrid.NetworkError(error.message, error, request_id) from error
        official = create_error_from_response(error.status, error.code, error.message, error.details, request_id)
        if isinstance(error, RateLimitError) and isinstance(official, polargrid.RateLimitError):
            official.retry_after = error.retry_after
        raise official from error


def _without_voice(name: str) -> Any:
    """The official method in mock mode, ServerError 501 otherwise."""
    official = getattr(polargrid.PolarGrid, name)

    def refuse(client: PolarGrid) -> None:
        with _official_errors():
            if not client._use_mock_data:
                raise ServerError(
                    f"{name}: voice is not served by a local text engine", status_code=501, code="not_supported"
                )

    if inspect.isasyncgenfunction(official):

        async def stream(self: PolarGrid, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            refuse(self)
            async for item in official(self, *args, **kwargs):
                yield item

        return functools.wraps(official)(stream)

    async def answer(self: PolarGrid, *args: Any, **kwargs: Any) -> Any:
        refuse(self)
        return await official(self, *args, **kwargs)

    return functools.wraps(official)(answer)


for _name in VOICE:
    setattr(PolarGrid, _name, _without_voice(_name))
