"""Constraints: what an answer is held to, made of a JSON schema, a grammar, a pattern or a list of choices.

The native engine compiles them (llguidance) and has the last word on what it can hold; here stand the limits in front
of it, and the way from its refusal to the keyword that caused it. What is accepted is met by every complete answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import unquote

from polargrid_local.errors import SchemaError, ServerError

MAX_TEXT_BYTES = 256 << 10
MAX_DEPTH = 64  # of objects in objects: the compiler recurses over them
MAX_CHAIN = 512  # of references to what holds references, and so on: it recurses over these too
MAX_OPTIONAL = 450  # optional properties of one object
MAX_PATTERNS = 64  # patternProperties of one object
MAX_LITERAL_BYTES = 8 << 10
MAX_MULTIPLE = 10_000  # multipleOf, once scaled to whole numbers
MAX_REMAINDERS = 2000  # of multipleOf, twos and fives aside: the automaton of its digits has a state for each
MAX_CHOICES = 2048
MAX_JOINT = 8  # patterns and formats that one text must match at once: their common automaton grows exponentially
MAX_DROPPED_ALONE = 8  # times that one culprit is found and dropped; then all keywords of its kind go at once
MAX_BRANCHES = 1900  # of one anyOf, oneOf or enum that are no single values: the parser follows them all at once

# Between the tokens of JSON: one blank, or a line break and its indentation. Runs of blanks without end do not pass.
WHITESPACE = r"( |\n[ \t]{0,40})"
OPTIONS = {"whitespace_pattern": WHITESPACE, "json_allow_general_unicode_escapes": True}
# Where an object may have more properties than those that it names: with \u escapes the name of a property, spelled
# another way, would pass for one more, whose value may be anything.
OPTIONS_OF_OPEN_OBJECTS = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": 'nrbtf\\"'}


class Constraint(NamedTuple):
    """`kind` json_schema, lark or regex, as the native engine knows them, and its text."""

    kind: str
    text: str


TOO_SLOW = "it takes longer than a second to compile"  # the native engine's words
Steps = tuple[str | int, ...]  # the way to a place in a schema: keys and indices
Compile = Callable[[Constraint], None]
"""Compiles for a model, or raises SchemaError with the compiler's own words."""


def accept_all(constraint: Constraint) -> None:
    """A Compile without a model behind it: takes everything."""


def any_object() -> Constraint:
    """Some JSON object."""
    return Constraint("json_schema", guided({"type": "object"}, OPTIONS))


def guided(schema: Any, options: dict[str, Any]) -> str:
    """A schema as JSON for the compiler, with these options and whatever options of the compiler it brings left out."""
    return json.dumps({**schema, "x-guidance": options} if isinstance(schema, dict) else schema)


def options_for(schema: Any) -> dict[str, Any]:
    """The compiler's options for a schema that is held in full."""
    return OPTIONS_OF_OPEN_OBJECTS if any(_names_some(value) for _, value in _walk(schema)) else OPTIONS


def _names_some(schema: Any) -> bool:
    """Whether it is an object's schema that says more of some properties than of all others, or counts them."""
    if not isinstance(schema, dict):
        return False
    named = schema.get("properties") or schema.get("patternProperties")
    return (bool(named) and schema.get("additionalProperties") is not False) or "minProperties" in schema


def json_schema(schema: Any, field: str, compile: Compile, *, strict: bool = True) -> tuple[Constraint, list[str]]:
    """The constraint that only JSON passes to which `schema` says yes, and the paths of keywords that had to be
    dropped: none of them with `strict`, which raises SchemaError instead. `field` is the request's own name of the
    schema."""
    schema, dropped = checked_schema(schema, field, strict=strict)
    schema, options, more = fitted_schema(schema, field, compile, strict=strict)
    return Constraint("json_schema", guided(schema, options)), dropped + more


def checked_schema(schema: Any, field: str, *, strict: bool) -> tuple[Any, list[str]]:
    """A copy of JSON's types alone and within the limits, without what the compiler would take and not keep, and the
    paths of that. With `strict` SchemaError is raised instead, and always for what exceeds a limit."""
    schema = json.loads(_checked_text(schema, field))
    _check_limits(schema, field)
    dropped = []
    for steps in list(_uncounted(schema)):
        if strict:
            problem = "can be one more than the required properties, and no more"
            raise SchemaError.at(path_in(field, steps), problem)
        dropped.append(path_in(field, steps))
        del _at(schema, steps[:-1])[steps[-1]]
    return {} if schema is True else schema, dropped


