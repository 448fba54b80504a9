"""The sandbox in which a chat template runs: Jinja's immutable one, narrowed to what has a known cost.

A template is a program from a stranger. Two rules hold it, beside those of `compiler`:
- Every type has a list of what a template may ask of it (`_ATTRIBUTES`), and only those, macros and a few functions can
  be called. Filters, tests, globals and kinds of syntax are lists too. What is on no list is refused.
- Whatever can make something large, or take long, is paid for out of the render's Budget before it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import _GroupTuple
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace

from polargrid_local.chat.budget import MAX_BITS, MAX_DEPTH, MAX_ITEMS, MAX_WIDTH, over_limit
from polargrid_local.chat.compiler import GenerationTag, SandboxCodeGenerator, TokenLimits
from polargrid_local.chat.filters import CALLABLES, FILTERS, GLOBALS, LINE_ENDS, TESTS
from polargrid_local.chat.taint import TaintedText, TaintTable, join_tainted, plain_of
from polargrid_local.errors import TemplateError

_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))  # Unicode's last one is U+3000
_NUMBER = re.compile(r"\d+")
_FIELD = re.compile(r"%(?:\(([^()]*)\))?([#0\- +]*)(\d*)(?:\.(\d*))?[hlL]?(.)?", re.DOTALL)

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
_ATTRIBUTES: dict[type, frozenset[str]] = {
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
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_NUMBERS = (int, float, bool)
_STRINGS = (str, TaintedText)
_ROWS = (list, tuple, _GroupTuple)
_SCALARS = (str, TaintedText, int, float, bool, type(None))
_DATA = (*_SCALARS, list, tuple, _GroupTuple, dict, range, *_VIEWS)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "lteq": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "gteq": lambda a, b: a >= b,
}


def _search(n: int, m: int) -> int:
    """The most comparisons that finding m characters among n takes: up to some size Python tries place by place, and
    only for larger texts it takes a linear algorithm."""
    return n + min(n * m, 3_000_000)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one render, with its taint table and budget. `now` is the time that strftime_now tells."""

    code_generator_class = SandboxCodeGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, taints: TaintTable, now: datetime) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            cache_size=0,
            extensions=("jinja2.ext.loopcontrols", GenerationTag, TokenLimits),
        )
        self.taints = taints
        self.budget = taints.budget
        self.spend = taints.budget.spend
        self.now = now
        self.filters = FILTERS
        self.tests = TESTS
        self.globals = dict(GLOBALS)
        self._depth = 0

    def handle_exception(self, source: str | None = None) -> Any:
        """The exception as it is. Jinja's rewritten traceback would be a reference cycle that keeps callers' frames."""
        raise

    # text out of values

    def shown(self, value: Any) -> str:
        """str() of a string, number, list or dict; anything else would show the interpreter's insides."""
        kind = type(value)
        if kind is str or kind is TaintedText:
            text: str = value
            return text
        if isinstance(value, Undefined):
            if value._undefined_exception is SecurityError:
                value._fail_with_undefined_error()
            return str(value)
        if kind in _SCALARS:
            return str(value)
        self.budget.make(self.size(value))
        return self.retaint(str(value))  # the user's strings inside are placeholders

    def represented(self, value: Any) -> str:
        self.budget.make(self.size(value))
        return self.retaint(repr(value))

    def size(self, value: Any) -> int:
        """The most characters that repr or JSON may need. Walks shared parts as often as they do, and pays for it."""
        total, stack = 0, [(value, 0)]
        while stack:
            item, depth = stack.pop()
            self.spend(1)
            kind = type(item)
            if kind in _STRINGS:
                total += 4 * len(item)
            elif kind not in _DATA and not isinstance(item, Undefined):
                raise TemplateError(f"chat template: uses a {kind.__name__} as text")
            elif depth > MAX_DEPTH:
                raise over_limit(f"data nested deeper than {MAX_DEPTH}", MAX_DEPTH)
            elif kind is dict:
                stack += [(part, depth + 1) for pair in item.items() for part in pair]
            elif kind in _ROWS or kind in _VIEWS:
                self.budget.items(len(item))
                stack += [(part, depth + 1) for part in item]
            elif kind is int:
                total += item.bit_length() // 3
            total += 24
        return total

    def concat(self, parts: Iterable[str]) -> str:
        kept = []
        for part in parts:
            self.budget.make(str.__len__(part))
            kept.append(part)
        self.budget.make(sum(map(str.__len__, kept)))
        return join_tainted(kept)

    def glue(self, items: Iterable[Any]) -> str:
        return self.concat(map(self.shown, items))

    # operators

    def compare(self, value: Any, *rest: Any) -> Any:
        """value op value [op value ...]"""
        result: Any = True
        for op, other in zip(rest[::2], rest[1::2]):
            result = self._compare(op, value, other)
            if not result:
                break
            value = other
        return result

    def _compare(self, op: str, left: Any, right: Any) -> Any:
        if op == "in":
            return self.contains(right, left)
        if op == "notin":
            return not self.contains(right, left)
        kinds = type(left), type(right)
        if kinds[0] in _STRINGS and kinds[1] in _STRINGS:
            self.budget.read(min(str.__len__(left), str.__len__(right)))
        elif kinds[0] in _SCALARS or kinds[1] in _SCALARS:
            self.spend(1)
        elif kinds[0] in _VIEWS or kinds[1] in _VIEWS:
            raise TemplateError("chat template: compares the keys or items of a dict as a whole")
        elif kinds[0] in _DATA and kinds[1] in _DATA and kinds[0] is not range:
            self.budget.read(min(self.size(left), self.size(right)))
        return _COMPARE[op](left, right)

    def contains(self, many: Any, item: Any) -> Any:
        kind = type(many)
        if kind in _STRINGS:
            if type(item) not in _STRINGS:
                raise TypeError(f"'in <string>' requires string as left operand, not {type(item).__name__}")
            many, item = plain_of(many), plain_of(item)
            self.budget.read(_search(len(many), len(item)))
        elif kind is dict or kind is _VIEWS[0]:
            self.key(item)
        elif kind is range:
            self.spend(1 if type(item) is int else len(many))
        elif kind in _ROWS or kind in _VIEWS:
            self.each_compared(many, item)
        elif not isinstance(many, Undefined):
            many = self.listed(many)
            self.each_compared(many, item)
        return item in many

    def each_compared(self, many: Any, item: Any) -> None:
        """Before `item` is compared with every one of many: no comparison takes more than its own size."""
        self.spend(1 + len(many))
        size = str.__len__(item) if type(item) in _STRINGS else self.size(item) if type(item) in _DATA else 0
        self.budget.read(size * len(many))

    def key(self, value: Any) -> Any:
        """A key of a dict. Only text and numbers: others can be made to collide by the thousand."""
        kind = type(value)
        if kind in _STRINGS:
            self.budget.read(len(value))
        elif kind is int or kind is float:
            if not abs(value) < 2**60:
                raise TemplateError("chat template: a number beyond 2**60 as a key")
        elif kind not in _SCALARS and not isinstance(value, Undefined):
            raise TemplateError(f"chat template: a {kind.__name__} as a key")
        return value

    def mapping(self, pairs: Iterable[Any]) -> dict[Any, Any]:
        """A dict of (key, value) pairs."""
        out: dict[Any, Any] = {}
        for key, value in pairs:
            self.spend(1)
            out[self.key(key)] = value
        self.weighed(out)
        return out

    def weighed(self, value: Any) -> Any:
        """Refuses lists of lists that share their parts: small in memory, endless to walk."""
        n_items, stack = 0, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                item = item.values()
            elif not isinstance(item, (list, tuple)):
                continue
            n_items += len(item)
            if n_items > MAX_ITEMS:
                raise over_limit(f"makes a list of more than {MAX_ITEMS} items", MAX_ITEMS)
            self.spend(1 + len(item) // 16)
            stack += [part for part in item if isinstance(part, (list, tuple, dict))]
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        kinds = type(left), type(right)
        if operator == "%" and kinds[0] in _STRINGS:
            return self.percent(left, right)
        if kinds[0] in _NUMBERS and kinds[1] in _NUMBERS:
            self.spend(1)
            if operator == "**" and not abs(right) <= 64:
                raise TemplateError("chat template: ** with an exponent beyond 64")
        elif operator == "+" and kinds[0] in _STRINGS and kinds[1] in _STRINGS:
            self.budget.make(str.__len__(left) + str.__len__(right))
        elif operator == "+" and kinds[0] in _ROWS and kinds[1] in _ROWS:
            self.budget.items(len(left) + len(right))
        elif operator == "*" and kinds[0] is int and (kinds[1] in _STRINGS or kinds[1] in _ROWS):
            return self.call_binop(context, operator, right, left)
        elif operator == "*" and kinds[0] in _STRINGS and kinds[1] in (int, bool):
            self.budget.make(str.__len__(left) * max(right, 0))
        elif operator == "*" and kinds[0] in _ROWS and kinds[1] in (int, bool):
            self.budget.items(len(left) * max(right, 0))
        elif not isinstance(left, Undefined) and not isinstance(right, Undefined):  # these raise what they should
            raise TypeError(f"unsupported operand types for {operator}: {kinds[0].__name__} and {kinds[1].__name__}")
        return self.number(self.binop_table[operator](left, right))

    def number(self, value: Any) -> Any:
        if type(value) is int and value.bit_length() > MAX_BITS:
            raise over_limit(f"makes a number of more than {MAX_BITS} bits", MAX_BITS)
        return value

    # attributes, items, calls

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.spend(1)
        kind = type(obj)
        if attribute in _ATTRIBUTES.get(kind, ()):
            return getattr(obj, attribute)
        if isinstance(obj, Undefined):
            return obj[attribute]  # raises UndefinedError, which names what is undefined
        if kind is Namespace:
            if attribute.startswith("_"):
                return self.unsafe_undefined(obj, attribute)
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        if hasattr(kind, attribute) or (attribute.startswith("_") and kind is not dict):
            return self.unsafe_undefined(obj, attribute)
        if kind is dict:
            try:
                return obj[attribute]
            except KeyError:
                pass
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.spend(1)
        kind = type(obj)
        if isinstance(obj, Undefined):
            return obj[argument]  # raises UndefinedError, which names what is undefined
        if type(argument) is slice:
            return self.sliced(obj, argument)
        if kind is dict or kind in _STRINGS or kind in _ROWS or kind is range:
            try:
                return obj[self.key(argument)]
            except (TypeError, LookupError):
                pass
        if type(argument) in _STRINGS:
            name = plain_of(argument)
            return (
                self.undefined(obj=obj, name=name)
                if kind is dict and not hasattr(dict, name)
                else self.getattr(obj, name)
            )
        return self.undefined(obj=obj, name=self.key(argument))

    def sliced(self, obj: Any, part: slice) -> Any:
        kind = type(obj)
        if kind is str:
            self.budget.make(len(obj))
        elif kind in _ROWS:
            self.budget.items(len(obj))
        elif kind is not TaintedText and kind is not range:
            raise TypeError(f"a {kind.__name__} has no slices")
        return obj[part]

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.spend(2 + len(args) + len(kwargs))
        kind = type(obj)
        if kind is BuiltinMethodType or kind is MethodType:
            owner, name = obj.__self__, obj.__name__
            for internal in "_loop_vars", "_block_vars":  # for functions that want the context
                kwargs.pop(internal, None)
            if name not in _ATTRIBUTES.get(type(owner), ()):
                raise TemplateError(f"chat template: {name} is not available")
            if isinstance(owner, str):
                return self.text_call(owner, name, *args, **kwargs)
            if name in ("count", "index") and args:
                self.each_compared(owner, args[0])
            elif name == "get" and args:
                self.key(args[0])
            elif name == "copy":
                self.budget.items(4 * len(owner))
            elif name == "changed":
                self.budget.read(self.size(args))
            return obj(*args, **kwargs)
        if kind is Macro or kind is LoopContext:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise over_limit(f"macros or loops nested deeper than {MAX_DEPTH}", MAX_DEPTH)
            try:
                return context.call(obj, *args, **kwargs)
            finally:
                self._depth -= 1
        if kind is Joiner or isinstance(obj, Undefined) or any(obj is known for known in CALLABLES):
            return context.call(obj, *args, **kwargs)
        raise TemplateError(f"chat template: a {kind.__name__} is not for calling")

    # strings

    def text_call(self, owner: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """owner.name(...), priced first."""
        if name == "format":
            return self.formatted(owner, args, kwargs)
        values = [*args, *kwargs.values()]
        if name == "join":
            if len(values) != 1:
                raise TypeError("join takes one list")
            return self.join(owner, values[0])
        for value in values:
            if isinstance(value, tuple):  # startswith and endswith take several
                self.budget.items(len(value))
                self.budget.read(sum(len(part) for part in value if isinstance(part, str)))
            elif type(value) is int and abs(value) > MAX_ITEMS:
                raise over_limit(f"{name} with a number beyond {MAX_ITEMS}", MAX_ITEMS)
        if type(owner) is str and any(isinstance(value, (TaintedText, tuple)) for value in values):
            owner = TaintedText(owner, self.taints)  # so that what stands behind the placeholders is compared
        self._price(name, plain_of(owner), [plain_of(value) if isinstance(value, str) else value for value in values])
        return getattr(owner, name)(*args, **kwargs)

    def _price(self, name: str, text: str, values: list[Any]) -> None:
        n = len(text)
        first = values[0] if values else None
        m = len(first) if isinstance(first, str) else 0
        budget = self.budget
        if name in ("rfind", "rindex", "rsplit", "rpartition"):  # Python looks backwards the naive way
            budget.read(n * max(m, 1))
        elif name in ("strip", "lstrip", "rstrip"):
            budget.read(n * max(m, 1))
            budget.make(n)
        elif m:
            budget.read(_search(n, m))
        if name in ("center", "ljust", "rjust", "zfill"):
            budget.make(max(n, first) if isinstance(first, int) else n)
        elif name == "replace":
            new = values[1] if len(values) > 1 and isinstance(values[1], str) else ""
            found = text.count(first) if isinstance(first, str) else 0
            budget.make(n + found * len(new))
            budget.items(4 * found)
        elif name in ("split", "rsplit"):
            budget.make(n)
            budget.items(4 * (text.count(str(first)) if m else sum(map(text.count, _SPACES))))
        elif name == "splitlines":
            budget.make(n)
            budget.items(4 * sum(map(text.count, LINE_ENDS)))
        elif name.startswith(("is", "starts", "ends")) or name in ("count", "find", "rfind", "index", "rindex"):
            budget.read(8 * n)  # character by character
        else:
            budget.make(3 * n)  # the most that changing case makes of a character

    def join(self, separator: str, items: Any) -> str:
        parts: list[str] = []
        for item in self.listed(items):
            if type(item) not in _STRINGS:
                raise TypeError(f"join: {type(item).__name__} found, only strings can be joined")
            if parts:
                parts.append(separator)
            parts.append(item)
        return self.concat(parts)

    def formatted(self, form: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """form.format(...). The user's parts of the form are text, never fields."""
        self.budget.make(str.__len__(form))
        return self.retaint(_Formatter(self).vformat(str.__str__(form), args, kwargs))

    def percent(self, form: str, args: Any) -> str:
        """form % args. The user's parts of the form are text, never fields."""
        raw = str.__str__(form)
        named = args if type(args) is dict else None
        left = list(args) if isinstance(args, tuple) else [args]
        parts: list[str] = []
        at = n_used = 0
        for field in _FIELD.finditer(raw):
            parts.append(raw[at : field.start()])
            at = field.end()
            key, flags, width, precision, kind = field.groups()
            if kind == "%":
                parts.append("%")
                continue
            if kind is None or kind not in "sdiufFeEgGxXocr":
                raise ValueError(f"unsupported format character {kind or ''!r}")
            if key is not None:
                if named is None:
                    raise TypeError("format requires a mapping")
                value = named[self.key(key)]
            elif n_used == len(left):
                raise TypeError("not enough arguments for format string")
            else:
                value = left[n_used]
                n_used += 1
            parts.append(self._field(value, "%" + flags, width, precision, kind))
        if named is None and n_used < len(left):
            raise TypeError("not all arguments converted during string formatting")
        return self.concat([*parts, raw[at:]])

    def _field(self, value: Any, start: str, width: str, precision: str | None, kind: str) -> str:
        self.check_width(width + " " + (precision or ""))
        if kind in "sr":
            text = value = self.represented(value) if kind == "r" else self.shown(value)
            kind = "s"
            if not width and precision is None:
                return text
        elif type(value) not in _SCALARS:
            raise TypeError(f"%{kind} format: a number is required, not {type(value).__name__}")
        self.budget.make(2 * MAX_WIDTH if width or precision else MAX_BITS)
        if isinstance(value, str):
            self.budget.make(len(value))
        is_tainted = isinstance(value, TaintedText)
        text = (start + width + ("" if precision is None else "." + precision) + kind) % (
            plain_of(value) if is_tainted else value
        )
        return self.taints.taint(text) if is_tainted else text

    def check_width(self, spec: str) -> None:
        if any(len(number) > 4 for number in _NUMBER.findall(spec)):
            raise over_limit(f"a format field wider than {MAX_WIDTH}", MAX_WIDTH)

    def retaint(self, text: str) -> str:
        """A plain string that may hold placeholders, as TaintedText."""
        return text if text.isascii() else join_tainted((TaintedText(text, self.taints),))

    # lists

    def listed(self, items: Any) -> Any:
        """Something sized with the same items. Raises TypeError for what has none."""
        if isinstance(items, Undefined):
            return []
        if type(items) in _STRINGS:
            self.spend(len(items))
            return list(items)
        if type(items) not in _DATA and not isinstance(items, Iterator):
            raise TypeError(f"a {type(items).__name__} is not a list")
        if type(items) in (*_ROWS, range, dict, *_VIEWS):
            self.budget.items(len(items))
            return items
        return list(self.each(items))

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same, paid for one by one."""
        for item in items:
            self.spend(1)
            yield item


class _Formatter(SandboxedFormatter):
    """str.format with attributes and items through the sandbox, and widths bounded."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._sandbox = sandbox

    def format_field(self, value: Any, format_spec: str) -> str:
        sandbox = self._sandbox
        if not format_spec:
            text = sandbox.shown(value)
        else:
            sandbox.check_width(format_spec)
            if type(value) not in _SCALARS:
                raise TypeError(f"a {type(value).__name__} has no format")
            sandbox.budget.make(3 * MAX_WIDTH + (len(value) if isinstance(value, str) else MAX_BITS))
            text = format(value, format_spec)
        sandbox.budget.make(str.__len__(text))
        return text

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion is None:
            return value
        if conversion == "s":
            return self._sandbox.shown(value)
        if conversion == "r":
            return self._sandbox.represented(value)
        raise ValueError(f"conversion !{conversion} is not available")
