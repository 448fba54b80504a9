"""Life under load: clients that leave or stall, queues that fill, servers that end, models that come and go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import SAID, SMOLLM2, ServerProcess, raw_post

from polargrid_local import Engine

CHAT = "/v1/chat/completions"
ENDLESS = {
    "model": "random",
    "messages": [{"role": "user", "content": "the"}],
    "max_tokens": 130_000,
    "ignore_eos": True,
}
RUNNING, WAITING = "polargrid_running_requests", "polargrid_waiting_requests"


def busy(server: ServerProcess) -> float:
    return server.metric(RUNNING) + server.metric(WAITING)


@contextlib.contextmanager
def open_stream(server: ServerProcess, body: dict[str, Any], path: str = CHAT) -> Iterator[Iterator[str]]:
    """The lines of a stream, read as the caller asks for them."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        with client.stream("POST", server.url + path, json={**body, "stream": True}) as reply:
            assert reply.status_code == 200, reply.read()
            yield reply.iter_lines()


def until_text(lines: Iterator[str]) -> None:
    for line in lines:
        if '"content":' in line:
            return
    raise AssertionError("no text came")


# --- clients that leave ---


def test_a_stream_ends_when_its_client_leaves(start: Callable[..., ServerProcess]) -> None:
    server = start().wait_ready()
    cancelled = server.metric("polargrid_cancelled_requests_total")
    with open_stream(server, ENDLESS) as lines:
        until_text(lines)
        assert server.metric(RUNNING) == 1
    server.wait_for(lambda: busy(server) == 0 and server.metric("polargrid_open_streams") == 0)
    assert server.metric("polargrid_cancelled_requests_total") == cancelled + 1


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_plain_request_ends_when_its_client_leaves(start: Callable[..., ServerProcess], path: str) -> None:
    server = start().wait_ready()
    cancelled = server.metric("polargrid_cancelled_requests_total")
    body = json.dumps({**ENDLESS, "prompt": "the"}).encode()
    request = raw_post(server, path, body)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request)
        server.wait_for(lambda: server.metric(RUNNING) == 1)
    server.wait_for(lambda: busy(server) == 0)
    assert server.metric("polargrid_cancelled_requests_total") == cancelled + 1


# --- clients that stall ---


def test_a_stalled_reader_is_let_go(start: Callable[..., ServerProcess]) -> None:
    server = start(write_timeout_s=0.5).wait_ready()
    body = json.dumps({**ENDLESS, "stream": True}).encode()
    request = raw_post(server, CHAT, body)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request)
        server.wait_for(lambda: server.metric(RUNNING) == 1)
        server.wait_for(lambda: busy(server) == 0 and server.metric("polargrid_open_streams") == 0)
        assert server.metric("polargrid_generated_tokens_total") < 130_000  # it did not just come to its end
        connection.settimeout(120)
        with pytest.raises(
            ConnectionResetError
        ):  # not closed in order: that would have kept its buffers until it reads
            while connection.recv(65536):
                pass


def test_silence_is_filled_with_comments(start: Callable[..., ServerProcess]) -> None:
    """Behind a busy engine a stream waits; its connection stays warm. Text streams have no role chunk to send."""
    server = start(heartbeat_s=0.1, max_streams=1).wait_ready()
    with open_stream(server, ENDLESS) as first:
        until_text(first)
        with open_stream(server, {**ENDLESS, "prompt": "the"}, "/v1/completions") as second:
            assert [next(second) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]
        with open_stream(server, ENDLESS) as third:
            assert '"delta":{"role":"assistant"}' in next(third)  # at once, before its turn has come
            assert next(third) == ""
            assert next(third) == ": keep-alive"


# --- failures in the middle ---


def test_a_failure_in_the_middle_is_an_event_and_no_done(start: Callable[..., ServerProcess]) -> None:
    server = start(model="random").wait_ready()
    with open_stream(server, ENDLESS) as lines:
        until_text(lines)
        server.post("/v1/models/unload", {"model_name": "random"})
        events = [line for line in lines if line]
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_closed"
    assert list(last) == ["detail", "error"]
    assert list(last["error"]) == ["message", "type", "code", "param"]
    assert "data: [DONE]" not in events


def test_a_request_may_not_take_forever(start: Callable[..., ServerProcess]) -> None:
    server = start(request_timeout_s=0.5, heartbeat_s=0.2).wait_ready()
    with open_stream(server, ENDLESS) as lines:
        events = [line for line in lines if line.startswith("data:")]
    assert json.loads(events[-1][6:])["error"]["code"] == "timeout"
    reply = server.post(CHAT, ENDLESS)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    server.wait_for(lambda: busy(server) == 0)


# --- many at once ---


