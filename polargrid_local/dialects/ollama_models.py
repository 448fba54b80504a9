"""Models as Ollama's API tells of them: in lists, one by one, and those in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from polargrid_local.api.replies import FileSummary
from polargrid_local.chat.tool_formats import THINK_TAGS
from polargrid_local.dialects.exchange import Words
from polargrid_local.dialects.ollama import time_text
from polargrid_local.dialects.ollama_replies import OllamaDetails, OllamaListed, OllamaLoaded, OllamaModel

API_VERSION = "0.12.11"  # the release of Ollama whose API this is: clients ask for the least that they need
NO_DIGEST = "0" * 64  # of a file that nobody has read to its end
_INTEGER = re.compile(r"-?\d{1,19}")
_FRACTION = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


class ModelFile(NamedTuple):
    """A model on the disk, and what its file says of itself."""

    id: str
    n_bytes: int
    modified: float  # seconds since 1970
    sha256: str | None  # None where it is not known
    summary: FileSummary


def tagged(id: str) -> str:
    """A model's name as it is there: with a tag."""
    return id if ":" in id.rpartition("/")[2] else f"{id}:latest"


def listed(file: ModelFile) -> OllamaListed:
    """A model of the disk, as /api/tags has it."""
    return {
        "name": tagged(file.id),
        "model": tagged(file.id),
        "modified_at": time_text(file.modified),
        "size": file.n_bytes,
        "digest": file.sha256 or NO_DIGEST,
        "details": _details(file),
    }


def running(file: ModelFile, n_ctx: int, n_bytes: int, gpu_bytes: int, expires: float | None) -> OllamaLoaded:
    """A model in memory, as /api/ps has it. `expires`: when it is unloaded, seconds since 1970; None = never."""
    loaded: OllamaLoaded = {
        "name": tagged(file.id),
        "model": tagged(file.id),
        "digest": file.sha256 or NO_DIGEST,
        "size": n_bytes,
        "size_vram": gpu_bytes,
        "context_length": n_ctx,
        "details": _details(file),
    }
    if expires is not None:
        loaded["expires_at"] = time_text(expires)
    return loaded


def shown(file: ModelFile) -> OllamaModel:
    """All that is known of a model, as /api/show has it."""
    summary = file.summary
    metadata, template = summary["metadata"], summary["chat_template"]
    capabilities = []
    if "generate" in summary["tasks"]:  # tools, too: a template that knows none is no obstacle
        capabilities += ["completion", "tools"]
    if "embed" in summary["tasks"]:
        capabilities.append("embedding")
    if any(tags[0] in template for tags in THINK_TAGS):
        capabilities.append("thinking")
    return {
        "modelfile": "",
        "parameters": "",
        "license": metadata.get("general.license", ""),
        "template": template,
        "modified_at": time_text(file.modified),
        "details": _details(file),
        "model_info": _model_info(summary["n_params"], metadata),
        "capabilities": capabilities,
    }


def _details(file: ModelFile) -> OllamaDetails:
    summary = file.summary
    return {
        "parent_model": "",
        "format": "gguf",
        "family": summary["architecture"],
        "families": [summary["architecture"]],
        "parameter_size": _parameter_size(summary["n_params"]),
        "quantization_level": summary["quantization"],
    }


def _parameter_size(n_params: int) -> str:
    for unit, sign in (10**9, "B"), (10**6, "M"), (10**3, "K"):
        if n_params >= unit:
            return f"{n_params / unit:.4g}{sign}"
    return str(n_params)


def _model_info(n_params: int, metadata: Mapping[str, str]) -> Words:
    """The file's metadata, its numbers as such; without the chat template, which has a place of its own."""
    info: Words = {key: _value(text) for key, text in metadata.items() if key != "tokenizer.chat_template"}
    names = {key: text for key, text in metadata.items() if key.startswith("general.") and key.count(".") == 1}
    names.pop("general.file_type", None)
    names.pop("general.quantization_version", None)
    return {**info, **names, "general.parameter_count": n_params}


def _value(text: str) -> Any:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FRACTION.fullmatch(text):
        return float(text)
    return {"true": True, "false": False}.get(text, text)
