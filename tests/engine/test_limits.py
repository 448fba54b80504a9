"""Too little memory, too few threads, too much text: a typed error, and the process lives. Each in its own process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_archs
import tiny_model

from polargrid_local import Engine

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits a process as Linux does")

PRELUDE = """
import os, resource, signal, sys, threading, time
from polargrid_local import Engine
from polargrid_local.errors import *

def leave(n_bytes):
    "Let this process take so much more address space."
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, resource.RLIM_INFINITY))

MiB = 1 << 20
path = sys.argv[1]
"""


def run(body: str, path: Path) -> str:
    """What the script prints. It must end by itself, with exit code 0."""
    script = PRELUDE + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def test_threads_that_cannot_be_had_are_an_error(tmp_path: Path) -> None:
    path = tiny_model.write_random(tmp_path / "m.gguf")
    said = run(
        """
        leave(900 * MiB)   # some hundred stacks of 8 MiB
        try:
            Engine(path, n_ctx=256, max_streams=1, n_threads=500)
        except MemoryEstimateError as error:
            assert error.details["field"] == "n_threads", error.details
            print(error)
        with Engine(path, n_ctx=256, max_streams=1, n_threads=2) as engine:
            print(engine.completion(prompt="the", max_tokens=3)["usage"]["completion_tokens"])
    """,
        path,
    )
    assert "500 compute threads cannot be started" in said and said.endswith("3")


def test_no_thread_at_all_is_an_error(tmp_path: Path) -> None:
    path = tiny_model.write_random(tmp_path / "m.gguf")
    said = run(
        """
        import polargrid_local.native.core
        polargrid_local.native.core.core()
        leave(4 * MiB)   # less than any thread's stack
        try:
            Engine(path, n_ctx=256, max_streams=1)
        except MemoryEstimateError as error:
            print(type(error).__name__)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Engine(path, n_ctx=256, max_streams=1).close()
    """,
        path,
    )
    assert said == "MemoryEstimateError"


@pytest.mark.parametrize("kind", ["llama", "bert", "t5encoder"])
def test_an_embedding_that_does_not_fit_is_an_error(kind: str, tmp_path: Path) -> None:
    path = tiny_archs.write(tmp_path / "m.gguf", kind)
    said = run(
        """
        with Engine(path, isolation="thread") as engine:
            for extra in (2, 20, 60, 100):
                leave(extra * MiB)
                try:
                    engine.embeddings(input="a b c")
                except MemoryEstimateError as error:
                    assert error.details is None or error.details["need"] > error.details["have"], error
                    print("refused", end=" ")
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print(len(engine.embeddings(input="a b c")["data"][0]["embedding"]))
    """,
        path,
    )
    assert said == f"refused refused refused refused {tiny_archs.N_EMBD}"


@pytest.mark.parametrize(
    "call", ["engine.tokenize(text, unlimited=True)", "engine.completion(prompt=text, max_tokens=1)"]
)
def test_tokenizing_can_be_interrupted(call: str, smollm2: Path) -> None:
    """Ctrl-C is delivered while the text is still being cut; the engine goes on."""
    said = run(
        f"""
        with Engine(path, n_ctx=0 if "unlimited" in {call!r} else 65536, max_streams=1, max_queue=0) as engine:
            text = "word " * (400_000 if "unlimited" in {call!r} else 60_000)
            begun = threading.Event()

            def interrupt():
                begun.wait()
                signal.raise_signal(signal.SIGINT)

            threading.Thread(target=interrupt).start()
            try:
                begun.set()
                {call}
                time.sleep(60)   # on a fast machine the signal comes after the call, and so here
            except KeyboardInterrupt:
                print("interrupted")
            print(engine.completion(prompt="a", max_tokens=2)["usage"]["completion_tokens"])
    """,
        smollm2,
    )
    assert said == "interrupted\n2"


@pytest.mark.parametrize("model", ["gpt2", "whitespace", "hybriddna"])
def test_runs_of_blanks_are_tokenized_by_every_pre_tokenizer(model: str, tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.model": model, "tokenizer.ggml.pre": "whitespace"}
    path = tiny_model.write_random(tmp_path / "m.gguf", metadata=metadata)
    with Engine(path) as engine:
        for text in (" " * 3000, "a  b", " \t \n ", "the  " * 50, "x"):
            ids = engine.tokenize(text)
            assert ids == engine.tokenize(text)
            engine.embeddings(input=text + "a")
        assert engine.tokenize("the" + " " * 200 + "of")[-2:] == engine.tokenize("the of")[-2:]
