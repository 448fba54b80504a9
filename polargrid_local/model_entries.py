"""Model entries: what a list of models says of one, and of the adapters that are models beside it."""

from __future__ import annotations

from collections.abc import Sequence

from polargrid_local.api.ranking import ranks_by
from polargrid_local.api.replies import FileSummary, ModelInfo, ModelMeta, NativeInfo, Task


def model_entries(
    id: str,
    created: int,
    adapters: Sequence[str],
    summary: FileSummary | None,
    limits: tuple[int, int],
    info: NativeInfo | None,
) -> list[ModelInfo]:
    """As the remote lists a model, then its adapters, by their names; "" for one without. What the remote has no key
    for is ours. `summary`: what the file says; None: nothing that could be read. `limits`: the settings n_ctx, 0 = the
    model's own, and max_streams. `info`: of a loaded model."""
    row: ModelInfo = {
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "local",
        "permission": [],
        "root": id,
        "parent": None,
        "tasks": [],
    }
    if summary is not None:
        n_ctx, max_streams = limits
        row["tasks"] = list(summary["tasks"])
        row["max_model_len"] = min(n_ctx or summary["n_ctx_train"], summary["n_ctx_train"])
        row["max_streams"] = max_streams
        row["meta"] = _meta(summary)
    if info is not None:
        row["tasks"] = list(info.get("tasks", []))
        row["max_model_len"], row["max_streams"] = info["n_ctx"], info["max_streams"]
    adapted = row.copy()
    if (ranked := ranks_by(row["tasks"])) is not None:
        row["ranks_by"] = ranked
    rows = [row]
    for name in filter(None, adapters):
        rows.append({**adapted, "id": f"{id}:{name}", "parent": id, "tasks": of_adapter(row["tasks"])})
    return rows


def of_adapter(tasks: Sequence[Task]) -> list[Task]:
    """What a model can be asked for under the name of an adapter, which only what generates can choose."""
    return [task for task in tasks if task == "generate"]


def _meta(summary: FileSummary) -> ModelMeta:
    return {
        "n_vocab": summary["n_vocab"],
        "n_ctx_train": summary["n_ctx_train"],
        "n_embd": summary["n_embd"],
        "n_params": summary["n_params"],
        "size": summary["tensor_bytes"],
        "architecture": summary["architecture"],
        "quantization": summary["quantization"],
    }
