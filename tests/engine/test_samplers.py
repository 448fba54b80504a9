"""Samplers beside llama.cpp's own: what each leaves of twenty tokens, and how often each of those is drawn."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import tiny_model

from polargrid_local import Engine, ValidationError

N = 400  # draws
NEUTRAL = {"temperature": 1.0, "top_p": 1, "top_k": 0, "max_tokens": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_random(tmp_path_factory.mktemp("samplers") / "m.gguf")


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with Engine(model, n_ctx=512, max_streams=8, device="cpu", isolation="thread") as engine:
        yield engine


@pytest.fixture(scope="module")
def words(engine: Engine) -> list[int]:
    """Twenty tokens with texts of their own."""
    found: dict[str, int] = {}
    for token in range(300, 400):
        text = engine.detokenize([token])
        if text.startswith(" ") and text not in found:
            found[text] = token
    return list(found.values())[:20]


@pytest.fixture(scope="module")
def prompt(words: list[int]) -> list[int]:
    """Four of them over and over, and the beginning of that once more."""
    return (words[:4] * 3)[:-1]


@pytest.fixture(scope="module")
def own(engine: Engine, words: list[int], prompt: list[int]) -> dict[int, float]:
    """The model's logprob of each of the twenty after the prompt."""
    replies = [engine.completion(prompt=[*prompt, word], max_tokens=0, echo=True, logprobs=0) for word in words]
    told = [reply["choices"][0]["logprobs"]["token_logprobs"][-1] for reply in replies]
    return dict(zip(words, told, strict=True))


@pytest.fixture(scope="module")
def likeliest(words: list[int]) -> dict[int, float]:
    """What their logits shall be, but for a number that all have in common."""
    return {word: -0.3 * i for i, word in enumerate(words)}


@pytest.fixture(scope="module")
def bias(own: dict[int, float], likeliest: dict[int, float]) -> dict[int, float]:
    return {word: likeliest[word] - own[word] for word in own}


@pytest.fixture(scope="module")
def vocabulary(model: Path) -> Iterator[Any]:
    """llama.cpp's own, of the same file."""
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), options)
    yield llama_cpp.llama_model_get_vocab(loaded)
    llama_cpp.llama_model_free(loaded)


def left_by(sampler: Any, logits: dict[int, float]) -> dict[int, float]:
    """What llama.cpp's sampler makes of these logits: token -> probability."""
    data = (llama_cpp.llama_token_data * len(logits))(*((token, logit, 0.0) for token, logit in logits.items()))
    candidates = llama_cpp.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
    llama_cpp.llama_sampler_free(sampler)
    weights = {candidates.data[i].id: math.exp(candidates.data[i].logit) for i in range(candidates.size)}
    return {token: weight / sum(weights.values()) for token, weight in weights.items() if weight > 0}


Check = Callable[..., None]


@pytest.fixture
def check(engine: Engine, prompt: list[int], bias: dict[int, float]) -> Check:
    """check(expected, **sampling): draws nothing but the `expected` tokens, each about as often as it is likely."""

    def compare(expected: dict[int, float], **sampling: Any) -> None:
        asked = {**NEUTRAL, "allowed_token_ids": list(bias), "logit_bias": bias, **sampling}
        drawn: list[str] = []
        for seed in range(0, N, 100):
            reply = engine.completion(prompt=prompt, n=100, seed=seed, **asked)
            drawn += [choice["text"] for choice in reply["choices"]]
        named = {engine.detokenize([token]): p for token, p in expected.items()}
        assert set(drawn) <= set(named), (set(drawn) - set(named), named)
        for text, p in named.items():
            assert abs(drawn.count(text) - N * p) < 5 * math.sqrt(N * p * (1 - p)) + 1, (text, p, drawn.count(text))

    return compare


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_top_n_sigma(check: Check, likeliest: dict[int, float], sigma: float) -> None:
    expected = left_by(llama_cpp.llama_sampler_init_top_n_sigma(sigma), likeliest)
    assert 1 <= len(expected) < len(likeliest)
    check(expected, top_n_sigma=sigma)


