"""Given: what a request that asks for no text came with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Given(dict[str, Any]):
    """The fields of a body, the parameters of a query and of a path. `ignored` gets the paths of those that nothing was
    made of."""

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__(fields or {})
        self.ignored: list[str] = []
