"""Tiny seeded models that are no ordinary chat models: encoders, rerankers, diffusion and encoder-decoder models.

write(path, "bert", ...)     one of KINDS, with random weights; `metadata` replaces or (None) removes GGUF keys
write(path, "llama", vocab_file=path)    with the vocabulary of another GGUF file
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiny_model
from tiny_model import gguf_file

N_EMBD, N_HEAD, N_FF, N_LAYER, N_CTX = 64, 4, 128, 2, 128
D_HEAD = N_EMBD // N_HEAD
Shapes = dict[str, tuple[int, ...]]  # rows first; one dimension: a norm (ones) or a bias (small)

MEAN, CLS, LAST, RANK = 1, 2, 3, 4


def _attention(prefix: str, out: str = "attn_output") -> Shapes:
    return {f"{prefix}.{name}.weight": (N_EMBD, N_EMBD) for name in ("attn_q", "attn_k", "attn_v", out)}


def _ffn(prefix: str, gated: bool = True) -> Shapes:
    gate = {f"{prefix}.ffn_gate.weight": (N_FF, N_EMBD)} if gated else {}
    return {**gate, f"{prefix}.ffn_up.weight": (N_FF, N_EMBD), f"{prefix}.ffn_down.weight": (N_EMBD, N_FF)}


def _norm(*names: str, bias: bool = False, width: int = N_EMBD) -> Shapes:
    ends = ("weight", "bias") if bias else ("weight",)
    return {f"{name}.{end}": (width,) for name in names for end in ends}


def _bert(gated: bool, positions: bool) -> Shapes:
    shapes = {"token_types.weight": (2, N_EMBD), **_norm("token_embd_norm", bias=True)}
    if positions:
        shapes["position_embd.weight"] = (N_CTX, N_EMBD)
    for i in range(N_LAYER):
        block = f"blk.{i}"
        shapes |= _attention(block) | _ffn(block, gated)
        shapes |= _norm(f"{block}.attn_output_norm", f"{block}.layer_output_norm", bias=True)
    return shapes


def _llama(qk_norm: bool = False, post_norm: bool = False) -> Shapes:
    shapes = _norm("output_norm")
    for i in range(N_LAYER):
        block = f"blk.{i}"
        shapes |= _attention(block) | _ffn(block) | _norm(f"{block}.attn_norm", f"{block}.ffn_norm")
        if qk_norm:
            shapes |= _norm(f"{block}.attn_q_norm", f"{block}.attn_k_norm", width=D_HEAD)
        if post_norm:
            shapes |= _norm(f"{block}.post_attention_norm", f"{block}.post_ffw_norm")
    return shapes


def _t5(decoder: bool) -> Shapes:
    shapes = _norm("enc.output_norm") | {"enc.blk.0.attn_rel_b.weight": (32, N_HEAD)}
    if decoder:
        shapes |= _norm("dec.output_norm") | {"dec.blk.0.attn_rel_b.weight": (32, N_HEAD)}
    for i in range(N_LAYER):
        for part in ("enc", "dec") if decoder else ("enc",):
            block = f"{part}.blk.{i}"
            shapes |= _attention(block, "attn_o") | _ffn(block) | _norm(f"{block}.attn_norm", f"{block}.ffn_norm")
        if decoder:
            names = ("cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_o")
            shapes |= {f"dec.blk.{i}.{name}.weight": (N_EMBD, N_EMBD) for name in names}
            shapes |= _norm(f"dec.blk.{i}.cross_attn_norm")
    return shapes


_HEAD: Shapes = {
    "cls.weight": (N_EMBD, N_EMBD),
    "cls.bias": (N_EMBD,),
    "cls.output.weight": (1, N_EMBD),
    "cls.output.bias": (1,),
}
_RMS, _LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"

# kind -> architecture, tensors beside the embedding, vocabulary, the architecture's own keys
KINDS: dict[str, tuple[str, Shapes, str, dict[str, Any]]] = {
    "bert": ("bert", _bert(False, True), "wpm", {_LAYER: 1e-12, "pooling_type": MEAN, "attention.causal": False}),
    "bert-cls": ("bert", _bert(False, True), "wpm", {_LAYER: 1e-12, "pooling_type": CLS, "attention.causal": False}),
    "bert-reranker": (
        "bert",
        _bert(False, True) | _HEAD,
        "wpm",
        {_LAYER: 1e-12, "pooling_type": RANK, "attention.causal": False},
    ),
    "bert-reranker-no-head": (
        "bert",
        _bert(False, True),
        "wpm",
        {_LAYER: 1e-12, "pooling_type": RANK, "attention.causal": False},
    ),
    "nomic-bert": (
        "nomic-bert",
        _bert(True, False),
        "wpm",
        {_LAYER: 1e-12, "pooling_type": MEAN, "attention.causal": False, "rope.freq_base": 1000.0},
    ),
    "gemma-embedding": (
        "gemma-embedding",
        _llama(qk_norm=True, post_norm=True),
        "spm",
        {_RMS: 1e-6, "pooling_type": MEAN, "attention.sliding_window": 64, "attention.sliding_window_pattern": 2},
    ),
    "gemma3": (
        "gemma3",
        _llama(qk_norm=True, post_norm=True),
        "spm",
        {_RMS: 1e-6, "attention.sliding_window": 64, "attention.sliding_window_pattern": 2},
    ),
    "llada": ("llada", _llama(), "bpe", {_RMS: 1e-6}),
    "dream": ("dream", _llama(), "bpe", {_RMS: 1e-6}),
    "t5": ("t5", _t5(True), "spm", {_RMS: 1e-6, "attention.relative_buckets_count": 32}),
    "t5encoder": ("t5encoder", _t5(False), "spm", {_RMS: 1e-6, "attention.relative_buckets_count": 32}),
    "llama-bidirectional": ("llama", _llama(), "bpe", {_RMS: 1e-6, "attention.causal": False, "pooling_type": MEAN}),
    "llama-last": ("llama", _llama(), "bpe", {_RMS: 1e-6, "pooling_type": LAST}),
    "llama": ("llama", _llama(), "bpe", {_RMS: 1e-6}),
    "qwen3-reranker": (
        "qwen3",
        _llama(qk_norm=True) | {"cls.output.weight": (2, N_EMBD)},
        "bpe",
        {_RMS: 1e-6, "pooling_type": RANK, "classifier.output_labels": ["yes", "no"]},
    ),
}


def _wordpieces() -> dict[str, Any]:
    """BERT's vocabulary: special tokens, then letters that begin a word and letters that go on with one."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,?!")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *("\u2581" + letter for letter in letters), *letters]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
    }


