"""Files that others wrote: odd bytes and alignments, wrong widths, unfit adapters. Loaded, or refused by name."""

from __future__ import annotations

import logging
import struct
import threading
from pathlib import Path
from typing import Any

import lora_file
import numpy as np
import pytest
import tiny_archs
import tiny_model
from helpers import chat, content_of
from tiny_model import gguf_file

from polargrid_local import Engine, InvalidModelError, inspect_model

LONG_NAMES = {
    "japanese": "とても長い日本語のモデル名" * 12,
    "french": "Un modèle entraîné à répéter l'été, là où le naïf cœur brûle d'aîtres façons. " * 5,
    "deepseek": "<｜begin▁of▁sentence｜><｜User｜>" * 9,
    "emoji": "👩‍🚀" * 40,
}


@pytest.mark.parametrize("key", ["general.name", "general.description", "tokenizer.chat_template", "general.tags"])
@pytest.mark.parametrize("name", LONG_NAMES)
def test_a_long_value_that_is_not_ascii_is_loaded_at_any_log_level(
    name: str, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value: Any = LONG_NAMES[name]
    text = {"general.tags": [value, value], "tokenizer.chat_template": tiny_model.CHATML + "{# " + value + " #}"}.get(
        key, value
    )
    path = tiny_model.write_random(tmp_path / "m.gguf", metadata={key: text})
    caplog.set_level(logging.DEBUG, "polargrid_local.llama")
    with Engine(path) as engine:
        assert engine.chat_completion(**chat("hello", max_tokens=2))["usage"]["completion_tokens"] == 2
    assert any(key in record.getMessage() for record in caplog.records)


def test_bytes_that_are_no_text_are_loaded_and_shown_as_well_as_can_be(tmp_path: Path) -> None:
    broken = b"caf\xe9 \xff\xfe \xed\xa0\x80 " * 9
    path = tiny_model.write_random(
        tmp_path / "m.gguf",
        metadata={
            "general.name": broken,
            b"general.\xff".decode("latin-1"): "x",
            "general.license": broken,
            "general.languages": [broken, b"\x80"],
        },
    )
    assert "caf" in inspect_model(path)["metadata"]["general.name"]
    with Engine(path) as engine:
        assert engine.chat_completion(**chat("hello", max_tokens=2))["usage"]["completion_tokens"] == 2
        engine.info()["metadata"]["general.name"].encode()  # the odd bytes were replaced: it can be encoded


def test_one_models_log_reaches_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken line of one load belongs to that load, while another engine answers and drains its own log."""
    good = tiny_model.write_random(tmp_path / "good.gguf")
    odd = tiny_model.write_random(tmp_path / "odd.gguf", seed=1, metadata={"general.name": LONG_NAMES["japanese"]})
    caplog.set_level(logging.DEBUG, "polargrid_local.llama")
    drained: dict[str, list[str]] = {}
    with Engine(good) as healthy:
        hub = next(iter(healthy._models._ready.values())).model.handle
        own = hub.drains[0]
        hub.drains[0] = lambda: [
            drained.setdefault("healthy", []).append(text) or (level, text) for level, text in own()
        ]
        stop = threading.Event()
        answers: list[str] = []

        def keep_asking() -> None:
            while not stop.is_set() or not answers:
                answers.append(content_of(healthy.chat_completion(**chat("hello", max_tokens=4))))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            for _ in range(3):
                with Engine(odd) as other:
                    other.chat_completion(**chat("hello", max_tokens=2))
        finally:
            stop.set()
            asking.join()
        assert len(set(answers)) == 1
        assert healthy.health()["status"] == "healthy"
    assert not [text for text in drained.get("healthy", []) if "odd.gguf" in text or "general.name" in text]
    assert any("general.name" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16, 64, 4096])
@pytest.mark.parametrize("options", [{}, {"kernels": False}], ids=["kernels", "mapped"])
def test_any_alignment_is_loaded(alignment: int, options: dict[str, Any], tmp_path: Path) -> None:
    ordinary = tiny_model.write_random(tmp_path / "ordinary.gguf", weights="q8_0")
    path = tiny_model.write_random(tmp_path / "m.gguf", weights="q8_0", metadata={"general.alignment": alignment})
    with Engine(ordinary, **options) as one, Engine(path, **options) as other:
        request = chat("the time of day", max_tokens=8)
        assert content_of(one.chat_completion(**request)) == content_of(other.chat_completion(**request))


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma-embedding", "t5encoder", "dream"])
@pytest.mark.parametrize("width", [1, 32, 65, 4096])
def test_a_width_that_is_not_computed_is_refused(kind: str, width: int, tmp_path: Path) -> None:
    arch = tiny_archs.KINDS[kind][0]
    path = tiny_archs.write(tmp_path / "m.gguf", kind, metadata={f"{arch}.embedding_length_out": width})
    with pytest.raises(
        InvalidModelError, match=rf"embedding_length_out' is {width}; allowed: {tiny_archs.N_EMBD}, the width"
    ):
        Engine(path)


def test_the_width_that_is_computed_may_be_named(tmp_path: Path) -> None:
    path = tiny_archs.write(tmp_path / "m.gguf", "bert", metadata={"bert.embedding_length_out": tiny_archs.N_EMBD})
    with Engine(path) as engine:
        assert len(engine.embeddings(input="hello")["data"][0]["embedding"]) == tiny_archs.N_EMBD


def test_labels_without_scores_are_refused(tmp_path: Path) -> None:
    metadata = {"bert.classifier.output_labels": [f"label {i}" for i in range(200)]}
    path = tiny_archs.write(
        tmp_path / "m.gguf",
        "bert-reranker",
        metadata=metadata,
        tensors={"cls.output.weight": None, "cls.output.bias": None},
    )
    with pytest.raises(InvalidModelError, match="classifier.output_labels"):
        Engine(path)


@pytest.mark.parametrize("pattern", [None, 1, 3, [True, True], [False, False]])
def test_an_encoder_without_layers_of_both_kinds_is_refused(pattern: Any, tmp_path: Path) -> None:
    key = "gemma-embedding.attention.sliding_window_pattern"
    with pytest.raises(InvalidModelError, match="sliding_window_pattern"):
        Engine(tiny_archs.write(tmp_path / "m.gguf", "gemma-embedding", metadata={key: pattern}))


def test_a_refused_file_says_why(tmp_path: Path) -> None:
    path = tiny_archs.write(tmp_path / "m.gguf", "llama", tensors={"blk.1.attn_q.weight": None})
    with pytest.raises(InvalidModelError, match=r"blk\.1\.attn_(q|qkv)\.weight"):
        Engine(path)
    path = tiny_archs.write(tmp_path / "m.gguf", "llama", tensors={"blk.1.attn_k.weight": (48, tiny_archs.N_EMBD)})
    with pytest.raises(InvalidModelError, match="wrong shape|attn_k"):
        Engine(path)


# --- adapters ---------------------------------------------------------------------------------------------------------


E, F = tiny_archs.N_EMBD, tiny_archs.N_FF
GOOD = {"blk.0.attn_q.weight": ((4, E), (E, 4)), "blk.1.ffn_down.weight": ((2, F), (E, 2))}
BAD = {
    "three dimensions": {"blk.0.attn_q.weight": ((3, 4, E), (3, E, 4))},
    "three dimensions on one side": {"blk.0.attn_q.weight": ((4, E), (2, E, 4))},
    "another rank on each side": {"blk.0.attn_q.weight": ((4, E), (E, 5))},
    "another width": {"blk.0.attn_q.weight": ((4, E + 32), (E, 4))},
    "another height": {"blk.0.attn_q.weight": ((4, E), (E + 32, 4))},
    "the embedding, tied to the output": {"token_embd.weight": ((400, 4), (E, 4))},
    "no such tensor": {"blk.7.attn_q.weight": ((4, E), (E, 4))},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_archs.write(tmp_path_factory.mktemp("base") / "base.gguf", "llama")


def test_an_adapter_that_fits_changes_the_answer(base: Path, tmp_path: Path) -> None:
    request = {"prompt": "the time of day", "max_tokens": 12, "temperature": 0}
    said, vectors = [], []
    for lora in ([], [lora_file.write(tmp_path / "a.gguf", GOOD)], [(tmp_path / "a.gguf", 0.0)]):
        with Engine(base, lora=lora) as engine:
            said.append(engine.completion(**request)["choices"][0]["text"])
            vectors.append(engine.embeddings(input="the time")["data"][0]["embedding"])
    assert said[0] == said[2] != said[1]
    assert np.allclose(vectors[0], vectors[2], atol=1e-5) and not np.allclose(vectors[0], vectors[1], atol=1e-2)


@pytest.mark.parametrize("pairs", BAD.values(), ids=BAD)
def test_an_adapter_that_does_not_fit_is_refused(pairs: dict[str, Any], base: Path, tmp_path: Path) -> None:
    path = lora_file.write(tmp_path / "a.gguf", pairs)
    with pytest.raises(InvalidModelError, match=f"tensor '{next(iter(pairs))}.lora_"):
        Engine(base, lora=[path])


def test_an_adapter_that_would_be_applied_in_part_or_not_at_all_is_refused(base: Path, tmp_path: Path) -> None:
    path = lora_file.write(tmp_path / "a.gguf", {})
    with pytest.raises(InvalidModelError, match="without tensors; allowed: pairs of lora_a and lora_b"):
        Engine(base, lora=[path])
    tokens = gguf_file.Raw(struct.pack("<IIQII", 9, 4, 2, 5, 6))  # u32
    path = lora_file.write(tmp_path / "a.gguf", GOOD, **{"adapter.alora.invocation_tokens": tokens})
    with pytest.raises(InvalidModelError, match="acts only behind these tokens"):
        Engine(base, lora=[path])
    norm = gguf_file.Tensor("blk.0.attn_norm.weight", (E,), "f32", lambda: [np.zeros(E, np.float32)])
    keys = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    pair = [
        gguf_file.Tensor(
            f"blk.0.attn_q.weight.lora_{end}", shape, "f32", lambda shape=shape: [np.ones(shape, np.float32)]
        )
        for end, shape in (("a", (4, E)), ("b", (E, 4)))
    ]
    gguf_file.write(path, keys, [*pair, norm])
    with pytest.raises(InvalidModelError, match=r"tensor 'blk\.0\.attn_norm\.weight' is a norm of its own"):
        Engine(base, lora=[path])


def test_what_a_file_says_does_not_steer_a_terminal(tmp_path: Path) -> None:
    path = tiny_archs.write(
        tmp_path / "m.gguf", "llama", metadata={"tokenizer.ggml.pre": "\x1b[31mred\x1b]0;title\x07\r\n"}
    )
    with pytest.raises(InvalidModelError, match="unknown pre-tokenizer type: ' \\[31mred") as refused:
        Engine(path)
    assert refused.value.message.isprintable()
