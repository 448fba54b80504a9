"""Messages -> prompt, by the chat template in the model file. Pure: the date is an argument.

A template is a program from a stranger. It runs in Jinja's immutable sandbox (no attribute escapes) with a budget: loops,
calls, filters and operators check a deadline and refuse results beyond their share, so loops, multiplied strings and
recursion end in TemplateError. What this cannot interrupt is one single step inside the interpreter; every step's size
is bounded, so that stays far below the deadline on known templates. Compiling is bounded by the source's size alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import CodeType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import TemplateError
from .marked import Ledger, Span, Text, joined, marked, merged, to_json

MAX_SOURCE_BYTES = 1_000_000
MAX_ITEMS = 100_000
MAX_CHARS = 1_000_000  # of any one string, beyond 8 times what the messages hold
MAX_WORK = 64  # times that: all strings made in one render
DEADLINE_S = 1.0  # of computing: a busy machine must not fail an honest template

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_WIDTH = re.compile(r"[0-9]{5}|\*")  # in a format: a field wider than 9,999, or as wide as an argument says


class ChatTemplate:
    """`source`: the GGUF's template, None = ChatML. Compiled at the first render: a broken one fails the chat, not the load."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        self.source = CHATML if source is None else source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._code: CodeType | None = None

    def render(self, messages: Sequence[Mapping[str, Any]], *, now: datetime, add_generation_prompt: bool = True,
               **options: Any) -> list[Span]:
        """Spans (text, trusted); joined they are what plain Jinja would render. Trusted is what the template wrote, and
        the roles; every other string of a message, dict keys inside it included, is not. `options` are variables the template may know. Raises TemplateError."""
        ledger = Ledger()
        try:
            if self._code is None:
                self._code = _compile(self.source)
            given = [{key: item if key == "role" else marked(item, ledger) for key, item in message.items()} for message in messages]
            sandbox = _Sandbox(ledger, now)
            template = jinja2.Template.from_code(sandbox, self._code, sandbox.globals)
            text = template.render(
                messages=given, tools=None, documents=None, add_generation_prompt=add_generation_prompt,
                **self._tokens, **options,
            )
            return merged(ledger.spans("".join((text,))))
        except TemplateError:
            raise
        except RecursionError:
            raise TemplateError("chat template: nested or recursive beyond the interpreter's limit") from None
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"chat template, line {error.lineno}: {error.message}") from None
        except (Exception, MemoryError) as error:
            raise TemplateError(f"chat template: {str(error)[:500] or type(error).__name__}") from None


def _compile(source: str) -> CodeType:
    size = len(source.encode("utf-8", "replace"))
    if size > MAX_SOURCE_BYTES:
        raise TemplateError(f"chat template: {size} bytes, the limit is {MAX_SOURCE_BYTES}", details={"limit": MAX_SOURCE_BYTES})
    sandbox = _Sandbox(Ledger(), datetime.min)
    tree = sandbox.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.body.insert(0, nodes.ExprStmt(nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)))
    tree.set_environment(sandbox)
    return sandbox.compile(tree, name="chat_template")


