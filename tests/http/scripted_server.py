"""A server that answers what a test scripts, byte by byte: what no well-behaved model server can be made to send."""

from __future__ import annotations

import json
import mimetypes
import threading
from collections import deque
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WEB = Path(__file__).parents[2] / "polargrid_local" / "web"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
EVENT_STREAM = "text/event-stream; charset=utf-8"


def chunk(content: str | None = None, reason: str | None = None, **extra: Any) -> bytes:
    """One chat chunk as a server-sent event; without content the role chunk, or with a reason the last one."""
    delta = {"content": content} if content is not None else {} if reason else {"role": "assistant"}
    body = {
        "id": "chatcmpl-0123456789abcdef01234567",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        **extra,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    """A chunk with this delta: `reasoning_content`, `tool_calls` and what else there is beside text."""
    return chunk(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def call(index: int, name: str, *arguments: str) -> list[bytes]:
    """A call as a stream has it: its id and name, then its arguments in pieces. Its id is `call_` and the index."""
    begun = {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [{"function": {"arguments": piece}} for piece in arguments]
    return [delta(tool_calls=[{"index": index, **piece}]) for piece in (begun, *pieces)]


def usage(n_prompt: int, n_generated: int) -> bytes:
    return chunk(
        choices=[],
        usage={"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": n_prompt + n_generated},
    )


DONE = b"data: [DONE]\n\n"


def answer(*pieces: str, reason: str = "stop") -> list[bytes]:
    return [chunk(), *(chunk(piece) for piece in pieces), chunk(reason=reason), usage(12, len(pieces)), DONE]


def refusal(message: str, kind: str = "server_error", code: str = "internal_error") -> dict[str, Any]:
    return {"detail": message, "error": {"message": message, "type": kind, "code": code, "param": None}}


class ScriptedServer:
    """Answers each POST of `path` with the next script said for it; everything it was asked is in `asked`.

    A script is (status, headers, steps); a step is bytes to send at once, or an Event to wait for.
    `load_refusals` are the words with which the next loads of a model are refused.
    `health` is the answer of /health, `health_asked` how often it was asked.
    `gone` is set when the client closed its connection in the middle of a script.
    """

    def __init__(self) -> None:
        self.scripts: deque[tuple[int, dict[str, str], Iterable[bytes | threading.Event]]] = deque()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.gone = threading.Event()
        self.models: dict[str, str] = {"scripted": "loaded"}
        self.load_gate = threading.Event()
        self.load_progress = 0.0
        self.load_gate.set()
        self.loads: list[str] = []
        self.load_refusals: deque[str] = deque()
        self.api_key: str | None = None
        self.health: tuple[int, dict[str, Any]] = (200, {"status": "healthy"})
        self.health_asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_OPTIONS(self) -> None:
                self.reply(204, b"")

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if not path.startswith("/v1/") and path != "/health":
                    self.file(path)
                elif not self.allowed():
                    pass
                elif path == "/v1/models":
                    data = [
                        {
                            "id": id,
                            "object": "model",
                            "created": 1,
                            "owned_by": "local",
                            "permission": [],
                            "root": id,
                            "parent": None,
                        }
                        for id in server.models
                    ]
                    self.json(200, {"object": "list", "data": data})
                elif path == "/v1/models/status":
                    loading = [id for id, state in server.models.items() if state == "loading"]
                    self.json(
                        200,
                        {
                            "loaded": [id for id, state in server.models.items() if state == "loaded"],
                            "loading_status": server.models,
                            "repository": "/models",
                            "progress": dict.fromkeys(loading, server.load_progress),
                        },
                    )
                elif path == "/health":
                    server.health_asked += 1
                    self.json(*server.health)
                else:
                    self.json(404, refusal("No such path", "not_found_error", "not_found"))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
                if not self.allowed():
                    return
                if self.path == "/v1/models/load":
                    name = body["model_name"]
                    server.loads.append(name)
                    if server.load_refusals:
                        server.models[name] = "failed"
                        self.json(503, refusal(server.load_refusals.popleft()))
                        return
                    server.models[name] = "loading"
                    server.load_gate.wait(120)
                    server.models[name] = "loaded"
                    self.json(200, {"status": "success", "model": name, "force_reload": False, "message": "loaded"})
                    return
                if self.path == "/v1/models/unload":
                    server.models[body["model_name"]] = "unloaded"
                    self.json(200, {"status": "success", "model": body["model_name"], "message": "unloaded"})
                    return
                server.asked.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                if not server.scripts:
                    self.json(500, refusal("The test scripted no answer"))
                    return
                status, headers, steps = server.scripts.popleft()
                try:
                    self.head(status, headers)
                    sent = b"\n"
                    for step in steps:
                        if isinstance(step, bytes):
                            self.wfile.write(step)
                            self.wfile.flush()
                            sent = step
                        elif sent.endswith(b"\n"):
                            self.await_step(step)
                        else:
                            step.wait()  # within a line a comment would become part of it
                except (BrokenPipeError, ConnectionError):
                    server.gone.set()

            def await_step(self, step: threading.Event) -> None:
                # Comments tell whether the client is still there.
                while not step.wait(0.05):
                    self.wfile.write(b": waiting\n")
                    self.wfile.flush()

            def allowed(self) -> bool:
                if server.api_key is None or self.headers.get("authorization") == f"Bearer {server.api_key}":
                    return True
                self.json(401, refusal("Wrong or missing API key", "authentication_error", "invalid_api_key"))
                return False

            def file(self, path: str) -> None:
                file = WEB / (path.lstrip("/") or "index.html")
                if not file.is_file():
                    self.json(404, refusal("No such path", "not_found_error", "not_found"))
                    return
                kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                self.reply(
                    200, file.read_bytes(), {"Content-Type": f"{kind}; charset=utf-8", "Content-Security-Policy": CSP}
                )

            def json(self, status: int, body: Any) -> None:
                self.reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

            def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.head(status, {**(headers or {}), "Content-Length": str(len(body))})
                self.wfile.write(body)

            def head(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {
                    **headers,
                    "Access-Control-Allow-Origin": "*",
                    "Access-Control-Allow-Headers": "*",
                    "Connection": "close",
                }.items():
                    self.send_header(name, value)
                self.end_headers()

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def say(self, *steps: bytes | threading.Event, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Scripts the next answer; a stream unless the headers say otherwise."""
        self.scripts.append((status, {"Content-Type": EVENT_STREAM, **(headers or {})}, steps))

    def refuse(
        self, status: int, message: str, kind: str = "server_error", code: str = "internal_error", **headers: str
    ) -> None:
        self.say(
            json.dumps(refusal(message, kind, code)).encode(),
            status=status,
            headers={"Content-Type": "application/json", **headers},
        )

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
