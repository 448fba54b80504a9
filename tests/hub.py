"""Hub: a stand-in of the model hub on loopback, which can break off, lie about lengths and hashes, and refuse."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import re
import urllib.parse

MODEL = b"GGUF" + random.Random(1).randbytes(300_000)
FILE = "house.gguf"


class Hub(http.server.ThreadingHTTPServer):
    """Answers /owner/repo/resolve/REV/FILE as the hub does: a HEAD tells length, hash and where the bytes are."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = MODEL
        self.stated_sha256 = None  # what the hub claims; None: the truth
        self.stated_bytes = None
        self.etag_is_sha256 = True
        self.ranges = True
        self.lengths = True
        self.cuts = []  # bytes after which the next connections break
        self.statuses = []  # statuses of the next GETs
        self.storage = f"http://localhost:{self.server_port}"  # another host than the endpoint's 127.0.0.1
        self.requests = []
        self.hold = None  # an Event that every GET waits for
        self.broken = None  # a part of the path of files that can only be asked about
        self.files = None  # path in the repository -> bytes, where there are others than FILE

    @property
    def gets(self):
        return [request for request in self.requests if request[0] == "GET"]

    def handle_error(self, request, client_address):
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def _note(self):
        self.server.requests.append(
            (self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        )

    def _file(self):
        """Its path in the repository and its bytes; None for a file that is not there."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        name = re.sub(r"^/(blob|[^/]+/[^/]+/resolve/[^/]+)/", "", path)
        return name, (self.server.files or {FILE: self.server.data}).get(name)

    def do_HEAD(self):
        self._note()
        hub = self.server
        name, data = self._file()
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(302 if "blob" not in self.path else 200)
        self.send_header("Location", f"{hub.storage}/blob/{urllib.parse.quote(name)}")
        sha256 = hub.stated_sha256 or hashlib.sha256(data).hexdigest()
        self.send_header("X-Linked-ETag", f'"{sha256 if hub.etag_is_sha256 else sha256[:32]}"')
        if hub.lengths:
            self.send_header("X-Linked-Size", str(hub.stated_bytes or len(data)))
        self.send_header("X-Repo-Commit", "c0ffee")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self._note()
        hub = self.server
        if hub.hold is not None:
            hub.hold.wait(120)
        if "/api/models/" in self.path:
            listing = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in hub.files or {FILE: b""}]
            body = json.dumps(listing).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return None
        if hub.broken and hub.broken in urllib.parse.unquote(self.path):
            hub.statuses.append(404)
        if hub.statuses:
            self.send_response(hub.statuses.pop(0))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        (_, data), first = self._file(), 0
        if hub.ranges and (wanted := self.headers.get("Range")):
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if hub.lengths:
            self.send_header("Content-Length", str(len(data) - first))
        self.send_header("Connection", "close")
        self.end_headers()
        body = data[first:]
        self.wfile.write(body[: hub.cuts.pop(0)] if hub.cuts else body)
        self.close_connection = True
