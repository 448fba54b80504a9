"""The engines under test, each behind the same operations, run as worker processes by bench.py.

ours    polargrid_local through its public API, on the CPU, without drafts; isolated: the same in a process of its own;
        gpu: on a GPU
replay  its native engine with answers that are given, with drafts; replay-off: without
peer    llama-cpp-python through its public API, and llama.cpp's bare decode loop on the same model (its default mode:
        weights repacked for this CPU where it can)
plain   llama.cpp's bare decode loop with repacking off, its other CPU mode (tiled products, weights in the file)
bare    llama.cpp's bare decode loop in our build, with our kernels (the program bare_loop)
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import measure

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
]
now = time.perf_counter  # or time.process_time: see main()


def prompt_of(n_tokens: int, seed: int, count: Callable[[str], int]) -> str:
    """Plain text of exactly `n_tokens` as `count` counts them, different from its first word on for each seed."""
    rng = random.Random(seed)
    words = [rng.choice(WORDS) for _ in range(n_tokens)]
    while count(" ".join(words)) > n_tokens:
        words = words[: -max(1, (count(" ".join(words)) - n_tokens) // 4)]
    text = " ".join(words)
    while count(text) < n_tokens:
        text += " a"
    return text


class Chats:
    """Operations on chats that both public APIs share: `_chat` yields pieces of text, `_count` counts tokens."""

    _chat: Callable[[list[dict[str, str]], int], Iterator[str]]
    _count: Callable[[str], int]

    def turns(self, n_prompt: int, seed: int) -> dict[str, float]:
        """Chats A, A's next turn, B, A's third turn: seconds to the first piece of text of each."""
        chats = {
            name: [{"role": "user", "content": prompt_of(n_prompt, seed + i, self._count)}]
            for i, name in enumerate("AB")
        }
        times = []
        for name in "AABA":
            start = now()
            first, text = None, ""
            for piece in self._chat(chats[name], 12):
                first = first or now() - start
                text += piece
            times.append(first or now() - start)
            chats[name] += [{"role": "assistant", "content": text}, {"role": "user", "content": "Please go on."}]
        return dict(zip(("A", "A+", "B", "A++"), times, strict=True))


class Ours(Chats):
    """polargrid_local.Engine."""

    device, isolation = "cpu", "thread"

    def __init__(self, path: str, threads: int, n_ctx: int, streams: int) -> None:
        from polargrid_local import Engine

        start = now()
        # Drafts have a section of their own: here a token is a pass.
        self.engine = Engine(
            path,
            n_ctx=n_ctx,
            max_streams=streams,
            n_threads=threads,
            device=self.device,
            speculate=False,
            isolation=self.isolation,
        )
        self.load_s = now() - start
        self._path, self._threads, self._n_ctx = path, threads, n_ctx

    def _count(self, text: str) -> int:
        return len(self.engine.tokenize(text))

    def _chat(self, messages: list[dict[str, str]], max_tokens: int) -> Iterator[str]:
        with self.engine.chat_completion_stream(messages=messages, max_tokens=max_tokens, temperature=0) as stream:
            for chunk in stream:
                if chunk["choices"] and (piece := chunk["choices"][0]["delta"].get("content")):
                    yield piece

    def _stream(self, n_prompt: int, n_tokens: int, seed: int) -> Any:
        return self.engine.completion_stream(
            prompt=prompt_of(n_prompt, seed, self._count), max_tokens=n_tokens, temperature=0, ignore_eos=True
        )

    def stream(self, n_prompt: int, n_tokens: int, seed: int) -> dict[str, float]:
        """One answer: seconds to the first text (cold), tokens per second of the rest as the reader sees them.

        Then the same prompt again: seconds to the first text (warm).
        """
        prompt = prompt_of(n_prompt, seed, self._count)
        request = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
        start = now()
        stream = self.engine.completion_stream(request)
        next(c for c in stream if c["choices"][0].get("text"))
        first = now()
        for _ in stream:
            pass
        rate = (stream.usage["completion_tokens"] - 1) / (now() - first)
        again = now()
        with self.engine.completion_stream(request) as stream:
            next(c for c in stream if c["choices"][0].get("text"))
            warm = now() - again
        return {"cold_s": first - start, "tokens_per_s": rate, "warm_s": warm}

    def prefill(self, n_prompt: int, seed: int) -> float:
        """Prompt tokens per second of a request for one token, from the call to the end of its stream."""
        prompt = prompt_of(n_prompt, seed, self._count)
        start = now()
        stream = self.engine.completion_stream(prompt=prompt, max_tokens=1, temperature=0, ignore_eos=True)
        for _ in stream:
            pass
        return (stream.usage["prompt_tokens"] - stream.timings["cached_tokens"]) / (now() - start)

    def decode(self, n_streams: int, n_tokens: int, seed: int) -> float:
        """Tokens per second over all of `n_streams` concurrent streams, from when all run until the first ends."""
        # The first ones already answer while the prompts of the last ones are read: give them tokens for that
        streams = [self._stream(32, n_tokens + 4 * n_streams, seed + i) for i in range(n_streams)]
        return measure.rate_together(self.engine, streams, now)

    def _stats(self, name: str) -> int:
        return sum(model[name] for model in self.engine.stats().values())

    def cancel(self, n_prompt: int, seed: int) -> dict[str, float]:
        """Milliseconds from cancel() to no running sequence, in the middle of a prefill and of decoding."""
        result = {}
        for name, wait in (("prefill_ms", False), ("decode_ms", True)):
            stream = self._stream(n_prompt if not wait else 16, 500, seed)
            if wait:
                next(c for c in stream if c["choices"][0].get("text"))
            else:
                time.sleep(0.1)
            start = time.perf_counter()
            stream.cancel()
            while self._stats("n_running"):
                time.sleep(0.0002)
            result[name] = 1000 * (time.perf_counter() - start)
        return result

    def loop_gap(self, n_prompt: int, seed: int) -> dict[str, float]:
        """How long an event loop stood still at most while a prompt prefilled and 16 tokens streamed."""
        from polargrid_local import AsyncEngine

        prompt = prompt_of(n_prompt, seed, self._count)
        self.engine.close()

        async def run() -> dict[str, float]:
            async with AsyncEngine(
                self._path, n_ctx=self._n_ctx, max_streams=1, n_threads=self._threads, device="cpu"
            ) as engine:
                async with Ticker() as ticker:
                    start, first = time.perf_counter(), 0.0
                    async for chunk in engine.completion_stream(prompt=prompt, max_tokens=16, temperature=0):
                        first = first or (time.perf_counter() - start if chunk["choices"][0].get("text") else 0.0)
                return {"gap_ms": ticker.gap_ms, "first_s": first}

        return asyncio.run(run())

    def memory(self) -> dict[str, float]:
        return {"load_s": self.load_s, **measure.memory_mib()}


class Replay:
    """The native engine with one stream and given answers: every token is computed and sampled, and then another may
    take its place. So a model of random weights gives the answers of a good one, at its own price."""

    speculate = "auto"

    def __init__(self, path: str, threads: int, n_ctx: int, streams: int) -> None:
        from polargrid_local.native.core import core

        start = now()
        options = {"n_ctx": n_ctx, "max_streams": 1, "n_threads": threads, "device": "cpu", "speculate": self.speculate}
        self.engine = core().Engine(path, options)
        while not any(event.kind != "progress" for event in self.engine.loading.wait(1000)):
            pass
        self.outbox = self.engine.outbox(False, False)
        self.load_s = now() - start

    def replay(self, prompt: str, answer: str, n_tokens: int, prediction: str, seed: int) -> dict[str, Any]:
        """Of an answer, or of so many tokens of it (0: all), from its first token on: tokens per second, tokens, drafts
        that came true and that did not. No prompt is known from before: it begins with the seed."""
        tokens = self.engine.tokenize([(answer, False)], False)[: n_tokens or None]
        request = {
            "prompt": [(f"{seed}\n{prompt}", False)],
            "max_tokens": len(tokens),
            "ignore_eos": True,
            "replay": tokens,
            "prediction": prediction,
            "sampling": {"temperature": 0.0},
        }
        return self._timed(request)

    def answer(self, prompt: str, n_tokens: int, prediction: str, seed: int) -> dict[str, Any]:
        """The same of the model's own answer to a chat in ChatML."""
        turns = [("<|im_start|>user\n", True), (f"{prompt} ({seed})", False)]
        turns.append(("<|im_end|>\n<|im_start|>assistant\n", True))
        request = {"prompt": turns, "max_tokens": n_tokens, "sampling": {"temperature": 0.0}, "prediction": prediction}
        return self._timed(request)

    def _timed(self, request: dict[str, Any]) -> dict[str, Any]:
        id, text = self.engine.submit(request, self.outbox), ""
        first, last = 0.0, None
        while last is None or last.kind not in ("finished", "error"):
            for event in self.outbox.wait(1000):
                if event.id == id and event.kind != "progress":
                    first, last, text = first or now(), event, text + event.text
        if last.kind == "error":
            raise RuntimeError(last.text)
        return {
            "tokens_per_s": (last.n_generated - 1) / (now() - first) if last.n_generated > 1 else 0.0,
            "tokens": last.n_generated,
            "accepted": last.n_accepted,
            "rejected": last.n_rejected,
            "text": text,
        }


