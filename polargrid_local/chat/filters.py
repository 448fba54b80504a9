"""The filters, tests and functions that a chat template may use: Jinja's own, paid for out of the render's budget."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Undefined
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Cycler, Joiner, Namespace

from polargrid_local.chat.budget import MAX_DIGITS, MAX_ITEMS, over_limit, printable
from polargrid_local.chat.formatting import percent
from polargrid_local.chat.taint import TaintedText, plain_of, to_json
from polargrid_local.chat.values import NUMBERS
from polargrid_local.errors import TemplateError

if TYPE_CHECKING:
    from polargrid_local.chat.sandbox import Sandbox

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
MAX_DATE_FORMAT = 1_000  # characters

_WIDE_DATE = re.compile(r"%[^A-Za-z%]*\d")  # glibc pads a field to a given width: %999d


@jinja2.pass_environment
def _range(sandbox: Sandbox, *args: int) -> range:
    numbers = range(*args)
    if max(abs(numbers.start), abs(numbers.stop), len(numbers)) > MAX_ITEMS:
        raise over_limit(f"a range beyond {MAX_ITEMS}", MAX_ITEMS)
    return numbers


@jinja2.pass_environment
def _raise(sandbox: Sandbox, message: Any = "") -> None:
    spans = sandbox.taints.spans(sandbox.shown(message))
    raise TemplateError(
        f"chat template: {printable(''.join(text if trusted else '…' for text, trusted in spans))}", param="messages"
    )


@jinja2.pass_environment
def _strftime(sandbox: Sandbox, form: str) -> str:
    text = plain_of(form)
    if len(text) > MAX_DATE_FORMAT or _WIDE_DATE.search(text):
        raise TemplateError(f"chat template: a date's format of more than {MAX_DATE_FORMAT} characters, or with widths")
    sandbox.budget.make(64 * len(text))
    date = sandbox.now.strftime(text)
    return sandbox.taints.taint(date) if isinstance(form, TaintedText) else date


@jinja2.pass_environment
def _dict(sandbox: Sandbox, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    if len(args) > 1:
        raise TypeError("dict takes one mapping or list of pairs")
    given = args[0] if args else ()
    pairs = given.items() if type(given) is dict else sandbox.listed(given)
    return sandbox.mapping([*pairs, *kwargs.items()])


@jinja2.pass_environment
def _namespace(sandbox: Sandbox, *args: Any, **kwargs: Any) -> Namespace:
    return Namespace(_dict(sandbox, *args, **kwargs))


GLOBALS: dict[str, Any] = {
    "range": _range,
    "dict": _dict,
    "namespace": _namespace,
    "joiner": Joiner,
    "cycler": Cycler,
    "raise_exception": _raise,
    "strftime_now": _strftime,
}
CALLABLES = tuple(GLOBALS.values())


def _method(name: str) -> Callable[..., Any]:
    """A filter that is a method of strings."""
    return lambda sandbox, value, *args, **kwargs: sandbox.text_call(sandbox.shown(value), name, *args, **kwargs)


def _jinjas(name: str) -> Callable[..., Any]:
    """Jinja's own filter, without its wrapper for templates that run in an event loop."""
    filter: Callable[..., Any] = inspect.unwrap(JINJA_FILTERS[name])
    return filter


