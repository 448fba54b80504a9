"""LoRA adapters of seeded random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_file
import numpy as np

Pairs = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def write(path: Path, pairs: Pairs, **metadata: Any) -> Path:
    """`pairs`: target -> shapes of A and B, rows first."""
    rng = np.random.default_rng(5)
    tensors = []
    for target, shapes in pairs.items():
        for end, shape in zip(("lora_a", "lora_b"), shapes, strict=True):
            data = rng.standard_normal(shape).astype(np.float32)
            tensors.append(gguf_file.Tensor(f"{target}.{end}", data.shape, "f32", lambda data=data: [data]))
    keys = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    gguf_file.write(path, {**keys, **metadata}, tensors)
    return path
