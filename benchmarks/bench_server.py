"""Three servers over HTTP on loopback: ours, llama-server and llama-cpp-python's, interleaved round by round.

    python benchmarks/bench_server.py MODEL.gguf --llama-server PATH [--streams 1,4,8,32] [--rounds 5] [--tokens 48]

All serve chat completions as event streams to the same small client. Reports first event and first text, gaps between
events, total tokens per second, CPU time outside the two busiest threads (those compute) per event, and what each takes
when idle. Needs the package with [server], llama-cpp-python[server], and a llama-server built natively from the same
llama.cpp.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import engines
import gpu
import measure
from measure import Samples, record

OURS, SERVER, PEER = "polargrid_local", "llama-server", "llama-cpp-python"
now = time.perf_counter


class Server:
    """A server process on a port of its own. `more`: arguments of llama-server."""

    def __init__(self, name: str, args: argparse.Namespace, streams: int, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        model, port, threads, n_ctx = str(args.model), self.port, args.threads, args.n_ctx
        on_gpu, env = gpu.llama_on_gpu() if name == SERVER and args.device == "gpu" else ([], None)
        ours = f"--port {port} --threads {threads} --max-streams {streams} --n-ctx {n_ctx} --log-level warning"
        ours += f" --device {args.device}"
        server = f"--port {port} -t {threads} -np {streams} -c {streams * n_ctx} --no-webui"
        peer = f"--port {port} --n_threads {threads} --n_threads_batch {threads} --n_ctx {n_ctx}"
        command = {
            OURS: [sys.executable, "-m", "polargrid_local", "serve", "-m", model, *ours.split()],
            SERVER: [str(args.llama_server), "-m", model, *on_gpu, *server.split(), *more],
            PEER: [
                *(sys.executable, "-m", "llama_cpp.server", "--model", model),
                *f"{peer} --interrupt_requests false".split(),
            ],
        }[name]
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        self._wait()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models") as reply:
            self.model = json.load(reply)["data"][0]["id"]

    def _wait(self) -> None:
        start, url = now(), f"http://127.0.0.1:{self.port}/v1/models"
        ready = url if self.name != SERVER else f"http://127.0.0.1:{self.port}/health"
        while now() - start < 300:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with status {self.process.returncode} instead of serving")
            try:
                with urllib.request.urlopen(ready, timeout=1) as reply:
                    if reply.status == 200 and (ready != url or json.load(reply)["data"]):
                        return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not serve within 300 s")

    def threads_s(self) -> dict[str, float]:
        """CPU seconds of each thread so far."""
        used = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            used[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        return used

    def memory_mib(self) -> tuple[float, float]:
        """Resident, and resident but not backed by a file."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024, int(status["RssAnon"].split()[0]) / 1024

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


async def stream(server: Server, prompt: str, n_tokens: int) -> tuple[float, list[float], int]:
    """One streamed chat: when the first event of any kind came, when each event with text came, tokens.

    Raises RuntimeError for anything but a whole stream.
    """
    request = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": n_tokens,
        "temperature": 0,
        "stream": True,
    }
    if server.name != PEER:
        request |= {"model": server.model, "ignore_eos": True, "stream_options": {"include_usage": True}}
    body = json.dumps(request)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
    )
    first, times, lines, n_usage = 0.0, list[float](), list[bytes](), 0
    status = (await reader.readline()).split(b" ", 2)[1]
    while line := await reader.readline():
        if line.startswith(b"data: "):
            at = now()
            first = first or at
            if b'"content":"' in line.replace(b": ", b":"):
                times.append(at)
            lines.append(line)
    writer.close()
    if status != b"200" or not lines or b"[DONE]" not in lines[-1]:
        raise RuntimeError(f"{server.name}: status {status.decode()}, last line {lines[-1:]}")
    for line in lines:
        if b'"usage"' in line and (usage := json.loads(line[6:]).get("usage")):
            n_usage = usage["completion_tokens"]
    return first, times, n_usage or len(times)


