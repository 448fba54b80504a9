"""The sandbox in which a chat template runs: Jinja's immutable one, narrowed to what has a known cost.

A template is a program from a stranger. Two rules hold it, beside those of `compiler`:
- Every type has a list of what a template may ask of it (`values.ATTRIBUTES`), and only those, macros and a few
  functions can be called. Filters, tests, globals and kinds of syntax are lists too. What is on no list is refused.
- Whatever can make something large, or take long, is paid for out of the render's Budget before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Joiner, Namespace

from polargrid_local.chat.budget import MAX_BITS, MAX_DEPTH, MAX_ITEMS, over_limit
from polargrid_local.chat.compiler import GenerationTag, SandboxCodeGenerator, TokenLimits
from polargrid_local.chat.filters import CALLABLES, FILTERS, GLOBALS, LINE_ENDS, TESTS
from polargrid_local.chat.formatting import formatted, percent
from polargrid_local.chat.taint import TaintedText, TaintTable, join_tainted, plain_of
from polargrid_local.chat.values import ATTRIBUTES, DATA, NUMBERS, ROWS, SCALARS, STRINGS, VIEWS
from polargrid_local.errors import TemplateError

_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))  # Unicode's last one is U+3000

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

    # values as text

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
        if kind in SCALARS:
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
            if kind in STRINGS:
                total += 4 * len(item)
            elif kind not in DATA and not isinstance(item, Undefined):
                raise TemplateError(f"chat template: uses a {kind.__name__} as text")
            elif depth > MAX_DEPTH:
                raise over_limit(f"data nested deeper than {MAX_DEPTH}", MAX_DEPTH)
            elif kind is dict:
                stack += [(part, depth + 1) for pair in item.items() for part in pair]
            elif kind in ROWS or kind in VIEWS:
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
        if kinds[0] in STRINGS and kinds[1] in STRINGS:
            self.budget.read(min(str.__len__(left), str.__len__(right)))
        elif kinds[0] in SCALARS or kinds[1] in SCALARS:
            self.spend(1)
        elif kinds[0] in VIEWS or kinds[1] in VIEWS:
            raise TemplateError("chat template: compares the keys or items of a dict as a whole")
        elif kinds[0] in DATA and kinds[1] in DATA and kinds[0] is not range:
            self.budget.read(min(self.size(left), self.size(right)))
        return _COMPARE[op](left, right)

    def contains(self, many: Any, item: Any) -> Any:
        kind = type(many)
        if kind in STRINGS:
            if type(item) not in STRINGS:
                raise TypeError(f"'in <string>' requires string as left operand, not {type(item).__name__}")
            many, item = plain_of(many), plain_of(item)
            self.budget.read(_search(len(many), len(item)))
        elif kind is dict or kind is VIEWS[0]:
            self.key(item)
        elif kind is range:
            self.spend(1 if type(item) is int else len(many))
        elif kind in ROWS or kind in VIEWS:
            self.each_compared(many, item)
        elif not isinstance(many, Undefined):
            many = self.listed(many)
            self.each_compared(many, item)
        return item in many

    def each_compared(self, many: Any, item: Any) -> None:
        """Before `item` is compared with every one of many: no comparison takes more than its own size."""
        self.spend(1 + len(many))
        size = str.__len__(item) if type(item) in STRINGS else self.size(item) if type(item) in DATA else 0
        self.budget.read(size * len(many))

    def key(self, value: Any) -> Any:
        """A key of a dict. Only text and numbers: of others thousands could have the same hash, and slow it down."""
        kind = type(value)
        if kind in STRINGS:
            self.budget.read(len(value))
        elif kind is int or kind is float:
            if not abs(value) < 2**60:
                raise TemplateError("chat template: a number beyond 2**60 as a key")
        elif kind not in SCALARS and not isinstance(value, Undefined):
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
        """Refuses nested lists of more than MAX_ITEMS items in all, which by sharing parts may take little memory."""
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
        if operator == "%" and kinds[0] in STRINGS:
            return percent(self, left, right)
        if kinds[0] in NUMBERS and kinds[1] in NUMBERS:
            self.spend(1)
            if operator == "**" and not abs(right) <= 64:
                raise TemplateError("chat template: ** with an exponent beyond 64")
        elif operator == "+" and kinds[0] in STRINGS and kinds[1] in STRINGS:
            self.budget.make(str.__len__(left) + str.__len__(right))
        elif operator == "+" and kinds[0] in ROWS and kinds[1] in ROWS:
            self.budget.items(len(left) + len(right))
        elif operator == "*" and kinds[0] is int and (kinds[1] in STRINGS or kinds[1] in ROWS):
            return self.call_binop(context, operator, right, left)
        elif operator == "*" and kinds[0] in STRINGS and kinds[1] in (int, bool):
            self.budget.make(str.__len__(left) * max(right, 0))
        elif operator == "*" and kinds[0] in ROWS and kinds[1] in (int, bool):
            self.budget.items(len(left) * max(right, 0))
        elif not isinstance(left, Undefined) and not isinstance(right, Undefined):  # they raise UndefinedError
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
        if attribute in ATTRIBUTES.get(kind, ()):
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
        if kind is dict or kind in STRINGS or kind in ROWS or kind is range:
            try:
                return obj[self.key(argument)]
            except (TypeError, LookupError):
                pass
        if type(argument) in STRINGS:
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
        elif kind in ROWS:
            self.budget.items(len(obj))
        elif kind is not TaintedText and kind is not range:
            raise TypeError(f"a {kind.__name__} has no slices")
        return obj[part]

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.spend(2 + len(args) + len(kwargs))
        kind = type(obj)
        if kind is BuiltinMethodType or kind is MethodType:
            owner, name = obj.__self__, obj.__name__
            for internal in "_loop_vars", "_block_vars":  # Jinja adds them for functions that take the context
                kwargs.pop(internal, None)
            if name not in ATTRIBUTES.get(type(owner), ()):
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
        """owner.name(...), paid for first."""
        if name == "format":
            return formatted(self, owner, args, kwargs)
        values = [*args, *kwargs.values()]
        if name == "join":
            if len(values) != 1:
                raise TypeError("join takes one list")
            return self.join(owner, values[0])
        for value in values:
            if isinstance(value, tuple):  # of prefixes or suffixes
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
        if name in ("rfind", "rindex", "rsplit", "rpartition"):  # Python searches backwards place by place
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
            budget.read(8 * n)  # characters are looked at one by one
        else:
            budget.make(3 * n)  # the most that changing case makes of a character

    def join(self, separator: str, items: Any) -> str:
        parts: list[str] = []
        for item in self.listed(items):
            if type(item) not in STRINGS:
                raise TypeError(f"join: {type(item).__name__} found, only strings can be joined")
            if parts:
                parts.append(separator)
            parts.append(item)
        return self.concat(parts)

    def retaint(self, text: str) -> str:
        """A plain string that may hold placeholders, as TaintedText."""
        return text if text.isascii() else join_tainted((TaintedText(text, self.taints),))

    # lists

    def listed(self, items: Any) -> Any:
        """Something sized with the same items. Raises TypeError for what has none."""
        if isinstance(items, Undefined):
            return []
        if type(items) in STRINGS:
            self.spend(len(items))
            return list(items)
        if type(items) not in DATA and not isinstance(items, Iterator):
            raise TypeError(f"a {type(items).__name__} is not a list")
        if type(items) in (*ROWS, range, dict, *VIEWS):
            self.budget.items(len(items))
            return items
        return list(self.each(items))

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same, paid for one by one."""
        for item in items:
            self.spend(1)
            yield item
