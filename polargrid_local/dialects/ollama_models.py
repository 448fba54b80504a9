"""Models as Ollama's API tells of them: in lists, one by one, and those in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from polargrid_local.api.replies import FileSummary
from polargrid_local.api.requests import ChatCompletionRequest
from polargrid_local.chat.tool_formats import THINK_TAGS
from polargrid_local.dialects.exchange import Words, dump
from polargrid_local.dialects.ollama import time_text
from polargrid_local.dialects.ollama_replies import OllamaDetails, OllamaListed, OllamaLoaded, OllamaModel

API_VERSION = "0.12.11"  # the release of Ollama whose API this is: clients ask for the least that they need
# The tokens around a gap that is to be filled, by their keys in a file, of which each has an older one.
INFILL_KEYS = tuple(
    tuple(f"tokenizer.ggml.{name}_token_id" for name in names)
    for names in (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
)
DEFAULTS = {name: ChatCompletionRequest.model_fields[name].get_default() for name in ("temperature", "top_p", "top_k")}
_INTEGER = re.compile(r"-?\d{1,19}")
_FRACTION = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


class ModelFile(NamedTuple):
    """A model on the disk, and what its file says of itself."""

    id: str
    n_bytes: int
    modified: float  # seconds since 1970
    sha256: str | None  # None where it is not known
    summary: FileSummary
    parent: str = ""  # of an adapter, its model


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
        "digest": digest_of(file),
        "details": _details(file),
    }


def running(file: ModelFile, n_ctx: int, n_bytes: int, gpu_bytes: int, expires: float | None) -> OllamaLoaded:
    """A model in memory, as /api/ps has it. `expires`: when it is unloaded, seconds since 1970; None = never."""
    loaded: OllamaLoaded = {
        "name": tagged(file.id),
        "model": tagged(file.id),
        "digest": digest_of(file),
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
    if all(any(key in metadata for key in keys) for keys in INFILL_KEYS):
        capabilities.append("insert")
    return {
        "modelfile": _modelfile(file),
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in DEFAULTS.items()),
        "license": metadata.get("general.license", ""),
        "template": template,
        "modified_at": time_text(file.modified),
        "details": _details(file),
        "model_info": _model_info(summary["n_params"], metadata),
        "capabilities": capabilities,
    }


def digest_of(file: ModelFile) -> str:
    """Of the file, where its SHA-256 is known; else of what it says of itself, its size and its time, since reading all
    of it may take minutes. Two files have one digest only if they are alike in all of that."""
    if file.sha256 is not None:
        return file.sha256
    described = dump({"bytes": file.n_bytes, "modified": file.modified, "summary": file.summary})
    return hashlib.sha256(described.encode("ascii")).hexdigest()


def _modelfile(file: ModelFile) -> str:
    """Ollama's own description of a model, which clients show."""
    template = file.summary["chat_template"].replace('"""', '\\"\\"\\"')
    lines = [f"FROM {file.id}", *([f'TEMPLATE """{template}"""'] if template else [])]
    return "\n".join([*lines, *(f"PARAMETER {name} {value}" for name, value in DEFAULTS.items())]) + "\n"


def _details(file: ModelFile) -> OllamaDetails:
    summary = file.summary
    return {
        "parent_model": file.parent,
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