async def burst(server: Server, n_streams: int, n_tokens: int, seed: int) -> dict[str, float]:
    """`n_streams` chats started at once: what a reader sees, in ms, and tokens per second over the whole burst."""
    prompts = [
        " ".join(random.Random(seed + i).choices(engines.WORDS, k=24)) + ". Tell me a long story."
        for i in range(n_streams)
    ]
    before, start = server.threads_s(), now()
    results = await asyncio.gather(*(stream(server, prompt, n_tokens) for prompt in prompts))
    elapsed = now() - start
    used = {thread: s - before.get(thread, 0) for thread, s in server.threads_s().items()}
    gaps = sorted(1000 * (b - a) for _, times, _ in results for a, b in itertools.pairwise(times))
    events = sum(len(times) for _, times, _ in results)
    return {
        "first event (ms)": 1000 * statistics.median(first - start for first, _, _ in results),
        "first text (ms)": 1000 * statistics.median(times[0] - start for _, times, _ in results if times),
        "gap p50 (ms)": gaps[len(gaps) // 2] if gaps else 0.0,
        "gap p99 (ms)": gaps[int(len(gaps) * 0.99)] if gaps else 0.0,
        "total tokens/s": sum(n for _, _, n in results) / elapsed,
        "CPU beside the two busiest threads, per event (us)": 1e6 * sum(sorted(used.values())[:-2]) / max(1, events),
    }


def framing_us(n: int = 20_000) -> float:
    """CPU microseconds from a chunk dict to the bytes handed to the HTTP server, with metrics and disconnect watch."""
    from polargrid_local.server.config import ServeConfig
    from polargrid_local.server.metrics import Metrics
    from polargrid_local.server.sse import EventStream

    class Chunks:
        async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
            for _ in range(n):
                choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
                yield {
                    "id": "chatcmpl-0123456789abcdef01234567",
                    "object": "chat.completion.chunk",
                    "created": 1700000000,
                    "model": "smollm2-135m",
                    "choices": [choice],
                }

        async def aclose(self) -> None:
            pass

    async def run() -> float:
        async def send(message: Any) -> None:
            pass

        async def receive() -> Any:
            await asyncio.Event().wait()

        stream = EventStream(Chunks(), time.monotonic(), ServeConfig(), Metrics(dict), lambda: None)
        start = time.process_time()
        await stream({"type": "http"}, receive, send)
        return 1e6 * (time.process_time() - start) / n

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-server", type=Path, help="leave out to do without this peer")
    parser.add_argument("--streams", default="1,4,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=measure.n_threads())
    parser.add_argument("--tokens", type=int, default=48, help="per answer")
    parser.add_argument("--n-ctx", type=int, default=512, help="per stream")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="ours and llama-server's")
    parser.add_argument("--without-peer", action="store_true", help="leave llama-cpp-python's server out")
    args = parser.parse_args()
    counts = [int(n) for n in args.streams.split(",")]
    names = [OURS, *([SERVER] if args.llama_server else []), *([] if args.without_peer else [PEER])]
    machine = measure.machine(args.threads)
    print(
        f"`python benchmarks/bench_server.py {' '.join(sys.argv[1:])}`\n\n"
        + ", ".join(f"{key} {value}" for key, value in machine.items())
        + "\n",
        flush=True,
    )
    samples: Samples = {}
    for _ in range(args.rounds):
        record(samples, OURS, {"framing alone, per event (us)": framing_us()})
    servers: list[Server] = []
    try:
        for name in names:
            start = now()
            servers.append(Server(name, args, max(counts)))
            asyncio.run(stream(servers[-1], "Hello", 2))
            record(samples, name, {"from start to the end of a first answer of 2 tokens (s)": now() - start})
        for round_ in range(args.rounds + 1):
            for n in counts:
                for server in servers:
                    values = asyncio.run(burst(server, n, args.tokens, int(time.time() * 1000) % 10**9))
                    if round_:  # the first round warms up
                        record(samples, server.name, {f"{n} streams, {row}": value for row, value in values.items()})
        before, start = [sum(s.threads_s().values()) for s in servers], now()
        time.sleep(3)
        for server, used in zip(servers, before, strict=True):
            busy = 1000 * (sum(server.threads_s().values()) - used) / (now() - start)
            resident, anonymous = server.memory_mib()
            record(
                samples,
                server.name,
                {
                    "idle, CPU per second (ms)": busy,
                    "idle, resident (MiB)": resident,
                    "idle, not backed by the file (MiB)": anonymous,
                },
            )
    finally:
        for server in servers:
            server.close()
    print(measure.table(samples, names, best_of=names[1:]) + "\n")
    print(json.dumps({"model": args.model.name, "machine": machine, "medians": measure.medians(samples)}))


if __name__ == "__main__":
    main()
