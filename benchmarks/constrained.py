"""What it costs to hold answers to a JSON schema: streams with one and without one, slice by slice in turn.

    python benchmarks/constrained.py MODEL.gguf [--rounds 5] [--tokens 96] [--streams 1,8] [--llama-server PATH]

Prints tables of medians (min..max) and, last, one line of JSON. The schema asks for more items than there are tokens,
so that every answer runs to its last token. Needs the package installed with [grammars], and llama-cpp-python built for
this CPU (--without-peer leaves it out). llama-cpp-python and llama-server get the same schema, which both of them turn
into a GBNF grammar.

    rate     tokens per second of all streams together, with the schema and without
    first    seconds to the first text: no schema, a cold and a warm one, --tools cold and warm
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
from measure import Samples, record

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "kind": {"enum": ["bird", "fish", "mammal"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "kind", "legs", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 400}
ASK = [{"role": "user", "content": "List the animals of a large zoo, with all that is known of each."}]


def held(n: int = 0) -> dict[str, Any]:
    """A request's field for the schema; another `n` makes it another schema, with the same answers."""
    schema = {**SCHEMA, "description": f"number {n}"} if n else SCHEMA
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "zoo", "schema": schema, "strict": True}}
    }


def tools(n: int, salt: int) -> list[dict[str, Any]]:
    """Tools of names of their own for each `salt`, so that both their grammar and their prompt are new."""
    counted = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}
    return [{"type": "function", "function": {"name": f"note_{salt}_{i}", "parameters": counted}} for i in range(n)]


class Ours:
    def __init__(self, model: str, streams: int, threads: int) -> None:
        from polargrid_local import Engine

        self.engine = Engine(model, n_ctx=8192, max_streams=streams, n_threads=threads, device="cpu")

    def rate(self, streams: int, n_tokens: int, seed: int, *, schema: bool) -> float:
        """Tokens per second of `streams` chats at once, from when all of them run to the end of the first."""
        fields: dict[str, Any] = held() if schema else {"ignore_eos": True}
        # The first ones already answer while the prompts of the last ones are read: give them tokens for that
        calls = [
            self.engine.chat_completion_stream(
                messages=[{"role": "user", "content": f"{seed + i}. {ASK[0]['content']}"}],
                max_tokens=n_tokens + 4 * streams,
                seed=seed + i,
                **fields,
            )
            for i in range(streams)
        ]
        return measure.rate_together(self.engine, calls)

    def first(self, **fields: Any) -> float:
        start = time.perf_counter()
        with self.engine.chat_completion_stream(messages=ASK, max_tokens=32, temperature=0, **fields) as stream:
            next(chunk for chunk in stream if set(chunk["choices"][0]["delta"]) - {"role"})
        return time.perf_counter() - start


class Peer:
    """llama_cpp.Llama."""

    def __init__(self, model: str, threads: int) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(model, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def rate(self, n_tokens: int, seed: int, *, schema: bool) -> float:
        form: Any = {"response_format": {"type": "json_object", "schema": SCHEMA}} if schema else {}
        return _rate(
            piece["choices"][0]["delta"].get("content")
            for piece in self.llama.create_chat_completion(ASK, max_tokens=n_tokens, seed=seed, stream=True, **form)
        )


class Server:
    """llama-server over HTTP on loopback."""

    def __init__(self, program: Path, model: str, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        options = f"-c 2048 -np 1 -t {threads} -tb {threads} --host 127.0.0.1 --port {port}".split()
        self._process = subprocess.Popen(
            [program, "-m", model, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not self._ready():
            time.sleep(0.2)

    def _ready(self) -> bool:
        import httpx

        try:
            return httpx.get(f"{self._url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def rate(self, n_tokens: int, seed: int, *, schema: bool) -> float:
        import httpx

        body = {"messages": ASK, "max_tokens": n_tokens, "seed": seed, "stream": True}
        body |= held() if schema else {"ignore_eos": True}
        with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=body, timeout=600) as reply:
            lines = (line[6:] for line in reply.iter_lines() if line.startswith("data: {"))
            return _rate((json.loads(line)["choices"] or [{"delta": {}}])[0]["delta"].get("content") for line in lines)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _rate(pieces: Iterator[Any]) -> float:
    """Pieces of text per second after the first."""
    times = [time.perf_counter() for piece in pieces if piece]
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96, help="of each stream, in each slice")
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--tools", type=int, default=64, help="in the prompt that has some; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=measure.n_threads())
    parser.add_argument("--llama-server", type=Path, help="leave out to do without this peer")
    parser.add_argument("--without-peer", action="store_true", help="without llama-cpp-python")
    args = parser.parse_args()
    counts = [int(n) for n in args.streams.split(",")]
    ours = Ours(str(args.model), max(counts), args.threads)
    peer = None if args.without_peer else Peer(str(args.model), args.threads)
    server = None if args.llama_server is None else Server(args.llama_server, str(args.model), args.threads)
    rates: Samples = {}
    firsts: Samples = {}
    try:
        for round in range(args.rounds + 1):
            measured = rates if round else {}  # the first round warms up
            for count in counts:
                row = f"polargrid_local, {count} stream{'s' if count > 1 else ''}"
                for column, schema in (("free", False), ("held", True)):
                    value = ours.rate(count, args.tokens, 1000 * round, schema=schema)
                    record(measured, column, {row: value})
            for name, other in (("llama-cpp-python, 1 stream", peer), ("llama-server, 1 stream", server)):
                for column, schema in (("free", False), ("held", True)):
                    if other is not None:
                        record(measured, column, {name: other.rate(args.tokens, round, schema=schema)})
            measured = firsts if round else {}
            for row, fields in (
                ("no schema", {}),
                ("cold schema", held(1000 + round)),
                ("warm schema", held(1000 + round)),
                (f"{args.tools} tools, cold", {"tools": tools(args.tools, round)}),
                (f"{args.tools} tools, warm", {"tools": tools(args.tools, round)}),
            ):
                if fields.get("tools") == []:
                    continue
                record(measured, "seconds", {row: ours.first(**fields)})
    finally:
        if server is not None:
            server.close()
    print("**Tokens per second**\n\n" + measure.table(rates, ["held", "free"], against="free") + "\n")
    print("**Seconds to the first text**\n\n" + measure.table(firsts, ["seconds"]) + "\n")
    print(json.dumps({"machine": measure.machine(args.threads), "rates": rates, "first": firsts}))


if __name__ == "__main__":
    main()