def test_a_burst_is_queued_or_refused_and_forgotten(start: Callable[..., ServerProcess]) -> None:
    server = start(max_streams=2, max_queue=4).wait_ready()
    with open_stream(server, ENDLESS) as a, open_stream(server, ENDLESS) as b:
        until_text(a)
        until_text(b)
        gate = threading.Barrier(100)

        def ask(i: int) -> httpx.Response:
            gate.wait()
            return server.post(CHAT, {**ENDLESS, "max_tokens": 2, "stream": bool(i % 2)})

        with ThreadPoolExecutor(100) as pool:
            futures = [pool.submit(ask, i) for i in range(100)]
            server.wait_for(lambda: sum(f.done() for f in futures) >= 96)
            refused = [f.result() for f in futures if f.done()]
            assert len(refused) == 96  # four wait, two run
            assert {r.status_code for r in refused} == {429}
            assert {r.json()["error"]["code"] for r in refused} == {"queue_full"}
            assert all(int(r.headers["retry-after"]) >= 1 for r in refused)
            a.close()
    with ThreadPoolExecutor(1):
        assert Counter(f.result().status_code for f in futures) == {429: 96, 200: 4}
    server.wait_for(lambda: busy(server) == 0)


@pytest.mark.parametrize("n", [64, 256])
def test_an_ordinary_burst_is_served_with_the_default_settings(start: Callable[..., ServerProcess], n: int) -> None:
    server = start(n_ctx=1024).wait_ready()
    gate = threading.Barrier(n)

    def ask(i: int) -> tuple[int, str]:
        gate.wait()
        reply = server.post(CHAT, {**ENDLESS, "max_tokens": 3, "stream": bool(i % 2)})
        return reply.status_code, "data: [DONE]" if i % 2 == 0 else reply.text.strip().rsplit("\n", 1)[-1]

    with ThreadPoolExecutor(n) as pool:
        assert set(pool.map(ask, range(n))) == {(200, "data: [DONE]")}


def test_streams_at_once_do_not_mix(server: ServerProcess) -> None:
    def ask(i: int) -> str:
        message = {"role": "user", "content": "the " * i + "\ue001"}
        reply = server.post(CHAT, {"model": "scripted", "messages": [message], "max_tokens": 50, "stream": True})
        chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        assert len({chunk["id"] for chunk in chunks}) == 1
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(32))) == {"".join(SAID)}


# --- the end ---


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ending_drains_what_runs(start: Callable[..., ServerProcess], sig: int) -> None:
    server = start(drain_s=300).wait_ready()
    with open_stream(server, {**ENDLESS, "max_tokens": 400}) as lines:
        until_text(lines)
        server.process.send_signal(sig)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(60) == 0


def test_ending_cuts_what_runs_too_long(start: Callable[..., ServerProcess]) -> None:
    server = start(drain_s=0.2).wait_ready()
    with open_stream(server, ENDLESS) as lines:
        until_text(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1][6:])["error"]["code"] == "engine_closed"
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log


def test_ending_refuses_plain_requests_that_run_too_long(start: Callable[..., ServerProcess]) -> None:
    server = start(drain_s=0.2).wait_ready()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, CHAT, ENDLESS)
        server.wait_for(lambda: server.metric(RUNNING) == 1)
        server.process.send_signal(signal.SIGTERM)
        reply = answer.result(120)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_closed")
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log


# A server whose drain and whose answers outlast every test.
PATIENT = {"drain_s": 3000, "n_ctx": 16384, "max_streams": 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)],
)
def test_a_second_signal_hastens_the_end(start: Callable[..., ServerProcess], first: int, second: int) -> None:
    server = start(**PATIENT).wait_ready()
    with ThreadPoolExecutor(1) as pool, open_stream(server, ENDLESS) as lines, open_stream(server, ENDLESS) as waiting:
        until_text(lines)
        until_text(waiting)
        plain = pool.submit(server.post, CHAT, ENDLESS)
        server.wait_for(lambda: server.metric(WAITING) == 1)
        server.process.send_signal(first)
        server.wait_for(lambda: refuses_connections(server))
        server.process.send_signal(second)
        for stream in (lines, waiting):
            rest = [line for line in stream if line]
            assert json.loads(rest[-1][6:])["error"]["code"] == "engine_closed"
        reply = plain.result(60)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_closed")
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log


def refuses_connections(server: ServerProcess) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_a_second_signal_does_not_wait_for_one_who_reads_nothing(start: Callable[..., ServerProcess]) -> None:
    server = start(write_timeout_s=3000, **PATIENT).wait_ready()
    body = json.dumps({**ENDLESS, "stream": True}).encode()
    request = raw_post(server, CHAT, body)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request)
        server.wait_for(lambda: server.metric(RUNNING) == 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: refuses_connections(server))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


