"""Docstrings: what the three common styles (Google, NumPy, Sphinx) say of a function and of its parameters."""

from __future__ import annotations

import re
from itertools import takewhile
from textwrap import dedent

_PARAMETERS = "Args|Arguments|Params|Parameters|Keyword Args|Keyword Arguments|Other Parameters"
_SECTION = re.compile(rf":\w|(?:{_PARAMETERS}|Returns?|Yields?|Raises|Examples?|Notes?):? *$")
_INDENTED = r"(?: +\S.*\n| *\n)*"

# A block of a docstring, and in it the entries: the names, with commas between them, and the text.
_GOOGLE = re.compile(rf"^(?:{_PARAMETERS}): *\n({_INDENTED})", re.MULTILINE)
_GOOGLE_ENTRY = re.compile(rf"^(\w+) *(?:\(.*?\))? *:(.*\n{_INDENTED})", re.MULTILINE)
_NUMPY = re.compile(r"^(?:Other )?Parameters *\n-{3,} *\n((?:(?!.*\n-{3,} *\n).*\n)*)", re.MULTILINE)
_NUMPY_ENTRY = re.compile(rf"^(\w+(?: *, *\w+)*) *(?::.*)?\n({_INDENTED})", re.MULTILINE)
_SPHINX_ENTRY = re.compile(
    rf"^:(?:param|parameter|arg|argument|key|keyword) (?:[^:\n]* )?(\w+) *:(.*\n{_INDENTED})", re.MULTILINE
)


def summary(doc: str) -> str:
    """The first paragraph of a docstring without indentation, in one line; "" where that is no prose."""
    lines = takewhile(lambda line: line.strip() and not _SECTION.match(line), doc.splitlines())
    return " ".join(" ".join(lines).split())


def parameter_texts(doc: str) -> dict[str, str]:
    """What a docstring without indentation says of each parameter, in one line."""
    doc += "\n"
    entries = _SPHINX_ENTRY.findall(doc)
    for block in _GOOGLE.findall(doc):
        entries += _GOOGLE_ENTRY.findall(dedent(block))
    for block in _NUMPY.findall(doc):
        entries += _NUMPY_ENTRY.findall(block)
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}