def _lazy(name: str) -> Callable[..., Any]:
    """One of Jinja's filters that are generators, run at once: a thousand nested ones would exhaust the stack."""
    func = _jinjas(name)

    def run(sandbox: Sandbox, context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return iter(list(sandbox.each(func(context, sandbox.listed(value) if value else (), *args, **kwargs))))

    return _with_context(run)


def _with_context(func: Callable[..., Any]) -> Callable[..., Any]:
    func.wants_context = True  # type: ignore[attr-defined]  # functions have it only here, for `_filter`
    return func


def _default(sandbox: Sandbox, *args: Any, **kwargs: Any) -> Any:
    return JINJA_FILTERS["default"](*args, **kwargs)


def _sorted(name: str) -> Callable[..., Any]:
    """One of Jinja's filters that compare items with each other, or an attribute of each."""
    func = _jinjas(name)

    def run(sandbox: Sandbox, value: Any, *args: Any, **kwargs: Any) -> Any:
        items = value.items() if name == "dictsort" and type(value) is dict else value
        items = sandbox.listed(items)
        sizes = [sandbox.size(item) for item in items]
        steps = 1 + math.ceil(math.log2(len(sizes) + 1))
        sandbox.budget.items(4 * len(sizes))
        sandbox.budget.make(sum(sizes))  # Jinja compares copies of the items in lower case
        sandbox.spend(2 * len(sizes) * steps)
        sandbox.budget.read(sum(sizes) * steps)
        sandbox.budget.read(2 * max(sizes, default=0) * steps)
        if name == "dictsort":
            return func(value, *args, **kwargs)
        result = func(sandbox, items, *args, **kwargs)
        return iter(list(result)) if name == "unique" else result

    return run


def _unique(sandbox: Sandbox, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
    items = sandbox.listed(value)
    for item in items:
        sandbox.key(item if attribute is None else sandbox.getitem(item, attribute))
    return _sorted("unique")(sandbox, items, case_sensitive, attribute)


def _batch(sandbox: Sandbox, value: Any, linecount: int, fill_with: Any = None) -> Any:
    items = sandbox.listed(value)
    sandbox.budget.items(4 * len(items) + (max(linecount, 0) if fill_with is not None else 0))
    return iter(list(_jinjas("batch")(items, linecount, fill_with)))


def _slice(sandbox: Sandbox, value: Any, slices: int, fill_with: Any = None) -> Any:
    items = sandbox.listed(value)
    sandbox.budget.items(16 * (len(items) // 4 + max(slices, 0)))
    return iter(list(_jinjas("slice")(items, slices, fill_with)))


def _length(sandbox: Sandbox, value: Any) -> int:
    return len(value)


def _list(sandbox: Sandbox, value: Any) -> list[Any]:
    return list(sandbox.listed(value))


def _reverse(sandbox: Sandbox, value: Any) -> Any:
    if isinstance(value, str):
        return sandbox.sliced(value, slice(None, None, -1))
    return reversed(list(sandbox.listed(value)))


def _sum(sandbox: Sandbox, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    for item in sandbox.listed(value):
        start = sandbox.call_binop(None, "+", start, item if attribute is None else sandbox.getitem(item, attribute))
    return start


def _items(sandbox: Sandbox, value: Any) -> Any:
    if isinstance(value, Undefined):
        return iter(())
    if type(value) is not dict:
        raise TypeError("Can only get item pairs from a mapping.")
    return iter(list(sandbox.listed(value.items())))


def _join(sandbox: Sandbox, items: Any, d: Any = "", attribute: Any = None) -> str:
    items = sandbox.listed(items)
    if attribute is not None:
        items = [sandbox.getitem(item, attribute) for item in items]
    return sandbox.join(sandbox.shown(d), [sandbox.shown(item) for item in items])


def _replace(sandbox: Sandbox, value: Any, old: Any, new: Any, count: int | None = None) -> Any:
    count = -1 if count is None else count
    return sandbox.text_call(sandbox.shown(value), "replace", sandbox.shown(old), sandbox.shown(new), count)


def _format(sandbox: Sandbox, value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("can't handle positional and keyword arguments at the same time")
    return percent(sandbox, sandbox.shown(value), kwargs or args)


def _indent(sandbox: Sandbox, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = sandbox.shown(value)
    size = len(width) if isinstance(width, str) else width
    plain = plain_of(text)
    n_lines = 2 + sum(map(plain.count, LINE_ENDS))
    sandbox.budget.make(n_lines * (max(size, 0) + 64) + 2 * len(plain))
    return sandbox.retaint(JINJA_FILTERS["indent"](text, width, first, blank))


def _title(sandbox: Sandbox, value: Any) -> str:
    text = sandbox.shown(value)
    plain = plain_of(text)
    sandbox.budget.make(16 * len(plain))
    title = JINJA_FILTERS["title"](plain)
    return sandbox.taints.taint(title) if isinstance(text, TaintedText) else title


def _truncate(sandbox: Sandbox, value: Any, *args: Any, **kwargs: Any) -> str:
    text = sandbox.shown(value)
    sandbox.budget.make(3 * len(text))
    short: str = JINJA_FILTERS["truncate"](sandbox, text, *args, **kwargs)
    return short


def _escape(sandbox: Sandbox, value: Any) -> str:
    text = sandbox.shown(value)
    for char, name in ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;"):
        spans = list(sandbox.taints.spans(text))
        sandbox.budget.make(sum(len(part) + part.count(char) * len(name) for part, _ in spans))
        text = sandbox.taints.build((part.replace(char, name), trusted) for part, trusted in spans)
    return sandbox.retaint(str.__str__(text))


def _number(name: str) -> Callable[..., Any]:
    func = JINJA_FILTERS[name]

    def run(sandbox: Sandbox, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, str):
            value = plain_of(value)
            if len(value) > MAX_DIGITS:
                raise over_limit(f"{name} of more than {MAX_DIGITS} characters", MAX_DIGITS)
        return sandbox.number(func(value, *args, **kwargs))

    return run


def _round(sandbox: Sandbox, value: Any, precision: int = 0, method: str = "common") -> Any:
    if type(value) not in NUMBERS or not -300 <= precision <= 300:
        raise TemplateError("chat template: round takes a number, and -300 to 300 digits")
    return sandbox.number(JINJA_FILTERS["round"](value, precision, method))


def _abs(sandbox: Sandbox, value: Any) -> Any:
    if type(value) not in NUMBERS:
        raise TypeError(f"abs of a {type(value).__name__}")
    return abs(value)


def _to_json(
    sandbox: Sandbox,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    before = sandbox.budget.left
    size = sandbox.size(value)
    n_items = before - sandbox.budget.left  # `size` has paid at least one unit for each
    gap = len(indent) if isinstance(indent, str) else max(indent or 0, 0)
    between = sum(len(part) for part in separators) if separators else 4
    sandbox.budget.make(3 * size + n_items * (gap * _depth(value) + between))
    sandbox.spend(4 * n_items)
    return to_json(
        value,
        sandbox.taints,
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        sort_keys=bool(sort_keys),
        separators=tuple(separators) if separators else None,
    )


def _depth(value: Any) -> int:
    """How deep the lists and dicts are. `size` has walked them all before."""
    deepest, stack = 1, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, (dict, list, tuple)):
            deepest = max(deepest, depth + 1)
            stack += [(part, depth + 1) for part in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _filter(func: Callable[..., Any]) -> Callable[..., Any]:
    """As Jinja calls it: with the context, out of which comes the sandbox of this render."""
    wants_context = getattr(func, "wants_context", False)

    @jinja2.pass_context
    def call(context: Any, /, *args: Any, **kwargs: Any) -> Any:
        sandbox = context.environment
        sandbox.spend(2 + len(args) + len(kwargs))
        return func(sandbox, context, *args, **kwargs) if wants_context else func(sandbox, *args, **kwargs)

    return call


FILTERS: dict[str, Any] = {
    name: _filter(func)
    for name, func in {
        **{name: _method(name) for name in ("capitalize", "lower", "upper", "center")},
        **{name: _lazy(name) for name in ("map", "select", "reject", "selectattr", "rejectattr")},
        **{name: _sorted(name) for name in ("sort", "dictsort", "groupby", "min", "max")},
        **{name: _number(name) for name in ("int", "float")},
        "abs": _abs,
        "attr": JINJA_FILTERS["attr"],
        "batch": _batch,
        "count": _length,
        "d": _default,
        "default": _default,
        "e": _escape,
        "escape": _escape,
        "first": lambda sandbox, value: _jinjas("first")(sandbox, sandbox.listed(value)),
        "format": _format,
        "indent": _indent,
        "items": _items,
        "join": _join,
        "last": lambda sandbox, value: _jinjas("last")(sandbox, sandbox.listed(value)),
        "length": _length,
        "list": _list,
        "replace": _replace,
        "reverse": _reverse,
        "round": _round,
        "safe": lambda sandbox, value: sandbox.shown(value),
        "slice": _slice,
        "string": lambda sandbox, value: sandbox.shown(value),
        "sum": _sum,
        "title": _title,
        "tojson": _to_json,
        "trim": lambda sandbox, value, chars=None: sandbox.text_call(sandbox.shown(value), "strip", chars),
        "truncate": _truncate,
        "unique": _unique,
    }.items()
}


def _compared(op: str) -> Callable[..., Any]:
    return jinja2.pass_environment(lambda sandbox, left, right: sandbox.compare(left, op, right))


def _numeric(name: str) -> Callable[..., Any]:
    """odd, even and divisibleby compute `%`, which would format a string: they take numbers only."""
    func: Any = JINJA_TESTS[name]

    def run(value: Any, *args: Any) -> Any:
        if any(type(number) not in NUMBERS for number in (value, *args)):
            raise TypeError(f"{name} takes numbers")
        return func(value, *args)

    return run


def _cased(name: str) -> Callable[..., Any]:
    return jinja2.pass_environment(lambda sandbox, value: sandbox.text_call(sandbox.shown(value), "is" + name))


TESTS: dict[str, Any] = {
    **{
        name: JINJA_TESTS[name]
        for name in (
            "boolean",
            "callable",
            "defined",
            "escaped",
            "false",
            "filter",
            "float",
            "integer",
            "iterable",
            "mapping",
            "none",
            "number",
            "sameas",
            "sequence",
            "string",
            "test",
            "true",
            "undefined",
        )
    },
    **{name: _numeric(name) for name in ("odd", "even", "divisibleby")},
    **{name: _cased(name) for name in ("lower", "upper")},
    **{
        name: _compared(op)
        for op, names in {
            "eq": "== eq equalto",
            "ne": "!= ne",
            "lt": "< lt lessthan",
            "lteq": "<= le",
            "gt": "> gt greaterthan",
            "gteq": ">= ge",
            "in": "in",
        }.items()
        for name in names.split()
    },
}
