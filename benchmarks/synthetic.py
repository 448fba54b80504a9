"""A Llama-3.1-shaped GGUF with random weights, for measuring speed where no real model may be fetched.

    python benchmarks/synthetic.py model.gguf                      # 8B, Q4_K_M: 4.6 GiB in seconds
    python benchmarks/synthetic.py small.gguf --layers 4 --type q8_0

Shapes, tensor types and metadata are those of Meta-Llama-3.1-8B-Instruct as llama.cpp quantizes it; the weights are
noise scaled so that activations stay finite. Vocabulary and chat template come from a llama.cpp source tree where one
is found (--vocab), else a made-up vocabulary of the same size stands in. Needs numpy only.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_file
import numpy as np

SHAPES = {
    "8b": {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8},
    "1b": {"n_layer": 16, "n_embd": 2048, "n_ff": 8192, "n_head": 32, "n_head_kv": 8},
    "tiny": {"n_layer": 1, "n_embd": 256, "n_ff": 256, "n_head": 4, "n_head_kv": 2},
}  # for tests of vocabulary and template
FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}
N_VOCAB, N_CTX, ROPE_BASE = 128256, 131072, 500000.0
PART_BYTES = 64 << 20
FALLBACK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def blocks(kind: str, n: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """`n` random blocks of a type as bytes, their weights of about this standard deviation and mean zero."""
    if kind == "f32":
        return np.ones(n, np.float32)
    size = gguf_file.TYPES[kind].block_bytes
    data = np.frombuffer(bytearray(rng.bytes(n * size)), np.uint8).reshape(n, size)

    def put(at: int, unit: float) -> None:
        scale = (std / unit * rng.uniform(0.7, 1.3, n)).astype(np.float16)
        data[:, at : at + 2] = scale.view(np.uint8).reshape(n, 2)

    # The divisors are the standard deviations of weight / scale when all codes and sub-scales are uniform
    if kind == "q4_k":
        put(0, 258.6)
        put(2, 258.6 / 7.5)
    elif kind == "q6_k":
        put(208, 1364.9)
    elif kind == "q4_0":
        put(0, 4.61)
    elif kind == "q8_0":
        data[data == 0x80] = 0x81  # -128 is no code that a quantizer writes
        put(0, 73.6)
    else:
        raise ValueError(f"no random blocks of type {kind!r}")
    return data


def tensors(
    mix: str, n_layer: int, n_embd: int, n_ff: int, n_head: int, n_head_kv: int, seed: int
) -> list[gguf_file.Tensor]:
    """The tensors of the model in file order. mix: q4_k_m, q4_0 or q8_0."""
    rng = np.random.Generator(np.random.SFC64(seed))
    base = {"q4_k_m": "q4_k", "q4_0": "q4_0", "q8_0": "q8_0"}[mix]
    high = "q6_k" if mix == "q4_k_m" else base
    d_kv = n_embd // n_head * n_head_kv
    made: list[gguf_file.Tensor] = []

    def add(name: str, shape: tuple[int, ...], kind: str = "f32", data: Callable[[], Any] | None = None) -> None:
        def parts() -> Iterator[Any]:
            if data is not None:
                yield data()
                return
            kind_of = gguf_file.TYPES[kind]
            n_blocks, step = int(np.prod(shape)) // kind_of.block, PART_BYTES // kind_of.block_bytes
            for start in range(0, n_blocks, step):
                yield blocks(kind, min(step, n_blocks - start), shape[-1] ** -0.5, rng)

        made.append(gguf_file.Tensor(name + ".weight", shape, kind, parts))

    add("token_embd", (N_VOCAB, n_embd), base)
    add("rope_freqs", (n_embd // n_head // 2,), data=lambda: rope_factors(n_embd // n_head))
    for i in range(n_layer):
        # Half of the layers keep attn_v and ffn_down at six bits: the first and last eighth and every third between
        eighth = n_layer // 8
        careful = high if i < eighth or i >= 7 * n_layer // 8 or (i - eighth) % 3 == 2 else base
        add(f"blk.{i}.attn_norm", (n_embd,))
        add(f"blk.{i}.attn_q", (n_embd, n_embd), base)
        add(f"blk.{i}.attn_k", (d_kv, n_embd), base)
        add(f"blk.{i}.attn_v", (d_kv, n_embd), careful)
        add(f"blk.{i}.attn_output", (n_embd, n_embd), base)
        add(f"blk.{i}.ffn_norm", (n_embd,))
        add(f"blk.{i}.ffn_gate", (n_ff, n_embd), base)
        add(f"blk.{i}.ffn_up", (n_ff, n_embd), base)
        add(f"blk.{i}.ffn_down", (n_embd, n_ff), careful)
    add("output_norm", (n_embd,))
    add("output", (N_VOCAB, n_embd), "q8_0" if mix == "q8_0" else "q6_k")
    return made


def rope_factors(d_head: int) -> np.ndarray:
    """Llama 3.1's frequency divisors: 1 for short wavelengths, 8 for long ones, a ramp between."""
    wavelength = 2 * np.pi * ROPE_BASE ** (np.arange(0, d_head, 2) / d_head)
    ramp = np.clip((8192 / wavelength - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - ramp) / 8 + ramp)).astype(np.float32)


