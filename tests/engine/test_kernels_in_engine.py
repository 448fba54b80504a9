"""Our kernels inside the engine: the same model as with ggml's, and everything else a model can do still works."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from helpers import Native, chat, content_of

from polargrid_local import Engine, InvalidModelError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gguf_file

PROSE = Path(__file__).parents[2] / "docs" / "LOG.md"


class Judge(Native):
    """Text in, log-probabilities out."""

    def tokens(self, text: str) -> list[int]:
        return self.engine.tokenize([(text, False)])

    def logprob(self, prefix: str, token: int) -> tuple[float, str]:
        """Of `token` after `prefix`, and its text: a bias makes it the choice, and the report is the model's own."""
        sampling = {"temperature": 0.0, "n_logprobs": 0, "logit_bias": [(token, 1e4)]}
        event = self.ask(prefix, max_tokens=1, ignore_eos=True, sampling=sampling)[-1]
        assert event.kind == "finished", event.text
        [entry] = event.logprobs
        assert entry["token"] == token
        return entry["logprob"], entry["bytes"].decode()


def perplexity(path: Path, **options: Any) -> float:
    """Of 2,048 tokens: a third of each window of 1,600 letters is read at once and not judged, then 256 tokens one by
    one."""
    native = Judge(path, n_ctx=1024, max_streams=1, **options)
    prose = PROSE.read_bytes().decode("ascii", "ignore")  # so that every token is whole characters
    nats = []
    try:
        for at in range(0, 8 * 1600, 1600):
            window = prose[at : at + 1600]
            prefix = window[: window.rindex(" ", 0, 533)]
            for token in native.tokens(window)[len(native.tokens(prefix)) :][:256]:
                logprob, text = native.logprob(prefix, token)
                nats.append(-logprob)
                prefix += text
        assert len(nats) == 2048
        return math.exp(sum(nats) / len(nats))
    finally:
        native.engine.close()


def test_perplexity_is_the_same_within_noise(smollm2: Path) -> None:
    ours, ggmls = (perplexity(smollm2, kernels=kernels) for kernels in (True, False))
    assert 5 < ggmls < 200  # such as a working language model has
    assert ours == pytest.approx(ggmls, rel=0.01)


def test_a_prefix_saved_to_host_memory_comes_back_exact(smollm2: Path) -> None:
    """One slot, two conversations: each turn evicts the other's state and restores its own; the answers stay."""
    one, two = ([{"role": "user", "content": text * 12}] for text in ("Tell me about tea. ", "Sing of the sea. "))

    def ask(engine: Engine, messages: list[dict[str, str]]) -> tuple[str, int]:
        stream = engine.chat_completion_stream(messages=messages, temperature=0, max_tokens=16)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream)
        return text, stream.timings["cached_tokens"]

    stayed = []
    with Engine(smollm2, n_ctx=1024, max_streams=1, prefix_cache_bytes=0) as engine:
        invariant = engine.info()["kernels"] != "off"
        for messages in (one, two):
            cold, n_cached = ask(engine, messages)
            assert n_cached == 0 or messages is two
            stayed.append(ask(engine, messages))
            assert stayed[-1][1] > 40
            # ggml's own kernels round one row differently than many. Ours do not: a restored state equals a fresh one.
            assert stayed[-1][0] == cold or not invariant
    with Engine(smollm2, n_ctx=1024, max_streams=1) as engine:
        for messages in (one, two):
            ask(engine, messages)
        for _ in range(2):
            for messages, expected in zip((one, two), stayed, strict=True):
                assert ask(engine, messages) == expected


def test_embeddings_agree(smollm2: Path) -> None:
    texts = ["a cat sat on the mat", "the weather in spring", "def main(): pass"]
    vectors = []
    for kernels in (True, False):
        with Engine(smollm2, n_ctx=256, max_streams=1, kernels=kernels) as engine:
            data = engine.embeddings(input=texts)["data"]
            vectors.append(np.array([entry["embedding"] for entry in data]))
    assert vectors[0].shape == (3, 576)
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1, atol=1e-5)
    assert (np.sum(vectors[0] * vectors[1], axis=1) > 0.995).all()


@pytest.mark.parametrize("weights", ["f32", "f16"])
def test_types_we_do_not_own_are_left_alone(tmp_path: Path, weights: str) -> None:
    path = tiny_model.write_random(tmp_path / "tiny.gguf", weights=weights)
    answers = []
    for kernels in (True, False):
        with Engine(path, n_ctx=256, max_streams=2, kernels=kernels) as engine:
            answers.append(engine.completion(prompt="the word of", max_tokens=24, temperature=0)["choices"][0]["text"])
    assert answers[0] == answers[1]


def write_lora(path: Path, gain: float) -> Path:
    """A rank-4 adapter of SmolLM2's first query projection."""
    rng = np.random.default_rng(1)
    tensors = []
    for name, shape in (("lora_a", (4, 576)), ("lora_b", (576, 4))):
        data = (rng.standard_normal(shape) * (gain if name == "lora_b" else 1)).astype(np.float32)
        tensors.append(gguf_file.Tensor(f"blk.0.attn_q.weight.{name}", shape, "f32", lambda data=data: [data]))
    keys = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }
    gguf_file.write(path, keys, tensors)
    return path


def test_a_lora_adapter_applies_with_our_kernels(smollm2: Path, tmp_path: Path) -> None:
    request = chat("Name three colours.", max_tokens=12)
    answers = {}
    for gain in (None, 0.0, 5.0):
        lora = () if gain is None else [(str(write_lora(tmp_path / f"{gain}.gguf", gain)), 1.0)]
        for kernels in (True, False):
            with Engine(smollm2, n_ctx=256, max_streams=1, kernels=kernels, lora=lora) as engine:
                answers[gain, kernels] = content_of(engine.chat_completion(**request))
    assert answers[0.0, True] == answers[None, True]
    assert answers[0.0, False] == answers[None, False]
    assert answers[5.0, True] != answers[None, True]


def test_a_file_that_is_no_adapter_is_refused(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(64))
    for junk in (tmp_path / "junk.gguf", smollm2):
        with pytest.raises(InvalidModelError):
            Engine(smollm2, n_ctx=256, lora=[(str(junk), 1.0)])
