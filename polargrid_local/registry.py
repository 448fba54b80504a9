"""The models of one engine by name: loading, finding, and the answers about models, health and GPUs."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from polargrid_local.api.parse import parse_request
from polargrid_local.api.plain import plain
from polargrid_local.api.prepare import Job, Kind, Target, chat_prompt, check_length, prepare
from polargrid_local.api.replies import (
    Device,
    GPUInfo,
    GPUMemoryResponse,
    GPUMemorySimple,
    GPUMemoryState,
    GPUPurgeResponse,
    GPUStatusResponse,
    HealthResponse,
    ListModelsResponse,
    LoadedModelInfo,
    LoadModelResponse,
    LoadStatus,
    ModelInfo,
    ModelStats,
    ModelStatusResponse,
    NativeInfo,
    Task,
    UnloadAllModelsResponse,
    UnloadModelResponse,
)
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import (
    EngineClosed,
    ForkedEngineError,
    InvalidModelError,
    NotFoundError,
    PolarGridError,
    ServerError,
    ValidationError,
)
from polargrid_local.models.store import ResolvedModel, Store
from polargrid_local.native.core import inspect, system
from polargrid_local.native.loaded_model import LoadedModel

_log = logging.getLogger("polargrid_local")

Progress = Callable[[float], Any]
C = TypeVar("C")  # a chunk
R = TypeVar("R")  # the whole answer
UNLIMITED = "; unlimited=True tokenizes it all the same"


class Entry(NamedTuple):
    model: LoadedModel
    target: Target
    created: int


class Models:
    """Safe from any thread. `load` may take long and holds no lock meanwhile."""

    def __init__(
        self, models_dir: Any, options: dict[str, Any], content_filter: Any, chat_template: str | None, factory: Any
    ) -> None:
        if chat_template is not None:
            ChatTemplate(chat_template).check()  # before anything is loaded
        self._store = Store(models_dir)
        self._options, self._content_filter, self._chat_template = options, content_filter, chat_template
        self._factory = factory
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._loading: dict[str, LoadedModel | None] = {}
        self._status: dict[str, LoadStatus] = {}
        self._inspected: dict[tuple[Path, int, int], list[Task]] = {}  # file, size, time -> tasks
        self._pid = os.getpid()
        self.closed = False

    # loading

    def load(self, name: str | Path, force: bool = False, on_progress: Progress | None = None) -> LoadModelResponse:
        self._check()
        found = self._store.resolve(name)
        with self._lock:
            namesake = self._entries.get(found.id)
            if namesake is not None and namesake.model.path != found.path:  # the same file name in another folder
                found = replace(found, id=str(found.path))
            if found.id in self._loading:
                return _load_reply("loading", name, force, f"Model {name} is already loading")
            if found.id in self._entries and not force:
                return _load_reply("success", name, force, f"Model {name} loaded successfully")
            old = self._entries.pop(found.id, None)
            self._loading[found.id] = None
            self._status[found.id] = "loading"
        status: LoadStatus = "failed"
        try:
            if old is not None:
                old.model.close()
            model = LoadedModel(found.path, self._options, self._factory)
            self._loading[found.id] = model
            model.load(on_progress)
            entry = Entry(model, self._target(found.id, model.info), int(time.time()))
            with self._lock:
                if not self.closed:
                    self._entries[found.id] = entry
            if self.closed:
                model.close()
                raise EngineClosed("the engine was closed while a model was loading")
            status = "loaded"
        finally:
            with self._lock:
                self._loading.pop(found.id, None)
                self._status[found.id] = status
        return _load_reply("success", name, force, f"Model {name} loaded successfully")

    def _target(self, name: str, info: NativeInfo) -> Target:
        tokens: dict[str, Any] = {"bos_token": info.get("bos_text", ""), "eos_token": info.get("eos_text", "")}
        tokens |= {key: text for key, text in info.get("special_tokens", {}).items() if text}
        tokens["additional_special_tokens"] = list(info.get("additional_special_tokens", ()))
        source = self._chat_template if self._chat_template is not None else info.get("chat_template") or None
        template = ChatTemplate(source, tokens)
        if template.assumed:
            _log.warning("%s: the file has no chat template, ChatML is assumed; chat_template=... names another", name)
        return Target(name, info, template, self._content_filter)

    def abort(self, name: str | Path) -> None:
        """The load of this model, if one is running, ends with an error soon."""
        with contextlib.suppress(PolarGridError):
            model = self._loading.get(self._store.resolve(name).id)
            if model is not None:
                model.abort()

    def abort_loads(self) -> None:
        """Whatever is loading now ends with an error soon."""
        for model in list(self._loading.values()):
            if model is not None:
                model.abort()

    def unload(self, name: str | Path) -> UnloadModelResponse:
        entry = self.find(name)
        with self._lock:
            self._entries.pop(entry.target.name, None)
            self._status[entry.target.name] = "unloaded"
        entry.model.close()
        return {"status": "success", "model": str(name), "message": f"Model {name} unloaded successfully"}

    def unload_all(self) -> UnloadAllModelsResponse:
        self._check()
        unloaded, errors = [], []
        for name in list(self._entries):
            try:
                self.unload(name)
                unloaded.append(name)
            except PolarGridError as error:
                errors.append(f"{name}: {error.message}")
        status: Literal["success", "partial", "failed"] = (
            "success" if not errors else "partial" if unloaded else "failed"
        )
        return {"status": status, "unloaded_models": unloaded, "errors": errors, "total_unloaded": len(unloaded)}

    def close(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedEngineError("this engine belongs to the parent process")
        with self._lock:
            self.closed = True
            entries = list(self._entries.values())
            self._entries.clear()
        self.abort_loads()
        for entry in entries:
            entry.model.close()

    # finding

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedEngineError("this engine belongs to the parent process; open a new one after fork()")
        if self.closed:
            raise EngineClosed("the engine is closed")

    def find(self, name: str | Path | None) -> Entry:
        """A loaded model by id, alias, path or file name; the first one for None."""
        self._check()
        with self._lock:
            entries = dict(self._entries)
        if name is None:
            if entries:
                return next(iter(entries.values()))
            raise NotFoundError(
                "Model not loaded: this engine has no model yet", code="model_not_loaded", param="model"
            )
        _check_name(name)
        if isinstance(name, str) and name in entries:
            return entries[name]
        try:
            found = self._store.resolve(name)
        except InvalidModelError:  # a shard that is no model, or a model that lacks one
            raise
        except (NotFoundError, ValidationError):
            found = None
        for entry in entries.values():
            if found is not None and found.path == entry.model.path:
                return entry
        raise NotFoundError(
            f"Model not loaded: {str(name)[:200]!r}. Loaded: {', '.join(entries) or 'none'}",
            code="model_not_loaded",
            param="model",
        )

    def summary(self) -> str:
        """What is loaded, in a few words; from any thread, also when closed."""
        if self.closed:
            return "closed"
        loaded = [
            f"{name} (n_ctx {entry.model.info.get('n_ctx')}, max_streams {entry.model.info.get('max_streams')})"
            for name, entry in list(self._entries.items())
        ]
        loading = [f"{name} (loading)" for name in list(self._loading)]
        return ", ".join([*loaded, *loading]) or "no model loaded"

    # answering

    def begin(self, kind: Kind[C, R], request: Any, kwargs: Mapping[str, Any]) -> tuple[LoadedModel, Job[C, R]]:
        """Every check of a request short of its token count."""
        request = parse_request(kind, request, kwargs)
        entry = self.find(request.model)
        entry.model.check()
        job: Job[C, R] = prepare(
            request, entry.target, now=datetime.now().astimezone(), id=secrets.token_hex(12), seed=secrets.randbits(32)
        )
        return entry.model, job

    def tokens(self, text: Any, messages: Any, model: str | None, unlimited: bool) -> list[int]:
        entry = self.find(model)
        if (text is None) == (messages is None):
            raise ValidationError("tokenize: give either text or messages", param="text")
        if messages is not None:
            request = parse_request("chat", None, {"messages": messages})
            now = datetime.now().astimezone()
            spans = chat_prompt(request.messages, entry.target, now=now, limited=not unlimited, hint=UNLIMITED)
        elif isinstance(text, str):
            spans = [(plain(text, "text"), False)]
            if not unlimited:
                check_length(spans, entry.target, "text", hint=UNLIMITED)
        else:
            raise ValidationError(f"text: must be a string, got {type(text).__name__}", param="text")
        return entry.model.tokenize(spans)

    def models(self) -> ListModelsResponse:
        """Loaded models first, then what else is on disk."""
        self._check()
        rows = {name: self._row(name, entry) for name, entry in list(self._entries.items())}
        with contextlib.suppress(ServerError):  # the directory cannot be read: what is loaded answers all the same
            for name, found in self._store.list().items():
                with contextlib.suppress(NotFoundError):  # a file that has gone since
                    if name not in rows:
                        rows[name] = self._row(name, found)
        return {"object": "list", "data": list(rows.values())}

    def get(self, name: str) -> ModelInfo:
        """Raises NotFoundError for a model that is neither loaded nor on disk."""
        self._check()
        _check_name(name)
        entry = self._entries.get(name)
        if entry is not None:
            return self._row(name, entry)
        found = self._store.resolve(name)
        return self._row(found.id, self._entries.get(found.id) or found)

    def _row(self, id: str, model: Entry | ResolvedModel) -> ModelInfo:
        """As the remote lists a model; `tasks`, what it can be asked for, is ours."""
        if isinstance(model, Entry):
            created, tasks = model.created, model.target.info.get("tasks", [])
        else:
            created, tasks = _created(model), self._tasks(model.path)
        return {
            "id": id,
            "object": "model",
            "created": created,
            "owned_by": "local",
            "permission": [],
            "root": id,
            "parent": None,
            "tasks": list(tasks),
        }

    def _tasks(self, path: Path) -> list[Task]:
        """Of a file that is not loaded, read once as long as it stays the same; none of one that could not be loaded."""
        try:
            stat = path.stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._inspected:
                self._inspected[key] = inspect(path)["tasks"] if self._factory is None else []
            return self._inspected[key]
        except (PolarGridError, OSError):
            return []

    def status(self) -> ModelStatusResponse:
        self._check()
        with self._lock:
            return {
                "loaded": list(self._entries),
                "loading_status": dict(self._status),
                "repository": str(self._store.models_dir),
            }

    def stats(self) -> dict[str, ModelStats]:
        self._check()
        return {name: entry.model.stats() for name, entry in list(self._entries.items())}

    def info(self, name: str | None) -> LoadedModelInfo:
        entry = self.find(name)
        template = entry.target.template
        said = f"{template.name} (assumed)" if template.assumed else template.name or "the model's own"
        return {**entry.model.info, "chat_format": said}

    def health(self) -> HealthResponse:
        from polargrid_local import __version__

        healthy = not self.closed and all(entry.model.running for entry in list(self._entries.values()))
        return {
            "status": "healthy" if healthy else "unhealthy",
            "node": "local",
            "runtime": "polargrid-local",
            "timestamp": datetime.now().isoformat(),
            "features": {"dynamic_loading": True, "huggingface_support": True},
            "backend": {
                "healthy": healthy,
                "info": {"name": "llama.cpp", "version": __version__, "extensions": []},
            },
        }

    # GPUs

    def _gpus(self) -> list[Device]:
        devices = next((entry.model.info.get("devices") for entry in list(self._entries.values())), None)
        if devices is None or self._factory is None:
            devices = system().get("devices", [])
        return [device for device in devices if device.get("gpu")]

    def gpu_status(self) -> GPUStatusResponse:
        gpus: list[GPUInfo] = []
        for index, device in enumerate(self._gpus()):
            total, free = device["memory_bytes"], device["free_bytes"]
            used = total - free
            percent = round(100 * used / total, 2) if total else 0.0
            gpus.append(
                {
                    "index": index,
                    "name": device["description"] or device["name"],
                    "memory": {
                        "total_mb": total >> 20,
                        "used_mb": used >> 20,
                        "free_mb": free >> 20,
                        "total_gb": round(total / 2**30, 2),
                        "used_gb": round(used / 2**30, 2),
                        "free_gb": round(free / 2**30, 2),
                        "percent_used": percent,
                    },
                    # The backends report memory only; the wire wants integers here.
                    "utilization": {"gpu_percent": 0, "memory_percent": round(percent)},
                    "temperature_c": 0,
                }
            )
        return {
            "status": "success",
            "timestamp": datetime.now().isoformat(),
            "gpus": gpus,
            "processes": [],
            "total_gpus": len(gpus),
        }

    def gpu_memory(self) -> GPUMemoryResponse:
        status = self.gpu_status()
        memory: list[GPUMemorySimple] = [
            {
                "total_gb": gpu["memory"]["total_gb"],
                "used_gb": gpu["memory"]["used_gb"],
                "free_gb": gpu["memory"]["free_gb"],
                "percent_used": gpu["memory"]["percent_used"],
                "percent_free": round(100 - gpu["memory"]["percent_used"], 2),
            }
            for gpu in status["gpus"]
        ]
        return {"status": "success", "timestamp": status["timestamp"], "memory": memory}

    def purge(self, force: bool) -> GPUPurgeResponse:
        """Unloads every model when forced, else those without a running request."""

        def state() -> GPUMemoryState:
            memory = self.gpu_memory()["memory"]
            used, total = sum(gpu["used_gb"] for gpu in memory), sum(gpu["total_gb"] for gpu in memory)
            return {
                "used_gb": round(used, 2),
                "total_gb": round(total, 2),
                "percent_used": round(100 * used / total, 2) if total else 0.0,
            }

        before, unloaded, errors = state(), [], []
        for name, entry in list(self._entries.items()):
            stats = entry.model.stats()
            if force or not stats.get("n_running", 0) + stats.get("n_waiting", 0):
                self.unload(name)
                unloaded.append(name)
            else:
                errors.append(f"{name} is answering requests; purge with force to unload it")
        after = state()
        return {
            "status": "success" if not errors else "partial" if unloaded else "failed",
            "timestamp": datetime.now().isoformat(),
            "actions": [f"unloaded {name}" for name in unloaded],
            "memory_before": before,
            "memory_after": after,
            "memory_freed_gb": round(before["used_gb"] - after["used_gb"], 2),
            "models_unloaded": unloaded,
            "errors": errors,
            "recommendation": "Use force to unload busy models" if errors else "None",
        }


def _check_name(name: Any) -> None:
    if not isinstance(name, (str, os.PathLike)):
        raise ValidationError(f"model: must be a name or a path, got {type(name).__name__}", param="model")


def _created(found: ResolvedModel) -> int:
    try:
        return int(found.path.stat().st_mtime)
    except OSError as error:
        raise NotFoundError(f"cannot read the model file {found.path.name}: {error.strerror}", param="model") from None


def _load_reply(
    status: Literal["success", "loading"], name: str | Path, force: bool, message: str
) -> LoadModelResponse:
    return {"status": status, "model": str(name), "force_reload": force, "message": message}
