"""ApiKey: one of the keys that clients may show, with its rates; and how settings and files say such keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
FORM = "NAME=KEY, NAME=KEY@REQUESTS or NAME=KEY@REQUESTS/TOKENS (per minute)"
_RATES = re.compile(r"(?P<requests>[0-9]+)(/(?P<tokens>[0-9]+))?")


def _usable(key: str) -> str:
    """Never shown in what is raised here, as nowhere else."""
    if not key.isprintable() or key != key.strip():
        raise ValueError("a key has no line breaks, no control characters, and no spaces around it")
    return key


Key = Annotated[str, Field(min_length=1), AfterValidator(_usable)]
PerMinute = Annotated[int, Field(ge=1, lt=2**31)]


class ApiKey(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    key: Key = Field(repr=False)
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None  # of prompts and answers


def _fields(name: str, text: str) -> dict[str, Any]:
    """The fields of an ApiKey out of `KEY@REQUESTS/TOKENS`, both rates optional."""
    key, at, rates = text.rpartition("@")
    if not at:
        return {"key": text}
    found = _RATES.fullmatch(rates)
    if found is None:  # a key with an @ in it, or a rate that is none: which of them, nobody can tell
        raise ValueError(
            f"what stands behind the @ of {name!r} is no rate: {FORM}; a key with an @ in it goes into the TOML file, "
            f'as {name} = {{ key = "..." }}'
        )
    tokens = found["tokens"]
    return {"key": key, "requests_per_minute": int(found["requests"]), "tokens_per_minute": tokens and int(tokens)}


def named(lines: Iterable[str]) -> dict[str, Any]:
    """Name -> fields of an ApiKey. Raises ValueError, which shows names only."""
    keys: dict[str, Any] = {}
    for i, line in enumerate(lines, 1):
        name, equals, rest = line.partition("=")
        name = name.strip()
        if not equals or not NAME.fullmatch(name):
            raise ValueError(
                f"key {i} has no name: expected {FORM}, with a NAME of letters, digits and _.-, at most 64 of them"
            )
        if name in keys:
            raise ValueError(f"the name {name!r} stands there twice")
        keys[name] = _fields(name, rest.strip())
    return keys


def _by_name(value: Any) -> Any:
    if isinstance(value, str):
        value = [item for item in map(str.strip, value.split(",")) if item]
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return named(value)
    if not isinstance(value, dict):
        raise ValueError(f"expected a table of names, or a list of {FORM}")
    for name in value:
        if not NAME.fullmatch(str(name)):
            raise ValueError("a name is made of letters, digits and _.-, at most 64 of them")
    return {name: _fields(name, given) if isinstance(given, str) else given for name, given in value.items()}


ApiKeys = Annotated[dict[str, ApiKey], BeforeValidator(_by_name)]


def read_file(path: Path) -> dict[str, ApiKey]:
    """The keys of a file, one a line; empty lines and those that begin with # say nothing.

    Raises ValueError where it cannot be read, has no key, or one that is wrong."""
    try:
        lines = map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())
        said = [line for line in lines if line and not line.startswith("#")]
        keys: dict[str, ApiKey] = TypeAdapter(ApiKeys).validate_python(said)
    except OSError as error:
        raise ValueError(f"api_key_file: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"api_key_file: {path} is not UTF-8") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise ValueError(f"api_key_file: {path}: {where}{first['msg'].removeprefix('Value error, ')}") from None
    if not keys:
        raise ValueError(f"api_key_file: {path} has no key in it: expected {FORM}, one a line")
    return keys
