"""What the benchmarks share: the machine they ran on, workers in processes of their own, rounds, medians, tables."""

from __future__ import annotations

import atexit
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Samples = dict[str, dict[str, list[float]]]  # row -> column -> one value per round


def n_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(threads: int) -> dict[str, Any]:
    """Where and on what this ran: CPU, commit, load, and the measured limits (None without a C compiler)."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu
        )
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=HERE, capture_output=True, text=True
    )
    read, dots, per_cycle = limits(threads)
    return {
        "cpu": cpu,
        "cpus": n_threads(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "commit": git.stdout.strip(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "read_gb_per_s": read,
        "int8_gmac_per_s": dots,
        "dots_per_cycle": per_cycle,
    }


@lru_cache
def limit_program() -> str | None:
    """machine.c, built once per run; None without a C compiler."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    program = str(Path(folder) / "machine")
    try:
        subprocess.run(["cc", "-O3", "-march=native", "-pthread", str(HERE / "machine.c"), "-o", program], check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return program


def limits(threads: int) -> tuple[float | None, float | None, float | None]:
    """Read bandwidth in GB/s, int8 multiply-adds in 1e9/s, and dot instructions per cycle and thread, right now:
    neighbours change them within seconds. The last says whether to believe the second: it is 1 or 2 on a core that
    nobody shares."""
    program = limit_program()
    if program is None:
        return None, None, None
    try:
        out = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None, None, None
    read, dots, per_cycle = map(float, out)
    return read, dots, per_cycle


class Worker:
    """An engine in a process of its own, so that memory and thread pools do not mix: one JSON line in, one out."""

    def __init__(self, script: Path, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), "--worker", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __call__(self, operation: str, **arguments: Any) -> Any:
        """The operation's result. Raises RuntimeError with the worker's message if it failed there."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([operation, arguments]) + "\n")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended during {operation!r} with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{operation}: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


def serve(operations: Callable[[str, dict[str, Any]], Any]) -> None:
    """The worker's side: answers lines on stdin until it closes. Whatever else prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"result": operations(name, arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(answer) + "\n")


def rate_together(engine: Any, streams: Sequence[Any], now: Callable[[], float] = time.perf_counter) -> float:
    """Tokens per second over all `streams` of an Engine, each read by a thread, from when all run until the first
    ends."""
    from polargrid_local import text_of

    begun, ended = threading.Barrier(len(streams) + 1), threading.Event()

    def read(stream: Any) -> None:
        next(text_of(stream))
        begun.wait()
        for _ in stream:
            pass
        ended.set()

    def n_steps() -> int:
        return sum(model["n_steps"] for model in engine.stats().values())

    readers = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    begun.wait()
    # All of them run, and none has a prompt to read: a step is a token of each
    start, before = now(), n_steps()
    ended.wait()
    rate = len(streams) * (n_steps() - before) / (now() - start)
    for reader in readers:
        reader.join()
    return rate


def memory_mib() -> dict[str, float]:
    """Of this process: peak resident, and now resident but not backed by a file."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "peak_mib": int(status["VmHWM"].split()[0]) / 1024,
        "anonymous_mib": int(status["RssAnon"].split()[0]) / 1024,
    }


def record(samples: Samples, column: str, values: dict[str, float | None]) -> None:
    """Add one round's values."""
    for row, value in values.items():
        if value is not None:
            samples.setdefault(row, {}).setdefault(column, []).append(value)


def table(samples: Samples, columns: Iterable[str], against: str | None = None, best_of: Iterable[str] = ()) -> str:
    """Markdown: median (min..max) per row and column; then the first column's ratio to `against` or to the best of
    `best_of`, round by round, > 1 = better. A row named "... (s)", "(ms)", "(us)" or "(MiB)" is better when smaller."""
    columns, rivals = list(columns), list(best_of) or ([against] if against else [])
    title = f"ratio to {against or 'best of ' + ' / '.join(rivals)}"
    lines = [
        "| | " + " | ".join(columns) + (f" | {title} |" if rivals else " |"),
        "|--" * (len(columns) + 1 + bool(rivals)) + "|",
    ]
    for row, cells in samples.items():
        line = [row] + [spread(cells.get(column, [])) for column in columns]
        if rivals:
            line.append(spread(ratios(row, cells, columns[0], rivals)))
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def ratios(row: str, cells: dict[str, list[float]], ours: str, rivals: list[str]) -> list[float]:
    """Per round: how many times better we were than the best rival of that round."""
    smaller = row.endswith(("(s)", "(ms)", "(us)", "(MiB)"))
    found = []
    for values in zip(cells.get(ours, []), *(cells[r] for r in rivals if r in cells), strict=False):
        best = (min if smaller else max)(values[1:], default=0.0)
        if best and values[0]:
            found.append(best / values[0] if smaller else values[0] / best)
    return found


def spread(values: list[float]) -> str:
    """'median (min..max)' to three digits."""
    if not values:
        return ""

    def digits(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    middle = digits(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({digits(min(values))}..{digits(max(values))})"


def medians(samples: Samples) -> dict[str, dict[str, float]]:
    """For programs: the median of each cell."""
    return {
        row: {column: round(statistics.median(v), 4) for column, v in cells.items()} for row, cells in samples.items()
    }
