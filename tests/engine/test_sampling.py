"""Sampling as users count on it: zero is greedy, a seed replays, each parameter does what its name says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers import chat, content_of

from polargrid_local import Engine, NumericError, ValidationError

ASK = {"messages": [{"role": "user", "content": "Invent a name for a cat."}], "max_tokens": 20}


def answer(engine: Engine, **options: Any) -> str:
    return content_of(engine.chat_completion(**ASK, **options))


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}, {"temperature": 1.5, "min_p": 1}])
def test_ways_to_be_greedy_agree(engine: Engine, greedy: dict[str, Any]) -> None:
    assert answer(engine, **greedy, seed=3) == answer(engine, temperature=0)


def test_a_seed_replays_and_others_differ(engine: Engine) -> None:
    hot = {"temperature": 1.3, "top_p": 1}
    answers = [answer(engine, **hot, seed=seed) for seed in range(6)]
    assert [answer(engine, **hot, seed=seed) for seed in range(6)] == answers
    assert len(set(answers)) > 3


def test_frequencies_follow_the_models_probabilities(engine: Engine) -> None:
    """Drawn tokens against the model's own distribution: within five standard deviations for the likely ones."""
    request = chat("Say a letter.", max_tokens=1)
    reply = engine.chat_completion(**request, logprobs=True, top_logprobs=5)
    expected = {
        entry["token"]: math.exp(entry["logprob"])
        for entry in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    }
    n = 400
    counts: dict[str, int] = {}
    for seed in range(n):
        drawn = engine.chat_completion(**request | {"temperature": 1.0, "top_p": 1, "seed": seed, "logprobs": True})
        [entry] = drawn["choices"][0]["logprobs"]["content"] or [{"token": ""}]
        counts[entry["token"]] = counts.get(entry["token"], 0) + 1
    for token, p in expected.items():
        if p > 0.02:
            assert abs(counts.get(token, 0) - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1, (token, p, counts)


def test_top_k_and_top_p_leave_only_the_likeliest(engine: Engine) -> None:
    request = chat("Say a colour.", max_tokens=1)
    top = engine.chat_completion(**request, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"][0][
        "top_logprobs"
    ]
    allowed = {entry["token"] for entry in top}
    for seed in range(40):
        drawn = engine.chat_completion(**request | {"temperature": 2.0, "top_p": 1, "top_k": 3, "seed": seed})
        assert content_of(drawn) in allowed


def test_penalties_stop_a_repetition(engine: Engine) -> None:
    prompt = "ha ha ha ha ha ha ha ha ha"
    plain = engine.completion(prompt=prompt, max_tokens=24, temperature=0)["choices"][0]["text"]
    assert plain.count("ha") >= 8
    for penalty in ({"frequency_penalty": 2}, {"repetition_penalty": 2}):
        held = engine.completion(prompt=prompt, max_tokens=24, temperature=0, **penalty)["choices"][0]["text"]
        assert held.count("ha") < plain.count("ha")


def test_a_bias_forces_and_forbids(engine: Engine) -> None:
    [token] = engine.tokenize(" Paris")
    forced = engine.completion(prompt="The answer is", max_tokens=3, temperature=0, logit_bias={token: 100})
    assert forced["choices"][0]["text"] == " Paris Paris Paris"
    forbidden = engine.completion(
        prompt="The capital of France is", max_tokens=8, temperature=0, logit_bias={token: -100}
    )
    assert " Paris" not in forbidden["choices"][0]["text"]


def test_a_token_outside_the_vocabulary_is_refused(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="logit_bias"):
        engine.completion(prompt="x", logit_bias={10**6: 1})


def test_nan_logits_end_the_request_and_only_it(tmp_path: Any) -> None:
    import tiny_model

    path = tiny_model.write_random(tmp_path / "nan.gguf", metadata={"llama.rope.freq_base": 1e-38})
    with Engine(path, n_ctx=256, max_streams=2) as engine:
        try:
            reply = engine.completion(prompt="the word", max_tokens=4, temperature=0)
            assert reply["usage"]["completion_tokens"] == 4  # finite after all: nothing to refuse
        except NumericError:
            assert not any(stats["n_running"] for stats in engine.stats().values())


def test_logprobs_are_a_distribution_and_do_not_depend_on_temperature(engine: Engine) -> None:
    cold = engine.chat_completion(**ASK, temperature=0, logprobs=True, top_logprobs=20)
    biased = engine.chat_completion(**ASK | {"max_tokens": 1}, temperature=2, seed=1, logprobs=True, top_logprobs=20)
    first, other = (reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"] for reply in (cold, biased))
    assert first == other
    assert 0 < sum(math.exp(entry["logprob"]) for entry in first) <= 1 + 1e-6
    assert [entry["logprob"] for entry in first] == sorted((entry["logprob"] for entry in first), reverse=True)