class ReplayWithoutDrafts(Replay):
    speculate = "off"


class Isolated(Ours):
    """The same in a process of its own."""

    isolation = "process"


class OursOnGpu(Ours):
    """The same on a GPU: an error where there is none."""

    device = "gpu"

    def first_text(self, n_prompt: int, seed: int) -> float:
        """Milliseconds from the call to the first text, for a prompt that shares nothing with earlier ones."""
        prompt = prompt_of(n_prompt, seed, self._count)
        start = now()
        with self.engine.completion_stream(prompt=prompt, max_tokens=4, temperature=0, ignore_eos=True) as stream:
            next(c for c in stream if c["choices"][0].get("text"))
            return 1000 * (now() - start)

    def placement(self) -> str:
        info, [stats] = self.engine.info(), self.engine.stats().values()
        gpus = ", ".join(device["description"] for device in info["devices"] if device["gpu"])
        return f"{info['placement']} ({gpus}), {sum(stats['device_bytes'].values()) >> 20} MiB of it held"


def thread_environment() -> dict[str, str]:
    """For programs of ours: their threads wait at barriers as the package's do (native/core.py), unless somebody
    chose."""
    threads = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "active"}
    return dict(os.environ) if any(name in os.environ for name in threads) else {**os.environ, **threads}


