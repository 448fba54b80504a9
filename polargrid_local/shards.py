"""Shards: the files of one split model. Only their names tell that they belong together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class Shard(NamedTuple):
    """File `number` of `total`, from 1, of the model `stem`."""

    stem: str
    number: int
    total: int

    def names(self) -> list[str]:
        """The file names of the whole set, in order; the first one is what a loader opens."""
        return [f"{self.stem}-{n:05d}-of-{self.total:05d}.gguf" for n in range(1, self.total + 1)]


def shard_of(file: str) -> Shard | None:
    """What a file name says: `name-00002-of-00003.gguf` is Shard("name", 2, 3), any other name None."""
    match = _SHARD.fullmatch(file)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return None
    return Shard(match[1], int(match[2]), int(match[3]))


def model_files(path: Path) -> list[Path]:
    """All files of the model that `path` is, or is a shard of."""
    shard = shard_of(path.name)
    return [path] if shard is None else [path.with_name(name) for name in shard.names()]
