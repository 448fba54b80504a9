"""Places in a JSON schema: how they are walked, and what can stand there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Steps = tuple[str | int, ...]  # the way to a place in a schema: keys and indices

NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}  # whose keys are no keywords
DEFINITIONS = {"$defs", "definitions"}
VALUES = {"enum", "const"}  # what an answer is compared with
DATA = {*VALUES, "default", "examples"}  # whose values are no schemas


def walk(schema: Any) -> Iterator[tuple[Steps, Any]]:
    """Every value of a JSON document with the steps to it; without recursion, whatever its depth."""
    todo: list[tuple[Steps, Any]] = [((), schema)]
    while todo:
        steps, value = todo.pop()
        yield steps, value
        items: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            items = list(value.items())
        elif isinstance(value, list):
            items = list(enumerate(value))
        todo.extend(((*steps, key), inner) for key, inner in reversed(items))


def at(value: Any, steps: Steps) -> Any:
    """What stands there; None if nothing does."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def is_keyword(steps: Steps) -> bool:
    """Whether the last step is a keyword, not the name of a property or of a definition."""
    return len(steps) < 2 or steps[-2] not in NAMED or not is_keyword(steps[:-1])


def is_schema(steps: Steps) -> bool:
    """Whether a schema can stand there, rather than a table of them or a value."""
    return not (steps and steps[-1] in NAMED and is_keyword(steps)) and not is_within(DATA, steps)


def is_within(keywords: set[str], steps: Steps) -> bool:
    """Whether one of these keywords is on the way."""
    return any(step in keywords and is_keyword(steps[: i + 1]) for i, step in enumerate(steps))


def path_in(field: str, steps: Steps) -> str:
    """The path of a keyword as messages name it. A property may have any name, so none of its signs are left out."""
    return field + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