class Bare:
    """llama.cpp's own greedy loop with our kernels and nothing around it: what we could reach at most.

    A program of its own (bare_loop.cpp), which loads the model anew for every run.
    """

    def __init__(self, program: str, path: str, threads: int, n_ctx: int, streams: int) -> None:
        self._process = subprocess.Popen(
            [program, path, str(n_ctx), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=thread_environment(),
        )
        self.load_s = 0.0

    def _run(self, n_prompt: int, n_tokens: int) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{n_prompt} {n_tokens}\n")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bare_loop ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"bare_loop: {answer['error']}")
        return answer

    def bare(self, n_prompt: int, n_tokens: int) -> float:
        """Tokens per second. In CPU time: from what three times the tokens take longer."""
        if now is time.perf_counter:
            times = self._run(n_prompt, n_tokens)["token_ms"]
            return 1000 * len(times) / sum(times)
        once, thrice = (self._run(n_prompt, n)["cpu_ms"] for n in (n_tokens, 3 * n_tokens))
        return 1000 * 2 * n_tokens / (thrice - once)


class Ticker:
    """Measures the longest gap between turns of the running event loop."""

    async def __aenter__(self) -> Ticker:
        self.gap_ms = 0.0
        self._task = asyncio.create_task(self._tick())
        return self

    async def _tick(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            self.gap_ms = max(self.gap_ms, 1000 * (time.perf_counter() - last) - 1)
            last = time.perf_counter()

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.sleep(0.002)
        self._task.cancel()


class Plain:
    """llama.cpp's bare loop through llama-cpp-python's C bindings: random tokens, nothing sampled."""

    def __init__(self, path: str, threads: int, n_ctx: int, streams: int, repack: bool = False) -> None:
        import llama_cpp

        self.lib = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.use_extra_bufts = repack
        start = now()
        self.handle = llama_cpp.llama_model_load_from_file(path.encode(), options)
        self.load_s = now() - start
        self._threads, self._streams = threads, streams
        self._context: Any = None

    def _begin(self) -> None:
        """A context with an empty cache, made on first use."""
        lib = self.lib
        if self._context is None:
            options = lib.llama_context_default_params()
            options.n_ctx, options.n_seq_max, options.n_batch, options.n_ubatch = (
                1024 * self._streams,
                self._streams,
                2048,
                512,
            )
            options.n_threads = options.n_threads_batch = self._threads
            self._context = lib.llama_init_from_model(self.handle, options)
            if not self._context:
                raise MemoryError("llama.cpp could not make a context")
            self._batch = lib.llama_batch_init(2048, 0, 1)
            self._n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.handle))
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)

    def _decode(self, tokens: list[tuple[int, int]], rng: random.Random, logits: Callable[[int], bool]) -> None:
        """One llama_decode of random tokens at (sequence, position)."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (sequence, position) in enumerate(tokens):
            batch.token[i], batch.pos[i] = rng.randrange(self._n_vocab // 2), position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, logits(i)
        if status := self.lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        self.lib.llama_synchronize(self._context)

    def prefill(self, n_prompt: int, seed: int) -> float:
        """Prompt tokens per second in one batch."""
        self._begin()
        start = now()
        self._decode([(0, i) for i in range(n_prompt)], random.Random(seed), lambda i: i == n_prompt - 1)
        return n_prompt / (now() - start)

    def decode(self, n_streams: int, n_tokens: int, seed: int) -> float:
        """Tokens per second over all sequences, one token of each per step."""
        self._begin()
        rng = random.Random(seed)
        for s in range(n_streams):
            self._decode([(s, i) for i in range(32)], rng, lambda i: i == 31)
        start = now()
        for step in range(n_tokens):
            self._decode([(s, 32 + step) for s in range(n_streams)], rng, lambda i: True)
        return n_streams * n_tokens / (now() - start)

    def memory(self) -> dict[str, float]:
        return {"load_s": self.load_s, **measure.memory_mib()}


class Peer(Plain, Chats):
    """llama_cpp.Llama."""

    def __init__(self, path: str, threads: int, n_ctx: int, streams: int) -> None:
        import llama_cpp

        self.lib = llama_cpp
        start = now()
        self.llama = llama_cpp.Llama(path, n_ctx=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False)
        self.load_s = now() - start
        self.handle = self.llama._model.model
        self._threads, self._streams, self._context = threads, streams, None

    def _count(self, text: str) -> int:
        return len(self.llama.tokenize(text.encode(), add_bos=False, special=False))

    def _chat(self, messages: list[dict[str, str]], max_tokens: int) -> Iterator[str]:
        for chunk in self.llama.create_chat_completion(messages, max_tokens=max_tokens, temperature=0, stream=True):
            if piece := chunk["choices"][0]["delta"].get("content"):
                yield piece

    def stream(self, n_prompt: int, n_tokens: int, seed: int) -> dict[str, float]:
        """As Ours.stream."""
        prompt = prompt_of(n_prompt, seed, self._count)
        start = now()
        chunks = self.llama.create_completion(prompt, max_tokens=n_tokens, temperature=0, stream=True)
        next(c for c in chunks if c["choices"][0]["text"])
        first, before = now(), self.llama.n_tokens
        for _ in chunks:
            pass
        rate = (self.llama.n_tokens - before) / (now() - first)
        again = now()
        chunks = self.llama.create_completion(prompt, max_tokens=n_tokens, temperature=0, stream=True)
        next(c for c in chunks if c["choices"][0]["text"])
        warm = now() - again
        chunks.close()
        return {"cold_s": first - start, "tokens_per_s": rate, "warm_s": warm}

    def one_by_one(self, n_streams: int, n_tokens: int, seed: int) -> float:
        """What its users get from `n_streams` requests at once: it serves one at a time, behind a lock."""
        start, done = now(), 0
        for i in range(n_streams):
            answer = self.llama.create_completion(
                prompt_of(32, seed + i, self._count), max_tokens=n_tokens, temperature=0
            )
            done += answer["usage"]["completion_tokens"]
        return done / (now() - start)

    def cancel(self, n_prompt: int, seed: int) -> dict[str, float]:
        """Milliseconds from asking to stop until the object is free: the rest of a prefill counts."""
        chunks = self.llama.create_completion(prompt_of(n_prompt, seed, self._count), max_tokens=500, stream=True)
        asked = time.perf_counter() + 0.1
        next(chunks)
        prefill = max(0.0, time.perf_counter() - asked)
        start = time.perf_counter()
        chunks.close()
        return {"prefill_ms": 1000 * prefill, "decode_ms": 1000 * (time.perf_counter() - start)}

    def loop_gap(self, n_prompt: int, seed: int) -> dict[str, float]:
        """As Ours.loop_gap, iterating inside the coroutine."""
        prompt = prompt_of(n_prompt, seed, self._count)

        async def run() -> dict[str, float]:
            async with Ticker() as ticker:
                await asyncio.sleep(0.005)
                start, first = time.perf_counter(), 0.0
                for _ in self.llama.create_completion(prompt, max_tokens=16, temperature=0, stream=True):
                    first = first or time.perf_counter() - start
                    await asyncio.sleep(0)
                await asyncio.sleep(0.005)
            return {"gap_ms": ticker.gap_ms, "first_s": first}

        return asyncio.run(run())


ENGINES: dict[str, Callable[..., Any]] = {
    "ours": Ours,
    "isolated": Isolated,
    "gpu": OursOnGpu,
    "replay": Replay,
    "replay-off": ReplayWithoutDrafts,
    "peer": Peer,
    "plain": Plain,
}


def main() -> None:
    """Worker: engine, model path, clock (wall or cpu), the bare_loop program, threads, context, streams."""
    global now
    _, flag, name, path, clock, program, *numbers = sys.argv
    assert flag == "--worker" and Path(path).is_file()
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    engine: Any = None

    def run(operation: str, arguments: dict[str, Any]) -> Any:
        nonlocal engine
        if operation == "load":
            make = partial(Bare, program) if name == "bare" else ENGINES[name]
            engine = make(path, *map(int, numbers))
            return engine.load_s
        return getattr(engine, operation)(**arguments)

    measure.serve(run)


if __name__ == "__main__":
    main()
