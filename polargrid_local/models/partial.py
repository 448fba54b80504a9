"""The partial file: a model being written, resumable after kill -9 or a power cut, published whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from polargrid_local.errors import NetworkError, ServerError

BLOCK_BYTES = 16 << 20  # after each so many, what came is made safe; kill -9 or a power cut costs at most as many


def storage_error(cause: OSError, path: Path, n_needed_bytes: int | None = None) -> ServerError:
    """The typed form of a full or unwritable disk."""
    full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    need = f"; {n_needed_bytes} more bytes are needed" if full and n_needed_bytes is not None else ""
    return ServerError(
        f"Cannot write {path}: {cause.strerror or cause}{need}",
        code="disk_full" if full else "storage_error",
        details={"path": str(path), "errno": cause.errno, "need_bytes": n_needed_bytes},
    )


def require_space(folder: Path, n_bytes: int | None, n_have_bytes: int = 0) -> None:
    """Raises ServerError, code disk_full, if what is still to come does not fit on the disk of `folder`."""
    need = (n_bytes or 0) - n_have_bytes
    free = shutil.disk_usage(folder).free
    if need > free:
        cause = OSError(errno.ENOSPC, f"only {free} bytes free on this disk")
        raise storage_error(cause, folder, need)


def file_sha256(path: Path) -> str:
    """Hash of a whole file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Partial:
    """`size` bytes of a model so far. Every method raises ServerError, code disk_full or storage_error.

    Beside the file lies a journal: a line "length sha256" per block, written only after the block itself was synced.
    Opening an old pair keeps the leading blocks that match their lines and cuts off the rest, so no unproven byte is
    ever built upon.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal_path = path.with_name(path.name + ".sums")
        self.size, self._digest = 0, hashlib.sha256()
        self._n_block, self._block_digest = 0, hashlib.sha256()  # of the bytes after the last sealed block
        with self._storage(), contextlib.ExitStack() as undo:
            self._file = undo.enter_context(open(path, "r+b" if path.exists() else "w+b"))
            self._journal = undo.enter_context(open(self._journal_path, "a+", encoding="ascii", errors="replace"))
            self._recover()
            undo.pop_all()  # all went well: the files stay open

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._digest.hexdigest()

    def _recover(self) -> None:
        """Keep the leading blocks that the journal proves."""
        self._journal.seek(0)
        kept: list[str] = []
        for line in self._journal.read().splitlines(keepends=True):
            length, _, expected = line.rstrip("\n").partition(" ")
            if not line.endswith("\n") or not length.isdecimal() or int(length) > BLOCK_BYTES:
                break
            block = self._file.read(int(length))
            if len(block) < int(length) or hashlib.sha256(block).hexdigest() != expected:
                break
            self._digest.update(block)
            self.size += len(block)
            kept.append(line)
        self._cut("".join(kept))

    def _cut(self, journal: str) -> None:
        """Drop what lies behind `size`, and let the journal say no more than `journal`."""
        self._journal.truncate(0)
        self._journal.write(journal)
        self._journal.flush()
        self._file.seek(self.size)
        self._file.truncate()

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        with self._storage():
            while view:
                piece = view[: BLOCK_BYTES - self._n_block]
                self._file.write(piece)
                self._digest.update(piece)
                self._block_digest.update(piece)
                self._n_block += len(piece)
                self.size += len(piece)
                view = view[len(piece) :]
                if self._n_block == BLOCK_BYTES:
                    self._seal()

    def _seal(self) -> None:
        """Make the bytes since the last block safe on the disk, then note them in the journal."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._n_block:
            self._journal.write(f"{self._n_block} {self._block_digest.hexdigest()}\n")
            self._journal.flush()
            self._n_block, self._block_digest = 0, hashlib.sha256()

    def restart(self) -> None:
        """Drop what is there."""
        self.size, self._digest = 0, hashlib.sha256()
        self._n_block, self._block_digest = 0, hashlib.sha256()
        with self._storage():
            self._cut("")

    def close(self) -> None:
        """Keep all there is for a later resume."""
        with contextlib.suppress(OSError, ValueError):  # a full disk, or closed already: the caller's error says more
            self._seal()
        self._close_files()

    def _close_files(self) -> None:
        for file in (self._file, self._journal):
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def discard(self) -> None:
        """Delete file and journal."""
        self._close_files()
        for path in (self.path, self._journal_path):
            path.unlink(missing_ok=True)

    def publish(
        self, target: Path, n_bytes: int | None, sha256: str | None, record: Callable[[Path, str], None]
    ) -> None:
        """Check length and hash where they are known, `record(path, sha256)`, then appear as `target` in one step.

        A mismatch discards the file and raises NetworkError, code checksum_mismatch. `target` becomes read-only,
        because a write into a mapped model is a crash or silent garbage for whoever has it loaded.
        """
        actual = self.sha256
        wrong = None
        if n_bytes is not None and self.size != n_bytes:
            wrong = f"{self.size} bytes instead of {n_bytes}"
        elif sha256 is not None and actual != sha256:
            wrong = f"SHA-256 {actual} instead of {sha256}"
        elif self._magic() != b"GGUF":
            wrong = "not a GGUF file"
        if wrong is not None:
            self.discard()
            raise NetworkError(
                f"{target.name}: the source delivered a different file ({wrong}); nothing was installed",
                code="checksum_mismatch",
                details={"bytes": self.size, "expected_bytes": n_bytes, "sha256": actual, "expected_sha256": sha256},
            )
        with self._storage():
            self._seal()
            self._close_files()
            os.chmod(self.path, 0o444)
            record(self.path, actual)
            os.replace(self.path, target)
            _sync_directory(target.parent)
            self._journal_path.unlink(missing_ok=True)

    def _magic(self) -> bytes:
        with self._storage():
            self._file.seek(0)
            magic = self._file.read(4)
            self._file.seek(self.size)
            return magic

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            raise storage_error(cause, self.path) from cause


def _sync_directory(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
