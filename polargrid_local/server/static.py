"""The chat page and polargrid.js, read once from the package's web folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

WEB_FOLDER = Path(__file__).parent.parent / "web"

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "json": "application/json",
    "webmanifest": "application/manifest+json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
}
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Page(NamedTuple):
    body: bytes
    headers: dict[str, str]

    def reply(self, request: Request) -> Response:
        if request.headers.get("if-none-match") == self.headers["etag"]:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers)


def read_pages(folder: Path = WEB_FOLDER) -> dict[str, Page]:
    """Path on the server -> page, for every file of a known type; {} when the folder is missing."""
    pages = {}
    for file in sorted(folder.rglob("*")):
        if (kind := CONTENT_TYPES.get(file.suffix[1:])) and file.is_file() and not file.is_symlink():
            body = file.read_bytes()
            headers = {
                "content-type": kind,
                "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
                "cache-control": "no-cache",
                **PAGE_HEADERS,
            }
            pages["/" + file.relative_to(folder).as_posix()] = Page(body, headers)
    if "/index.html" in pages:
        pages["/"] = pages["/index.html"]
    return pages
