"""What `info` tells: the facts of a model file, the memory it needs, and this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from polargrid_local import engine
from polargrid_local.cli.tables import size

if TYPE_CHECKING:
    from polargrid_local.api.replies import MemoryEstimate, SystemInfo
    from polargrid_local.models.store import ResolvedModel


def facts_of(found: ResolvedModel | None, n_ctx: int) -> dict[str, Any]:
    """What `info --json` prints; without a model, the machine alone. `n_ctx`: tokens of context that the memory is
    estimated for; 0: the model's own."""
    facts: dict[str, Any] = {"system": engine.system_info()}
    if found is None:
        return facts
    file = engine.inspect_model(found.path)
    length = n_ctx or file["n_ctx_train"]
    facts |= {
        "id": found.id,
        "path": str(found.path),
        "sha256": found.sha256,
        "licence": found.entry.licence if found.entry else file["metadata"].get("general.license"),
        "model": file,
        "estimate": {form: _estimate(found, length, form) for form in ("f16", "q8_0")},
    }
    return facts


def _estimate(found: ResolvedModel, n_ctx: int, cache_type: Literal["f16", "q8_0"]) -> MemoryEstimate:
    return engine.Engine.estimate(found.path, n_ctx=n_ctx, cache_type=cache_type, max_streams=1)


def rows_of(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """The same for people: rows of a name and what it is."""
    return [*(_model_rows(facts) if "model" in facts else ()), *_machine_rows(facts["system"])]


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, object]]:
    file, f16, q8_0 = facts["model"], facts["estimate"]["f16"], facts["estimate"]["q8_0"]
    return [
        ("model", facts["id"]),
        ("file", facts["path"]),
        ("weights", size(file["tensor_bytes"])),
        ("sha256", facts["sha256"] or "not verified here (pull does that)"),
        ("architecture", file["architecture"]),
        ("quantisation", file["quantization"]),
        ("layers", file["n_layer"]),
        ("vocabulary", file["n_vocab"]),
        ("context", f"{file['n_ctx_train']} tokens in training"),
        ("chat template", "yes" if file["chat_template"] else "no"),
        ("licence", facts["licence"] or "not stated"),
        ("memory", f"{size(f16['total_bytes'])} with a context of {f16['n_ctx']} tokens{_room(f16)}"),
        ("", f"{size(q8_0['total_bytes'])} with its cache in q8_0{_room(q8_0)}"),
    ]


def _room(need: MemoryEstimate) -> str:
    return "" if need["fits"] else f"; only {need['max_n_ctx']} tokens fit here"


def _machine_rows(machine: SystemInfo) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("CPU features", " ".join(machine["cpu_features"])),
        ("own kernels", machine["kernels"] or "none for this CPU"),
        ("threads", machine["n_threads"]),
        ("free memory", size(machine["available_bytes"])),
    ]
    for device in machine["devices"]:
        name = f"{'GPU' if device['gpu'] else 'CPU'} {device['description'] or device['name']}"
        rows.append(("device", f"{name}, {size(device['free_bytes'])} of {size(device['memory_bytes'])} free"))
    if machine["gpu_problem"]:
        rows.append(("no GPU", machine["gpu_problem"]))
    return [*rows, ("build", machine["build"])]
