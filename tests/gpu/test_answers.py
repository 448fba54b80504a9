"""What a GPU computes is what the CPU computes, but for rounding; and everything an engine does, it does there too."""

from __future__ import annotations

import json
import threading

import lora_file
import numpy as np
import pytest
import tiny_archs
from helpers import stats_of, wait_until_idle

from polargrid_local import Engine, EngineClosed

PROMPT = "the of and to in is you that"
# Log-probabilities of float weights differ by the order of sums alone; those of quantized weights because our CPU
# kernels round activations to 8 bits as well.
TOLERANCE = {"f32": 0.05, "f16": 0.1, "q8_0": 0.5}


def logprobs(engine: Engine, prompt: str = PROMPT) -> dict[str, float]:
    """Of the five likeliest next tokens."""
    request = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5, "ignore_eos": True}
    [top] = engine.completion(**request)["choices"][0]["logprobs"]["top_logprobs"]
    return top


def text(engine: Engine, prompt: str, max_tokens: int = 64, **request) -> str:
    return engine.completion(prompt=prompt, max_tokens=max_tokens, temperature=0, **request)["choices"][0]["text"]


def agree(here: dict[str, float], there: dict[str, float], tolerance: float) -> None:
    """Tokens that both name have the same log-probability, and each names the other's likeliest."""
    assert max(here, key=here.get) in there and max(there, key=there.get) in here
    for token in here.keys() & there.keys():
        assert here[token] == pytest.approx(there[token], abs=tolerance), token


@pytest.mark.parametrize("n_gpu_layers", [1, 4, -1])
@pytest.mark.parametrize("weights", TOLERANCE)
def test_as_the_cpu_for_every_placement(tiny, open_on_gpu, weights, n_gpu_layers):
    path = tiny(weights=weights)
    with Engine(path, device="cpu", n_ctx=512) as cpu:
        expected = logprobs(cpu)
    agree(logprobs(open_on_gpu(path, n_gpu_layers=n_gpu_layers)), expected, TOLERANCE[weights])


@pytest.mark.parametrize("options", [{}, {"flash_attention": False}, {"cache_type": "q8_0"}], ids=str)
def test_as_the_cpu_for_every_attention(tiny, open_on_gpu, options):
    with Engine(tiny(), device="cpu", n_ctx=1024, **options) as cpu:
        expected = logprobs(cpu, PROMPT * 40)
    agree(logprobs(open_on_gpu(tiny(), n_ctx=1024, **options), PROMPT * 40), expected, 0.2 if options else 0.05)


def test_a_model_of_real_weights(smollm2, open_on_gpu):
    chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    request = {**chat, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}

    def first(engine: Engine) -> dict[str, float]:
        [entry] = engine.chat_completion(request)["choices"][0]["logprobs"]["content"]
        return {top["token"]: top["logprob"] for top in entry["top_logprobs"]}

    with Engine(smollm2, device="cpu", n_ctx=512) as cpu:
        expected = first(cpu)
    agree(first(open_on_gpu(smollm2)), expected, 0.5)


@pytest.mark.real_gpu
def test_a_whole_answer_of_real_weights(smollm2, open_on_gpu):
    engine = open_on_gpu(smollm2, n_ctx=2048)
    request = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    assert "Paris" in engine.chat_completion(**request, max_tokens=64)["choices"][0]["message"]["content"]


def test_streams_beside_each_other(said, open_on_gpu):
    """Sixteen readers, a slot for four of them: joined streams are the answers."""
    engine = open_on_gpu(said.path, max_streams=4)
    texts: list[str] = [""] * 16

    def read(i: int) -> None:
        for chunk in engine.completion_stream(prompt=said.prompt(i % 3), max_tokens=64, temperature=0):
            texts[i] += chunk["choices"][0]["text"]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [said.texts[i % 3] for i in range(16)]


