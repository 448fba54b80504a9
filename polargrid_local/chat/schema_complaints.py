"""The compiler's complaints about a schema: from its words to the keywords that they are about."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from polargrid_local.chat.schema_places import DATA, Steps, is_keyword, is_within, walk


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


def culprits_of(message: str, schema: Any) -> tuple[list[Steps], list[Steps], bool]:
    """The steps to the keywords that a refusal is about, as far as its words say; those to all keywords of the kind;
    and whether it is about a mistake rather than about something that is not supported."""
    for complaint in _COMPLAINTS:
        if found := complaint.words.search(message):
            said = found.groupdict()
            keywords = json.loads(said["keys"]) if "keys" in said else complaint.keywords.split()
            keywords = keywords or [said["keyword"]]
            places = [
                (steps, value)
                for steps, value in walk(schema)
                if steps and steps[-1] in keywords and is_keyword(steps) and not is_within(DATA, steps[:-1])
            ]
            if "regex" in said:
                names = [(steps, steps[-1]) for steps, _ in walk(schema) if _is_pattern(steps)]
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


def _is_pattern(steps: Steps) -> bool:
    """Whether the last step is one of patternProperties."""
    within = steps[:-1]
    return within[-1:] == ("patternProperties",) and is_keyword(within) and not is_within(DATA, within)


def _printed(regex: Any) -> str:
    """A pattern as complaints quote it."""
    return str(regex).replace("\n", "\\n")


def _says(value: Any, said: str) -> bool:
    return said in value if isinstance(value, list) else isinstance(value, str) and value.rstrip("#").endswith(said)