class _Generation(Extension):
    """{% generation %} marks the assistant's text for training; here it is nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Generator(CodeGenerator):
    """Containers are weighed as they are made, and `~` keeps the marks that Jinja's own would lose."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.glue((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self.write("environment.weighed(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self.write("environment.weighed(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx != "load":
            return super().visit_Tuple(node, frame)
        self.write("environment.weighed(")
        super().visit_Tuple(node, frame)
        self.write(")")


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one render: it holds that render's ledger and budget."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, ledger: Ledger, now: datetime) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, cache_size=0,
                         extensions=("jinja2.ext.loopcontrols", _Generation))
        self.ledger = ledger
        self.filters = _FILTERS
        names = ("dict", "namespace", "joiner", "cycler")
        self.globals = {name: self.globals[name] for name in names} | {
            "range": _range, "raise_exception": _raise, "strftime_now": lambda form: now.strftime(form),
        }
        self._end = time.thread_time() + DEADLINE_S
        self._chars = MAX_CHARS + 8 * sum(map(len, ledger._pieces))
        self._work = MAX_WORK * self._chars

    # the budget

    def tick(self) -> None:
        if time.thread_time() > self._end:
            raise TemplateError(f"chat template: still running after {DEADLINE_S:g} s of computing")

    def allow(self, n: int) -> None:
        """Before, or at the latest after, making a string of n characters."""
        self._work -= n
        if n > self._chars or self._work < 0:
            raise TemplateError(f"chat template: makes more than {self._chars} characters in a string", details={"limit": self._chars})

    def weighed(self, value: Any) -> Any:
        """Refuses containers of containers that share their parts: small in memory, endless to walk."""
        left = MAX_ITEMS
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                item = item.values()
            elif not isinstance(item, (list, tuple)):
                continue
            left -= len(item)
            if left < 0:
                raise TemplateError(f"chat template: makes a list of more than {MAX_ITEMS} items", details={"limit": MAX_ITEMS})
            stack.extend(item)
        return value

    def checked(self, value: Any) -> Any:
        if isinstance(value, str):
            self.allow(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.weighed(value)
        elif isinstance(value, int) and value.bit_length() > 4096:
            raise TemplateError("chat template: makes a number of more than 4096 bits")
        return value

    def concat(self, items: Any) -> str:
        parts = []
        for part in items:
            self.allow(len(part))
            self.tick()
            parts.append(part)
        text = joined(parts)
        self.allow(len(text))
        return text

    def glue(self, items: Any) -> str:
        return self.concat(map(str, items))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for many, n in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(n, int) and n > 0:
                    self.allow(len(many) * n)
                    if not isinstance(many, str):
                        self.weighed([many] * min(n, MAX_ITEMS + 1))
        elif operator == "**" and not (isinstance(left, (int, float)) and isinstance(right, (int, float)) and abs(right) <= 64):
            raise TemplateError("chat template: ** with an exponent beyond 64")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return self.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.tick()
        owner = getattr(obj, "__self__", None)
        if owner is self:
            return None  # tick itself
        if isinstance(owner, str):
            self.check_string(getattr(obj, "__name__", ""), owner, args)
        elif callable(getattr(obj, "__wrapped__", None)):  # str.format, wrapped by the sandbox
            _check_format(getattr(obj.__wrapped__, "__self__", ""))
        _check_numbers(args, kwargs)
        return self.checked(super().call(context, obj, *args, **kwargs))

    def check_string(self, name: str, owner: str, args: tuple[Any, ...]) -> None:
        """String methods whose result may be far larger than what goes in."""
        if name in ("translate", "expandtabs", "format_map"):
            raise TemplateError(f"chat template: str.{name} is not available")
        if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
            self.allow(len(owner) + owner.count(args[0]) * len(args[1]))
        elif name == "join" and args:
            if not isinstance(args[0], (list, tuple, str)):
                raise TemplateError("chat template: join takes a list")
            self.allow(len(owner) * len(args[0]) + sum(len(item) for item in args[0] if isinstance(item, str)))


def _check_numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_ITEMS:
            raise TemplateError(f"chat template: {value if abs(value) < 2**64 else 'a huge number'} as an argument, the limit is {MAX_ITEMS}")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDTH.search(text):
        raise TemplateError("chat template: a format field wider than 9999")


def _range(*args: int) -> range:
    """Jinja's own refuses long ranges too, but with an OverflowError."""
    numbers = range(*args)
    if len(numbers) > MAX_ITEMS:
        raise TemplateError(f"chat template: a range of {len(numbers)}, the limit is {MAX_ITEMS}", details={"limit": MAX_ITEMS})
    return numbers


def _raise(message: Any = "") -> None:
    raise TemplateError(f"chat template: {Text('') if message is None else ''.join((str(message),))}", param="messages")


# --- filters ----------------------------------------------------------------------------------------------------------


def _guarded(name: str, func: Callable[..., Any]) -> Callable[..., Any]:
    """A filter under the budget of its render."""
    kind = getattr(getattr(func, "jinja_pass_arg", None), "name", "")

    @jinja2.pass_context
    def call(context: Any, *args: Any, **kwargs: Any) -> Any:
        sandbox = context.environment
        sandbox.tick()
        _check_numbers(args[1:], kwargs)
        if name == "format":
            _check_format(args[0])
        elif name in ("replace", "join"):
            values = [*args[1:], *kwargs.values()]
            if name == "replace":
                sandbox.check_string(name, str(args[0]), tuple(values))
            else:
                args = (list(args[0]), *args[1:])
                sandbox.check_string(name, str(values[0]) if values else "", args)
        lead = {"context": context, "eval_context": context.eval_ctx, "environment": sandbox}.get(kind)
        return sandbox.checked(func(*args, **kwargs) if lead is None else func(lead, *args, **kwargs))

    return call


@jinja2.pass_environment
def _to_json(sandbox: _Sandbox, value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: Any = None, sort_keys: bool = False) -> str:
    sandbox.weighed(value)
    return to_json(value, sandbox.ledger, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys,
                   separators=tuple(separators) if separators else None)


@jinja2.pass_environment
def _join(sandbox: _Sandbox, items: Any, d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = [sandbox.getitem(item, attribute) for item in items]
    out: list[str] = []
    for item in items:
        if out:
            out.append(d)
        out.append(str(item))
    return joined(out)


_DROPPED = ("random", "urlize", "xmlattr", "pprint")  # not pure, or slow beyond their size
_FILTERS: dict[str, Any] = {
    name: _guarded(name, func) for name, func in {**FILTERS, "tojson": _to_json, "join": _join}.items() if name not in _DROPPED
}
