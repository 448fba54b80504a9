"""Worker: an engine in a process of its own, behind the verbs of one in this process. It may die in our place."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, cast

from polargrid_local.api.replies import MemoryEstimate
from polargrid_local.errors import ServerError
from polargrid_local.native.core import core, thread_settings, worker_program

HANG_S = 120  # a computation in which nothing is finished for so long is taken for endless
SILENCE_S = 60  # a worker that says nothing for so long is taken for dead; a living one says something every second
CLOSE_S = 10  # how long it may take to end when asked to

# What of the environment a worker gets: what the system's loader, threads, drivers and sanitizers read.
_PASSED_ON = {"PATH", "HOME", "LANG", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
_PASSED_ON_FAMILIES = (
    "PGL_", "LC_", "OMP_", "GOMP_", "KMP_", "GGML_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "AMD_", "VK_",
    "MESA_", "LP_", "DRI_", "RADV_", "INTEL_", "XDG_", "ASAN_", "UBSAN_", "TSAN_", "LSAN_",
)  # fmt: skip


class Worker:
    """Starts the process at once; it loads the model as an engine's own thread would. Raises ServerError, code
    worker_missing, where the executable cannot be started. `most_memory_bytes`: of private memory; 0 = no limit."""

    def __init__(self, path: str, options: dict[str, Any], most_memory_bytes: int = 0) -> None:
        self._process = _start()
        try:
            settings = _settings(self._process, most_memory_bytes)
            native = core().RemoteEngine(os.path.abspath(path), _with_whole_paths(options), settings)
        except BaseException:  # nobody else knows of the process yet
            _end(self._process)
            raise
        self._native = native
        self.loading = native.loading
        self.outbox, self.submit, self.cancel, self.listen = native.outbox, native.submit, native.cancel, native.listen
        self.compile, self.tokenize, self.detokenize = native.compile, native.tokenize, native.detokenize
        self.info, self.stats, self.drain_log = native.info, native.stats, native.drain_log

    @property
    def crashed(self) -> bool:
        """It has ended, and not because it was closed."""
        return bool(self._native.crashed)

    def close(self) -> None:
        self._native.close()
        self._process.wait()  # it has ended: nothing of it stays behind


def estimate(path: str, options: dict[str, Any]) -> MemoryEstimate:
    """What a model would take of memory, by a dry run in a process that does nothing else. Raises InvalidModelError,
    ValidationError, ServerError (worker_missing)."""
    process = _start()
    try:
        return cast(
            MemoryEstimate,
            core().RemoteEngine.estimate(os.path.abspath(path), _with_whole_paths(options), _settings(process)),
        )
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever it does; nothing of it stays behind."""
    process.kill()
    process.wait()


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [worker_program()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=_environment(),
            # Neither a terminal's Ctrl-C nor its hang-up is for the worker.
            start_new_session=sys.platform != "win32",
        )
    except OSError as error:
        name = worker_program().name
        raise ServerError(
            f"the engine's process cannot be started: {name}: {error.strerror}; isolation='thread' does without it",
            code="worker_missing",
        ) from None


def _settings(process: subprocess.Popen[bytes], most_memory_bytes: int = 0) -> dict[str, int]:
    """What the native end needs to know of a worker; it takes the pipes over."""
    return {
        "process": _handle(process),
        "in": _taken(process.stdin),
        "out": _taken(process.stdout),
        "reason": _taken(process.stderr),
        "hang_ms": HANG_S * 1000,
        "silence_ms": SILENCE_S * 1000,
        "close_ms": CLOSE_S * 1000,
        "most_memory_bytes": most_memory_bytes,
    }


def _handle(process: subprocess.Popen[bytes]) -> int:
    return int(getattr(process, "_handle", process.pid)) if sys.platform == "win32" else process.pid


def _taken(pipe: Any) -> int:
    """A descriptor of our own for it, which no other child inherits."""
    fd = os.dup(pipe.fileno())
    pipe.close()
    return fd


def _environment() -> dict[str, str]:
    """Nothing of the host's own: its keys and passwords are none of a model's business."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _PASSED_ON or name.upper().startswith(_PASSED_ON_FAMILIES)
    }
    return {"GGML_NO_BACKTRACE": "1", **thread_settings(kept), **kept}


def _with_whole_paths(options: dict[str, Any]) -> dict[str, Any]:
    """The worker may be in another folder."""
    whole = {name: os.path.abspath(options[name]) for name in ("draft_model", "guidance") if options.get(name)}
    lora = [(os.path.abspath(os.fsdecode(path)), scale) for path, scale in options.get("lora", ())]
    return {**options, **whole, "lora": lora}
