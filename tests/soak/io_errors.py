"""I/O errors: the n-th system call of a kind fails, for n = 1, 2, 3, 4, 6, ... to the last one, in every errand that
reads or writes: loads of a model in this process and in a worker, of a split one, with an adapter, with the note of
which files stood a trial; the list of models; a pull from a hub on loopback; a server's start and its first answer.

python tests/soak/io_errors.py MODEL.gguf [--words "the of and"] [--only ERRAND]

Each run must end well, with the answer that it has without a fault, or in one line that says what was wrong; a pull
must leave no file but the whole one, and the next pull must bring it. Needs strace, which makes the calls fail. Prints
a line of JSON; exits with status 1 where an error had no type, an answer was wrong, or a pull left something wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import operator
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "benchmarks")]
from hub import FILE, MODEL, Hub

# A call and how it fails: with an error, or with a value that it returns without having done anything.
Faults = Mapping[str, Sequence[str]]
# Of the files themselves. Not EAGAIN: only files that were opened so say it, and Python then reads None.
READS: Faults = {
    "openat": ("EIO", "EACCES", "EMFILE", "ENFILE", "ENOMEM", "EINTR"),
    "newfstatat": ("EIO", "EACCES", "ENOMEM"),
    "fstat": ("EIO", "ENOMEM"),
    "statx": ("EIO", "EACCES"),
    "read": ("EIO", "EINTR", "ENOMEM", "retval=0"),
    "pread64": ("EIO", "EINTR", "retval=0"),
    "lseek": ("EIO", "EOVERFLOW"),
    "mmap": ("ENOMEM", "EIO", "EAGAIN", "EACCES"),
    "munmap": ("EINVAL",),
    "fadvise64": ("EIO",),
    "madvise": ("EIO", "ENOMEM"),
    "ioctl": ("EIO",),
    "close": ("EIO",),
}
WRITES: Faults = {
    **READS,
    "openat": ("EIO", "EACCES", "ENOSPC", "EROFS", "EMFILE"),
    "write": ("ENOSPC", "EIO", "EDQUOT", "EFBIG", "EINTR"),
    "fsync": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO", "ENOSPC"),
    "close": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC", "EACCES"),
    "chmod": ("EPERM", "EIO"),
    "mkdir": ("ENOSPC", "EACCES"),
    "unlink": ("EIO", "EACCES"),
    "flock": ("ENOLCK", "EIO", "EINTR"),
    "statfs": ("EIO",),
    "getdents64": ("EIO",),
}
LISTS: Faults = {name: READS.get(name, ()) for name in ("openat", "newfstatat", "read", "fstat", "statx")} | {
    "getdents64": ("EIO", "ENOMEM"),
    "readlink": ("EIO",),
}
# Of the whole process, none of which Python's own start uses.
CHILDREN: Faults = {
    "pipe2": ("EMFILE", "ENFILE"),
    "vfork": ("EAGAIN", "ENOMEM"),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN",),
    "dup": ("EMFILE",),
    "kill": ("EPERM",),
    "sched_setaffinity": ("EINVAL",),
    "prctl": ("EINVAL",),
    "seccomp": ("EINVAL", "ENOSYS"),
    "landlock_create_ruleset": ("ENOSYS", "ENOMEM"),
    "prlimit64": ("EPERM",),
}
NOTES: Faults = {"mkdir": ("ENOSPC", "EROFS"), "rename": ("ENOSPC", "EIO", "EROFS"), "unlink": ("EIO",)}
NETWORK: Faults = {
    "socket": ("EMFILE", "EACCES", "ENOBUFS"),
    "connect": ("ECONNREFUSED", "ENETUNREACH", "ETIMEDOUT", "EINTR", "EACCES"),
    "sendto": ("EPIPE", "ECONNRESET", "ENOBUFS"),
    "recvfrom": ("ECONNRESET", "ETIMEDOUT", "ENOMEM", "retval=0"),
    "setsockopt": ("EINVAL",),
    "getsockopt": ("ENOBUFS",),
    "getpeername": ("ENOTCONN",),
    "poll": ("ENOMEM",),
}
SERVES: Faults = {
    "socket": ("EMFILE", "EACCES"),
    "bind": ("EADDRINUSE", "EACCES", "EADDRNOTAVAIL"),
    "listen": ("EADDRINUSE", "EOPNOTSUPP"),
    "setsockopt": ("EINVAL",),
    "getsockname": ("ENOBUFS",),
    "getpeername": ("ENOTCONN",),
    "accept4": ("EMFILE", "ECONNABORTED", "ENOBUFS", "EAGAIN"),
    "recvfrom": ("ECONNRESET", "EAGAIN"),
    "epoll_create1": ("EMFILE", "ENOMEM"),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "socketpair": ("EMFILE",),
    "pipe2": ("EMFILE",),
    "vfork": ("EAGAIN",),
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

    noisy: bool = False  # more may stand around the error

    @property
    def kind(self) -> str:
        if self.status == 0:
            return "went well"
        told = self.err.strip().splitlines()
        if self.noisy:
            is_told = any(line.startswith("error: ") for line in told)
        else:
            is_told = told != [] and told[-1].startswith("error: ") and "Traceback" not in self.err
        return "error told" if self.status > 0 and is_told else "no clear end"


@dataclass
class Errand:
    name: str
    command: list[str]  # behind the interpreter
    faults: Faults
    watched: Sequence[Path | str] = ()  # calls on these only; none = any call of the process and its children
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    prepare: Callable[[], None] = lambda: None
    right: Callable[[str, str], bool] = operator.eq  # of an answer, given that without a fault
    # What is wrong afterwards, given that run; "" = nothing.
    wrong: Callable[[Run], str] = lambda done: ""
    drive: Callable[[subprocess.Popen[str]], str] | None = None  # what is done with it while it runs; its answer
    most: int = 1000  # the n beyond which no call is made to fail
    noisy: bool = False
    most_of: Mapping[str, int] = field(default_factory=dict)  # the same of one kind of call

    def run(self, *strace: str) -> Run:
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            traced = ["strace", "-f", "-y", "--seccomp-bpf", "-o", log.name, *strace] if strace else []
            process = subprocess.Popen(
                [*traced, sys.executable, *self.command],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a child of it that hangs on can be ended with it
            )
            try:
                said = self.drive(process) if self.drive is not None else ""
                out, err = process.communicate(timeout=200)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                return Run(-1, out, f"it never ended: {err}", log.read())
            return Run(process.returncode, out + said, err, log.read(), self.noisy)


def steps(most: int) -> Iterator[int]:
    n = 1.0
    while n <= most:
        yield int(n)
        n = max(n + 1, n * 1.5)


class Soak:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def note(self, what: str) -> None:
        self.wrong.append(what)
        print(what, file=sys.stderr, flush=True)

    def carry_out(self, errand: Errand) -> None:
        errand.prepare()
        expected = errand.run()
        assert expected.kind == "went well", expected
        watched = [word for path in errand.watched for word in ("-P", os.path.realpath(path))]
        for call, ways in errand.faults.items():
            for way in ways:
                for n in steps(errand.most_of.get(call, errand.most)):
                    fault = f"{call}:{way if '=' in way else 'error=' + way}:when={n}"
                    errand.prepare()
                    done = errand.run(*watched, "-e", f"inject={fault}")
                    if not done.hit:
                        break
                    self.counts[f"{errand.name}: {done.kind}"] += 1
                    here = f"{errand.name}, {fault}"
                    if done.kind == "no clear end":
                        self.note(f"{here}: status {done.status}: {done.err[-600:]}")
                    elif done.status == 0 and not errand.right(done.out, expected.out):
                        self.note(f"{here}: said {done.out[:300]!r}, not {expected.out[:300]!r}")
                    if wrong := errand.wrong(done):
                        self.note(f"{here}: {wrong}")


def asks(model: str | Path, words: str, isolation: str, *more: str) -> list[str]:
    ask = ["-m", "polargrid_local", "complete", words, "-m", str(model), "--max-tokens", "4", "--temperature", "0"]
    return [*ask, "--n-ctx", "256", "--isolation", isolation, "--device", "cpu", "--threads", "1", *more]


def loads(model: str, words: str, scratch: Path) -> Iterator[Errand]:
    import lora_file
    import tiny_model

    for isolation in ("thread", "process"):
        yield Errand(f"load, {isolation}", asks(model, words, isolation), READS, [model])
    yield Errand("load, read", asks(model, words, "thread", "--no-mmap", "--check-tensors"), READS, [model], most=30)

    shards = tiny_model.cut_in_shards(tiny_model.write_random(scratch / "split.gguf"), 3)
    yield Errand("load, split", asks(shards[0], words, "thread"), READS, shards, most=30)

    small = tiny_model.write_random(scratch / "small.gguf")
    adapter = lora_file.write(scratch / "adapter.gguf", {"blk.0.attn_output.weight": ((4, 128), (128, 4))})
    options = {"lora": [[str(adapter), 1.0]], "isolation": "thread", "device": "cpu", "n_threads": 1, "n_ctx": 256}
    child = [str(Path(__file__)), str(small), "--words", words, "--child", json.dumps(options)]
    yield Errand("load, adapter", child, READS, [adapter])

    cache = scratch / "cache"
    note = cache / "polargrid-local" / "verdicts.json"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    ask = asks(small, words, "thread")

    def forget() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    def remember() -> None:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text('{"another": 1.0}')

    yield Errand("note of trials, written", ask, NOTES, environment=environment, prepare=forget)
    yield Errand("note of trials, read", ask, READS, [note], environment, remember)
    yield Errand("processes and threads", asks(small, words, "process"), CHILDREN, environment=environment, most=12)


def lists(model: str, scratch: Path) -> Iterator[Errand]:
    folder = scratch / "listed"
    (folder / "team").mkdir(parents=True)
    for name in ("one.gguf", "team/two.gguf"):
        os.link(model, folder / name) if os.stat(model).st_dev == os.stat(folder).st_dev else shutil.copy(
            model, folder / name
        )
    (folder / "catalog.toml").write_text('[models.house]\nsource = "hf:site/models@v1/a.gguf"\nfile = "a.gguf"\n')
    watched = [folder, folder / "team", *folder.rglob("*.*")]
    for command in ("list", "info"):
        what = [command] if command == "list" else [command, "one.gguf"]
        ask = ["-m", "polargrid_local", *what, "--models-dir", str(folder), "--json"]
        yield Errand(command, ask, LISTS, watched, right=is_part if command == "list" else lambda *_: True)


def is_part(said: str, expected: str) -> bool:
    """A file or a folder that cannot be read is left out of a list. (What `info` says of the machine varies.)"""
    return set(said.splitlines()) <= set(expected.splitlines())


def pulls(hub: Hub, scratch: Path) -> Iterator[Errand]:
    known = f'sha256 = "{hashlib.sha256(MODEL).hexdigest()}"\nbytes = {len(MODEL)}\n'
    catalogue = f'[models.house]\nsource = "hf:site/models@v1/{FILE}"\nfile = "{FILE}"\n{known}'
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "NO_PROXY": "*"}
    models = scratch / "models"

    def fresh() -> None:
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir()
        (models / "catalog.toml").write_text(catalogue)

    ask = ["-m", "polargrid_local", "pull", "house", "--models-dir", str(models)]
    plain = Errand("pull", ask, {}, environment=environment)

    def wrong(done: Run) -> str:
        whole = (models / FILE).read_bytes() == MODEL if (models / FILE).exists() else done.status != 0
        again = plain.run()
        if not whole or again.status != 0 or (models / FILE).read_bytes() != MODEL:
            return f"whole {whole}, then {again.status}: {again.err[-300:]}"
        return ""

    fresh()
    log = plain.run("-e", "trace=file,desc").log
    paths = sorted(set(re.findall(rf"{re.escape(str(models))}[\w./-]*", log)) - {str(models / "catalog.toml")})
    assert str(models / FILE) in paths, log[-2000:]
    yield Errand("pull, files", ask, WRITES, paths, environment, fresh, wrong=wrong)
    yield Errand("pull, network", ask, NETWORK, (), environment, fresh, wrong=wrong, most=12)


def serves(scratch: Path, words: str) -> Iterator[Errand]:
    import tiny_model

    small = tiny_model.write_random(scratch / "served.gguf")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = {"model": small.stem, "prompt": words, "max_tokens": 4, "temperature": 0}

    def ask() -> str:
        """A client that tries again, as clients do: a fault may cost a connection, not the server."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with opener.open(request, timeout=60) as reply:
            return str(json.load(reply)["choices"][0]["text"])

    def drive(process: subprocess.Popen[str]) -> str:
        end = time.monotonic() + 60
        while process.poll() is None:
            try:
                said = ask()
            except (OSError, ValueError, http.client.HTTPException) as error:
                if time.monotonic() < end:
                    time.sleep(0.2)
                    continue
                said = f"no answer: {error}"
            # strace passes nothing on: the signal is for the server itself, its child.
            with contextlib.suppress(OSError, IndexError):  # it has ended by itself
                traced = Path(f"/proc/{process.pid}/comm").read_text().strip() == "strace"
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(int(children[0]) if traced else process.pid, signal.SIGTERM)
            return said
        return ""

    command = ["-m", "polargrid_local", "serve", "--port", str(port), "--host", "127.0.0.1", "--models-dir"]
    command += [str(scratch), "-m", small.name, "--device", "cpu", "--threads", "1", "--n-ctx", "256"]
    # asyncio listens once more, on sockets that listen already, which cannot fail; it lets a connection hang that it
    # cannot watch or set options of; and of a loop that could not be made it complains by itself.
    ours = {"listen": 2, "epoll_ctl": 3, "setsockopt": 5}
    yield Errand("serve", command, SERVES, drive=drive, most=9, most_of=ours, noisy=True)


def answer_as_child(model: str, words: str, options: dict[str, Any]) -> int:
    from polargrid_local import Engine
    from polargrid_local.errors import PolarGridError

    try:
        with Engine(model, **{**options, "lora": [tuple(pair) for pair in options["lora"]]}) as engine:
            print(engine.completion(prompt=words, max_tokens=4, temperature=0)["choices"][0]["text"])
    except PolarGridError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--words", default="the of and")
    arguments.add_argument("--only", default="", help="errands whose name begins so")
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        return answer_as_child(given.model, given.words, json.loads(given.child))
    model = os.path.realpath(given.model)
    soak = Soak()
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        errands = [*loads(model, given.words, scratch), *lists(model, scratch)]
        errands += [*pulls(hub, scratch), *serves(scratch, given.words)]
        for errand in errands:
            if errand.name.startswith(given.only):
                begin = sum(soak.counts.values())
                soak.carry_out(errand)
                print(f"{errand.name}: {sum(soak.counts.values()) - begin}", file=sys.stderr, flush=True)
    print(json.dumps({"points": sum(soak.counts.values()), **soak.counts, "wrong": len(soak.wrong)}))
    return int(bool(soak.wrong))


if __name__ == "__main__":
    sys.exit(main())
