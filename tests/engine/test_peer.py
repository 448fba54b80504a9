"""Beside llama-cpp-python in one process, and word for word with it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from polargrid_local import Engine

pytestmark = pytest.mark.peer
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a fox",
    "def fibonacci(n):\n",
    "1, 2, 3, 4,",
    "Water is made of",
    "Dear Sir or Madam,",
]


def test_greedy_tokens_equal_the_peers(smollm2: Path) -> None:
    """Up to the first place where the peer's two best candidates are within rounding of each other."""
    llama_cpp = pytest.importorskip("llama_cpp")
    peer = llama_cpp.Llama(str(smollm2), n_ctx=512, logits_all=True, verbose=False)
    compared = 0
    with Engine(smollm2, n_ctx=512, max_streams=1) as engine:
        for prompt in PROMPTS:
            ours = engine.completion(prompt=prompt, max_tokens=32, temperature=0, logprobs=0)["choices"][0]
            theirs = peer.create_completion(prompt, max_tokens=32, temperature=0, logprobs=2)["choices"][0]
            for ours_token, their_token, top in zip(
                ours["logprobs"]["tokens"], theirs["logprobs"]["tokens"], theirs["logprobs"]["top_logprobs"], strict=False
            ):
                best, second = sorted(top.values(), reverse=True)[:2]
                if ours_token != their_token:
                    assert best - second < 0.05, (prompt, ours_token, their_token)
                    break
                compared += 1
    assert compared > 100


@pytest.mark.parametrize("order", ["llama_cpp, polargrid_local", "polargrid_local, llama_cpp"])
def test_both_in_one_process(smollm2: Path, order: str) -> None:
    pytest.importorskip("llama_cpp")
    program = f"""
        import sys
        import {order}
        from polargrid_local import Engine
        peer = llama_cpp.Llama(sys.argv[1], n_ctx=256, verbose=False)
        engine = Engine(sys.argv[1], n_ctx=256, max_streams=1)
        for _ in range(2):
            theirs = peer("The capital of France is", max_tokens=4, temperature=0)["choices"][0]["text"]
            ours = engine.completion(prompt="The capital of France is", max_tokens=4, temperature=0)["choices"][0]["text"]
            assert ours == theirs, (ours, theirs)
        engine.close()
        peer.close()
        print("both")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(smollm2)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both\n"
