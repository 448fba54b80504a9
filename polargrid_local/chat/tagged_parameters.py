"""Tagged parameters: the arguments of a call as Qwen3-Coder writes them, `<parameter=name>` value `</parameter>`.

The values have no types of their own: a tool's schema says which of them are texts, and which are JSON. One line break
after the opening tag and one before the closing one are no part of a value. Source: the chat template of Qwen3-Coder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from polargrid_local.chat.stop_text import overlap_at

# How a value is written: as it is if it may be a text, else as JSON.
ParameterKind = Literal["text", "text or null", "json"]
Schema = dict[str, Any]


class ParameterReader:
    """The arguments of one call as Qwen3-Coder writes them, `<parameter=name>` value `</parameter>`, made into JSON.

    Source: the chat template of Qwen3-Coder. One line break after the opening tag and one before the closing one are
    no part of the value."""

    _OPENING = re.compile(r"\s*<parameter=([^>]*)>")
    _CLOSING = "</parameter>"

    def __init__(self, kinds: Mapping[str, ParameterKind]) -> None:
        self._kinds = kinds
        self._kind: ParameterKind | None = None  # of the value that is being read
        self._n = 0
        self._begun = False
        self._value = ""  # what of a value must be seen whole
        self._at_start = False

    def read(self, held: str) -> tuple[str, str, bool]:
        """The JSON that `held` gives, what of it waits, and whether the arguments have ended."""
        out = "" if self._begun else "{"
        self._begun = True
        while True:
            if self._kind is None:
                found = self._OPENING.match(held)
                if found is None:
                    text = held.lstrip()
                    if "<parameter=".startswith(text) or (text.startswith("<parameter=") and ">" not in text):
                        return out, held, False
                    return out + "}", held, True
                held = held[found.end() :]
                self._kind, self._at_start, self._value = self._kinds.get(found[1], "text"), True, ""
                out += (", " if self._n else "") + json.dumps(found[1], ensure_ascii=False) + ": "
                out += '"' if self._kind == "text" else ""
                self._n += 1
            text, held, ended = self._read_value(held)
            out += text
            if not ended:
                return out, held, False
            self._kind = None

    def _read_value(self, held: str) -> tuple[str, str, bool]:
        """As read(), of the value alone."""
        if self._at_start and held:
            held = held.removeprefix("\n")
            self._at_start = False
        at = held.find(self._CLOSING)
        ended = at >= 0
        if ended:
            part, held = held[:at].removesuffix("\n"), held[at + len(self._CLOSING) :]
        else:
            at = min(overlap_at(held, self._CLOSING), overlap_at(held, "\n" + self._CLOSING))
            part, held = held[:at], held[at:]
        if self._kind == "text":
            return _escaped(part) + ('"' if ended else ""), held, ended
        self._value += part
        return (self._whole() if ended else ""), held, ended

    def _whole(self) -> str:
        """A value that had to be seen whole, as JSON."""
        value = self._value.strip()
        if self._kind == "text or null":
            return "null" if value == "null" else f'"{_escaped(self._value)}"'
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return f'"{_escaped(self._value)}"'
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
        given = [branch["const"]] if "const" in branch else branch.get("enum")
        if given is not None:
            values += [
                value if isinstance(value, str) else "null" for value in given if value is None or _is_text(value)
            ]
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
    if "const" in branch or "enum" in branch:
        values = [branch["const"]] if "const" in branch else branch["enum"]
        return {"string" if _is_text(value) else "null" if value is None else "other" for value in values}
    given = branch.get("type", ())
    return {given} if isinstance(given, str) else set(given)


def _referred(reference: str, shared: Schema) -> Any:
    """What a reference into `$defs` or `definitions` means; None for any other."""
    steps = reference.split("/")
    return shared.get(steps[1], {}).get(steps[2]) if len(steps) == 3 and steps[0] == "#" else None
