"""Tagged parameters: the arguments of a call as Qwen3-Coder writes them, `<parameter=name>` value `</parameter>`.

The values have no types of their own: a tool's schema says which of them are texts, and which are JSON. One line break
after the opening tag and one before the closing one are no part of a value. Source: the chat template of Qwen3-Coder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from polargrid_local.chat.stop_text import overlap_at

# How a value is written: as it is if it may be a text, else as JSON.
ParameterKind = Literal["text", "text or null", "json"]
Schema = dict[str, Any]


class ParameterReader:
    """The arguments of one call, made into JSON while they come. A value that begins on a line of its own ends only
    with a closing tag on a line of its own."""

    _OPENING = "<parameter="
    _CLOSING = "</parameter>"

    def __init__(self, kinds: Mapping[str, ParameterKind]) -> None:
        self._kinds = kinds
        self._kind: ParameterKind | None = None  # of the value that is being read
        self._n = 0
        self._begun = False
        self._at_start = False
        self._closing = self._CLOSING  # of the value that is being read

    def read(self, held: str) -> tuple[str, str, bool]:
        """The JSON that `held` gives, what of it waits, and whether the arguments have ended."""
        out = "" if self._begun else "{"
        self._begun = True
        while True:
            if self._kind is None:
                text = held.lstrip()
                if self._OPENING.startswith(text):
                    return out, held, False
                if not text.startswith(self._OPENING):
                    return out + "}", held, True
                name = self._name(text[len(self._OPENING) :])
                if name is None:
                    return out, held, False
                held = text[len(self._OPENING) + len(name) + 1 :]
                self._kind, self._at_start = self._kinds.get(name, "text"), True
                out += (", " if self._n else "") + json.dumps(name, ensure_ascii=False) + ": "
                out += '"' if self._kind == "text" else ""
                self._n += 1
            text, held, ended = self._read_value(held)
            out += text
            if not ended:
                return out, held, False
            self._kind = None

    def finish(self, held: str) -> str:
        """The JSON that waits where nothing follows: what there is of a value, without an end."""
        if self._kind in (None, "text"):
            return ""
        value = held[: overlap_at(held, self._closing)]
        return value.strip() if self._kind == "json" or value in ("", "null") else f'"{_escaped(value)}'

    def _name(self, text: str) -> str | None:
        """The name with which `text` begins, before the sign `>`, which may be part of it; None if it may go on."""
        waits = ">" not in text
        for name in sorted(self._kinds, key=len, reverse=True):
            if text.startswith(name + ">"):
                return name
            waits = waits or (name + ">").startswith(text)
        return None if waits else text.partition(">")[0]

    def _read_value(self, held: str) -> tuple[str, str, bool]:
        """As read(), of the value alone."""
        if self._at_start and held:
            self._at_start, own_line = False, held[0] == "\n"
            held = held.removeprefix("\n")
            self._closing = "\n" + self._CLOSING if own_line else self._CLOSING
        at = held.find(self._closing)
        if at >= 0:
            value, held = held[:at], held[at + len(self._closing) :]
            if self._closing == self._CLOSING:
                value = value.removesuffix("\n")
            return (_escaped(value) + '"' if self._kind == "text" else self._whole(value)), held, True
        if self._kind != "text":  # must be seen whole
            return "", held, False
        at = min(overlap_at(held, self._closing), overlap_at(held, "\n" + self._CLOSING))
        return _escaped(held[:at]), held[at:], False

    def _whole(self, text: str) -> str:
        """A value that had to be seen whole, as JSON."""
        value = text.strip()
        if self._kind == "text or null":
            return "null" if value == "null" else f'"{_escaped(text)}"'
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return f'"{_escaped(text)}"'
        return value


def _escaped(text: str) -> str:
    """Text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


# --- what a schema says of its parameters -----------------------------------------------------------------------------

_SAID_OF_TEXTS = ("pattern", "format", "minLength", "maxLength", "contentEncoding", "contentMediaType", "not", "allOf")
_HELD_AT_THE_TOP = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_NO_DEMANDS = {"title", "description", "$schema", "$id", "$comment", "default", "examples", "deprecated"}


def parameter_kinds(schema: Schema) -> dict[str, ParameterKind]:
    """Of each property of a tool's schema."""
    shared = shared_definitions(schema)
    return {name: parameter_kind(inner, shared) for name, inner in schema.get("properties", {}).items()}


def shared_definitions(schema: Schema) -> Schema:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def parameter_kind(schema: Any, shared: Schema) -> ParameterKind:
    types = {kind for branch in _branches(schema, shared) for kind in _types(branch)}
    if "string" not in types:
        return "json"
    return "text or null" if "null" in types else "text"


def text_values(schema: Any, shared: Schema) -> list[str] | None:
    """The texts that a value may be, "null" for null among them; None if any text will do."""
    values: list[str] = []
    for branch in _branches(schema, shared):
        if (listed := _listed_values(branch)) is not None:
            values += ["null" if value is None else value for value in listed if value is None or _is_text(value)]
        elif "string" in _types(branch):
            return None
        elif "null" in _types(branch):
            values.append("null")
    return values


def unheld_keywords(schema: Schema) -> Iterator[tuple[str | int, ...]]:
    """The steps to the keywords of a tool's schema that arguments in this notation cannot be held to."""
    for key in schema:
        if key not in _HELD_AT_THE_TOP and key not in _NO_DEMANDS:
            yield (key,)
    shared = shared_definitions(schema)
    for name, inner in schema.get("properties", {}).items():
        if parameter_kind(inner, shared) != "json":
            for branch in _branches(inner, shared):
                yield from (("properties", name, key) for key in _SAID_OF_TEXTS if key in branch)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _listed_values(branch: Schema) -> list[Any] | None:
    """The values that a schema lists, if it does."""
    return [branch["const"]] if "const" in branch else branch.get("enum")


def _branches(schema: Any, shared: Schema, depth: int = 0) -> Iterator[Schema]:
    """The schema, or those that `anyOf`, `oneOf` and references name in its place."""
    if not isinstance(schema, dict) or depth > 16:
        return
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if isinstance(schema.get("$ref"), str):
        inner.append(_referred(schema["$ref"], shared))
    if not inner:
        yield schema
    for branch in inner:
        yield from _branches(branch, shared, depth + 1)


def _types(branch: Schema) -> set[str]:
    """The types that a schema allows, as far as it names them."""
    if (values := _listed_values(branch)) is not None:
        return {"string" if _is_text(value) else "null" if value is None else "other" for value in values}
    given = branch.get("type", ())
    return {given} if isinstance(given, str) else set(given)


def _referred(reference: str, shared: Schema) -> Any:
    """What a reference into `$defs` or `definitions` means; None for any other."""
    steps = reference.split("/")
    return shared.get(steps[1], {}).get(steps[2]) if len(steps) == 3 and steps[0] == "#" else None
