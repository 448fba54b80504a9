"""An engine in a process of its own: the same answers, and when that process dies a typed error and no more."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_archs
import tiny_model
from helpers import HOLD, chat, content_of, stats_of

from polargrid_local import (
    AsyncEngine,
    Engine,
    EngineClosed,
    EngineCrashed,
    ForkedEngineError,
    InvalidModelError,
    ServerError,
)
from polargrid_local import registry as models_of_engines
from polargrid_local.native import worker
from polargrid_local.native.isolation import TESTED

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def pid_of(engine: Any) -> int:
    return int(engine.info()["process_id"])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_random(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def isolated(tiny: Path) -> Iterator[Engine]:
    with Engine(tiny, isolation="process") as engine:
        yield engine


@pytest.fixture(scope="module")
def both(smollm2: Path) -> Iterator[tuple[Engine, Engine]]:
    options: dict[str, Any] = {"n_ctx": 1024, "max_streams": 4}
    with (
        Engine(smollm2, isolation="thread", **options) as here,
        Engine(smollm2, isolation="process", **options) as there,
    ):
        yield here, there


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}, "required": ["city"]}
ASKED: dict[str, dict[str, Any]] = {
    "plain": chat("Name three fruits."),
    "sampled, with logprobs": chat("Tell me a story.", temperature=0.9, seed=7, logprobs=True, top_logprobs=3),
    "stopped": chat("Count: one, two, three, four", stop=["three", "."]),
    "held to a schema": chat(
        "A city, as JSON.", response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
    ),
    "with a prediction": chat("Say it again: red green blue", prediction={"type": "content", "content": "red green"}),
    "every sign": chat("ÄöüßéñçøÆ 日本語 👩‍🚀 \u0000 \t"),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_answer_is_the_same_in_both_processes(both: tuple[Engine, Engine], name: str) -> None:
    _, there = both
    told = []
    for engine in both:
        reply = engine.chat_completion(**ASKED[name])
        usage = {key: n for key, n in reply["usage"].items() if not key.endswith("_details")}  # of caches and drafts
        told.append((reply["choices"], usage, reply["model"], sorted(reply)))
    assert told[0] == told[1]
    joined = "".join(
        chunk["choices"][0]["delta"].get("content") or ""
        for chunk in there.chat_completion_stream(**ASKED[name])
        if chunk["choices"]
    )
    assert joined == (told[0][0][0]["message"]["content"] or "")


def test_many_streams_at_once_say_what_each_says_alone(both: tuple[Engine, Engine]) -> None:
    here, _ = both
    prompts = [f"Write {n} words about the sea." for n in range(8)]
    alone = [content_of(here.chat_completion(**chat(prompt))) for prompt in prompts]

    async def all_at_once() -> list[str]:
        async with AsyncEngine(here._models.find(None).model.path, isolation="process", n_ctx=1024) as engine:
            replies = await asyncio.gather(*(engine.chat_completion(**chat(prompt)) for prompt in prompts))
        return [content_of(reply) for reply in replies]

    assert asyncio.run(all_at_once()) == alone


def test_vectors_and_scores_are_the_same(tmp_path: Path) -> None:
    embedder = tiny_archs.write(tmp_path / "bert.gguf", "bert")
    ranker = tiny_archs.write(tmp_path / "rank.gguf", "bert-reranker")
    told = []
    for isolation in ("thread", "process"):
        with Engine(embedder, isolation=isolation) as engine:
            data = engine.embeddings(input=["one text", "another"], encoding_format="numpy")["data"]
        with Engine(ranker, isolation=isolation) as engine:
            scores = engine.rerank("a query", ["a document", "none"])["results"]
        told.append((np.stack([row["embedding"] for row in data]), scores))
    assert np.array_equal(told[0][0], told[1][0])
    assert told[0][1] == told[1][1]


@pytest.mark.parametrize("architecture", sorted(TESTED))
def test_every_architecture_that_may_run_in_process_computes_the_same_there(architecture: str, tmp_path: Path) -> None:
    kind = "qwen3-reranker" if architecture == "qwen3" else architecture
    path = tiny_archs.write(tmp_path / "m.gguf", kind)
    told = []
    for isolation in ("thread", "process"):
        with Engine(path, isolation=isolation) as engine:
            assert engine.info()["architecture"] == architecture
            said: list[Any] = []
            for task in engine.info()["tasks"]:
                if task == "generate":
                    said.append(engine.completion(prompt="the of and", max_tokens=6, temperature=0)["choices"])
                elif task == "embed":
                    vectors = engine.embeddings(input=["one text", "another"])["data"]
                    said.append([row["embedding"] for row in vectors])
                else:
                    said.append(engine.rerank("a query", ["a document", "none"])["results"])
            assert said
            told.append(said)
    assert told[0] == told[1]


def test_tokens_and_errors_are_the_same(both: tuple[Engine, Engine]) -> None:
    here, there = both
    assert here.tokenize("Hello <|im_start|> there") == there.tokenize("Hello <|im_start|> there")
    told = []
    for engine in both:
        with pytest.raises(Exception) as caught:
            engine.chat_completion(**chat("word " * 5000))
        told.append((type(caught.value), str(caught.value), getattr(caught.value, "details", None)))
    assert told[0] == told[1]


def test_info_says_where_the_engine_runs(both: tuple[Engine, Engine]) -> None:
    here, there = (engine.info() for engine in both)
    assert (here["isolation"], here["process_id"], here["sandbox"]) == ("thread", os.getpid(), "")
    assert there["isolation"] == "process"
    assert there["process_id"] != os.getpid()
    differing = {"isolation", "process_id", "sandbox", "load_ms", "prefix_cache_bytes", "devices"}
    assert {key: value for key, value in here.items() if key not in differing} == {
        key: value for key, value in there.items() if key not in differing
    }


@LINUX
def test_the_worker_can_do_little_and_knows_little(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "xyzzy")
    with Engine(tiny, isolation="process") as engine:
        proc = Path(f"/proc/{pid_of(engine)}")
        assert b"xyzzy" not in (proc / "environ").read_bytes()
        assert (proc / "oom_score_adj").read_text().strip() == "800"
        assert "Max core file size        0 " in (proc / "limits").read_text()
        targets = []
        for fd in (proc / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(fd))
        assert not [target for target in targets if target.startswith("socket:")]
        status = (proc / "status").read_text()
        if "\nSeccomp:" in status and platform.machine() in ("x86_64", "aarch64"):  # the kernel has it
            assert "seccomp" in engine.info()["sandbox"]
            assert "\nSeccomp:\t2\n" in status
            assert "\nNoNewPrivs:\t1\n" in status


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_process_that_dies_ends_its_streams_with_an_error_and_the_next_request_works(
    busy_model: Path, number: int
) -> None:
    with Engine(busy_model, isolation="process", n_ctx=100_000) as other:
        going_on = other.chat_completion_stream(**chat("go on", max_tokens=400, ignore_eos=True))
        assert next(going_on)
        with Engine(busy_model, isolation="process", n_ctx=131_072, max_streams=2) as engine:
            expected = content_of(engine.chat_completion(**chat("hello")))
            streams = [engine.completion_stream(prompt=HOLD, max_tokens=1) for _ in "abc"]  # two run, one waits
            pid = pid_of(engine)
            os.kill(pid, number)
            for stream in streams:
                with pytest.raises(EngineCrashed) as caught:
                    for _ in stream:
                        pass
                assert caught.value.retryable
                assert f"signal {number:d}" in caught.value.message
                assert caught.value.details["signal"] == number
            assert content_of(engine.chat_completion(**chat("hello"))) == expected
            assert pid_of(engine) != pid
            assert stats_of(engine)["n_running"] == 0
        assert not is_alive(pid)
        assert next(going_on)["choices"]
        going_on.close()


def test_a_process_that_dies_again_and_again_is_not_started_for_ever(
    busy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_of_engines, "BACKOFF_S", 0.01)
    with Engine(busy_model, isolation="process", n_ctx=131_072, max_streams=1) as engine:
        for _ in range(models_of_engines.RESTARTS + 1):
            stream = engine.completion_stream(prompt=HOLD, max_tokens=1)
            os.kill(pid_of(engine), signal.SIGKILL)
            with pytest.raises(EngineCrashed):
                next(stream)
        with pytest.raises(EngineCrashed, match="force_reload") as caught:
            engine.chat_completion(**chat("hello"))
        assert caught.value.details["restarts"] == 3
        assert engine.health()["status"] != "healthy"
        assert engine.list_models()["data"]
        assert engine.load_model(busy_model, force_reload=True)["status"] == "success"
        assert engine.chat_completion(**chat("hello"))["usage"]["completion_tokens"] > 0


def test_requests_wait_while_a_model_whose_process_died_is_loaded_again(
    isolated: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = content_of(isolated.chat_completion(**chat("hello")))
    begun, go_on = threading.Event(), threading.Event()
    load = models_of_engines.Models._engine_for

    def slow_load(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return load(*args)

    monkeypatch.setattr(models_of_engines.Models, "_engine_for", slow_load)
    os.kill(pid_of(isolated), signal.SIGKILL)
    wait_until(lambda: isolated._models.find(None).model.crashed)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(isolated.chat_completion, **chat("hello"))
        assert begun.wait(60)
        others = [pool.submit(isolated.chat_completion, **chat("hello")) for _ in range(2)]
        assert isolated.list_models()["data"]
        assert not any(other.done() for other in others)
        go_on.set()
        assert [content_of(asked.result()) for asked in (first, *others)] == [expected] * 3


@LINUX
def test_a_process_that_stands_still_is_taken_for_dead(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SILENCE_S", 10)  # ten times as long as a living one is silent
    with Engine(tiny, isolation="process", device="cpu") as engine:
        os.kill(pid_of(engine), signal.SIGSTOP)
        with pytest.raises(EngineCrashed, match="said nothing for 10 seconds"):
            engine.chat_completion(**chat("hello"))
        assert engine.chat_completion(**chat("hello"))["usage"]["completion_tokens"] > 0


def test_a_file_cut_short_under_a_mapped_model_ends_that_process_alone(tmp_path: Path) -> None:
    path = tiny_model.write_random(tmp_path / "m.gguf", n_ctx_train=131_072)
    with Engine(path, isolation="process", kernels=False, n_ctx=131_072, max_streams=1) as engine:
        engine.chat_completion(**chat("hello"))
        stream = engine.completion_stream(prompt=HOLD, max_tokens=1)
        os.truncate(path, 4096)
        with pytest.raises(ServerError) as caught:
            next(stream)
        assert caught.value.code in ("engine_crashed", "model_file_changed")


@LINUX
def test_it_leaves_nothing_behind(tiny: Path) -> None:
    def once() -> int:
        with Engine(tiny, isolation="process") as engine:
            engine.chat_completion(**chat("hello", max_tokens=2))
            return pid_of(engine)

    once()
    gc.collect()
    n_descriptors, n_threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    pids = [once() for _ in range(10)]
    gc.collect()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert len(os.listdir("/proc/self/fd")) == n_descriptors
    assert len(os.listdir("/proc/self/task")) == n_threads


def test_close_ends_a_running_stream(busy_model: Path) -> None:
    engine = Engine(busy_model, isolation="process", n_ctx=131_072, max_streams=1)
    stream = engine.completion_stream(prompt=HOLD, max_tokens=4)
    wait_until(lambda: stats_of(engine)["n_running"] == 1)
    engine.close()
    with pytest.raises(EngineClosed):
        next(stream)
    with pytest.raises(EngineClosed):
        engine.chat_completion(**chat("hello"))


def test_a_cancelled_load_ends_soon(smollm2: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(progress: float) -> None:
        begun.set()
        assert go_on.wait(60)

    async def cancel_it() -> None:
        load = asyncio.create_task(AsyncEngine.create(smollm2, isolation="process", on_load_progress=hold))
        assert await asyncio.to_thread(begun.wait, 60)
        load.cancel()
        await asyncio.sleep(0)  # it takes effect in the task's next step
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await load

    asyncio.run(cancel_it())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_forked_child_is_refused(isolated: Engine) -> None:
    isolated.chat_completion(**chat("hello", max_tokens=1))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            isolated.chat_completion(**chat("hello"))
            said = b"answered"
        except ForkedEngineError:
            said = b"refused"
        except BaseException as error:
            said = repr(error).encode()
        os.write(write, said)
        os._exit(0)
    os.close(write)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    os.waitpid(child, 0)
    assert isolated.chat_completion(**chat("hello"))["usage"]["completion_tokens"] > 0


HOST = """
import sys
from polargrid_local import Engine
engine = Engine(sys.argv[1], isolation="process")
stream = engine.chat_completion_stream(messages=[{"role": "user", "content": "hi"}], max_tokens=400, ignore_eos=True)
next(stream)
print(engine.info()["process_id"], flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


@LINUX
@pytest.mark.parametrize("how", ["exit", "wait"])
def test_it_ends_with_its_host(tiny: Path, how: str) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(tiny), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert host.stdin is not None and host.stdout is not None
    pid = int(host.stdout.readline())
    if how == "wait":
        assert is_alive(pid)
        host.kill()
    assert host.wait(timeout=60) == (0 if how == "exit" else -signal.SIGKILL)
    host.stdin.close()
    host.stdout.close()
    wait_until(lambda: not is_alive(pid))


def test_a_worker_that_cannot_be_started_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "worker_program", lambda: tmp_path / "polargrid-worker")
    with pytest.raises(ServerError, match="polargrid-worker") as caught:
        Engine(tiny, isolation="process")
    assert caught.value.code == "worker_missing"
    with Engine(tiny, isolation="thread") as engine:  # there is nothing to try it in, which a warning says
        assert engine.chat_completion(**chat("hello", max_tokens=2))["usage"]["completion_tokens"] == 2


