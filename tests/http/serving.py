"""A real server in its own process, started by the command line, on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).parents[2]
SMOLLM2 = "smollm2-135m"
ALIAS = "llama-3.1-8b"
SAID = ["Hi", " \u2028line", " caf\u00e9", " \U0001f600", "!"]  # what the scripted model answers


def raw_post(server: ServerProcess, path: str, body: bytes, *headers: str) -> bytes:
    """A POST as it goes over the connection, for tests that hold that themselves."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: localhost:{server.port}",
        *headers,
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class ServerProcess:
    """`polargrid-local serve` with these settings; `log` is all it wrote."""

    def __init__(self, models_dir: Path, log: Path, **settings: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = settings.get("port", probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._verify: ssl.SSLContext | bool = True
        self._log = log
        settings = {"models": models_dir, "port": self.port, **settings}
        env = {key: value for key, value in os.environ.items() if not key.startswith("POLARGRID_")}
        env |= {"PYTHONPATH": str(REPOSITORY), **{f"POLARGRID_LOCAL_{k.upper()}": str(v) for k, v in settings.items()}}
        command = [sys.executable, "-m", "polargrid_local", "serve"]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=log.parent)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def trust(self, ca: Path) -> None:
        """Speak https to it, which has a certificate by this authority."""
        self.url = self.url.replace("http://", "https://")
        self._verify = ssl.create_default_context(cafile=ca)

    def workers(self) -> list[int]:
        """The processes of its engines, the oldest first (Linux)."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted(int(child) for task in tasks for child in task.read_text().split())

    def wait_ready(self, seconds: float = 120) -> ServerProcess:
        self.wait_for(lambda: self.get("/health").json()["status"] == "healthy", seconds)
        return self

    def wait_for(self, condition: Any, seconds: float = 120) -> None:
        """Polls until `condition()` is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            with contextlib.suppress(httpx.TransportError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; the server wrote:\n{self.log}")

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=self._verify) as client:
            return client.request(method, path, **kwargs)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, json: Any = None, **kwargs: Any) -> httpx.Response:
        return self.request("POST", path, json=json, **kwargs)

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def stop(self, sig: int = signal.SIGTERM, seconds: float = 120) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end:\n{self.log}") from None
