"""The transfer: the bytes of one address into a partial file over HTTP, tried again for as long as some arrive."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from polargrid_local.errors import NetworkError
from polargrid_local.models.names import url_path
from polargrid_local.models.partial import Partial, require_space

if TYPE_CHECKING:
    import ssl

    import httpx

RETRY_DELAYS_S = (0.5, 1, 2, 4, 8)  # between tries that bring no byte; any byte starts the count anew
TIMEOUT_S = 30  # of connecting, and of every wait for bytes
MAX_REDIRECTS = 10

Progress = Callable[[int, "int | None"], None]
"""Called with (bytes done, bytes in all or None where unknown). To cancel a download, raise from here anything but an
OSError: it comes out as it is, and the next download goes on from there."""


@dataclass(frozen=True)
class Remote:
    """Where a file lies. `identity` changes when its content does; `n_bytes` and `sha256` are as the other side states
    them; `tls` None trusts the usual authorities."""

    url: str
    headers: dict[str, str]
    identity: str
    n_bytes: int | None
    sha256: str | None
    tls: ssl.SSLContext | None = None


class Refusal(OSError):
    """The other side answered with an HTTP status of 400 or more. An OSError, as every way in which a host may fail."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status

    @property
    def passes(self) -> bool:
        """Whether the same question may be answered later. 403 too: a signed address may have run out, and the next try
        asks for a fresh one."""
        return self.status >= 500 or self.status in (403, 408, 425, 429)


@contextlib.contextmanager
def get(url: str, headers: dict[str, str], tls: ssl.SSLContext | None) -> Iterator[httpx.Response]:
    """One GET whose body is read inside the block, as it comes over the wire. Proxies are those of the environment.

    Raises Refusal, NetworkError for proxy settings that cannot be used, and ConnectionError for what may pass.
    """
    import httpx  # brings sockets and TLS, which looking up a name must not cost

    with _client(tls) as client:
        try:
            with client.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}) as response:
                if response.status_code >= 400:
                    raise Refusal(response.status_code)
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            raise ConnectionError(str(cause) or type(cause).__name__) from cause


def _client(tls: ssl.SSLContext | None) -> httpx.Client:
    import httpx

    verify = tls or _usual_authorities()
    try:
        return httpx.Client(
            verify=verify,
            timeout=TIMEOUT_S,
            follow_redirects=True,  # without the login, where one leads to another host
            max_redirects=MAX_REDIRECTS,
            event_hooks={"response": [_refuse_downgrade]},
        )
    except (ImportError, ValueError, httpx.InvalidURL) as cause:
        message = f"the proxy settings of the environment cannot be used: {cause}"
        raise NetworkError(message, cause=cause, code="bad_proxy") from cause


def _refuse_downgrade(response: httpx.Response) -> None:
    """A redirect may not leave encryption, nor lead to a file of this disk."""
    if response.has_redirect_location:
        target = response.url.join(response.headers["Location"])
        if target.scheme not in ("https", response.url.scheme):
            raise ConnectionError(f"refused to follow {str(target)[:100]!r}")


def _usual_authorities() -> ssl.SSLContext:
    """Those of $SSL_CERT_FILE; without it the system's, and certifi's because many a Python does not find those."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE"):
        context.load_verify_locations(certifi.where())
    return context


@dataclass
class Transfer:
    """One file on its way into a partial file of the folder `work`, which keeps what a broken transfer left.

    `name` is the file's, `whose` says in messages who delivers it, `locate` finds it anew for every try. `n_bytes` and
    `sha256` are what the file must have, None where nobody has said.
    """

    name: str
    whose: str
    locate: Callable[[], Remote]
    work: Path
    progress: Progress
    n_bytes: int | None = None
    sha256: str | None = None

    def run(self, opened: contextlib.ExitStack) -> tuple[Partial, Remote]:
        """All bytes, in a partial file that `opened` closes, and where they came from, with their number.

        Raises NetworkError (code checksum_mismatch before the first byte when the other side states another length or
        hash), what `locate` raises, and ServerError with code disk_full or storage_error.
        """
        n_idle, part = 0, None
        while True:
            n_before = part.size if part is not None else 0
            try:
                remote = self.locate()
                self._require_agreement(remote)
                path = self.work / f"{self.name}.{remote.identity}.part"
                if part is None or part.path != path:
                    part = opened.enter_context(Partial(path))
                    n_before = part.size
                total = self.n_bytes if self.n_bytes is not None else remote.n_bytes
                require_space(self.work, total, part.size)
                if total is None or part.size < total:
                    total = self._receive(remote, part, total)
                if total is None or part.size >= total:
                    return part, replace(remote, n_bytes=total)
                problem: Exception = ConnectionError(f"cut after {part.size} of {total} bytes")
            except Refusal as refusal:
                if not refusal.passes:
                    message = f"{self.name}: {self.whose} answered {refusal.status}"
                    raise NetworkError(message, cause=refusal) from refusal
                problem = refusal
            except OSError as error:
                problem = error
            n_idle = 0 if part is not None and part.size > n_before else n_idle + 1
            if n_idle > len(RETRY_DELAYS_S):
                raise NetworkError(
                    f"{self.name}: the download failed {n_idle} times in a row ({problem}); "
                    "the same command goes on from here",
                    cause=problem,
                ) from problem
            time.sleep(RETRY_DELAYS_S[max(n_idle - 1, 0)])

    def _require_agreement(self, remote: Remote) -> None:
        for what, ours, theirs in (
            ("bytes", self.n_bytes, remote.n_bytes),
            ("SHA-256", self.sha256, remote.sha256),
        ):
            if ours is not None and theirs is not None and ours != theirs:
                raise NetworkError(
                    f"{self.name}: {self.whose} has a different file than the catalogue "
                    f"({what} {theirs} instead of {ours})",
                    code="checksum_mismatch",
                )

    def _receive(self, remote: Remote, part: Partial, n_bytes: int | None) -> int | None:
        """What one connection brings, into `part`. Returns the whole length as far as it is known."""
        if remote.url.startswith("file:"):  # of a package index on this disk
            return self._copy(url_path(remote.url), part)
        try:
            return self._receive_from(part.size, remote, part, n_bytes)
        except Refusal as refusal:
            if refusal.status != 416:  # Range Not Satisfiable: what we hold is not a beginning of what they have
                raise
        part.restart()
        return self._receive_from(0, remote, part, n_bytes)

    def _copy(self, path: str, part: Partial) -> int:
        part.restart()
        with open(path, "rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            while piece := file.read(1 << 20):
                part.write(piece)
                self.progress(part.size, n_bytes)
        return n_bytes

    def _receive_from(self, offset: int, remote: Remote, part: Partial, n_bytes: int | None) -> int | None:
        range_header = {"Range": f"bytes={offset}-"} if offset else {}
        with get(remote.url, {**remote.headers, **range_header}, remote.tls) as response:
            status, length = response.status_code, response.headers.get("Content-Length")
            stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if status == 206 and stated and int(stated[1]) == offset:
                total: int | None = int(stated[2])
            elif status == 200:  # a server without ranges starts over, and so do we
                part.restart()
                total = int(length) if length is not None else None
            else:
                raise ConnectionError(f"status {status} when asked for bytes from {offset} on")
            total = total if n_bytes is None else n_bytes
            self.progress(part.size, total)
            for piece in response.iter_raw():
                part.write(piece)
                self.progress(part.size, total)
                if total is not None and part.size > total:  # one byte too many is enough to refuse the file
                    break
        return total