def test_a_file_nobody_knows_is_tried_before_it_runs_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tried: list[str] = []
    real = models_of_engines.try_out
    monkeypatch.setattr(models_of_engines, "try_out", lambda path, *rest: (tried.append(path), real(path, *rest))[1])
    path = tiny_model.write_random(tmp_path / "m.gguf")
    for _ in range(2):
        with Engine(path, isolation="thread") as engine:
            assert engine.info()["isolation"] == "thread"
    assert tried == [str(path)]  # the second time it was known
    with Engine(path) as engine:
        assert engine.info()["isolation"] == "thread"
    os.utime(path)
    with Engine(path) as engine:  # it may have changed
        assert engine.info()["isolation"] == "process"


@LINUX
@pytest.mark.parametrize("isolation", ["thread", "process", "auto"])
def test_a_file_that_ends_the_process_is_refused_with_the_reason(
    isolation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules know all files that are known to do so. Here it is the C library that does it: ggml stops at an assertion
    where it gets no aligned memory."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "none.c"
    source.write_text("#include <stddef.h>\nint posix_memalign(void **p, size_t a, size_t n) { return 12; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", tmp_path / "none.so", source], check=True)
    ordinary = worker._environment
    monkeypatch.setattr(worker, "_environment", lambda: {**ordinary(), "LD_PRELOAD": str(tmp_path / "none.so")})
    with pytest.raises(InvalidModelError, match=r"m\.gguf.*GGML_ASSERT") as caught:
        Engine(tiny_model.write_random(tmp_path / "m.gguf"), isolation=isolation)
    assert caught.value.details["trial_signal"] == signal.SIGABRT
    assert "/" not in caught.value.details["reason"]


