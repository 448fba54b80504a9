"""Arguments of the facade that are no fields of a request: paths, names, adapters, flags; checked once, here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polargrid_local.api.parse import parse_fields
from polargrid_local.api.plain import plain, shown
from polargrid_local.api.requests import MAX_ADAPTERS
from polargrid_local.errors import ValidationError, did_you_mean, refused
from polargrid_local.models.adapters import Adapter, split_name
from polargrid_local.options import EngineKeywords


def prompt_or_request(request: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """generate("text", ...) beside generate({"prompt": "text"}) and generate(prompt="text")."""
    return (None, {"prompt": request, **kwargs}) if isinstance(request, str) else (request, kwargs)


def query_or_request(query: Any, documents: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """rerank("text", [...]) beside rerank({"query": ..., "documents": ...}) and keywords."""
    if documents is not None:
        kwargs = {"documents": documents, **kwargs}
    return (None, {"query": query, **kwargs}) if isinstance(query, str) else (query, kwargs)


def wrong_type(field: str, problem: str, given: Any) -> ValidationError:
    return refused(field, f"{problem}, got {type(given).__name__}")


def path_of(value: Any, field: str) -> str:
    """A path that every layer below can take: text, and no NUL in it."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise wrong_type(field, "must be a path", value)
    if "\0" in text:
        raise refused(field, "a path cannot hold a NUL character")
    return str(plain(text, field))


def model_name(value: Any, field: str) -> str | Path:
    """A model's name, or a path where that is what came."""
    text = path_of(value, field)
    return text if isinstance(value, str) else Path(text)


def adapters_of(lora: Any, named: Any = None) -> list[Adapter]:
    """`lora`: of every model. `named`: by "MODEL:NAME"."""
    if isinstance(lora, (str, os.PathLike)):
        lora = [lora]
    elif not isinstance(lora, (Iterable, type(None))):
        raise wrong_type("lora", "must be paths, or pairs of path and scale", lora)
    adapters = []
    for i, item in enumerate(lora or ()):
        if i == MAX_ADAPTERS:  # or an iterable that never ends
            raise refused("lora", f"at most {MAX_ADAPTERS} adapters")
        adapters.append(Adapter(*_path_and_scale(item, f"lora[{i}]")))
    if not isinstance(named, (Mapping, type(None))):
        raise wrong_type("adapters", "must be a mapping of 'MODEL:NAME' to paths, or to pairs of path and scale", named)
    for title, item in (named or {}).items():
        base, name = split_name(title) if isinstance(title, str) else ("", "")
        if not name or "/" in name or name == "latest":  # Ollama's clients add `:latest` to names without a tag
            raise refused("adapters", f"must read MODEL:NAME, a model and a name for the adapter, got {shown(title)}")
        adapters.append(Adapter(*_path_and_scale(item, f"adapters[{title!r}]"), base, name))
    if len(adapters) > MAX_ADAPTERS:
        raise refused("adapters", f"at most {MAX_ADAPTERS} adapters, got {len(adapters)}")
    return adapters


def _path_and_scale(item: Any, field: str) -> tuple[str, float]:
    path, scale = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= 1e6:
        raise ValidationError(f"{field}: the scale must be a number in -1e6..1e6", param=field)
    return path_of(path, field), float(scale)


def chat_templates(given: Any) -> dict[str, str]:
    """By model, "*" for every one that is not named."""
    templates = {} if given is None else {"*": given} if isinstance(given, str) else given
    texts = [text for pair in templates.items() for text in pair] if isinstance(templates, Mapping) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise wrong_type("chat_template", "must be a string, or a mapping of models to such", given)
    return {name: str(plain(source, "chat_template")) for name, source in templates.items()}


def refuse_options(unknown: dict[str, Any]) -> None:
    """For load_model(): an option of the engine is given to its constructor, and any other name is a mistake."""
    for name in unknown:
        if name in EngineKeywords.__annotations__:
            raise ValidationError(
                f"{name}: an option of the engine, not of load_model(): give it to Engine()", param=name
            )
        hint = did_you_mean(name, ("force_reload", "on_progress"))
        raise refused(name, f"unknown argument{hint}")


def load_request(request: Any, force_reload: Any = False) -> tuple[str | Path, bool]:
    """(model name, force_reload) of a name, a path, or an SDK load/unload request."""
    if not isinstance(request, (str, os.PathLike)):
        fields = parse_fields(request, "model_name", "force_reload")
        force_reload = fields.get("force_reload", force_reload)
        request = fields.get("model_name")
    if not request:
        raise ValidationError("model_name: required, a non-empty string", param="model_name")
    return model_name(request, "model_name"), flag_of(force_reload, "force_reload")


def force_request(request: Any, force: Any) -> bool:
    if request is not None and not isinstance(request, bool):
        request = parse_fields(request, "force").get("force")
    return flag_of(force if request is None else request, "force")


def flag_of(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(field, "must be True or False", value)
    return value
