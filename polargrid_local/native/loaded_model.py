"""LoadedModel: a native engine with one model, as the registry and the streams use it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from polargrid_local.api.replies import ModelStats, NativeInfo
from polargrid_local.chat.grammar import Constraint
from polargrid_local.errors import ModelFileChanged, NotFoundError, ValidationError, from_code
from polargrid_local.native.core import NativeEngine, core, guidance_library, native_path, refused, translated
from polargrid_local.native.delivery import SLICE_MS, Reader
from polargrid_local.native.handle import Handle
from polargrid_local.native.worker import Worker
from polargrid_local.shards import model_files


class LoadedModel:
    """A native engine with one model. Safe from any thread. `load()` before anything else."""

    def __init__(
        self,
        path: str | Path,
        options: dict[str, Any],
        factory: Callable[..., NativeEngine] | None = None,
        *,
        isolated: bool = False,
        most_memory_bytes: int = 0,
    ) -> None:
        """`isolated`: in a process of its own, with no more than `most_memory_bytes` of private memory (0: as it
        needs)."""
        self.path = Path(path)
        self.info = cast(NativeInfo, {})  # until it is loaded
        drain_common = None
        if factory is None:
            factory, drain_common = core().Engine, core().drain_log
            if isolated:
                factory = partial(Worker, most_memory_bytes=most_memory_bytes)
            options = {**options, "guidance": guidance_library()}
        self._adapters = [str(adapter) for adapter, _ in options.get("lora", ())]
        text = native_path(self.path)
        self._stamp = self._stat()
        try:
            native = factory(text, options)
        except Exception as error:
            raise refused(error, self.path, self._adapters) from None
        self.handle = Handle(native, drain_common)
        self._finalizer = weakref.finalize(
            self, self.handle.close
        )  # collected, or at exit: while threads can still be joined

    def load(self, on_progress: Callable[[float], Any] | None = None) -> LoadedModel:
        """Waits until the model is usable. Any exception in here, Ctrl-C included, aborts the load and closes."""
        handle = self.handle
        try:
            while not self.info:
                for event in handle.native.loading.wait(SLICE_MS):
                    if event.kind == "loaded":
                        self.info = cast(NativeInfo, handle.native.info())
                    elif event.kind != "progress":
                        raise from_code(event.code, event.text, dict(event.details))
                    elif on_progress is not None:
                        on_progress(event.progress)
                handle.pass_log_on()
            try:
                handle.pump.start()
            except RuntimeError as error:  # "can't start new thread"
                raise from_code("out_of_memory", f"{error}: this process's limit on threads is reached") from None
        except BaseException as error:
            self.abort()
            self.close()
            handle.pass_log_on()
            if isinstance(error, Exception):
                raise refused(error, self.path, self._adapters) from None
            raise
        return self

    def abort(self) -> None:
        """From any thread: a running load ends with an error soon."""
        self.handle.cancel((0,))

    def submit(self, requests: Sequence[dict[str, Any]], reader: Reader, first: int = 0) -> list[int]:
        """All of them or, with an error, none: events of `requests[i]` come to `reader` with index first + i."""
        self._check_file()
        requests = [self._with_guard(request) for request in requests]
        ids: list[int] = []
        try:
            for index, request in enumerate(requests, first):
                ids.append(self.handle.native.submit(request, reader.outbox))
                reader.register(ids[-1], index)
        except BaseException as error:
            self.cancel(ids)
            if isinstance(error, Exception):
                raise translated(error) from None
            raise
        return ids

    def _with_guard(self, request: dict[str, Any]) -> dict[str, Any]:
        """A `logits_processor` that cannot ask the engine which waits for it. Raises ValidationError where this one can
        call none, or waits already."""
        self.handle.check_free()
        if "logits_processor" not in request:
            return request
        if self.isolated:
            problem = "this model runs in a process of its own, which cannot call a function of this one; open it with "
            raise ValidationError.at("logits_processor", problem + "isolation='thread'")
        return {**request, "logits_processor": partial(self.handle.call, request["logits_processor"])}

    def cancel(self, ids: Sequence[int]) -> None:
        """Idempotent; a no-op after the end, after close() and in a forked child."""
        self.handle.cancel(ids)

    def compile(self, constraint: Constraint) -> None:
        """What answers are to be held to, compiled once for many requests. Raises SchemaError with the compiler's
        words, ServerError where the compiler itself is missing."""
        self.handle.check()
        try:
            self.handle.native.compile(constraint._asdict())
        except Exception as error:
            raise translated(error) from None

    def tokenize(self, spans: Sequence[tuple[str, bool]], add_bos: bool = True) -> list[int]:
        self.handle.check()
        try:
            return list(self.handle.native.tokenize(list(spans), add_bos))
        except Exception as error:
            raise translated(error) from None

    def detokenize(self, tokens: Sequence[int], special: bool = True) -> bytes:
        """What they stand for; control tokens by their names, or left out."""
        self.handle.check()
        try:
            return bytes(self.handle.native.detokenize(list(tokens), special))
        except Exception as error:
            raise translated(error) from None

    def info_now(self) -> NativeInfo:
        """`info`, read again where the engine loaded the model again: it left a GPU that is lost. Raises what ended the
        engine."""
        self.handle.check()
        native = self.handle.native
        try:
            news = any(event.kind != "progress" for event in native.loading.drain())
        except Exception:  # closed: the engine has ended, and says below why
            news = True
        if news:
            try:
                self.info = cast(NativeInfo, native.info())
            except Exception as error:
                raise translated(error) from None
        return self.info

    def stats(self) -> ModelStats:
        self.handle.check()
        return cast(ModelStats, self.handle.native.stats())

    def check(self) -> None:
        """Raises EngineClosed or ForkedEngineError."""
        self.handle.check()

    def check_process(self) -> None:
        """Raises ForkedEngineError."""
        self.handle.check_process()

    @property
    def isolated(self) -> bool:
        """The engine runs in a process of its own."""
        return isinstance(self.handle.native, Worker)

    @property
    def crashed(self) -> bool:
        """That process is gone, and not because it was closed."""
        return isinstance(self.handle.native, Worker) and self.handle.native.crashed

    @property
    def closed(self) -> bool:
        return self.handle.closed

    @property
    def running(self) -> bool:
        """False once the native engine has ended, closed or by a failure."""
        return not self.handle.closed and self.handle.failure is None and not self.crashed

    def close(self) -> None:
        """Running streams end with EngineClosed. Idempotent."""
        self.handle.check_process()
        self.handle.close()
        self._finalizer.detach()

    def _stat(self) -> list[tuple[int, int, int]]:
        """Of every file of the model."""
        try:
            stats = [os.stat(path) for path in model_files(self.path)]
        except OSError as error:
            message = f"cannot read the model file {error.filename}: {error.strerror}"
            raise NotFoundError(message, param="model", path=str(error.filename)) from None
        return [(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats]

    def _check_file(self) -> None:
        self.handle.check()
        try:
            stamp: Any = self._stat()
        except NotFoundError:
            stamp = None
        if stamp != self._stamp:
            what = "is gone" if stamp is None else "was replaced or written to"
            raise ModelFileChanged(
                f"{self.path} {what} since it was loaded; load the model again",
                details={"path": str(self.path)},
                path=str(self.path),
            )
