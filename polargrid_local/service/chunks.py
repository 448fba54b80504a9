"""ChunkStream: a generation as the service hands it out, an AsyncChatStream or what stands for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeAlias

from polargrid_local.api.replies import ChatCompletionChunk, CompletionChunk, Timings, Usage

Chunk: TypeAlias = "ChatCompletionChunk | CompletionChunk"


class ChunkStream(Protocol):
    """Chunk dicts by `async for`. `start` raises what is wrong with the request; `cancel` may come from any thread."""

    def __aiter__(self) -> AsyncIterator[Chunk]: ...
    async def start(self) -> Any: ...
    def cancel(self) -> None: ...
    async def aclose(self) -> None: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def timings(self) -> Timings: ...
    @property
    def prefill(self) -> tuple[int, int] | None: ...
    @property
    def dropped_keywords(self) -> list[str]: ...
    @property
    def ignored_fields(self) -> list[str]: ...
    @property
    def system_fingerprint(self) -> str: ...
    @property
    def seed(self) -> int: ...


class RenamedStream:
    """`chunks`, each carrying `name` as its model: the name that the request used."""

    def __init__(self, chunks: ChunkStream, name: str) -> None:
        self._chunks = chunks
        self._name = name
        self.start, self.cancel, self.aclose = chunks.start, chunks.cancel, chunks.aclose

    @property
    def usage(self) -> Usage:
        return self._chunks.usage

    @property
    def timings(self) -> Timings:
        return self._chunks.timings

    @property
    def prefill(self) -> tuple[int, int] | None:
        return self._chunks.prefill

    @property
    def dropped_keywords(self) -> list[str]:
        return self._chunks.dropped_keywords

    @property
    def ignored_fields(self) -> list[str]:
        return self._chunks.ignored_fields

    @property
    def system_fingerprint(self) -> str:
        return self._chunks.system_fingerprint

    @property
    def seed(self) -> int:
        return self._chunks.seed

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in self._chunks:
            chunk["model"] = self._name
            yield chunk
