"""The whole engine against llama-cpp-python and against both CPU modes of llama.cpp, interleaved round by round.

    python benchmarks/bench.py MODEL.gguf [--sections load,stream,...] [--rounds 5] [--threads N] [--n-ctx 2048]

Every engine runs in a process of its own and takes its turn in every round. Prints tables of medians (min..max) and,
last, one line of JSON. Needs the package installed, and llama-cpp-python built for this CPU. Section stream needs the
program bare_loop (--bare-loop says where), which `poe build-bench` builds:

    cmake -S . -B build/bench -DPGL_BENCHMARKS=ON -DPGL_PYTHON=OFF && cmake --build build/bench

    load     seconds to load, memory after it        stream   first text cold and warm, tokens per second of one stream
    turns    chats A, A's next turn, B, A again      streams  1, 2, 4, 8 readers at once
    modes    prefill and decode against llama.cpp's bare loop, weights repacked and not; with --device gpu on a GPU,
             against llama.cpp's own batched bench, which opens the same backend (gpu.py)
    cancel   from cancel() to idle                   loop     an event loop's longest gap in a prefill of --long
    chunk    CPU time our Python spends per chunk, on a scripted engine
    drafts   answers that repeat much or little, with drafts and without (speculation.py)
    rows     a pass with 1..16 rows of one sequence
    isolation  the engine in a process of its own and in the caller's: first text, one stream, 32 at once
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_file
import gpu
import measure
import speculation
from measure import Samples, Worker, record

ENGINES = measure.HERE / "engines.py"
BARE_LOOP = measure.HERE.parent / "build" / "bench" / "benchmarks" / "bare_loop"
OURS, PEER, REPACK, PLAIN = "polargrid_local", "llama-cpp-python", "llama.cpp default", "llama.cpp no repack"
SECTIONS = ("load", "stream", "turns", "streams", "modes", "cancel", "loop", "chunk", "drafts", "rows", "isolation")


class Bench:
    """One model, its workers (started when first needed) and the tables so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.prompts, self.counts = ([int(n) for n in text.split(",") if n] for text in (args.prompts, args.counts))
        self.seed = int(time.time()) % 100_000 * 1000
        self.tables: dict[str, str] = {}
        self.medians: dict[str, Any] = {}
        self._workers: dict[str, Worker] = {}

    def worker(self, name: str, n_ctx: int = 0, streams: int = 8) -> Worker:
        """A loaded worker of its own."""
        worker = Worker(
            ENGINES,
            name,
            str(self.args.model),
            self.args.clock,
            str(self.args.bare_loop),
            *map(str, (self.args.threads, n_ctx or self.args.n_ctx, streams)),
        )
        worker("load")
        return worker

    def shared(self, name: str) -> Worker:
        """The worker that stays for all sections."""
        if name not in self._workers:
            self._workers[name] = self.worker(name)
        return self._workers[name]

    def rounds(self, one: Callable[[int], None], warm_up: bool = False, n: int = 0) -> None:
        """Calls `one` with a fresh seed per round. A warm-up round must be thrown away by its caller."""
        for _ in range((n or self.args.rounds) + warm_up):
            self.seed += 100
            one(self.seed)

    def add(self, section: str, title: str, samples: Samples, columns: list[str], **ratio: Any) -> None:
        self.tables[section] = f"**{title}**\n\n{measure.table(samples, columns, **ratio)}"
        self.medians[section] = measure.medians(samples)
        print(self.tables[section] + "\n", flush=True)

    def load(self) -> None:
        samples: Samples = {}

        def one(seed: int) -> None:
            for column, name in ((OURS, "ours"), (PEER, "peer"), (PLAIN, "plain")):
                worker = self.worker(name, streams=1)
                worker("prefill", n_prompt=64, seed=seed)
                values = worker("memory")
                worker.close()
                record(
                    samples,
                    column,
                    {
                        "load (s)": values["load_s"],
                        "peak resident (MiB)": values["peak_mib"],
                        "not backed by the file (MiB)": values["anonymous_mib"],
                    },
                )

        self.rounds(one, n=min(3, self.args.rounds))
        self.add("load", "Load, then one short prompt", samples, [OURS, PEER, PLAIN], against=PEER)

    def stream(self) -> None:
        samples: Samples = {}
        n_prompt, n_tokens = 128, self.args.tokens

        def one(seed: int) -> None:
            for column, name in ((OURS, "ours"), (PEER, "peer")):
                v = self.shared(name)("stream", n_prompt=n_prompt, n_tokens=n_tokens, seed=seed)
                record(
                    samples,
                    column,
                    {
                        f"first text, {n_prompt} tokens, cold (s)": v["cold_s"],
                        "first text, same prompt again (s)": v["warm_s"],
                        "streamed, tokens/s": v["tokens_per_s"],
                    },
                )
            record(
                samples,
                "bare loop",
                {"streamed, tokens/s": self.shared("bare")("bare", n_prompt=n_prompt, n_tokens=n_tokens)},
            )

        self.rounds(one)
        cells = samples["streamed, tokens/s"]
        share = measure.ratios("tokens/s", {"a": cells[OURS], "b": cells["bare loop"]}, "a", ["b"])
        self.add(
            "stream",
            f"One stream of {n_tokens} tokens through the public API (bare loop: llama.cpp's own greedy loop in the "
            f"same build; we stream at {measure.spread(share)} of it)",
            samples,
            [OURS, PEER, "bare loop"],
            against=PEER,
        )
        self.medians["stream"]["streamed / bare loop"] = statistics.median(share)

    def turns(self) -> None:
        samples: Samples = {}
        n_prompt = min(self.args.n_ctx // 2, 1024)

        def one(seed: int) -> None:
            for column, name in ((OURS, "ours"), (PEER, "peer")):
                v = self.shared(name)("turns", n_prompt=n_prompt, seed=seed)
                record(samples, column, {f"chat {turn}, first text (s)": value for turn, value in v.items()})

        self.rounds(one)
        self.add(
            "turns", f"Two chats in turn, first messages of {n_prompt} tokens", samples, [OURS, PEER], against=PEER
        )

    def streams(self) -> None:
        samples: Samples = {}

        def one(seed: int) -> None:
            for n in self.counts:
                row = f"{n} at once, total tokens/s"
                record(
                    samples,
                    OURS,
                    {row: self.shared("ours")("decode", n_streams=n, n_tokens=self.args.tokens, seed=seed + n)},
                )
                record(
                    samples,
                    PEER,
                    {
                        row: self.shared("peer")(
                            "one_by_one", n_streams=n, n_tokens=self.args.tokens // 2, seed=seed + n
                        )
                    },
                )

        self.rounds(one)
        self.add(
            "streams",
            "Concurrent streams (llama-cpp-python serves one after the other)",
            samples,
            [OURS, PEER],
            against=PEER,
        )

    def modes(self) -> None:
        if self.args.device == "gpu":
            title, samples, share = gpu.modes(self)
            self.add("modes", title, samples, [gpu.OURS, gpu.THEIRS], against=gpu.THEIRS)
            self.medians["modes"]["of the bandwidth"] = share
            return
        samples = {}
        shares: dict[str, list[float]] = {}
        mac, _, n_bytes = gguf_file.work_per_token(self.args.model)
        # All are loaded at once and take turns at every point: on a shared machine the memory bandwidth that is left
        # halves and doubles within seconds.
        engines = {OURS: self.worker("ours"), REPACK: self.worker("peer"), PLAIN: self.worker("plain")}

        def one(seed: int) -> None:
            for operation, sizes in (("prefill", self.prompts), ("decode", self.counts)):
                for n in sizes:
                    before = measure.limits(self.args.threads)
                    for column, worker in engines.items():
                        if operation == "prefill":
                            value = worker("prefill", n_prompt=n, seed=seed)
                        else:
                            value = worker("decode", n_streams=n, n_tokens=self.args.tokens, seed=seed)
                        record(samples, column, {f"{operation} {n}, tokens/s": value})
                        if column != OURS:
                            continue
                        after = measure.limits(self.args.threads)
                        read, dots, _ = (
                            statistics.mean(v) if all(v) else None for v in zip(before, after, strict=True)
                        )
                        if operation == "prefill" and dots:
                            shares.setdefault(f"prefill {n}, of the int8 peak", []).append(value * mac / 1e9 / dots)
                        elif operation == "decode" and read:
                            shares.setdefault(f"decode {n}, of the read bandwidth", []).append(
                                value / n * n_bytes / 1e9 / read
                            )

        self.rounds(one)
        for worker in engines.values():
            worker.close()
        share = {row: measure.spread(values) for row, values in shares.items()}
        self.add(
            "modes",
            "Prefill of one prompt and total decode rate of 1..8 streams; ours through the public API, "
            "llama.cpp's without "
            "sampling. Limits measured around each point: " + ", ".join(f"{k} {v}" for k, v in share.items()),
            samples,
            [OURS, REPACK, PLAIN],
            best_of=[REPACK, PLAIN],
        )
        self.medians["modes"]["of the limits"] = share

    def cancel(self) -> None:
        samples: Samples = {}

        def one(seed: int) -> None:
            for column, name in ((OURS, "ours"), (PEER, "peer")):
                v = self.shared(name)("cancel", n_prompt=self.args.n_ctx - 600, seed=seed)
                record(samples, column, {"in prefill (ms)": v["prefill_ms"], "in decode (ms)": v["decode_ms"]})

        self.rounds(one)
        self.add("cancel", "From cancel() to idle (llama-cpp-python: until the object is free)", samples, [OURS, PEER])

    def loop(self) -> None:
        samples: Samples = {}

        def one(seed: int) -> None:
            for column, name in ((OURS, "ours"), (PEER, "peer")):
                worker = self.worker(name, n_ctx=self.args.long + 64, streams=1)
                v = worker("loop_gap", n_prompt=self.args.long, seed=seed)
                worker.close()
                record(
                    samples, column, {"longest gap of the event loop (ms)": v["gap_ms"], "first text (s)": v["first_s"]}
                )

        self.rounds(one, n=min(3, self.args.rounds))
        self.add(
            "loop",
            f"An event loop while a prompt of {self.args.long} tokens prefills",
            samples,
            [OURS, PEER],
            against=PEER,
        )

    def chunk(self) -> None:
        import scripted

        samples: Samples = {}
        self.rounds(lambda seed: record(samples, OURS, scripted.cost_per_chunk(self.args.model)))
        self.add("chunk", "CPU time of our Python per chunk, whole process, engine scripted", samples, [OURS])

    def drafts(self) -> None:
        title, samples = speculation.drafts(self)
        peers = [speculation.PLAIN, speculation.NGRAM] if self.args.own_answers else []
        self.add("drafts", title, samples, [speculation.ON, speculation.OFF, *peers], against=speculation.OFF)

    def rows(self) -> None:
        title, samples = speculation.row_costs(self)
        self.add("rows", title, samples, list(samples["1 (ms)"]))

    def isolation(self) -> None:
        samples: Samples = {}
        here, there = "this process", "its own process"
        # Both are loaded and idle while the other one runs.
        engines = {here: self.worker("ours", streams=32), there: self.worker("isolated", streams=32)}

        def one(seed: int) -> None:
            for column, worker in sorted(engines.items(), key=lambda item: item[0], reverse=seed // 100 % 2 == 0):
                v = worker("stream", n_prompt=128, n_tokens=self.args.tokens, seed=seed)
                record(
                    samples,
                    column,
                    {
                        "first text, 128 tokens, cold (s)": v["cold_s"],
                        "first text, same prompt again (s)": v["warm_s"],
                        "one stream, tokens/s": v["tokens_per_s"],
                        "32 streams, tokens/s": worker(
                            "decode", n_streams=32, n_tokens=self.args.tokens // 2, seed=seed + 1
                        ),
                    },
                )

        self.rounds(one)
        for worker in engines.values():
            worker.close()
        self.add(
            "isolation",
            "The engine in a process of its own and in the caller's",
            samples,
            [there, here],
            against=here,
        )

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of " + ",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=measure.n_threads())
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: CPU time of the process, for 1 thread on a busy machine",
    )
    parser.add_argument("--prompts", default="128,512", help="prompt lengths in section modes; may be empty")
    parser.add_argument("--counts", default="1,2,4,8", help="concurrent streams in sections streams and modes")
    parser.add_argument("--tokens", type=int, default=64, help="per answer")
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("--bare-loop", type=Path, default=BARE_LOOP, help="the program, by default %(default)s")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="of section modes")
    parser.add_argument(
        "--llama-bench", type=Path, default=gpu.PROGRAM, help="llama-batched-bench, by default %(default)s"
    )
    parser.add_argument("--gpu-bandwidth", type=float, default=0, help="of the GPU's memory, in GB/s, for shares of it")
    parser.add_argument("--long", type=int, default=8000, help="tokens of the prompt in section loop")
    parser.add_argument(
        "--own-answers", type=int, default=0, help="section drafts: also so many tokens of the model's own answers"
    )
    parser.add_argument("--replayed", type=int, default=0, help="the same, of replayed answers; 0: all of each")
    parser.add_argument("--llama-server", type=Path, default=speculation.LLAMA_SERVER, help="by default %(default)s")
    parser.add_argument("--row-costs", type=Path, default=speculation.ROW_COSTS, help="by default %(default)s")
    parser.add_argument("--pasts", default="128,4096", help="tokens before the pass in section rows")
    args = parser.parse_args()
    args.pasts = [int(n) for n in args.pasts.split(",")]
    unknown = set(args.sections.split(",")) - set(SECTIONS)
    if unknown or not args.model.is_file():
        parser.error(f"no such section: {', '.join(unknown)}" if unknown else f"no model file at {args.model}")
    if "stream" in args.sections.split(",") and not args.bare_loop.is_file():
        parser.error(f"section stream needs the program {args.bare_loop}: poe build-bench, or --bare-loop PATH")
    if args.device == "gpu" and "modes" in args.sections.split(",") and not args.llama_bench.is_file():
        parser.error(f"--device gpu needs the program {args.llama_bench}: docs/gpu.md, or --llama-bench PATH")
    machine = measure.machine(args.threads)
    print(
        f"`python benchmarks/bench.py {' '.join(sys.argv[1:])}`\n\n"
        + ", ".join(f"{key} {value}" for key, value in machine.items())
        + "\n",
        flush=True,
    )
    bench = Bench(args)
    try:
        for section in args.sections.split(","):
            getattr(bench, section)()
    finally:
        bench.close()
    print(json.dumps({"model": args.model.name, "machine": machine, "medians": bench.medians}))


if __name__ == "__main__":
    main()
