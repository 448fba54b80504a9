"""The package index: where a wheel lies, for a program without pip. Reads the settings that pip itself would read."""

from __future__ import annotations

import configparser
import contextlib
import ipaddress
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from polargrid_local.errors import NetworkError, NotFoundError
from polargrid_local.models.names import url_path

PYPI = "https://pypi.org/simple"
# The two forms in which an index lists the files of a project: PEP 691 and PEP 503.
JSON, HTML = "application/vnd.pypi.simple.v1+json", "text/html"


@dataclass(frozen=True)
class IndexSettings:
    """`urls` are tried in turn; `trusted_hosts` need no valid certificate; `cert` replaces the usual authorities."""

    urls: tuple[str, ...]
    trusted_hosts: frozenset[str]
    cert: str | None

    @classmethod
    def read(cls) -> IndexSettings:
        """From pip's files and, above them, its PIP_* variables. Raises NetworkError where they forbid any index."""
        values: dict[str, str] = {}
        for path in config_files():
            parser = configparser.RawConfigParser()
            # A missing or broken file is for pip to complain of.
            with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
                parser.read_string(path.read_text(encoding="utf-8"))
            for section in ("global", "download"):
                if parser.has_section(section):
                    values.update((key.replace("_", "-"), value) for key, value in parser.items(section))
        for key in ("index-url", "extra-index-url", "trusted-host", "cert", "no-index"):
            if value := os.environ.get("PIP_" + key.replace("-", "_").upper()):
                values[key] = value
        if values.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
            message = "pip's settings forbid every package index (no-index), and there is no pip here to look elsewhere"
            raise NetworkError(message, code="no_pip")
        urls = (values.get("index-url") or PYPI, *values.get("extra-index-url", "").split())
        return cls(urls, frozenset(values.get("trusted-host", "").split()), values.get("cert") or None)

    def trusts(self, url: str) -> bool:
        """Whether the user wants no certificate of this host."""
        parts = urlsplit(url)
        return not self.trusted_hosts.isdisjoint((parts.hostname, parts.netloc.rpartition("@")[2]))

    def secure(self, url: str) -> bool:
        """Whether pip would fetch from there: encrypted, trusted, or from this machine."""
        parts = urlsplit(url)
        return parts.scheme == "https" or (
            parts.scheme == "http" and (self.trusts(url) or _is_loopback(parts.hostname or ""))
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def config_files() -> Iterator[Path]:
    """The files that pip reads its settings from, whether they exist or not; a later one wins over an earlier one."""
    from platformdirs import site_config_dir, user_config_dir

    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    name = "pip.ini" if os.name == "nt" else "pip.conf"
    for folder in reversed(site_config_dir("pip", appauthor=False, multipath=True).split(os.pathsep)):
        yield Path(folder) / name
    if os.name == "posix":
        yield Path("/etc") / name
    home = Path(os.path.expanduser("~"))
    yield home / ("pip" if os.name == "nt" else ".pip") / name
    yield Path(user_config_dir("pip", appauthor=False, roaming=True)) / name
    yield home / ".config" / "pip" / name
    yield Path(sys.prefix) / name
    if chosen:
        yield Path(chosen)


@dataclass(frozen=True)
class IndexedWheel:
    """`sha256` and `n_bytes` as the index states them, None where it does not."""

    url: str
    file: str
    sha256: str | None
    n_bytes: int | None


Read = Callable[[str, str], "tuple[str, bytes, str]"]
"""(URL, accepted types) -> (final URL, body, content type). Raises FileNotFoundError for a page that is not there, and
another OSError for whatever else goes wrong."""


def find_wheel(requirement: str, settings: IndexSettings, read: Read) -> IndexedWheel:
    """The pure Python wheel of `name==version`.

    Raises NotFoundError, NetworkError for an address that is not safe, or the OSError of the first index that failed.
    """
    name, _, version = requirement.partition("==")
    project = _project(name)
    failure: OSError | None = None
    for base in settings.urls:
        try:
            url, body, kind = read(_page(base, project), f"{JSON}, {HTML};q=0.5")
            wheels = list(_from_json(url, body) if "json" in kind else _from_html(url, body))
        except FileNotFoundError:
            continue
        except OSError as cause:
            failure = failure or cause
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            failure = failure or OSError(f"{_shown(base)} answers with no list of files ({type(cause).__name__})")
            continue
        for wheel in wheels:
            given, _, rest = wheel.file.partition("-")
            if _project(given) == project and rest.startswith(f"{version}-") and rest.endswith("-none-any.whl"):
                if not settings.secure(wheel.url) and not url.startswith("file:"):
                    raise NetworkError(
                        f"{requirement}: refused to follow {wheel.url[:100]!r}, neither https nor trusted"
                    )
                return wheel
    if failure is not None:
        raise failure
    indexes = ", ".join(map(_shown, settings.urls))
    raise NotFoundError(f"{requirement}: no such wheel on {indexes}", code="model_not_found", param="model")


def _project(name: str) -> str:
    """A project's name as the addresses of an index spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _page(base: str, project: str) -> str:
    """The address of the page that lists a project's files."""
    if urlsplit(base).scheme == "file":  # a folder that looks like an index
        return (Path(url_path(base)) / project / "index.html").as_uri()
    return f"{base.rstrip('/')}/{project}/"


def _shown(url: str) -> str:
    """An address without the login that may be in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _from_json(page: str, body: bytes) -> Iterator[IndexedWheel]:
    for file in json.loads(body)["files"]:
        size, sha256 = file.get("size"), file.get("hashes", {}).get("sha256")
        yield IndexedWheel(
            urljoin(page, file["url"]), file["filename"], sha256, size if isinstance(size, int) else None
        )


def _from_html(page: str, body: bytes) -> Iterator[IndexedWheel]:
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attributes if tag == "a" and name == "href" and value)

    Links().feed(body.decode("utf-8", "replace"))
    for link in links:
        url, _, fragment = urljoin(page, link).partition("#")
        stated = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
        yield IndexedWheel(url, unquote(urlsplit(url).path.rpartition("/")[2]), stated[1] if stated else None, None)
