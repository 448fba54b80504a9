"""The native module: its import, its verbs as Python sees them, its errors as ours. The only importer of `_core`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from polargrid_local.api.events import Event
from polargrid_local.api.replies import FileSummary, SystemInfo
from polargrid_local.errors import (
    EngineCrashed,
    InvalidModelError,
    NotFoundError,
    PolarGridError,
    ServerError,
    ValidationError,
    from_code,
)
from polargrid_local.native.file_kind import HEAD_BYTES, file_kind
from polargrid_local.shards import shard_of


class NativeOutbox(Protocol):
    """Where the engine's own thread puts the events of one call. For one reader at a time."""

    @property
    def id(self) -> int:
        """What `listen` calls it; 0 for one that does not ring."""

    def wait(self, timeout_ms: int, /) -> Sequence[Event]:
        """Blocks, without the GIL, until there is something to read, a wake() or the end of the time."""

    def drain(self) -> Sequence[Event]:
        """What is there now."""

    def wake(self) -> None: ...


class NativeEngine(Protocol):
    """The verbs of `_core.Engine`, which a factory's engine has too. Every one may be called from any thread."""

    @property
    def loading(self) -> NativeOutbox:
        """`progress` events of the load with id 0, then `loaded` or `error`."""

    def outbox(self, quiet: bool, rings: bool, /) -> NativeOutbox:
        """`quiet`: told of last events only. `rings`: told by way of `listen`, and never waited in."""

    def submit(self, request: dict[str, Any], outbox: Any, /) -> int: ...
    def cancel(self, id: int, /) -> None: ...
    def listen(self, timeout_ms: int, /) -> Sequence[int]:
        """The ids of the ringing outboxes with news; raises engine_closed after the end."""

    def compile(self, constraint: dict[str, str], /) -> None:
        """Raises invalid_grammar for what no answer can be held to."""

    def tokenize(self, spans: Sequence[tuple[str, bool]], add_bos: bool, /) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int], special: bool, /) -> bytes: ...
    def info(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Core(Protocol):
    """The native module."""

    def Engine(self, path: str, options: dict[str, Any], /) -> NativeEngine: ...

    RemoteEngine: Any  # (path, options, worker) -> a NativeEngine that also knows whether it `crashed`
    build: str  # llama.cpp's version

    def inspect(self, path: str, /) -> dict[str, Any]: ...
    def system(self) -> dict[str, Any]: ...
    def drain_log(self) -> list[tuple[int, str]]: ...


def core() -> Core:
    """The native module, imported when first needed."""
    # ggml would otherwise run gdb on this process when it aborts.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    brief = thread_settings(os.environ)
    os.environ.update(brief)
    try:
        from polargrid_local import _core
    finally:
        for name in brief:
            del os.environ[name]  # the host's other programs choose for themselves
    return _core


def thread_settings(chosen: Mapping[str, str]) -> dict[str, str]:
    """What libgomp is to find in the environment when it is loaded; nothing where the user chose."""
    # Its default is milliseconds of spinning at each of hundreds of barriers per token when another program holds a
    # core; a thousand rounds lose nothing on a quiet machine. "Active" keeps those thousand when a second engine in
    # this process makes more threads than there are CPUs: the default is then a hundred, which sleep and wake at nearly
    # every barrier.
    brief = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "active"}
    return {} if brief.keys() & chosen.keys() else brief


def worker_program() -> Path:
    """The executable of a worker, which lies beside the native module."""
    native = find_spec("polargrid_local._core")
    folder = Path(native.origin).parent if native is not None and native.origin is not None else Path()
    return folder / ("polargrid-worker.exe" if os.name == "nt" else "polargrid-worker")


def guidance_library() -> str:
    """Where the shared library of the package llguidance is, which the native engine opens itself; "" without it."""
    spec = find_spec("llguidance")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for file in sorted(Path(folder).glob("_lib*")):
            if file.suffix in (".so", ".pyd", ".dylib"):
                return str(file)
    return ""


def system() -> SystemInfo:
    """Devices, CPU features and build of the native module."""
    return cast(SystemInfo, core().system())


def inspect(path: str | bytes | os.PathLike[str]) -> FileSummary:
    """What a GGUF file says about itself, without loading it. Raises InvalidModelError, NotFoundError,
    ValidationError."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise ValidationError(f"path: must be a path, got {type(path).__name__}", param="path")
    place = Path(os.fsdecode(path))
    if not os.path.isfile(place):
        raise NotFoundError(f"no model file at {str(place)[:200]!r}", param="path", path=str(place))
    text = native_path(place)
    try:
        return cast(FileSummary, core().inspect(text))
    except Exception as error:
        raise refused(error, place) from None


def native_path(path: Path) -> str:
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidModelError(
            f"{text}: the path of a model must be UTF-8: rename it", param="model", path=text
        ) from None
    return text


def refused(error: Exception, path: Path, adapters: Sequence[str] = ()) -> Exception:
    """A native refusal of a model file, or the end of the process that opened it, saying which file and what that looks
    like."""
    error = translated(error)
    if isinstance(error, EngineCrashed):
        error = _blamed(error)
    if not isinstance(error, (InvalidModelError, NotFoundError, ServerError)) or error.code == "cancelled":
        return error
    message = named_files(path, adapters) + error.message
    if isinstance(error, InvalidModelError):
        for file in (path, *map(Path, adapters)):
            if kind := _looks_like(file, error.details or {}):
                message += f"; {file.name if adapters else 'this'} looks like {kind}"
                break
    error.message, error.args, error.path = message, (message,), str(path)
    return error


def named_files(path: Path, adapters: Sequence[str]) -> str:
    """What a refusal of one of these files begins with."""
    return f"{' with adapter '.join([str(path), *adapters])}: "


def _blamed(error: EngineCrashed) -> PolarGridError:
    """InvalidModelError where the file ended the process that used it, and neither somebody else nor a lack of
    memory."""
    details = error.details or {}
    reason = str(details.get("reason", ""))
    if "bad_alloc" in reason or "memory" in reason or not (reason or details.get("signal", 9) != 9):
        return error
    told = {"trial_signal": details["signal"]} if "signal" in details else {}
    reason = reason or error.message
    return InvalidModelError(
        f"this file ends the process that uses it: {reason}", param="model", details={**told, "reason": reason}
    )


def _looks_like(path: Path, why: dict[str, Any]) -> str | None:
    """`why`: the details of a refusal."""
    try:
        with open(path, "rb") as file:
            head, n_bytes = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    kind = file_kind(head, n_bytes, path.name)
    # A splitter puts the keys of the model into the first file alone.
    if kind is None and why.get("key") in ("split.no", "general.architecture") and b"split.no" in head:
        shard = shard_of(path.name)
        return f"a later shard of a split model: open its first file{', ' + shard.names()[0] if shard else ''}"
    if kind is None and str(why.get("value")).startswith(("cut short", "larger than the file")):
        return "a partial download: let it end, or begin it anew"
    return kind


def translated(error: Exception) -> Exception:
    """Native errors are (code, message, details); anything else is passed on."""
    if len(error.args) == 3 and isinstance(error.args[0], str) and not isinstance(error, PolarGridError):
        code, message, details = error.args
        return from_code(code, message, dict(details or {}))
    return error
