"""I/O errors: the n-th system call of a kind on the files of a model fails, for n = 1, 2, 3, 4, 6, ... to the last one.

python tests/soak/io_errors.py MODEL.gguf [--words "the of and"]

Loads MODEL and lets it answer, in this process' child and in a worker of that one, and pulls a model from a hub on
loopback. Each run must end well or in one line that says what was wrong; a pull must leave no file but the whole one,
and the next pull must bring it. Needs strace, which makes the calls fail. Prints a line of JSON; exits with status 1
where an error had no type, an answer was wrong, or a pull left something wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub import FILE, MODEL, Hub

READS = {
    "openat": ("EIO", "EACCES", "EMFILE"),
    "newfstatat": ("EIO", "EACCES"),
    "fstat": ("EIO",),
    "statx": ("EIO",),
    "read": ("EIO", "EINTR"),
    "pread64": ("EIO",),
    "lseek": ("EIO",),
    "mmap": ("ENOMEM", "EIO"),
    "fadvise64": ("EIO",),
}
WRITES = {
    **READS,
    "openat": ("EIO", "EACCES", "ENOSPC", "EROFS"),
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO", "ENOSPC"),
    "close": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC", "EACCES"),
    "chmod": ("EPERM", "EIO"),
    "mkdir": ("ENOSPC", "EACCES"),
    "unlink": ("EIO", "EACCES"),
    "flock": ("ENOLCK", "EIO"),
    "statfs": ("EIO",),
}


@dataclass
class Run:
    status: int
    out: str
    err: str
    log: str  # of strace

    @property
    def hit(self) -> bool:
        return "(INJECTED)" in self.log

    @property
    def kind(self) -> str:
        if self.status == 0:
            return "went well"
        told = self.err.strip().splitlines()
        if self.status > 0 and told and told[-1].startswith("error: ") and "Traceback" not in self.err:
            return "error told"
        return "no clear end"


def run(arguments: list[str], environment: Mapping[str, str] = os.environ, *strace: str) -> Run:
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        traced = ["strace", "-f", "-y", "--seccomp-bpf", "-o", log.name, *strace] if strace else []
        done = subprocess.run(
            [*traced, sys.executable, "-m", "polargrid_local", *arguments],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Run(done.returncode, done.stdout, done.stderr, log.read())


def points(calls: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for call, errors in calls.items():
        for error in errors:
            yield call, error


def steps() -> Iterator[int]:
    n = 1.0
    while True:
        yield int(n)
        n = max(n + 1, n * 1.5)


class Soak:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def note(self, what: str, done: Run, fault: str) -> None:
        self.counts[f"{what}: {done.kind}"] += 1
        if done.kind == "no clear end":
            self.wrong.append(f"{what}, {fault}: status {done.status}: {done.err[-300:]}")
            print(self.wrong[-1], file=sys.stderr, flush=True)

    def load(self, model: str, words: str, isolation: str) -> None:
        ask = ["complete", words, "-m", model, "--max-tokens", "4", "--temperature", "0", "--n-ctx", "256"]
        ask += ["--isolation", isolation, "--device", "cpu", "--threads", "1"]
        expected = run(ask).out
        for call, error in points(READS):
            for n in steps():
                fault = f"{call}:error={error}:when={n}"
                done = run(ask, os.environ, "-P", os.path.realpath(model), "-e", f"inject={fault}")
                if not done.hit:
                    break
                self.note(f"load, {isolation}", done, fault)
                if done.status == 0 and done.out != expected:
                    self.wrong.append(f"load, {isolation}, {fault}: said {done.out!r}")
                    print(self.wrong[-1], file=sys.stderr, flush=True)

    def pull(self, hub: Hub) -> None:
        known = f'sha256 = "{hashlib.sha256(MODEL).hexdigest()}"\nbytes = {len(MODEL)}\n'
        catalogue = f'[models.house]\nsource = "hf:site/models@v1/{FILE}"\nfile = "{FILE}"\n{known}'
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "NO_PROXY": "*"}
        with tempfile.TemporaryDirectory() as scratch:
            models = Path(scratch, "models")

            def fresh() -> None:
                subprocess.run(["rm", "-rf", models], check=True)
                models.mkdir()
                (models / "catalog.toml").write_text(catalogue)

            fresh()
            ask = ["pull", "house", "--models-dir", str(models)]
            log = run(ask, environment, "-e", "trace=file,desc").log
            paths = sorted(set(re.findall(rf"{re.escape(str(models))}[\w./-]*", log)) - {str(models / "catalog.toml")})
            assert str(models / FILE) in paths, log[-2000:]
            watch = [word for path in paths for word in ("-P", path)]
            for call, error in points(WRITES):
                for n in steps():
                    fault = f"{call}:error={error}:when={n}"
                    fresh()
                    done = run(ask, environment, *watch, "-e", f"inject={fault}")
                    if not done.hit:
                        break
                    self.note("pull", done, fault)
                    whole = (models / FILE).read_bytes() == MODEL if (models / FILE).exists() else done.status != 0
                    again = run(ask, environment)
                    if not whole or again.status != 0 or (models / FILE).read_bytes() != MODEL:
                        self.wrong.append(f"pull, {fault}: whole {whole}, then {again.status}: {again.err[-300:]}")
                        print(self.wrong[-1], file=sys.stderr, flush=True)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--words", default="the of and")
    given = arguments.parse_args()
    soak = Soak()
    for isolation in ("thread", "process"):
        soak.load(given.model, given.words, isolation)
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    soak.pull(hub)
    print(json.dumps({**soak.counts, "wrong": len(soak.wrong)}))
    return int(bool(soak.wrong))


if __name__ == "__main__":
    sys.exit(main())