def vocabulary(path: Path | None) -> dict[str, Any]:
    """Tokenizer metadata: the real Llama 3 vocabulary out of `path`, or a made-up one of two and four letter words."""
    specials = {
        "tokenizer.ggml.bos_token_id": N_VOCAB - 256,
        "tokenizer.ggml.eos_token_id": N_VOCAB - 256 + 9,
        "tokenizer.ggml.add_bos_token": True,
    }
    if path is not None:
        template = path.parent / "templates" / "meta-llama-Llama-3.1-8B-Instruct.jinja"
        text = template.read_text() if template.exists() else FALLBACK_TEMPLATE
        keys = {key: value for key, value in gguf_file.Reader(path).metadata.items() if key.startswith("tokenizer.")}
        return {**keys, **specials, "tokenizer.chat_template": text}
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = [chr(c) for c in plain] + [chr(0x100 + i) for i in range(256 - len(plain))]
    pairs = ["".join(p) for p in itertools.product("etaoinshrdlucmfwypvbgkjqxz", repeat=2)]
    merges = [(p[0], p[1]) for p in pairs]
    merges += itertools.islice(itertools.product(pairs, pairs), N_VOCAB - 256 - len(tokens) - len(merges))
    tokens += [a + b for a, b in merges]
    names = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 8: "eom_id", 9: "eot_id"}
    tokens += [f"<|{names.get(i, f'reserved_{i}')}|>" for i in range(256)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (N_VOCAB - 256) + [3] * 256,
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in merges],
        **specials,
        "tokenizer.chat_template": FALLBACK_TEMPLATE,
    }


def find_vocabulary() -> Path | None:
    """The Llama 3 vocabulary in the llama.cpp source that the build of this project unpacked, if it is there."""
    cache = Path.home() / ".cache" / "polargrid_local"
    return next(iter(sorted(cache.glob("**/models/ggml-vocab-llama-bpe.gguf"))), None)


def write(
    path: Path,
    mix: str = "q4_k_m",
    shape: str = "8b",
    n_layer: int | None = None,
    vocab: Path | None = None,
    seed: int = 0,
) -> None:
    """Write the file. Raises KeyError for an unknown mix or shape."""
    size = {**SHAPES[shape], **({"n_layer": n_layer} if n_layer else {})}
    keys = {
        "general.architecture": "llama",
        "general.name": f"Synthetic Llama 3.1 {shape}",
        "general.file_type": FILE_TYPES[mix],
        "general.quantization_version": 2,
        "llama.context_length": N_CTX,
        "llama.embedding_length": size["n_embd"],
        "llama.block_count": size["n_layer"],
        "llama.feed_forward_length": size["n_ff"],
        "llama.attention.head_count": size["n_head"],
        "llama.attention.head_count_kv": size["n_head_kv"],
        "llama.rope.dimension_count": size["n_embd"] // size["n_head"],
        "llama.rope.freq_base": ROPE_BASE,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": N_VOCAB,
        **vocabulary(vocab or find_vocabulary()),
    }
    gguf_file.write(path, keys, tensors(mix, **size, seed=seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--type", choices=FILE_TYPES, default="q4_k_m")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the shape has")
    parser.add_argument("--vocab", type=Path, help="models/ggml-vocab-llama-bpe.gguf of a llama.cpp source tree")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    write(args.path, args.type, args.shape, args.layers, args.vocab, args.seed)
    print(f"{args.path}: {args.path.stat().st_size / 2**30:.2f} GiB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