@pytest.mark.skipif(os.name == "nt", reason="the impostor is a script")
@pytest.mark.parametrize("status", [0, 3])
def test_a_worker_that_just_leaves_has_crashed(
    status: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = tmp_path / "polargrid-worker"
    impostor.write_text(f"#!/bin/sh\nexit {status}\n")
    impostor.chmod(0o755)
    monkeypatch.setattr(worker, "worker_program", lambda: impostor)
    for use in (Engine, Engine.estimate):
        with pytest.raises(EngineCrashed, match=f"ended with status {status}"):
            use(tiny, isolation="process")


def test_a_worker_that_says_nonsense_is_ended(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impostor = tmp_path / "polargrid-worker"
    impostor.write_text(f"#!{sys.executable}\nimport sys, time\nsys.stdout.buffer.write(bytes(range(8)) * 2000)\n"
                        "sys.stdout.flush()\ntime.sleep(600)\n")  # fmt: skip
    impostor.chmod(0o755)
    monkeypatch.setattr(worker, "worker_program", lambda: impostor)
    with pytest.raises(EngineCrashed):
        Engine(tiny, isolation="process")


def test_log_lines_cross_the_border(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "polargrid_local.llama")
    with Engine(tiny, isolation="process"):
        pass
    assert any("llama" in record.getMessage() for record in caplog.records)


def test_a_request_is_not_lost_between_two_processes(isolated: Engine) -> None:
    """Everything that a JSON request can carry arrives: a stream of a grammar, a seed, stops, marks."""
    reply = isolated.chat_completion(
        **chat("x", response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}, seed=3)
    )
    if reply["choices"][0]["finish_reason"] == "stop":
        json.loads(content_of(reply))
    assert reply["usage"]["prompt_tokens"] > 0
