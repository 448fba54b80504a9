"""Models: the models of one engine by name, and the one table of what is loaded or loading."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from polargrid_local.api.parse import parse_request
from polargrid_local.api.plain import plain
from polargrid_local.api.prepare import CHAT, Job, Kind, prepare
from polargrid_local.api.prompts import Target, chat_prompt, check_length
from polargrid_local.api.ranking import ranks_by
from polargrid_local.api.replies import (
    Device,
    FileSummary,
    GPUMemoryResponse,
    GPUPurgeResponse,
    GPUStatusResponse,
    HealthResponse,
    ListModelsResponse,
    LoadedModelInfo,
    LoadModelResponse,
    LoadStatus,
    MemoryEstimate,
    ModelInfo,
    ModelStats,
    ModelStatusResponse,
    UnloadAllModelsResponse,
    UnloadModelResponse,
)
from polargrid_local.api.requests import ChatCompletionRequest
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import (
    EngineClosed,
    EngineCrashed,
    ForkedEngineError,
    InvalidModelError,
    NotFoundError,
    PolarGridError,
    ServerError,
    TemplateError,
    ValidationError,
)
from polargrid_local.machine import gpu_memory_reply, gpu_memory_state, gpu_status_reply, health_reply
from polargrid_local.model_entries import model_entries
from polargrid_local.models.adapters import Adapter, split_name, unknown_adapter
from polargrid_local.models.fingerprint import files_digest, fingerprint
from polargrid_local.models.store import ResolvedModel, Store
from polargrid_local.models.verdicts import Verdicts
from polargrid_local.native.core import core, inspect, named_files, native_path, refused, system
from polargrid_local.native.isolation import Isolation, choose, try_out
from polargrid_local.native.loaded_model import LoadedModel
from polargrid_local.native.worker import estimate
from polargrid_local.ready_model import ReadyModel
from polargrid_local.shards import model_files

_log = logging.getLogger("polargrid_local")

Progress = Callable[[float], Any]
C = TypeVar("C")  # a chunk
R = TypeVar("R")  # the whole answer
RESTARTS, RESTART_S = 3, 600  # so often within so many seconds is a process that died replaced without being asked
BACKOFF_S = 0.5  # before the second restart; before the third thrice as long
POLL_S = 0.05  # between two looks at a load of another thread
UNLIMITED = "; unlimited=True tokenizes it all the same"


@dataclass
class Load:
    """A load under way."""

    path: Path
    model: LoadedModel | None = None  # None until the copy that it replaces is closed
    progress: float = 0.0  # 0..1


class Models:
    """Safe from any thread. `load` may take long and holds no lock meanwhile."""

    def __init__(
        self,
        models_dir: Any,
        options: dict[str, Any],
        content_filter: Any,
        chat_templates: Mapping[str, str],
        factory: Any,
        tool_format: str | None = None,
        isolation: Isolation = "auto",
        adapters: Sequence[Adapter] = (),
    ) -> None:
        """`options`: of the native engine. `chat_templates`: by model, "*" for every other one. `adapters`: those of
        every model, without a name, and those of one."""
        for source in chat_templates.values():
            ChatTemplate(source).check()  # before anything is loaded
        self._store = Store(models_dir)
        self._options, self._content_filter = options, content_filter
        self._chat_templates, self._tool_format = chat_templates, tool_format
        self._adapters = adapters
        self._factory = factory
        self._isolation = isolation
        self._restarts: dict[str, list[float]] = {}  # id -> when its engine's process was started anew
        self._lock = threading.Lock()
        self._ready: dict[str, ReadyModel] = {}
        self._loads: dict[str, Load] = {}
        self._status: dict[str, LoadStatus] = {}  # of every model that was ever asked to load
        self._inspected: dict[tuple[Path, int, int], FileSummary | None] = {}  # file, size, time -> what it says
        self._pid = os.getpid()
        self.closed = False

    # loading

    def load(self, name: str | Path, force: bool = False, on_progress: Progress | None = None) -> LoadModelResponse:
        """Waits until the model is loaded; "loading" at once where another thread is loading it. `force`: again.

        A model whose process died counts as not loaded, and is loaded again only so often: RESTARTS in RESTART_S.
        Raises NotFoundError, InvalidModelError, TemplateError, MemoryEstimateError, EngineClosed, EngineCrashed,
        ServerError."""
        self._check()
        found = self._resolve(name)
        with self._lock:
            namesake = self._ready.get(found.id)
            if namesake is not None and namesake.model.path != found.path:  # the same file name in another folder
                found = replace(found, id=str(found.path))
            if found.id in self._loads:
                return _load_reply("loading", name, force, f"Model {name} is already loading")
            old = self._ready.get(found.id)
            crashed = old is not None and old.model.crashed
            if old is not None and not force and not crashed:
                return _load_reply("success", name, force, f"Model {name} loaded successfully")
            pause_s = self._pause_before_restart(found.id) if crashed and not force else 0.0
            if not crashed:  # one whose process died takes no memory, and stays for those who wait for the next one
                self._ready.pop(found.id, None)
            load = self._loads[found.id] = Load(found.path)
            self._status[found.id] = "loading"

        def note(progress: float) -> None:
            load.progress = progress
            if on_progress is not None:
                on_progress(progress)

        status: LoadStatus = "failed"
        try:
            if old is not None and not crashed:
                old.model.close()
            time.sleep(pause_s)
            adapters = self._adapters_of(found)
            model = load.model = self._engine_for(found, adapters, load)
            model.load(note)
            target = self._target(found, adapters, model)
            identity = self._identity(found, adapters, target)
            ready = ReadyModel(found.id, model, target, int(time.time()), adapters, identity)
            with self._lock:
                if not self.closed:
                    self._ready[found.id] = ready
            if self.closed:
                model.close()
                raise EngineClosed("the engine was closed while a model was loading")
            if old is not None and crashed:
                old.model.close()
            status = "loaded"
        except PolarGridError as error:
            raise self._blamed(error, found) from None
        finally:
            with self._lock:
                del self._loads[found.id]
                self._status[found.id] = status
        return _load_reply("success", name, force, f"Model {name} loaded successfully")

    def _pause_before_restart(self, id: str) -> float:
        """How long to wait before this model's process is started anew, in seconds. Under the lock. Raises
        EngineCrashed where that has been done too often."""
        now = time.monotonic()
        recent = [when for when in self._restarts.get(id, []) if now - when < RESTART_S]
        if len(recent) >= RESTARTS:
            raise EngineCrashed(
                f"the process of model {id} died {RESTARTS + 1} times within {RESTART_S // 60} minutes and is not "
                "started again by itself; load_model() with force_reload does",
                details={"model": id, "restarts": RESTARTS, "seconds": RESTART_S},
            )
        self._restarts[id] = [*recent, now]
        return BACKOFF_S * float(2 ** len(recent) - 1)

    def _resolve(self, name: str | Path) -> ResolvedModel:
        """The model that a name means, also the name of one of its adapters. Raises NotFoundError."""
        try:
            return self._store.resolve(name)
        except NotFoundError:
            base, adapter = split_name(name) if isinstance(name, str) else ("", "")
            if not base or not self._adapters:
                raise
            known: list[str] = []
            with contextlib.suppress(NotFoundError):
                found = self._store.resolve(base)
                known = [adapter.name for adapter in self._adapters_of(found) if adapter.name]
            if not known:
                raise
            if adapter not in known:
                raise unknown_adapter(base, adapter, known) from None
            return found

    def _means(self, name: str, found: ResolvedModel) -> bool:
        """Whether a name in the settings is that of this model."""
        try:
            return name == found.id or self._store.resolve(name).path == found.path
        except PolarGridError:
            return False

    def _adapters_of(self, found: ResolvedModel) -> list[Adapter]:
        return [adapter for adapter in self._adapters if not adapter.name or self._means(adapter.base, found)]

    def expect(self, first: str | Path | None) -> None:
        """Raises NotFoundError where the settings name a model that is neither on this disk nor `first`, or an adapter
        whose file is missing."""
        own = None if first is None else self._resolve(first)
        named = [(name, "chat_template") for name in self._chat_templates if name != "*"]
        named += [(adapter.base, "adapters") for adapter in self._adapters if adapter.name]
        for name, option in named:
            if own is None or not self._means(name, own):
                try:
                    self._store.resolve(name)
                except NotFoundError as error:
                    raise NotFoundError(f"{option}: {error.message}", code=error.code, param=option) from None
        for adapter in self._adapters if self._factory is None else ():
            adapter.check_file()

    def _engine_for(self, found: ResolvedModel, adapters: Sequence[Adapter], load: Load) -> LoadedModel:
        """Not loaded yet; in this process or in one of its own. A file that is to run in this one, and of which nothing
        is known, is tried in another first."""
        options = self._native_options(adapters)
        if self._factory is not None:
            return LoadedModel(found.path, options, self._factory)
        files = self._files(found, options)
        verified = (found.sha256 is not None and len(files) == 1) or self._verdicts.stood(files)
        architecture = inspect(found.path)["architecture"] if verified and self._isolation == "auto" else ""
        if choose(self._isolation, verified, architecture) == "process":
            return LoadedModel(found.path, options, isolated=True)
        if not verified:
            self._try_out(found, options, files, load)
        return LoadedModel(found.path, options)

    def _try_out(self, found: ResolvedModel, options: dict[str, Any], files: Sequence[Path], load: Load) -> None:
        """Raises InvalidModelError for a file that ends the process it is tried in."""

        def note(model: LoadedModel) -> None:
            load.model = model  # an abort of the load ends its trial

        try:
            try_out(str(found.path), options, sum(os.path.getsize(file) for file in files), note)
        except ServerError as error:
            if error.code != "worker_missing":
                raise
            _log.warning("%s runs in this process without having been tried: %s", found.id, error.message)
        else:
            self._verdicts.note(files)

    def estimate(self, name: str | Path) -> MemoryEstimate:
        """What the model would take of memory. Raises NotFoundError, InvalidModelError."""
        found = self._resolve(name)
        path = native_path(found.path)
        try:
            return estimate(path, self._native_options(self._adapters_of(found)))
        except Exception as error:
            raise refused(error, found.path) from None

    def bytes_to_load(self, name: str | Path) -> int:
        """The total of an estimate and the adapters; where none can be made for want of the program that makes it, the
        files' size."""
        found = self._resolve(name)
        n_adapters = sum(adapter.check_file() for adapter in self._adapters_of(found)) if self._factory is None else 0
        if self._factory is None:
            try:
                return self.estimate(name)["total_bytes"] + n_adapters
            except ServerError as error:
                if error.code != "worker_missing":
                    raise
        return found.n_bytes + n_adapters

    def _files(self, found: ResolvedModel, options: Mapping[str, Any]) -> list[Path]:
        """All that are read with the model."""
        others = [options["draft_model"]] if options.get("draft_model") else []
        others += [os.fsdecode(path) for path, _ in options.get("lora", ())]
        return [*model_files(found.path), *map(Path, others)]

    @functools.cached_property
    def _verdicts(self) -> Verdicts:
        return Verdicts(core().build)

    def _native_options(self, adapters: Sequence[Adapter]) -> dict[str, Any]:
        """With the draft model's file in place of its name. Raises as resolving any name does."""
        # One with a name acts only where it is asked for.
        lora = [(adapter.path, 0.0 if adapter.name else adapter.scale) for adapter in adapters]
        options = {**self._options, "lora": lora}
        if helper := options.get("draft_model"):
            options["draft_model"] = str(self._store.resolve(helper).path)
        if self._factory is None:
            for adapter in adapters:
                adapter.check_file()
        return options

    def _blamed(self, error: PolarGridError, found: ResolvedModel) -> PolarGridError:
        """An error of a load, which names the one file that is at fault, as far as that is known."""
        adapters = self._adapters_of(found)
        told = named_files(found.path, [adapter.path for adapter in adapters])
        if not adapters or not isinstance(error, InvalidModelError) or not error.message.startswith(told):
            return error
        file = (error.details or {}).get("adapter")  # as the engine says
        try:
            inspect(found.path)
        except PolarGridError:
            file = str(found.path)
        if file is None and len(adapters) == 1:
            file = adapters[0].path
        rest = error.message.removeprefix(told)
        if file == str(found.path):
            error.message = named_files(found.path, []) + rest
        for adapter in adapters:
            if adapter.path == file:
                error.message, error.path = f"{adapter.title}: {rest}", file
        error.args = (error.message,)
        return error

    def _target(self, found: ResolvedModel, adapters: Sequence[Adapter], model: LoadedModel) -> Target:
        name, info = found.id, model.info
        tokens: dict[str, Any] = {"bos_token": info.get("bos_text", ""), "eos_token": info.get("eos_text", "")}
        tokens |= {key: text for key, text in info.get("special_tokens", {}).items() if text}
        controls, named = info.get("control_tokens", {}), set(info.get("special_tokens", {}).values())
        tokens["additional_special_tokens"] = [
            text for text in sorted(controls, key=controls.__getitem__) if text not in named
        ]
        templates = {"*": info.get("chat_template") or None, **self._chat_templates}
        source = templates[next((key for key in self._chat_templates if self._means(key, found)), "*")]
        template = ChatTemplate(source, tokens, self._tool_format)
        if template.assumed:
            _log.warning("%s: the file has no chat template, ChatML is assumed; chat_template=... names another", name)
        return Target(
            name,
            info,
            template,
            self._content_filter,
            model.compile,
            n_adapters=len(adapters),
            tokenize=model.tokenize,
            detokenize=model.detokenize,
        )

    def _identity(self, found: ResolvedModel, adapters: Sequence[Adapter], target: Target) -> str:
        """Of what fixes the bits of a model's answers, all that stays as it is while it is loaded: its files, template
        and filters, its adapters, this build. What may change no bit is no part of it: the number of streams and
        threads, drafts, caches."""
        from polargrid_local import __version__

        phrases = self._content_filter if isinstance(self._content_filter, list) else None
        cpu = system()["cpu_features"] if self._factory is None else []
        files = [*model_files(found.path), *(Path(adapter.path) for adapter in adapters)]
        template = [target.template.source, self._tool_format]
        return fingerprint(__version__, cpu, template, phrases, [files_digest([file]) for file in files])

    def abort(self, name: str | Path) -> None:
        """The load of this model, if one is running, ends with an error soon."""
        with contextlib.suppress(PolarGridError):
            path = self._resolve(name).path
            self._abort(load for load in list(self._loads.values()) if load.path == path)

    def abort_loads(self) -> None:
        """Whatever is loading now ends with an error soon."""
        self._abort(list(self._loads.values()))

    def _abort(self, loads: Iterable[Load]) -> None:
        for load in loads:
            if load.model is not None:
                load.model.abort()

    def unload(self, name: str | Path) -> UnloadModelResponse:
        ready = self.find(name)
        if ready.target.name != ready.id:
            raise ValidationError(
                f"model: '{ready.target.name}' is an adapter of '{ready.id}': unload that, and it goes with it",
                param="model",
            )
        with self._lock:
            self._ready.pop(ready.id, None)
            self._status[ready.id] = "unloaded"
        ready.model.close()
        return {"status": "success", "model": str(name), "message": f"Model {name} unloaded successfully"}

    def unload_all(self) -> UnloadAllModelsResponse:
        self._check()
        unloaded, errors = [], []
        for name in list(self._ready):
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
            models = list(self._ready.values())
            self._ready.clear()
        self.abort_loads()
        for ready in models:
            ready.model.close()

    # finding

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedEngineError("this engine belongs to the parent process; open a new one after fork()")
        if self.closed:
            raise EngineClosed("the engine is closed")

    def usable(self, name: str | Path | None) -> ReadyModel:
        """As find(); a model whose process died is loaded again first. May take long."""
        ready = self.find(name)
        while ready.model.crashed:
            if self.load(ready.model.path)["status"] == "loading":  # another thread is at it
                time.sleep(POLL_S)
            with contextlib.suppress(NotFoundError):  # until it is there again
                ready = self.find(ready.target.name)
        return ready

    def find(self, name: str | Path | None) -> ReadyModel:
        """A loaded model by id, alias, path or file name, or as "model:adapter" with one of its adapters; the first one
        for None."""
        self._check()
        with self._lock:
            models = dict(self._ready)
        if name is None:
            if models:
                return next(iter(models.values()))
            raise NotFoundError(
                "Model not loaded: this engine has no model yet", code="model_not_loaded", param="model"
            )
        _check_name(name)
        if isinstance(name, str) and name in models:
            return models[name]
        try:
            found = self._store.resolve(name)
        except InvalidModelError:  # a shard that is no model, or a model that lacks one
            raise
        except (NotFoundError, ValidationError):
            found = None
        for ready in models.values():
            if found is not None and found.path == ready.model.path:
                return ready
        base, adapter = split_name(name) if isinstance(name, str) and found is None else ("", "")
        if base:
            try:
                ready = self.find(base)
            except NotFoundError:
                pass
            else:
                if any(known.name for known in ready.adapters):
                    return ready.adapted(adapter)
        raise NotFoundError(
            f"Model not loaded: {str(name)[:200]!r}. Loaded: {', '.join(models) or 'none'}",
            code="model_not_loaded",
            param="model",
        )

    def summary(self) -> str:
        """What is loaded, in a few words; from any thread, also when closed."""
        if self.closed:
            return "closed"
        loaded = [
            f"{name} (n_ctx {ready.model.info.get('n_ctx')}, max_streams {ready.model.info.get('max_streams')})"
            for name, ready in list(self._ready.items())
        ]
        loading = [f"{name} (loading)" for name in list(self._loads)]
        return ", ".join([*loaded, *loading]) or "no model loaded"

    # answering

    def begin(self, kind: Kind[C, R], request: Any, kwargs: Mapping[str, Any]) -> tuple[LoadedModel, Job[C, R]]:
        """Every check of a request short of its token count."""
        request = parse_request(kind, request, kwargs)
        ready = self.usable(request.model)
        ready.model.check()
        target = ready.target._replace(fingerprint=ready.fingerprint)
        job: Job[C, R] = prepare(
            request, target, now=datetime.now().astimezone(), id=secrets.token_hex(12), seed=secrets.randbits(32)
        )
        if job.assembler.dropped_keywords:
            _log.warning("an answer is not held to all of its schema: %s", ", ".join(job.assembler.dropped_keywords))
        if job.assembler.ignored_fields:
            _log.info("%s: nothing was made of %s", ready.id, ", ".join(job.assembler.ignored_fields))
        return ready.model, job

    def prompt_text(self, request: Any, kwargs: Mapping[str, Any]) -> str:
        """The prompt of a chat."""
        _, job = self.begin(CHAT, request, kwargs)
        return "".join(text for text, _ in job.requests[0]["prompt"])

    def tokens(
        self,
        text: Any,
        messages: Any,
        model: str | None,
        unlimited: bool,
        add_special: bool = True,
        parse_special: bool = False,
    ) -> list[int]:
        ready = self.usable(model)
        if (text is None) == (messages is None):
            raise ValidationError("tokenize: give either text or messages", param="text")
        if isinstance(messages, ChatCompletionRequest):
            loaded, job = self.begin(CHAT, messages, {})
            return loaded.tokenize(job.requests[0]["prompt"])
        if messages is not None:
            request = parse_request("chat", None, {"messages": messages})
            now = datetime.now().astimezone()
            spans = chat_prompt(request.messages, ready.target, now=now, limited=not unlimited, hint=UNLIMITED)
        elif isinstance(text, str):
            spans = [(plain(text, "text"), parse_special)]
            if not unlimited:
                check_length(spans, ready.target, "text", hint=UNLIMITED)
        else:
            raise ValidationError(f"text: must be a string, got {type(text).__name__}", param="text")
        return ready.model.tokenize(spans, add_special)

    def bytes_of(self, tokens: Any, model: str | None, special: bool) -> bytes:
        return self.usable(model).model.detokenize(_token_ids(tokens), special)

    def pieces_of(self, tokens: Any, model: str | None, special: bool) -> list[bytes]:
        given = _token_ids(tokens)
        loaded = self.usable(model).model
        pieces = {token: loaded.detokenize([token], special) for token in set(given)}
        return [pieces[token] for token in given]

    def models(self) -> ListModelsResponse:
        """Loaded models first, then what else is on disk, each before its adapters."""
        self._check()
        rows = {name: self._rows(name, ready) for name, ready in list(self._ready.items())}
        with contextlib.suppress(ServerError):  # the directory cannot be read: what is loaded answers all the same
            for name, found in self._store.list().items():
                with contextlib.suppress(NotFoundError):  # a file that has gone since
                    if name not in rows and not any(Path(adapter.path) == found.path for adapter in self._adapters):
                        rows[name] = self._rows(name, found)
        return {"object": "list", "data": [row for of_one in rows.values() for row in of_one]}

    def get(self, name: str) -> ModelInfo:
        """Raises NotFoundError for a model that is neither loaded nor on disk."""
        self._check()
        _check_name(name)
        found: ReadyModel | ResolvedModel
        try:
            found = self.find(name)
            asked = found.target.name
        except NotFoundError:
            found = self._resolve(name)
            asked = f"{found.id}:{split_name(str(name))[1]}"
        rows = self._rows(found.id, found)
        return next((row for row in rows if row["id"] == asked), rows[0])

    def _rows(self, id: str, model: ReadyModel | ResolvedModel) -> list[ModelInfo]:
        info = None
        if isinstance(model, ReadyModel):
            created, path, adapters, info = model.created, model.model.path, model.adapters, model.target.info
        else:
            created, path, adapters = _created(model), model.path, self._adapters_of(model)
        limits = self._options.get("n_ctx") or 0, self._options["max_streams"]
        return model_entries(id, created, [adapter.name for adapter in adapters], self._summary(path), limits, info)

    def _summary(self, path: Path) -> FileSummary | None:
        """Of a file on disk, which is read again only when it has changed; none of one that could not be loaded."""
        try:
            stat = path.stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._inspected:
                self._inspected[key] = inspect(path) if self._factory is None else None
            return self._inspected[key]
        except (PolarGridError, OSError):
            return None

    def status(self) -> ModelStatusResponse:
        """With `progress` while something is loading."""
        self._check()
        with self._lock:
            status: ModelStatusResponse = {
                "loaded": [name for id, ready in self._ready.items() for name in ready.names],
                "loading_status": dict(self._status),
                "repository": str(self._store.models_dir),
            }
            if self._loads:
                status["progress"] = {name: load.progress for name, load in self._loads.items()}
            return status

    def stats(self) -> dict[str, ModelStats]:
        self._check()
        return {name: ready.model.stats() for name, ready in list(self._ready.items())}

    def info(self, name: str | None) -> LoadedModelInfo:
        ready = self.find(name)
        template = ready.target.template
        said = f"{template.name} (assumed)" if template.assumed else template.name or "the model's own"
        return {
            **ready.model.info_now(),
            "chat_template": "" if template.assumed else template.source,
            "chat_format": said,
            "tool_format": _tool_format(template),
            "isolation": "process" if ready.model.isolated else "thread",
            "ranks_by": ranks_by(ready.target.info.get("tasks", [])),
            "adapters": ready.adapter_infos(),
            "system_fingerprint": ready.fingerprint,
        }

    def health(self) -> HealthResponse:
        from polargrid_local import __version__

        healthy = not self.closed and all(ready.model.running for ready in list(self._ready.values()))
        return health_reply(healthy, __version__, datetime.now())

    # GPUs

    def _devices(self) -> Sequence[Device]:
        devices = next((ready.model.info.get("devices") for ready in list(self._ready.values())), None)
        if devices is None or self._factory is None:  # of a real engine: as they are now, not as when it was loaded
            devices = system().get("devices", [])
        return devices

    def _held(self) -> dict[int, Counter[str]]:
        """Bytes that the loaded models hold of each GPU, by the process that computes and the GPU's name."""
        held: dict[int, Counter[str]] = defaultdict(Counter)
        for ready in list(self._ready.values()):
            with contextlib.suppress(PolarGridError):  # closed meanwhile
                process = ready.model.info.get("process_id", os.getpid())
                held[process].update(ready.model.stats().get("device_bytes", {}))
        return held

    def gpu_bytes(self) -> int:
        """Memory of the GPUs that models may be placed on."""
        if self._options.get("device") == "cpu" or self._options.get("n_gpu_layers") == 0:
            return 0
        return sum(device["memory_bytes"] for device in self._devices() if device.get("gpu"))

    def gpu_status(self) -> GPUStatusResponse:
        return gpu_status_reply(self._devices(), self._held(), datetime.now())

    def gpu_memory(self) -> GPUMemoryResponse:
        return gpu_memory_reply(self._devices(), self._held(), datetime.now())

    def purge(self, force: bool) -> GPUPurgeResponse:
        """Unloads every model when forced, else those without a running request."""
        before = gpu_memory_state(self.gpu_memory()["memory"])
        unloaded, errors = [], []
        for name, ready in list(self._ready.items()):
            stats = ready.model.stats()
            if force or not stats.get("n_running", 0) + stats.get("n_waiting", 0):
                self.unload(name)
                unloaded.append(name)
            else:
                errors.append(f"{name} is answering requests; purge with force to unload it")
        after = gpu_memory_state(self.gpu_memory()["memory"])
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


def _tool_format(template: ChatTemplate) -> str:
    """As info() has it; "" for a template that shows no message at all, whose chats say so."""
    try:
        return template.tool_format.name
    except TemplateError:
        return ""


def _token_ids(tokens: Any) -> list[int]:
    given = plain(tokens, "tokens")
    if not isinstance(given, list) or not all(isinstance(token, int) and 0 <= token < 2**31 for token in given):
        raise ValidationError("tokens: must be a list of token ids, each 0 or more", param="tokens")
    return given


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
