"""Adapters by name on a real engine: each answers as it would alone, beside its model and beside the others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lora_file
import pytest
import tiny_model

from polargrid_local import Engine, InvalidModelError

PROMPTS = ("the time of day", "a good word")
OPTIONS: dict[str, Any] = {"n_ctx": 256, "isolation": "thread"}
WIDTH = 576  # of SmolLM2
SCALES = {"base:first": 1.0, "base:second": 0.5}
NAMES = ("base", *SCALES)


def write(path: Path, target: str, width: int) -> Path:
    return lora_file.write(path, {target: ((4, width), (width, 4))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, whose numbers are floats: rounding, which depends on how many rows a pass has, changes nothing visible
    of its answers."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_model.write_random(folder / "base.gguf")
    write(folder / "first.gguf", "blk.0.attn_output.weight", 128)
    write(folder / "second.gguf", "blk.1.attn_output.weight", 128)
    return folder


def say(engine: Engine, prompt: str, **fields: Any) -> list[str]:
    """Greedy and sampled."""
    asked: dict[str, Any] = {"prompt": prompt, "max_tokens": 8, "seed": 7, **fields}
    return [engine.completion(**asked, temperature=heat)["choices"][0]["text"] for heat in (0, 1)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """By name: what an engine says that was loaded with that adapter alone, or with none."""
    said = {}
    for name in NAMES:
        lora = [] if name == "base" else [(folder / f"{name.partition(':')[2]}.gguf", SCALES[name])]
        with Engine(folder / "base.gguf", max_streams=1, lora=lora, **OPTIONS) as engine:
            said[name] = [say(engine, prompt) for prompt in PROMPTS]
    assert len({str(one) for one in said.values()}) == len(NAMES)  # the adapters do change answers
    return said


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    adapters = {name: (folder / f"{name.partition(':')[2]}.gguf", scale) for name, scale in SCALES.items()}
    with Engine("base", models_dir=folder, max_streams=4, adapters=adapters, **OPTIONS) as engine:
        yield engine


def test_each_name_answers_as_an_engine_with_that_adapter_alone(engine: Engine, alone: dict[str, Any]) -> None:
    for _ in range(2):  # cold, then with what the others left in the cache
        for name, said in alone.items():
            assert [say(engine, prompt, model=name) for prompt in PROMPTS] == said, name


def test_a_model_and_its_adapters_answer_side_by_side(engine: Engine, alone: dict[str, Any]) -> None:
    asked = [(name, i) for i in range(len(PROMPTS)) for name in NAMES] * 2
    with ThreadPoolExecutor(len(asked)) as threads:
        said = list(threads.map(lambda one: say(engine, PROMPTS[one[1]], model=one[0]), asked))
    assert said == [alone[name][i] for name, i in asked]


def test_a_request_chooses_its_adapters_and_their_scales(engine: Engine, alone: dict[str, Any]) -> None:
    base, first, _ = (alone[name][0] for name in NAMES)
    assert say(engine, PROMPTS[0], lora=[{"id": 0, "scale": 1.0}]) == say(engine, PROMPTS[0], lora=[{"id": 0}]) == first
    assert say(engine, PROMPTS[0], model="base:first", lora=[]) == base
    assert say(engine, PROMPTS[0], model="base:second", lora=[{"id": 0}, {"id": 1, "scale": 0}]) == first
    both = say(engine, PROMPTS[0], lora=[{"id": 0}, {"id": 1, "scale": 0.5}])
    assert both not in [said[0] for said in alone.values()]


def test_a_model_is_bit_for_bit_what_it_is_without_its_adapters(smollm2: Path, tmp_path: Path) -> None:
    adapter = (write(tmp_path / "a.gguf", "blk.3.attn_output.weight", WIDTH), 0.05)

    def numbers(engine: Engine, **fields: Any) -> Any:
        told = engine.completion(prompt="The capital of France is", max_tokens=8, logprobs=2, seed=7, **fields)
        return told["choices"]

    with Engine(smollm2, max_streams=1, **OPTIONS) as plain:
        said, vector = numbers(plain), plain.embeddings(input="a text")["data"]
    with Engine(smollm2, max_streams=4, adapters={"smollm2-135m:a": adapter}, **OPTIONS) as engine:
        with ThreadPoolExecutor(6) as threads:
            models = ["smollm2-135m", "smollm2-135m:a"] * 3
            answers = list(threads.map(lambda model: numbers(engine, model=model), models))
        assert answers[::2] == [said] * 3 and said not in answers[1::2]
        assert engine.embeddings(input="a text")["data"] == vector


def test_a_model_keeps_its_drafts_beside_its_adapters(smollm2: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a.gguf", "blk.3.attn_output.weight", WIDTH)
    asked: dict[str, Any] = {"prompt": "One, two, three, four,", "max_tokens": 12, "temperature": 0}
    with Engine(smollm2, adapters={"smollm2-135m:a": adapter}, speculate="always", **OPTIONS) as engine:
        said = engine.completion(asked)["choices"][0]["text"]
        again = engine.completion(asked, prediction=said)
        assert again["choices"][0]["text"] == said
        drafts = again["usage"].get("completion_tokens_details")
        kernels_on = engine.info()["kernels"] != "off"
        assert kernels_on == engine.info()["speculation"].startswith("lookup")
        assert kernels_on == bool(drafts and drafts["accepted_prediction_tokens"])


def test_a_fingerprint_tells_kernels_caches_and_adapters_apart(folder: Path, engine: Engine) -> None:
    def fingerprint(**options: Any) -> str:
        options = {**OPTIONS, "max_streams": 1, **options}
        with Engine(folder / "base.gguf", **options) as one:
            return one.info()["system_fingerprint"]

    told = [fingerprint(), fingerprint(kernels=False), fingerprint(cache_type="q8_0")]
    told += [engine.info(name)["system_fingerprint"] for name in NAMES]
    assert len(set(told)) == len(told)
    assert fingerprint(max_streams=2, n_ctx=128) == told[0]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_file_that_does_not_fit_is_blamed_on_its_adapter(isolation: Any, tmp_path: Path) -> None:
    model = tiny_model.write_random(tmp_path / "base.gguf")
    wrong = lora_file.write(tmp_path / "wrong.gguf", {"blk.9.attn_q.weight": ((4, 128), (128, 4))})
    cases = [
        ({"adapters": {"base:wrong": wrong}}, f"adapter 'base:wrong' ({wrong}): tensor 'blk.9.attn_q.weight.lora_a'"),
        ({"lora": [wrong]}, f"adapter {wrong}: tensor 'blk.9.attn_q.weight.lora_a'"),
    ]
    for options, begins in cases:
        with pytest.raises(InvalidModelError) as caught:
            Engine(model, models_dir=tmp_path, isolation=isolation, **options)
        assert caught.value.message.startswith(begins) and caught.value.path == str(wrong)
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<html>")
    fits = lora_file.write(tmp_path / "fits.gguf", {"blk.0.attn_output.weight": ((4, 128), (128, 4))})
    with pytest.raises(InvalidModelError) as caught:
        Engine(page, lora=[fits], isolation=isolation)
    assert caught.value.message.startswith(f"{page}: ") and "fits.gguf" not in caught.value.message
