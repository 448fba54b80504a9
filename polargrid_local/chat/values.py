"""Values: the types that a chat template may work with, and what it may ask of each."""

from __future__ import annotations

from jinja2.filters import _GroupTuple
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Cycler

from polargrid_local.chat.taint import TaintedText

_STRING = frozenset(
    [
        "capitalize",
        "casefold",
        "center",
        "count",
        "endswith",
        "find",
        "format",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "join",
        "ljust",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rjust",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "zfill",
    ]
)
_LIST = frozenset(("count", "index"))
ATTRIBUTES: dict[type, frozenset[str]] = {
    str: _STRING,
    TaintedText: _STRING,
    list: _LIST,
    tuple: _LIST,
    _GroupTuple: _LIST | {"grouper", "list"},
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    range: frozenset(("start", "step", "stop")),
    float: frozenset(("is_integer",)),
    Cycler: frozenset(("current", "next", "reset")),
    Macro: frozenset(("arguments", "caller", "catch_kwargs", "catch_varargs", "name")),
    LoopContext: frozenset(
        (
            "changed",
            "cycle",
            "depth",
            "depth0",
            "first",
            "index",
            "index0",
            "last",
            "length",
            "nextitem",
            "previtem",
            "revindex",
            "revindex0",
        )
    ),
}
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
NUMBERS = (int, float, bool)
STRINGS = (str, TaintedText)
ROWS = (list, tuple, _GroupTuple)
SCALARS = (str, TaintedText, int, float, bool, type(None))
DATA = (*SCALARS, list, tuple, _GroupTuple, dict, range, *VIEWS)
