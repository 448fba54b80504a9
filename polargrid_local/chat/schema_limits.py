"""The limits in front of the compiler of schemas: what would exhaust it, or what it takes and does not keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from polargrid_local.chat.schema_places import DATA, DEFINITIONS, VALUES, Steps, at, is_schema, is_within, path_in, walk
from polargrid_local.errors import SchemaError

MAX_TEXT_BYTES = 256 << 10
MAX_DEPTH = 64  # of objects in objects: the compiler recurses over them
MAX_CHAIN = 512  # of references to what holds references, and so on: it recurses over these too
MAX_OPTIONAL = 450  # optional properties of one object
MAX_PATTERNS = 64  # patternProperties of one object
MAX_LITERAL_BYTES = 8 << 10
MAX_MULTIPLE = 10_000  # multipleOf, once scaled to whole numbers
MAX_REMAINDERS = 2000  # of multipleOf, twos and fives aside: the automaton of its digits has a state for each
MAX_JOINT = 8  # patterns and formats that one text must match at once: their common automaton grows exponentially
MAX_BRANCHES = 1900  # of one anyOf, oneOf or enum that are no single values: the parser follows them all at once


def check_size(text: str, field: str) -> None:
    n_bytes = len(text.encode())
    if n_bytes > MAX_TEXT_BYTES:
        raise SchemaError.at(field, f"has {n_bytes} bytes, more than {MAX_TEXT_BYTES}")
    if "\0" in text:
        raise SchemaError.at(field, "cannot hold a NUL character")


def check_limits(schema: Any, field: str) -> None:
    """Refuses what is known to exhaust the compiler, and what it takes and does not keep, before it sees it."""
    for steps, value in walk(schema):
        if len(steps) > 2 * MAX_DEPTH:
            raise SchemaError.at(path_in(field, steps), f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, str) and len(value.encode()) > MAX_LITERAL_BYTES:
            raise SchemaError.at(path_in(field, steps), f"a text of more than {MAX_LITERAL_BYTES} bytes")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not _exact(value, steps):
            raise SchemaError.at(path_in(field, steps), f"{value} is beyond the numbers that can be held exactly")
        if isinstance(value, dict) and (excess := _too_wide(value)):
            raise SchemaError.at(path_in(field, (*steps, *excess[:-1])), excess[-1])
    references = _references(schema)
    _check_joint(schema, references, _check_chains(references, field), field)


def _exact(number: float, steps: Steps) -> bool:
    """Whether the compiler, which counts in doubles and in 64 bits, lets nothing pass that the schema does not."""
    keyword = steps[-1] if steps else ""
    if is_within(VALUES, steps):
        return abs(number) <= 2**53 or (abs(number) < 2**63 and int(Decimal(repr(float(number)))) == number)
    if keyword == "minimum":
        return number < 2**63 and float(number) >= number
    if keyword == "maximum":
        return number >= -(2**63) and min(float(number), 2**63 - 1) <= number
    return keyword not in ("exclusiveMinimum", "exclusiveMaximum") or abs(number) <= 2**53


def _too_wide(schema: dict[str, Any]) -> tuple[str, ...]:
    """What exceeds a limit in the keywords of this schema alone: the steps to it, then the problem; nothing if all is
    well."""
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict):
        needed = required if isinstance(required, list) else ()
        n_optional = len(set(properties) - {name for name in needed if isinstance(name, str)})
        if n_optional > MAX_OPTIONAL:
            return (f"has {n_optional} optional properties, more than {MAX_OPTIONAL}",)
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and len(patterns) > MAX_PATTERNS:
        return (f"has {len(patterns)} patternProperties, more than {MAX_PATTERNS}",)
    for keyword in ("anyOf", "oneOf"):
        branches = schema.get(keyword)
        if isinstance(branches, list) and sum(not _is_value(branch) for branch in branches) > MAX_BRANCHES:
            return (keyword, f"has more than {MAX_BRANCHES} branches")
    values = schema.get("enum")
    if isinstance(values, list) and sum(isinstance(value, (dict, list)) for value in values) > MAX_BRANCHES:
        return ("enum", f"has more than {MAX_BRANCHES} objects and lists")
    if "$schema" in schema and re.search("draft-0[123]/", str(schema["$schema"])):
        return ("$schema", "is a draft whose keywords have other meanings: 4 is the first that is known")
    multiple = schema.get("multipleOf")
    if isinstance(multiple, (int, float)) and not isinstance(multiple, bool):
        scaled = _scaled(multiple)
        if scaled > MAX_MULTIPLE:
            return ("multipleOf", f"{multiple} has too many digits: at most {MAX_MULTIPLE} of its last one")
        if _without_factors(int(scaled), 2, 5) > MAX_REMAINDERS:
            return ("multipleOf", f"{multiple} leaves more than {MAX_REMAINDERS} remainders, twos and fives aside")
    return ()


def uncounted(schema: Any) -> Iterator[Steps]:
    """Where properties are to be counted that may have the same name, so that JSON would have fewer of them."""
    for steps, value in walk(schema):
        least = value.get("minProperties") if isinstance(value, dict) else None
        if isinstance(least, int) and is_schema(steps):
            required = value.get("required")
            names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else ()
            if least > len(names) + 1:
                yield (*steps, "minProperties")


def _is_value(schema: Any) -> bool:
    """Whether it is met by single values alone, which cost the parser nothing: not by objects and lists."""
    if not isinstance(schema, dict) or not ("const" in schema or "enum" in schema):
        return False
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
    return not any(isinstance(value, (dict, list)) for value in values)


def _scaled(number: float) -> float:
    """`number` in units of its last decimal digit: 0.25 -> 25."""
    text = repr(number).lower()
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    return abs(int(whole + fraction or "0")) * 10.0 ** max(0, int(exponent or 0) - len(fraction))


def _without_factors(number: int, *factors: int) -> int:
    for factor in factors:
        while number and number % factor == 0:
            number //= factor
    return number


def _references(schema: Any) -> dict[Steps, Steps]:
    """{place: target} of every `$ref` that leads somewhere in `schema`, whichever way it is written."""
    named: dict[str, Steps] = {}  # by anchor, and by the last part of an id, whatever is in front of it
    written: dict[Steps, str] = {}
    for steps, value in walk(schema):
        if isinstance(value, dict):
            for keyword in ("$anchor", "$dynamicAnchor", "$id", "id"):
                if isinstance(value.get(keyword), str):
                    named.setdefault(_last_part(value[keyword]), steps)
            if isinstance(value.get("$ref"), str):
                written[steps] = value["$ref"]
    found: dict[Steps, Steps] = {}
    for steps, reference in written.items():
        base, _, fragment = reference.partition("#")
        start = named.get(_last_part(base), ()) if base else ()
        if not fragment.startswith("/"):
            found[steps] = named.get(unquote(fragment), start) if fragment else start
            continue
        target: Any = at(schema, start)
        place = start
        for part in unquote(fragment).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            step = int(part) if isinstance(target, list) and part.isdecimal() else part
            place, target = (*place, step), at(target, (step,))
        found[steps] = place
    return found


def _last_part(name: str) -> str:
    return re.split("[/#]", name.rstrip("/#"))[-1]


def _check_chains(references: dict[Steps, Steps], field: str) -> list[Steps]:
    """How long is the longest chain of a target that holds a reference, whose target holds one, and so on: circles
    aside, which the compiler knows how to close. Returns the targets, each after those that it leads to."""
    inside: dict[Steps, set[Steps]] = {}  # targets of the references that lie in a place, however deep in it
    for place, target in references.items():
        for n in range(len(place) + 1):
            inside.setdefault(place[:n], set()).add(target)
    length: dict[Steps, int] = {}
    for first in dict.fromkeys(references.values()):
        if first in length:
            continue
        path: list[tuple[Steps, Iterator[Steps]]] = [(first, iter(inside.get(first, ())))]
        open_places = {first}
        while path:
            place, rest = path[-1]
            if len(path) > MAX_CHAIN:
                raise SchemaError.at(path_in(field, place), f"stands in a chain of more than {MAX_CHAIN} references")
            following = next((target for target in rest if target not in length and target not in open_places), None)
            if following is not None:
                open_places.add(following)
                path.append((following, iter(inside.get(following, ()))))
                continue
            length[place] = 1 + max((length.get(target, 0) for target in inside.get(place, ())), default=0)
            if length[place] > MAX_CHAIN:
                raise SchemaError.at(path_in(field, place), f"begins a chain of more than {MAX_CHAIN} references")
            open_places.discard(place)
            path.pop()
    return list(length)


def _check_joint(schema: Any, references: dict[Steps, Steps], targets: list[Steps], field: str) -> None:
    """At most how many patterns and formats meet in one text, by way of allOf and of references that stand beside
    other keywords. `targets`: of references, each after those that it leads to."""
    most: dict[Steps, int] = {}

    def count(value: Any, steps: Steps) -> int:
        if steps in most:
            return most[steps]
        if isinstance(value, list):
            return max((count(item, (*steps, i)) for i, item in enumerate(value)), default=0)
        if not isinstance(value, dict):
            return 0
        inner = {key: count(item, (*steps, key)) for key, item in value.items() if key not in DATA | DEFINITIONS}
        joined = most.get(references[steps], 0) if steps in references else 0
        if isinstance(members := value.get("allOf"), list):
            joined += sum(count(member, (*steps, "allOf", i)) for i, member in enumerate(members))
        joined += inner.pop("anyOf", 0) + inner.pop("oneOf", 0)
        inner.pop("allOf", None)
        patterned = inner.pop("patternProperties", 0) + inner.pop("properties", 0)
        own = sum(isinstance(value.get(keyword), str) for keyword in ("pattern", "format"))
        most[steps] = joined + max(own, patterned, *inner.values(), 0)
        if most[steps] > MAX_JOINT:
            problem = f"more than {MAX_JOINT} patterns and formats would have to be matched at once"
            raise SchemaError.at(path_in(field, steps), problem)
        return most[steps]

    for steps in (*targets, ()):
        count(at(schema, steps), steps)