@pytest.mark.parametrize("threshold", [0.02, 0.1])
def test_xtc(check: Check, likeliest: dict[int, float], threshold: float) -> None:
    expected = left_by(llama_cpp.llama_sampler_init_xtc(1.0, threshold, 1, 0), likeliest)
    assert len(expected) < len(likeliest)
    check(expected, xtc_probability=1, xtc_threshold=threshold)
    plain = left_by(llama_cpp.llama_sampler_init_temp(1.0), likeliest)
    check(plain, xtc_probability=0, xtc_threshold=threshold)


@pytest.mark.parametrize(("spread", "exponent"), [(0.5, 1.0), (0.9, 2.0)])
def test_temperature_by_entropy(check: Check, likeliest: dict[int, float], spread: float, exponent: float) -> None:
    expected = left_by(llama_cpp.llama_sampler_init_temp_ext(1.0, spread, exponent), likeliest)
    check(expected, dynatemp_range=spread, dynatemp_exponent=exponent)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_mirostat_2(check: Check, likeliest: dict[int, float], tau: float) -> None:
    expected = left_by(llama_cpp.llama_sampler_init_mirostat_v2(0, tau, 0.1), likeliest)
    check(expected, mirostat=2, mirostat_tau=tau)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_mirostat_1(check: Check, engine: Engine, likeliest: dict[int, float], tau: float) -> None:
    n_vocab = engine.info()["n_vocab"]
    expected = left_by(llama_cpp.llama_sampler_init_mirostat(n_vocab, 0, tau, 0.1, 100), likeliest)
    check(expected, mirostat=1, mirostat_tau=tau)


@pytest.mark.parametrize(("length", "last_n"), [(2, -1), (3, -1), (2, 8), (12, -1)])
def test_dry(
    check: Check, likeliest: dict[int, float], prompt: list[int], vocabulary: Any, length: int, last_n: int
) -> None:
    breakers = (ctypes.c_char_p * 1)(b"\n")
    n_seen = len(prompt) if last_n < 0 else last_n
    sampler = llama_cpp.llama_sampler_init_dry(vocabulary, 0.8, 1.75, length, n_seen, breakers, 1)
    for token in prompt:
        llama_cpp.llama_sampler_accept(sampler, token)
    expected = left_by(sampler, likeliest)
    fields = {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": length, "dry_penalty_last_n": last_n}
    check(expected, dry_sequence_breakers=["\n"], **fields)


def test_no_repetition_reaches_across_a_breaker(
    check: Check, engine: Engine, likeliest: dict[int, float], prompt: list[int]
) -> None:
    plain = left_by(llama_cpp.llama_sampler_init_temp(1.0), likeliest)
    check(plain, dry_multiplier=5, dry_sequence_breakers=[engine.detokenize(prompt[-1:])])


@pytest.mark.parametrize("last_n", [0, 2, 6, -1])
def test_repetition_penalty_over_the_last_tokens(
    check: Check, own: dict[int, float], prompt: list[int], last_n: int
) -> None:
    repeated = set(prompt if last_n < 0 else prompt[-last_n:] if last_n else ())
    far = {word: -80.0 - own[word] for word in own}  # doubled, the logits of repeated tokens are out of reach
    free = {word: 0.0 for word in own if word not in repeated}
    expected = left_by(llama_cpp.llama_sampler_init_temp(1.0), free)
    check(expected, logit_bias=far, repetition_penalty=2, repeat_last_n=last_n)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mirostat", 3),
        ("xtc_probability", 1.5),
        ("dry_base", 0.5),
        ("top_n_sigma", float("nan")),
        ("allowed_token_ids", [10**6]),
        ("stop_token_ids", [10**6]),
        ("bad_words", [""]),
        ("repeat_last_n", -2),
    ],
)
def test_values_out_of_range_are_refused_by_name(engine: Engine, field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        engine.completion(prompt="x", max_tokens=1, **{field: value})
