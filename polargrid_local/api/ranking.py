"""Ranking: by what a model can tell how well a document answers a query."""

from __future__ import annotations

from collections.abc import Sequence

from polargrid_local.api.replies import RanksBy, Task


def ranks_by(tasks: Sequence[Task]) -> RanksBy | None:
    """By the scores of a model that ranks; by the cosine of the vectors of one that only embeds. The vectors of a model
    that generates are not made for that: None."""
    if "rank" in tasks:
        return "scores"
    return "cosine" if list(tasks) == ["embed"] else None