def fitted_schema(schema: Any, field: str, compile: Compile, *, strict: bool) -> tuple[Any, dict[str, Any], list[str]]:
    """`schema`, our own copy, without what answers cannot be held to; the compiler's options for it; and the paths of
    what it lost. With `strict` SchemaError is raised instead."""
    dropped: list[str] = []
    options = options_for(schema)
    for n_tried in range(2 * MAX_DROPPED_ALONE):
        try:
            compile(Constraint("json_schema", guided(schema, options)))
            return schema, options, dropped
        except SchemaError as error:
            alone, all_such, mistake = _culprits(error.message, schema)
            culprits = alone or all_such
            where, message = path_in(field, culprits[0] if culprits else ()), error.message
        if strict or mistake or not culprits:
            break
        culprits = alone if alone and n_tried < MAX_DROPPED_ALONE else all_such
        dropped.extend(path_in(field, steps) for steps in culprits)
        if culprits[0][-1] == "oneOf":
            options = {**options, "coerce_one_of": True}  # one of them at least, if not one alone
            continue
        for steps in sorted(culprits, key=len, reverse=True):  # what lies within another one goes before it
            del _at(schema, steps[:-1])[steps[-1]]
    raise SchemaError.at(where, message)


def regex(pattern: str, field: str, compile: Compile) -> Constraint:
    """The whole answer matches `pattern` (Rust's regex syntax: no look-around, no back-references)."""
    return _compiled(Constraint("regex", pattern), field, compile)


# Texts, patterns and comments of Lark.
_LARK_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*')


def any_grammar(text: str, field: str, compile: Compile) -> Constraint:
    """A grammar in llguidance's form of Lark, or in llama.cpp's GBNF, which `::=` tells."""
    _check_size(text, field)
    if re.sub(_LARK_LITERALS, "", text).count("&") >= MAX_JOINT:
        raise SchemaError.at(field, f"joins terminals by & more than {MAX_JOINT - 1} times")
    for schema in _inner_schemas(text):
        _check_limits(schema, field)
    if "::=" in text:
        try:
            from llguidance.gbnf_to_lark import gbnf_to_lark  # an extra, and needed by few
        except ImportError:
            problem = f"{field}: GBNF is read by the package llguidance, which is not installed: pip install llguidance"
            raise ServerError(problem, code="missing_library") from None
        try:
            text = gbnf_to_lark(text)
        except Exception as error:  # whatever its parser stumbles over
            raise SchemaError.at(field, f"is no GBNF: {str(error)[:200]}") from None
    return _compiled(Constraint("lark", text), field, compile)


def _inner_schemas(text: str) -> Iterator[Any]:
    """The JSON schemas that stand in a Lark grammar, as far as they are JSON."""
    for found in re.finditer(r"%json\s*(?={)", text):
        try:
            yield json.JSONDecoder().raw_decode(text, found.end())[0]
        except (ValueError, RecursionError):
            continue


def choice(choices: Sequence[str], field: str, compile: Compile) -> Constraint:
    """One of these texts, to the letter."""
    if not choices or len(choices) > MAX_CHOICES or not all(isinstance(text, str) and text for text in choices):
        raise SchemaError.at(field, f"must be 1 to {MAX_CHOICES} texts, none of them empty")
    return _compiled(Constraint("lark", "start: " + " | ".join(map(json.dumps, choices))), field, compile)


def _compiled(constraint: Constraint, field: str, compile: Compile) -> Constraint:
    _check_size(constraint.text, field)
    try:
        compile(constraint)
    except SchemaError as error:
        raise SchemaError.at(field, error.message) from None
    return constraint


def _checked_text(schema: Any, field: str) -> str:
    if not isinstance(schema, (dict, bool)):
        raise SchemaError.at(field, "a JSON schema is an object, or true or false")
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()  # half of a surrogate pair is no text
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError.at(field, f"is no JSON: {str(error)[:200]}") from None
    _check_size(text, field)
    return text


def _check_size(text: str, field: str) -> None:
    n_bytes = len(text.encode())
    if n_bytes > MAX_TEXT_BYTES:
        raise SchemaError.at(field, f"has {n_bytes} bytes, more than {MAX_TEXT_BYTES}")
    if "\0" in text:
        raise SchemaError.at(field, "cannot hold a NUL character")


def _check_limits(schema: Any, field: str) -> None:
    """Refuses what is known to exhaust the compiler, and what it takes and does not keep, before it sees it."""
    for steps, value in _walk(schema):
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
    if _is_within(_VALUES, steps):
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


def _uncounted(schema: Any) -> Iterator[Steps]:
    """Where properties are to be counted that may have the same name, so that JSON would have fewer of them."""
    for steps, value in _walk(schema):
        least = value.get("minProperties") if isinstance(value, dict) else None
        if isinstance(least, int) and _is_schema(steps):
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
    for steps, value in _walk(schema):
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
        target: Any = _at(schema, start)
        place = start
        for part in unquote(fragment).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            step = int(part) if isinstance(target, list) and part.isdecimal() else part
            place, target = (*place, step), _at(target, (step,))
        found[steps] = place
    return found


def _last_part(name: str) -> str:
    return re.split("[/#]", name.rstrip("/#"))[-1]


