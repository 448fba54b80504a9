"""Tiny seeded Llama-architecture GGUF files: random weights, or weights that say exactly what a test scripts.

    write_random(path, seed=0, ...)                a model with varied, repeatable answers
    said = write_scripted(path, [script, ...])     a model that answers script i, whatever the temperature
    engine.completion_stream(prompt=said.prompt(i)) or chat with {"role": "user", "content": said.message(i)}

A script is a list of pieces: bytes or str. Each piece becomes one token, so the caller decides how a text is cut:
`b"\\xf0\\x9f"` then `b"\\x98\\x80"` is an emoji in two tokens. Pieces may repeat in any order. `EOS` in a script is
the end-of-turn token, and every script ends with it unless `endless=True` (then the last piece repeats). A piece
`Control("<|im_start|>")` is a control token.

How a script is forced: one private-use character, the marker, stands in the prompt. Attention heads read how far back
it lies (rotary phases of four frequencies, measured against the BOS token), another head reads which marker it is,
and one feed-forward unit per (marker, distance) writes the next token. So the answer depends on nothing but the
marker and the distance, also among other streams, after a cached prefix, and in any chunking of the prompt. One
marker per prompt, BOS at its start, and in a chat the marker ends the last user message. A prompt without a marker,
or with a second BOS, gets an arbitrary answer.

Options of both (keyword only):
    vocab        "bpe" (byte-level, GPT-2 pre-tokenizer) or "spm" (a piece is whole characters or one byte)
    weights      "f32", "f16" or "q8_0" for the matrices
    n_ctx_train  positions the file claims, eps of the norms, chat_template (ChatML; None leaves the key out)
    metadata     extra or replaced GGUF keys; a value of None removes the key
    words        more vocabulary that the tokenizer can produce
    controls     more control tokens, by their texts
    common       (scripted) the words that every vocabulary has. What a grammar forces is tokenized anew: with
                 ("assistant",) into single bytes, which a script of such a text has to be cut into
Control tokens: <|bos|> (added by the tokenizer), <|endoftext|>, <|im_start|>, <|im_end|> (ends a turn).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import itertools

import gguf_file

CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BOS, EOT, IM_START, IM_END = range(4)
# Of models that fill gaps: what the keys of a file call them -> the tokens.
FILLS = {
    "<|fim_prefix|>": "fim_pre",
    "<|fim_suffix|>": "fim_suf",
    "<|fim_middle|>": "fim_mid",
    "<|repo_name|>": "fim_rep",
    "<|file_sep|>": "fim_sep",
}
WORDS = [
    "user",
    "assistant",
    "system",
    "tool",
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "for",
    "was",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "one",
    "had",
    "by",
    "word",
    "but",
    "not",
    "what",
    "all",
    "were",
    "we",
    "when",
    "your",
    "can",
    "said",
    "there",
    "use",
    "an",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "make",
    "like",
    "him",
    "into",
    "time",
    "has",
    "look",
    "two",
    "more",
    "write",
    "go",
    "see",
    "number",
    "no",
    "way",
    "could",
    "people",
    "my",
    "than",
    "first",
    "water",
    "been",
    "call",
    "who",
    "oil",
    "its",
    "now",
    "find",
    "long",
    "down",
    "day",
    "did",
    "get",
    "come",
    "made",
    "may",
    "part",
]
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_CHAT_TAIL = 5  # tokens after the marker in a chat: <|im_end|> \n <|im_start|> assistant \n


@dataclass(frozen=True)
class Control:
    """A control token in a script, by its text."""

    text: str


EOS = Control("<|im_end|>")
Piece = bytes | str | Control


@dataclass(frozen=True)
class Scripted:
    """What `write_scripted` wrote: `tokens[i]` are the ids of script i, its closing end-of-turn token included."""

    path: Path
    tokens: tuple[tuple[int, ...], ...]

    def prompt(self, i: int) -> str:
        """Completion prompt (append it to any text) whose answer is script i."""
        return chr(0xE000 + 2 * i)

    def message(self, i: int) -> str:
        """Content of the last user message (append it to any text) whose answer is script i."""
        return chr(0xE001 + 2 * i)


def write_random(
    path: str | Path,
    *,
    seed: int = 0,
    vocab: str = "bpe",
    weights: str = "f32",
    n_ctx_train: int = 512,
    eps: float = 1e-5,
    n_layer: int = 2,
    n_embd: int = 128,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 256,
    chat_template: str | None = CHATML,
    metadata: Mapping[str, Any] | None = None,
    words: Iterable[str] = (),
    controls: Sequence[str] = (),
) -> Path:
    """Write a model of seeded random weights.

    Its logits spread over several units, so greedy choices are clear-cut; it hardly ever says a control token,
    so it does not stop.
    """
    rng = np.random.default_rng(seed)
    table = _Vocab(vocab, [*WORDS, *words], controls=controls)
    table.fill_up(weights)
    d_kv = n_embd // n_head * n_head_kv

    def normal(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    layers = [
        {
            "attn_q": normal(n_embd, n_embd, 2),
            "attn_k": normal(d_kv, n_embd, 2),
            "attn_v": normal(d_kv, n_embd),
            "attn_output": normal(n_embd, n_embd),
            "ffn_gate": normal(n_ff, n_embd),
            "ffn_up": normal(n_ff, n_embd),
            "ffn_down": normal(n_embd, n_ff),
        }
        for _ in range(n_layer)
    ]
    shape = _Shape(n_ctx_train, n_head, n_head_kv, n_embd // n_head, 1e4, eps)
    embedding = rng.standard_normal((len(table.texts), n_embd)).astype(np.float32)
    output = normal(len(table.texts), n_embd, 4)
    output[: table.n_controls] = 0
    _write(path, shape, table, embedding, layers, output, weights, chat_template, metadata)
    return Path(path)


def write_filler(path: str | Path, **options: Any) -> Path:
    """As write_random, with the tokens around a gap that an answer may fill."""
    keys = {f"tokenizer.ggml.{name}_token_id": len(SPECIALS) + i for i, name in enumerate(FILLS.values())}
    return write_random(path, controls=list(FILLS), metadata=keys, **options)


def write_scripted(
    path: str | Path,
    scripts: Sequence[Sequence[Piece]],
    *,
    endless: bool = False,
    vocab: str = "bpe",
    weights: str = "f32",
    n_ctx_train: int = 512,
    eps: float = 1e-5,
    chat_template: str | None = CHATML,
    metadata: Mapping[str, Any] | None = None,
    words: Iterable[str] = (),
    controls: Sequence[str] = (),
    common: Sequence[str] = WORDS,
) -> Scripted:
    """Write a model that says `scripts[i]` after `prompt(i)` or `message(i)`.

    Raises ValueError for a script of no or more than 400 pieces and for a piece the vocabulary cannot hold.
    """
    if any(not script or len(script) > 400 for script in scripts):
        raise ValueError("a script needs 1 to 400 pieces")
    pieces = [p.encode() if isinstance(p, str) else p for s in scripts for p in s if not isinstance(p, Control)]
    markers = [chr(0xE000 + i) for i in range(2 * len(scripts))]
    table = _Vocab(vocab, [*common, *words, *markers], pieces, controls)
    table.fill_up(weights)
    said = [[table.id_of(piece) for piece in script] for script in scripts]
    said = [ids if endless or ids[-1] == IM_END else [*ids, IM_END] for ids in said]
    steps = []  # (marker, distance, next token)
    for i, ids in enumerate(said):
        padded = ids + ids[-1:] * (440 - len(ids) if endless else 8)
        for marker, tail in ((2 * i, 0), (2 * i + 1, _CHAT_TAIL)):
            steps += [(marker, tail + distance, token) for distance, token in enumerate(padded)]
    embedding, layers, output = _script_weights(table, markers, steps)
    shape = _Shape(n_ctx_train, _N_HEAD, 2, _D_HEAD, _ROPE_BASE, eps)
    _write(path, shape, table, embedding, layers, output, weights, chat_template, metadata)
    return Scripted(Path(path), tuple(map(tuple, said)))


def split(text: str | bytes, cuts: Iterable[int]) -> list[bytes]:
    """The UTF-8 of `text` cut before the given byte offsets: a script."""
    data = text.encode() if isinstance(text, str) else text
    edges = [0, *sorted({c for c in cuts if 0 < c < len(data)}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def cut_in_shards(path: str | Path, n: int) -> list[Path]:
    """Replaces a file that was written here by a split model of `n` files, as llama.cpp's splitter would write it."""
    path, whole = Path(path), gguf_file.Reader(path)
    types = {kind.code: (name, kind) for name, kind in gguf_file.TYPES.items()}
    data, at = path.read_bytes(), -(-whole.n_header_bytes // gguf_file.ALIGNMENT) * gguf_file.ALIGNMENT
    tensors = []
    for name, (shape, code) in whole.tensors.items():
        kind, layout = types[code]
        n_bytes = layout.n_bytes(int(np.prod(shape)))
        tensors.append(gguf_file.Tensor(name, shape, kind, lambda at=at, n_bytes=n_bytes: [data[at : at + n_bytes]]))
        at += -(-n_bytes // gguf_file.ALIGNMENT) * gguf_file.ALIGNMENT
    files = [path.with_name(f"{path.stem}-{i + 1:05d}-of-{n:05d}.gguf") for i in range(n)]
    for i, file in enumerate(files):
        marks = {
            "split.no": gguf_file.Raw(struct.pack("<IH", 2, i)),
            "split.count": gguf_file.Raw(struct.pack("<IH", 2, n)),
            "split.tensors.count": gguf_file.Raw(struct.pack("<Ii", 5, len(tensors))),
        }
        edges = [len(tensors) * k // n for k in (i, i + 1)]
        gguf_file.write(file, {**(whole.metadata if i == 0 else {}), **marks}, tensors[slice(*edges)])
    path.unlink()
    return files


# The residual stream of a scripted model, 256 wide:
#   0 one | 1 marker? 2 BOS? | 32.. filler that keeps every norm equal | 64..95 marker code | 96..103 distance |
#   128..159 code read by attention | 160..255 code of the next token
_N_EMBD, _ONE, _MARKER, _BOS, _FILLER, _CODE, _DISTANCE, _READ, _NEXT = 256, 0, 1, 2, 32, 64, 96, 128, 160
_D_HEAD, _PAIRS, _BOS_DIMS, _REST_DIMS, _PHASE = 32, (0, 1, 2, 4), slice(24, 26), slice(26, 32), 2.0
_N_HEAD, _ROPE_BASE, _REACH = 12, 1e5, 448  # _REACH: distances that can be told apart


def _script_weights(
    table: _Vocab,
    markers: list[str],
    steps: list[tuple[int, int, int]],
) -> tuple[np.ndarray, list[dict[str, np.ndarray]], np.ndarray]:
    rng = np.random.default_rng(1)
    n_vocab, d_code = len(table.texts), _D_HEAD - 1
    marker_code = rng.choice([-1.0, 1.0], (len(markers), d_code))
    next_code = rng.choice([-1.0, 1.0], (n_vocab, _N_EMBD - _NEXT))

    embedding = np.zeros((n_vocab, _N_EMBD))
    embedding[:, _ONE] = 1
    embedding[:, _FILLER] = np.sqrt(d_code + 1)
    ids = [table.id_of(marker) for marker in markers]
    embedding[ids, _FILLER], embedding[ids, _MARKER] = 0, 1
    embedding[ids, _CODE : _CODE + d_code] = marker_code
    embedding[BOS, _FILLER], embedding[BOS, _BOS] = np.sqrt(d_code), 1
    gain = np.sqrt(_N_EMBD / (d_code + 2))  # what the norm multiplies every embedding by

    # One key for all heads: the marker turns with its position in the pairs that measure; the last dimensions hardly
    # turn and push down all but marker and BOS, or BOS too. No entry is far above the others, so that a q8_0 cache
    # keeps the phases.
    # Values: +1 and the code for the marker, -1 for BOS.
    key, value = np.zeros((2, _D_HEAD, _N_EMBD))
    for pair in _PAIRS:
        key[2 * pair, _MARKER] = 1 / gain
    key[_REST_DIMS, _ONE], key[_REST_DIMS, _MARKER], key[_REST_DIMS, _BOS] = -1 / gain, 1 / gain, 1 / gain
    key[_BOS_DIMS, _BOS] = -1 / gain
    value[0, [_MARKER, _BOS]] = 1 / gain, -1 / gain
    value[1:, _CODE : _CODE + d_code] = np.eye(d_code) / gain
    query, out = np.zeros((_N_HEAD * _D_HEAD, _N_EMBD)), np.zeros((_N_EMBD, _N_HEAD * _D_HEAD))
    root = np.sqrt(_D_HEAD) / gain
    for head in range(2 * len(_PAIRS) + 1):
        row = head * _D_HEAD
        query[row : row + _D_HEAD, _ONE][_REST_DIMS] = 2.4 * root
        if head < 2 * len(_PAIRS):  # scores: marker _PHASE * cos or sin of its distance, BOS 0; value: tanh of half
            query[row + 2 * _PAIRS[head // 2] + head % 2, _ONE] = (-_PHASE if head % 2 else _PHASE) * root
            out[_DISTANCE + head, row] = 1
        else:  # the marker alone
            query[row : row + _D_HEAD, _ONE][_BOS_DIMS] = 10 * root
            out[_READ : _READ + d_code, row + 1 : row + _D_HEAD] = np.eye(d_code)

    theta = _ROPE_BASE ** (-2 * np.array(_PAIRS) / _D_HEAD)
    angle = np.arange(_REACH)[:, None] * theta
    phase = np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(_REACH, -1)
    which, distance, token = np.array(steps).T
    # A unit fires when its distance and its code both match: their product with the state passes half way between
    # the true distance (0.29 more than any other) and the nearest one.
    match = phase @ np.tanh(_PHASE * phase / 2).T
    code_weight = 8.0 / d_code
    threshold = np.diag(match)[distance] - 0.14 + code_weight * d_code
    n_ff = -(-len(steps) // 256) * 256
    gate, up, down = np.zeros((n_ff, _N_EMBD)), np.zeros((n_ff, _N_EMBD)), np.zeros((_N_EMBD, n_ff))
    rows = np.arange(len(steps))
    gate[rows, _DISTANCE : _DISTANCE + phase.shape[1]] = phase[distance]
    gate[rows, _READ : _READ + d_code] = code_weight * marker_code[which]
    gate[rows, _ONE] = -threshold
    gate *= 200
    up[rows, _ONE] = 1
    down[_NEXT:, rows] = next_code[token].T
    first = {
        "attn_q": query,
        "attn_k": np.tile(key, (2, 1)),
        "attn_v": np.tile(value, (2, 1)),
        "attn_output": out,
        "ffn_gate": gate,
        "ffn_up": up,
        "ffn_down": down,
    }
    silent = {name: np.zeros_like(matrix) for name, matrix in first.items()}
    output = np.zeros((n_vocab, _N_EMBD))
    output[:, _NEXT:] = next_code
    return embedding, [first, silent], output


class _Vocab:
    """Token texts as the file spells them, their kinds, scores and merges."""

    def __init__(
        self, kind: str, words: Iterable[str], pieces: Iterable[bytes] = (), controls: Sequence[str] = ()
    ) -> None:
        if kind not in ("bpe", "spm"):
            raise ValueError(f"vocab must be 'bpe' or 'spm', not {kind!r}")
        self.kind, self.merges = kind, list[str]()
        self.texts = [*SPECIALS, *controls]
        self.n_controls = len(self.texts)
        self.kinds = [_CONTROL] * self.n_controls
        self._ids = {text: i for i, text in enumerate(self.texts)}
        for byte in range(256):
            self._add(bytes([byte]), _NORMAL if kind == "bpe" else _BYTE)
        for word in words:
            self._add_reachable(word.encode())
            if word.isascii() and word.isalpha() and self._add(b" " + word.encode(), _NORMAL) and kind == "bpe":
                self.merges.append(f"{self._spell(b' ')} {self._spell(word.encode())}")
        self._n_reachable = len(self.texts)
        for piece in pieces:
            self._add(piece, _NORMAL)

    def id_of(self, piece: Piece) -> int:
        if isinstance(piece, Control):
            return self._ids[piece.text]
        return self._ids[self._spell(piece.encode() if isinstance(piece, str) else piece)]

    def _spell(self, data: bytes) -> str:
        if self.kind == "bpe":
            return "".join(_BYTE_CHARS[b] for b in data)
        if len(data) == 1:
            return f"<0x{data[0]:02X}>"
        try:
            return data.decode().replace(" ", "\u2581")
        except UnicodeDecodeError:
            raise ValueError(f"an spm vocabulary cannot hold {data!r}: neither whole characters nor one byte") from None

    def _add(self, data: bytes, kind: int) -> bool:
        text = self._spell(data)
        if not text:
            raise ValueError("a piece must not be empty")
        if text in self._ids:
            return False
        self._ids[text] = len(self.texts)
        self.texts.append(text)
        self.kinds.append(kind)
        return True

    def fill_up(self, weights: str) -> None:
        """With tokens that no text has, to a multiple of 16: then kernels take the output's quantized rows too."""
        while weights == "q8_0" and len(self.texts) % 16:
            self._add(b"<unused-%d>" % len(self.texts), _NORMAL)

    def _add_reachable(self, data: bytes) -> None:
        for end in range(2, len(data) + 1):
            try:
                new = self._add(data[:end], _NORMAL)
            except ValueError:  # spm: half a character needs no token of its own
                continue
            if new and self.kind == "bpe":
                self.merges.append(f"{self._spell(data[: end - 1])} {self._spell(data[end - 1 : end])}")

    def metadata(self) -> dict[str, Any]:
        common = {
            "tokenizer.ggml.tokens": self.texts,
            "tokenizer.ggml.token_type": self.kinds,
            "tokenizer.ggml.bos_token_id": BOS,
            "tokenizer.ggml.eos_token_id": IM_END,
            "tokenizer.ggml.add_bos_token": True,
        }
        if self.kind == "bpe":
            return {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                **common,
                "tokenizer.ggml.merges": self.merges,
            }
        first = self.n_controls + 256
        scores = [float(len(t)) if first <= i < self._n_reachable else -1e6 for i, t in enumerate(self.texts)]
        return {
            "tokenizer.ggml.model": "llama",
            **common,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.ggml.unknown_token_id": EOT,
        }


def _byte_chars() -> list[str]:
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


_BYTE_CHARS = _byte_chars()  # the printable stand-in that byte-level BPE writes for each byte


@dataclass(frozen=True)
class _Shape:
    n_ctx_train: int
    n_head: int
    n_head_kv: int
    d_head: int
    rope_base: float
    eps: float


def _write(
    path: str | Path,
    shape: _Shape,
    table: _Vocab,
    embedding: np.ndarray,
    layers: list[dict[str, np.ndarray]],
    output: np.ndarray,
    weights: str,
    chat_template: str | None,
    metadata: Mapping[str, Any] | None,
) -> None:
    if weights not in ("f32", "f16", "q8_0"):
        raise ValueError(f"weights must be 'f32', 'f16' or 'q8_0', not {weights!r}")
    n_vocab, n_embd = embedding.shape

    def tensor(name: str, data: np.ndarray, kind: str) -> gguf_file.Tensor:
        stored = {
            "f32": lambda: data.astype(np.float32),
            "f16": lambda: data.astype(np.float16),
            "q8_0": lambda: gguf_file.q8_0(data),
        }[kind]
        return gguf_file.Tensor(name + ".weight", data.shape, kind, lambda: [np.ascontiguousarray(stored())])

    norm = np.ones(n_embd)
    tensors = [
        tensor("token_embd", embedding, weights),
        tensor("output_norm", norm, "f32"),
        tensor("output", output, weights),
    ]
    for i, layer in enumerate(layers):
        tensors += [tensor(f"blk.{i}.{name}", matrix, weights) for name, matrix in layer.items()]
        tensors += [tensor(f"blk.{i}.{name}", norm, "f32") for name in ("attn_norm", "ffn_norm")]
    keys = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": {"f32": 0, "f16": 1, "q8_0": 7}[weights],
        "llama.context_length": shape.n_ctx_train,
        "llama.embedding_length": n_embd,
        "llama.block_count": len(layers),
        "llama.feed_forward_length": layers[0]["ffn_up"].shape[0],
        "llama.attention.head_count": shape.n_head,
        "llama.attention.head_count_kv": shape.n_head_kv,
        "llama.attention.key_length": shape.d_head,
        "llama.attention.value_length": shape.d_head,
        "llama.rope.dimension_count": shape.d_head,
        "llama.rope.freq_base": shape.rope_base,
        "llama.attention.layer_norm_rms_epsilon": shape.eps,
        "llama.vocab_size": n_vocab,
        **table.metadata(),
        "tokenizer.chat_template": chat_template,
        **(metadata or {}),
    }
    gguf_file.write(path, {key: value for key, value in keys.items() if value is not None}, tensors)
