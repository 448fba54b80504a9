"""A GGUF (v3) file, written as a stream: metadata first, then one tensor at a time. Needs numpy and nothing else."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 32
_SCALAR = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
_STRING, _ARRAY = 8, 9
_SIZE = {code: struct.calcsize(fmt) for code, fmt in _SCALAR.values()}


@dataclass(frozen=True)
class TensorType:
    """A ggml type: its code in the file, weights per block, bytes per block."""

    code: int
    block: int
    block_bytes: int

    def n_bytes(self, n_weights: int) -> int:
        return n_weights // self.block * self.block_bytes


TYPES = {
    "f32": TensorType(0, 1, 4),
    "f16": TensorType(1, 1, 2),
    "q4_0": TensorType(2, 32, 18),
    "q4_1": TensorType(3, 32, 20),
    "q8_0": TensorType(8, 32, 34),
    "q4_k": TensorType(12, 256, 144),
    "q5_k": TensorType(13, 256, 176),
    "q6_k": TensorType(14, 256, 210),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: `shape` as numpy has it (rows first), `parts()` yields its bytes in file order."""

    name: str
    shape: tuple[int, ...]
    type: str
    parts: Callable[[], Iterable[Any]]

    @property
    def n_bytes(self) -> int:
        return TYPES[self.type].n_bytes(int(np.prod(self.shape)))


@dataclass(frozen=True)
class Raw:
    """A metadata value already in file form (type code and payload), as Reader.metadata has it, and where it lies."""

    data: bytes
    at: int = 0  # in its file: of the type code, right behind the key's name


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def _kind(value: Any) -> str:
    return "bool" if isinstance(value, bool) else "f32" if isinstance(value, float) else "u32" if value >= 0 else "i32"


def _value(value: Any) -> bytes:
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, (str, bytes)):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (str, bytes)):
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
        kind = _kind(value[0]) if value else "i32"
        code, fmt = _SCALAR["i32" if kind == "u32" else kind]  # what readers expect of arrays
        return struct.pack("<IIQ", _ARRAY, code, len(value)) + b"".join(struct.pack(fmt, v) for v in value)
    code, fmt = _SCALAR[_kind(value)]
    return struct.pack("<I", code) + struct.pack(fmt, value)


def write(path: str | Path, metadata: Mapping[str, Any], tensors: list[Tensor]) -> None:
    """Write the file, published under its name only when whole. Tensors lie as `general.alignment` says, 32 by default.

    Raises ValueError if a tensor has the wrong length."""
    alignment = metadata.get("general.alignment", ALIGNMENT)
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    out += [_text(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for t in tensors:
        dims = t.shape[::-1]
        out.append(_text(t.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPES[t.type].code, offset))
        offset += -(-t.n_bytes // alignment) * alignment
    header = b"".join(out)
    partial = Path(f"{path}.partial")
    with open(partial, "wb") as file:
        file.write(header + bytes(-len(header) % alignment))
        for t in tensors:
            n = sum(file.write(memoryview(part).cast("B")) for part in t.parts())
            if n != t.n_bytes:
                raise ValueError(f"tensor {t.name}: {n} bytes written, {t.n_bytes} expected")
            file.write(bytes(-n % alignment))
    os.replace(partial, path)


class Reader:
    """Keys and tensor list of a GGUF file, unparsed and unchecked: for files that can be trusted.

    Raises ValueError if it is no GGUF v2/v3."""

    def __init__(self, path: str | Path) -> None:
        self._data = np.memmap(path, mode="r")
        self._at = 0
        magic, version, n_tensors, n_keys = self._take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path} is not a GGUF of version 2 or 3")
        self.metadata: dict[str, Raw] = {}
        for _ in range(n_keys):
            key = self._string().decode()
            start = self._at
            self._skip(self._take("<I")[0])
            self.metadata[key] = Raw(bytes(self._data[start : self._at]), start)
        self.tensors: dict[str, tuple[tuple[int, ...], int]] = {}  # name -> shape (rows first), type code
        for _ in range(n_tensors):
            name = self._string().decode()
            (n_dims,) = self._take("<I")
            dims = self._take(f"<{n_dims}Q")
            self.tensors[name] = dims[::-1], self._take("<IQ")[0]
        self.n_header_bytes = self._at  # the weights begin at the next multiple of the alignment

    def _take(self, fmt: str) -> tuple[Any, ...]:
        self._at += struct.calcsize(fmt)
        return struct.unpack_from(fmt, self._data, self._at - struct.calcsize(fmt))

    def _string(self) -> bytes:
        (n,) = self._take("<Q")
        self._at += n
        return bytes(self._data[self._at - n : self._at])

    def _skip(self, code: int) -> None:
        if code == _STRING:
            self._string()
        elif code == _ARRAY:
            item, n = self._take("<IQ")
            if item in _SIZE:
                self._at += n * _SIZE[item]
            else:
                for _ in range(n):
                    self._skip(item)
        else:
            self._at += _SIZE[code]


def work_per_token(path: str | Path) -> tuple[int, int, int]:
    """Of a Llama file: multiply-adds per prompt token (layers only) and per decoded one, weight bytes per step."""
    types = {t.code: t for t in TYPES.values()}
    tensors = Reader(path).tensors
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    layers = n_bytes = 0
    for name, (shape, code) in tensors.items():
        if (len(shape) == 2 and name != "token_embd.weight") or name == head:
            n_bytes += types[code].n_bytes(shape[0] * shape[1])
            layers += shape[0] * shape[1] if name != head else 0
    return layers, layers + tensors[head][0][0] * tensors[head][0][1], n_bytes


def q8_0(weights: np.ndarray) -> np.ndarray:
    """Q8_0 blocks (32 weights: f16 scale, 32 int8) of float weights whose rows are whole blocks, as bytes."""
    rows = weights.astype(np.float32).reshape(-1, 32)
    scale = (np.abs(rows).max(1, keepdims=True) / 127).astype(np.float16)
    inverse = np.divide(1, scale.astype(np.float32), out=np.zeros(scale.shape, np.float32), where=scale != 0)
    codes = np.clip(np.rint(rows * inverse), -127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], axis=1)