@pytest.mark.parametrize(("sig", "times"), [(signal.SIGTERM, 1), (signal.SIGINT, 5)])
def test_an_idle_server_ends_well_however_often_it_is_told(
    start: Callable[..., ServerProcess], sig: int, times: int
) -> None:
    server = start().wait_ready()
    for _ in range(times):
        server.process.send_signal(sig)
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ending_before_the_settings_are_read(start: Callable[..., ServerProcess], tmp_path: Path, sig: int) -> None:
    pipe = tmp_path / "settings.toml"
    os.mkfifo(pipe)
    server = start(config=pipe)
    with pipe.open("wb"):  # opens once the server has it open, which then waits for more
        while server.process.poll() is None:  # a signal between its opening and its waiting is seen at the next one
            server.process.send_signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(1)
        assert server.process.returncode == 0


def test_ending_while_a_model_is_loading(start: Callable[..., ServerProcess]) -> None:
    server = start(check_tensors=True)
    server.wait_for(lambda: "listening on" in server.log)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log


def test_a_unix_socket_serves_its_user_alone(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = start(unix_socket=path)
    server.wait_for(lambda: "listening on" in server.log)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=60) as client:
        server.wait_for(lambda: client.get("/health").json()["status"] == "healthy")
        assert path.stat().st_mode & 0o777 == 0o600
        assert client.post(CHAT, json={**ENDLESS, "max_tokens": 2}).json()["usage"]["completion_tokens"] == 2
        for host in (
            "socket",
            "box.example:443",
            "127.0.0.1:1",
        ):  # no web page gets here, and programs write what they like
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200
        assert (
            client.get("/v1/models", headers={"Host": "box.example", "Origin": "https://box.example"}).status_code
            == 200
        )
        assert (
            client.get("/v1/models", headers={"Host": "box.example", "Origin": "https://evil.example"}).status_code
            == 403
        )
        second = start(unix_socket=path)
        assert second.process.wait(120) != 0
        assert "another server answers there" in second.log
    server.stop(signal.SIGKILL)
    third = start(unix_socket=path)  # what the first one left behind is no obstacle
    third.wait_for(lambda: "listening on" in third.log)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=60) as client:
        third.wait_for(lambda: client.get("/health").status_code == 200)


def test_a_model_that_cannot_be_loaded_ends_the_server(start: Callable[..., ServerProcess], tiny_dir: Any) -> None:
    (tiny_dir / "broken.gguf").write_bytes(b"GGUF but not really")
    server = start(model="broken")
    assert server.process.wait(120) != 0
    assert "broken" in server.log
    assert start(model="missing").process.wait(120) != 0


# --- models that come and go ---


def test_idle_models_are_unloaded_and_come_back(start: Callable[..., ServerProcess]) -> None:
    server = start(keep_alive_s=0.2).wait_ready()
    server.wait_for(lambda: server.get("/v1/models/status").json()["loaded"] == [])
    with open_stream(server, ENDLESS) as lines:  # in use: stays
        until_text(lines)
        assert server.get("/v1/models/status").json()["loaded"] == ["random"]
    server.wait_for(lambda: server.get("/v1/models/status").json()["loaded"] == [])


def test_the_memory_budget_unloads_the_longest_unused(start: Callable[..., ServerProcess], tiny_dir: Any) -> None:
    files = [tiny_dir / f"{name}.gguf" for name in ("random", "scripted")]
    needs = [Engine.estimate(file, n_ctx=512, max_streams=4, n_threads=1) for file in files]
    slack = 2_000_000  # an estimate counts the process that makes it, which is not the same to the byte each time
    assert min(need["cache_bytes"] + need["compute_bytes"] for need in needs) > 1.5 * slack
    budget = max(need["total_bytes"] for need in needs) + slack  # enough for each, but not beside another
    server = start(memory_budget_bytes=budget, n_ctx=512).wait_ready()
    assert server.post("/v1/completions", {"model": "scripted", "prompt": "\ue000"}).status_code == 200
    assert server.get("/v1/models/status").json()["loaded"] == ["scripted"]
    server = start(memory_budget_bytes=1000)
    assert server.process.wait(120) != 0
    assert "memory budget" in server.log


# --- logs ---


def test_prompts_are_never_logged(server: ServerProcess) -> None:
    secret = "xyzzy-plugh"
    for body in (
        {"model": SMOLLM2, "messages": [{"role": "user", "content": secret}], "max_tokens": 2},
        {"model": SMOLLM2, "messages": [{"role": "user", "content": secret}], "max_tokens": 2, "stream": True},
        {"model": SMOLLM2, "messages": [{"role": secret, "content": secret}]},
        {"model": SMOLLM2, "messages": [{"role": "user", "content": secret * 3000}]},
        {"model": SMOLLM2, "messages": [{"role": "user", "content": secret + "\ud800"}]},
    ):
        content = json.dumps(body)
        server.request("POST", CHAT, content=content, headers={"Content-Type": "application/json"})
    server.post("/v1/completions", {"model": SMOLLM2, "prompt": secret, "max_tokens": 2})
    server.get(f"/v1/models/{secret}?q={secret}")
    server.wait_for(lambda: server.log.count("POST /v1/completions") > 0)
    assert secret not in server.log
    assert "xyzzy" not in server.log
