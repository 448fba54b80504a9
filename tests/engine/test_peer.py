"""Beside llama-cpp-python in one process, and word for word with it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

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
TEXT = (
    "The sea was calm that morning, and the old fisherman sat in his boat, mending a net that had seen better years. "
    "His grandson watched the gulls and asked how far the horizon was, and whether anyone had ever reached it."
)


def test_greedy_answers_equal_the_peers(smollm2: Path) -> None:
    """With the same operations (ggml's kernels, its plain attention) the same tokens and the same probabilities."""
    llama_cpp = pytest.importorskip("llama_cpp")
    peer = llama_cpp.Llama(str(smollm2), n_ctx=512, logits_all=True, verbose=False)
    with Engine(smollm2, n_ctx=512, max_streams=1, kernels=False, flash_attention=False) as engine:
        for prompt in PROMPTS:
            ours = engine.completion(prompt=prompt, max_tokens=32, temperature=0, logprobs=3)["choices"][0]
            theirs = peer.create_completion(prompt, max_tokens=32, temperature=0, logprobs=3)["choices"][0]
            assert ours["text"] == theirs["text"]
            assert ours["logprobs"]["tokens"] == theirs["logprobs"]["tokens"]
            for one, other in zip(
                ours["logprobs"]["token_logprobs"], theirs["logprobs"]["token_logprobs"], strict=True
            ):
                assert one == pytest.approx(float(other), abs=1e-3)
    peer.close()


def test_our_kernels_are_as_near_to_the_peer_as_it_is_to_itself(smollm2: Path) -> None:
    """Rounding alone moves this model's log-probabilities by 0.09 on average: so far apart are the peer's own two
    attention paths."""
    llama_cpp = pytest.importorskip("llama_cpp")
    prefixes = [" ".join(TEXT.split()[:n]) for n in range(3, 40, 2)]

    def distributions(complete: Any) -> list[dict[str, float]]:
        replies = (complete(prompt=p, max_tokens=1, temperature=0, logprobs=5)["choices"][0] for p in prefixes)
        return [reply["logprobs"]["top_logprobs"][0] for reply in replies]

    def distance(ones: list[dict[str, float]], others: list[dict[str, float]]) -> float:
        gaps = [
            abs(one[t] - other[t]) for one, other in zip(ones, others, strict=True) for t in one.keys() & other.keys()
        ]
        assert len(gaps) > 50
        return float(sum(gaps)) / len(gaps)

    plain, flash = (
        llama_cpp.Llama(str(smollm2), n_ctx=512, logits_all=True, verbose=False, flash_attn=on) for on in (False, True)
    )
    with Engine(smollm2, n_ctx=512, max_streams=1) as engine:
        ours = distributions(engine.completion)
    theirs = distributions(plain.create_completion)
    assert distance(ours, theirs) < 2 * distance(distributions(flash.create_completion), theirs)


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
            answer = engine.completion(prompt="The capital of France is", max_tokens=4, temperature=0)
            ours = answer["choices"][0]["text"]
            assert ours == theirs, (ours, theirs)
        engine.close()
        peer.close()
        print("both")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(smollm2)], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both\n"


def test_the_peer_leaves_no_open_file_at_the_end_of_a_run(root: Path) -> None:
    pytest.importorskip("llama_cpp")
    program = "import llama_cpp, conftest; conftest.pytest_unconfigure()"
    command = [sys.executable, "-X", "dev", "-c", program]
    done = subprocess.run(command, cwd=root / "tests", capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