def _vocabulary_of(path: Path) -> tuple[dict[str, Any], int]:
    """The tokenizer's keys of a GGUF file, unparsed, and the number of its tokens."""
    keys = {key: raw for key, raw in gguf_file.Reader(path).metadata.items() if key.startswith("tokenizer.")}
    _, _, n_tokens = struct.unpack_from("<IIQ", keys["tokenizer.ggml.tokens"].data)
    return keys, n_tokens


def write(
    path: str | Path,
    kind: str,
    *,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
    vocab_file: Path | None = None,
    weights: str = "f32",
) -> Path:
    """`tensors` adds (shape, rows first), replaces or (None) removes tensors. `weights`: "f32", or "q8_0" for the
    matrices."""
    arch, shapes, vocab, own = KINDS[kind]
    if vocab_file is not None:
        words, n_vocab = _vocabulary_of(vocab_file)
    else:
        table = tiny_model._Vocab("bpe" if vocab == "wpm" else vocab, tiny_model.WORDS)
        table.fill_up(weights)
        words = _wordpieces() if vocab == "wpm" else table.metadata()
        n_vocab = len(words["tokenizer.ggml.tokens"])
    wanted = {"token_embd.weight": (n_vocab, N_EMBD), **shapes, **(tensors or {})}
    rng = np.random.default_rng(seed)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return (
                np.ones(shape, np.float32)
                if name.endswith("weight")
                else (0.1 * rng.standard_normal(shape)).astype(np.float32)
            )
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    made = [(name, values(name, shape)) for name, shape in wanted.items() if shape is not None]
    keys = {
        "general.architecture": arch,
        "general.name": kind,
        "general.file_type": 0,
        f"{arch}.context_length": N_CTX,
        f"{arch}.embedding_length": N_EMBD,
        f"{arch}.block_count": N_LAYER,
        f"{arch}.feed_forward_length": N_FF,
        f"{arch}.attention.head_count": N_HEAD,
        f"{arch}.vocab_size": n_vocab,
        **{f"{arch}.{key}": value for key, value in own.items()},
        **words,
        **(metadata or {}),
    }

    def stored_as(name: str, data: np.ndarray) -> gguf_file.Tensor:
        if weights == "q8_0" and data.ndim == 2:
            return gguf_file.Tensor(name, data.shape, "q8_0", lambda: [gguf_file.q8_0(data)])
        return gguf_file.Tensor(name, data.shape, "f32", lambda: [data])

    stored = [stored_as(name, data) for name, data in made]
    gguf_file.write(path, {key: value for key, value in keys.items() if value is not None}, stored)
    return Path(path)