def test_a_prefix_is_kept_saved_and_restored(said, open_on_gpu):
    """One slot for three chats in turn: each leaves for the host's memory and comes back."""
    engine = open_on_gpu(said.path, max_streams=1)
    prompts = [words * 60 + said.prompt(i) for i, words in enumerate(("of the ", "and to ", "in is "))]
    cold = [text(engine, prompt) for prompt in prompts]
    assert cold == said.texts
    assert stats_of(engine)["prefix_cache_bytes"] > 0
    for i in (0, 1, 2, 2):
        stream = engine.completion_stream(prompt=prompts[i], max_tokens=64, temperature=0)
        assert "".join(chunk["choices"][0]["text"] for chunk in stream) == said.texts[i]
        assert stream.timings["cached_tokens"] > 100


def test_a_cancel_waits_for_one_small_chunk(tiny, open_on_gpu):
    """A GPU's pass cannot be stopped, so that a prompt which nothing runs beside is read in chunks as well."""
    engine = open_on_gpu(tiny(n_ctx_train=131072), n_ctx=40_000, max_streams=1, n_batch=2048)
    stream = engine.completion_stream(prompt="of the " * 18_000, max_tokens=8)
    while stats_of(engine)["n_steps"] < 3:
        pass
    stream.cancel()
    steps = stats_of(engine)["n_steps"]
    stats = wait_until_idle(engine)
    assert stats["n_cancelled"] == 1
    assert stats["n_steps"] - steps <= 1  # the one under way
    assert text(engine, "the of", 4, ignore_eos=True)


def test_close_in_the_middle_of_an_answer(tiny, open_on_gpu):
    engine = open_on_gpu(tiny(n_ctx_train=131072), n_ctx=40_000)
    stream = engine.completion_stream(prompt="the of", max_tokens=4096, ignore_eos=True)
    next(stream)
    engine.close()
    with pytest.raises(EngineClosed):
        list(stream)


def test_two_engines_at_once(said, tiny, open_on_gpu):
    first, second = open_on_gpu(said.path), open_on_gpu(tiny())
    alone = text(second, PROMPT, 16, ignore_eos=True)
    stream = first.completion_stream(prompt=said.prompt(0), max_tokens=64, temperature=0)
    pieces = [next(stream)["choices"][0]["text"]]
    assert text(second, PROMPT, 16, ignore_eos=True) == alone
    pieces += [chunk["choices"][0]["text"] for chunk in stream]
    assert "".join(pieces) == said.texts[0]
    first.close()
    assert text(second, PROMPT, 16, ignore_eos=True) == alone


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_embeddings(arch, tiny, tmp_path, open_on_gpu):
    path = tiny() if arch == "llama" else tiny_archs.write(tmp_path / "bert.gguf", "bert")
    vectors = []
    for device in ("cpu", "gpu"):
        engine = open_on_gpu(path, device=device, n_ctx=0)
        assert bool(stats_of(engine)["device_bytes"]) == (device == "gpu")  # the weights, already
        data = engine.embeddings(input=["the time of day", "the people"])["data"]
        vectors.append(np.array([entry["embedding"] for entry in data]))
        assert bool(stats_of(engine)["device_bytes"]) == (device == "gpu")
    assert np.allclose(vectors[0], vectors[1], atol=0.02)


def test_a_lora_adapter(tmp_path, open_on_gpu):
    path, width = tiny_archs.write(tmp_path / "base.gguf", "llama"), tiny_archs.N_EMBD
    lora = [lora_file.write(tmp_path / "adapter.gguf", {"blk.0.attn_q.weight": ((4, width), (width, 4))})]
    vectors = []
    for options in ({"device": "cpu", "lora": lora}, {"lora": lora}, {}):
        engine = open_on_gpu(path, **options)
        vectors.append(np.array(engine.embeddings(input=PROMPT)["data"][0]["embedding"]))
    assert np.allclose(vectors[0], vectors[1], atol=0.02)
    assert not np.allclose(vectors[0], vectors[2], atol=0.02)


def test_an_answer_held_to_a_schema(open_on_gpu, smollm2):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    engine = open_on_gpu(smollm2)
    reply = engine.chat_completion(
        messages=[{"role": "user", "content": "one"}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        max_tokens=16,
        temperature=0,
    )
    assert json.loads(reply["choices"][0]["message"]["content"]) in ({"a": 1}, {"a": 2})