def _at(value: Any, steps: Steps) -> Any:
    """What stands there; None if nothing does."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


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
        inner = {key: count(item, (*steps, key)) for key, item in value.items() if key not in _DATA | _DEFINITIONS}
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
        count(_at(schema, steps), steps)


def _walk(schema: Any) -> Iterator[tuple[Steps, Any]]:
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


class _Complaint(NamedTuple):
    """How the compiler words a complaint, and what it is about. Groups of `words`: keys, a JSON list of keywords;
    keyword; value, of the keyword; regex; pointer, to a schema."""

    words: re.Pattern[str]
    keywords: str = ""  # where the words do not name them
    mistake: bool = False  # no mere wish: nothing is dropped for it


_COMPLAINTS = (
    _Complaint(re.compile(r"Unimplemented keys: (?P<keys>\[.*\])")),
    _Complaint(re.compile(r"Unknown format: (?P<value>.*)"), "format"),
    _Complaint(re.compile(r"oneOf constraints"), "oneOf"),
    _Complaint(re.compile(r"min/maxProperties"), "minProperties maxProperties"),
    _Complaint(re.compile(r"patternProperty regexes"), "patternProperties"),
    _Complaint(re.compile(r"regex parse error:\s+(?P<regex>.*)"), "pattern"),
    _Complaint(re.compile(r"circular references .*#(?P<pointer>.*)"), "$ref", True),
    _Complaint(re.compile(r"Invalid type: (?P<value>.*)"), "type", True),
    _Complaint(re.compile(r"(Pointer|Resource) '(?P<value>[^']*)"), "$ref $schema", True),
    _Complaint(re.compile(r"Invalid URI reference '(?P<value>.*?)':"), "$ref $id id", True),
    _Complaint(re.compile(r"Expected .* for '(?P<keyword>[^']*)'"), "", True),
    _Complaint(re.compile(r"^(?P<keyword>\$?[a-zA-Z]+) must be an? (string|array|object)"), "", True),
    _Complaint(re.compile(r"invalid multiple of|Value for 'multipleOf'"), "multipleOf", True),
)
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}  # whose keys are no keywords
_DEFINITIONS = {"$defs", "definitions"}
_VALUES = {"enum", "const"}  # what an answer is compared with
_DATA = {*_VALUES, "default", "examples"}  # whose values are no schemas


def _culprits(message: str, schema: Any) -> tuple[list[Steps], list[Steps], bool]:
    """The steps to the keywords that a refusal is about, as far as its words say; those to all keywords of the kind;
    and whether it is about a mistake rather than about something that is not supported."""
    for complaint in _COMPLAINTS:
        if found := complaint.words.search(message):
            said = found.groupdict()
            keywords = json.loads(said["keys"]) if "keys" in said else complaint.keywords.split()
            keywords = keywords or [said["keyword"]]
            places = [
                (steps, value)
                for steps, value in _walk(schema)
                if steps and steps[-1] in keywords and _is_keyword(steps) and not _is_within(_DATA, steps[:-1])
            ]
            if "regex" in said:
                names = [(steps, steps[-1]) for steps, _ in _walk(schema) if _is_pattern(steps)]
                meant = [steps for steps, regex in (*places, *names) if _printed(regex)[:200] in message]
            elif "pointer" in said:
                schema_at = tuple(said["pointer"].split("/")[1:])
                meant = [steps for steps, _ in places if tuple(map(str, steps[:-1])) == schema_at]
            elif "value" in said:
                meant = [steps for steps, value in places if _says(value, said["value"].strip())]
            else:
                meant = []
            return meant, [steps for steps, _ in places], complaint.mistake
    return [], [], True


def _is_keyword(steps: Steps) -> bool:
    """Whether the last step is a keyword, not the name of a property or of a definition."""
    return len(steps) < 2 or steps[-2] not in _NAMED or not _is_keyword(steps[:-1])


def _is_pattern(steps: Steps) -> bool:
    """Whether the last step is one of patternProperties."""
    within = steps[:-1]
    return within[-1:] == ("patternProperties",) and _is_keyword(within) and not _is_within(_DATA, within)


def _is_schema(steps: Steps) -> bool:
    """Whether a schema can stand there, rather than a table of them or a value."""
    return not (steps and steps[-1] in _NAMED and _is_keyword(steps)) and not _is_within(_DATA, steps)


def _is_within(keywords: set[str], steps: Steps) -> bool:
    """Whether one of these keywords is on the way."""
    return any(step in keywords and _is_keyword(steps[: i + 1]) for i, step in enumerate(steps))


def _printed(regex: Any) -> str:
    """A pattern as complaints quote it."""
    return str(regex).replace("\n", "\\n")


def _says(value: Any, said: str) -> bool:
    return said in value if isinstance(value, list) else isinstance(value, str) and value.rstrip("#").endswith(said)


def path_in(field: str, steps: Steps) -> str:
    """The path of a keyword as messages name it. A property may have any name, so none of its signs are left out."""
    return field + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
