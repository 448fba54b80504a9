"""Formatting: str.format and % as a chat template may use them, with widths bounded and taint kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2.sandbox import SandboxedFormatter

from polargrid_local.chat.budget import MAX_BITS, MAX_WIDTH, over_limit
from polargrid_local.chat.taint import TaintedText, plain_of
from polargrid_local.chat.values import SCALARS

if TYPE_CHECKING:
    from polargrid_local.chat.sandbox import Sandbox

_NUMBER = re.compile(r"\d+")
_FIELD = re.compile(r"%(?:\(([^()]*)\))?([#0\- +]*)(\d*)(?:\.(\d*))?[hlL]?(.)?", re.DOTALL)


def formatted(sandbox: Sandbox, form: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """form.format(...). The user's parts of the form are text, never fields."""
    sandbox.budget.make(str.__len__(form))
    return sandbox.retaint(_Formatter(sandbox).vformat(str.__str__(form), args, kwargs))


def percent(sandbox: Sandbox, form: str, args: Any) -> str:
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
            value = named[sandbox.key(key)]
        elif n_used == len(left):
            raise TypeError("not enough arguments for format string")
        else:
            value = left[n_used]
            n_used += 1
        parts.append(_field(sandbox, value, "%" + flags, width, precision, kind))
    if named is None and n_used < len(left):
        raise TypeError("not all arguments converted during string formatting")
    return sandbox.concat([*parts, raw[at:]])


def _field(sandbox: Sandbox, value: Any, start: str, width: str, precision: str | None, kind: str) -> str:
    _check_width(width + " " + (precision or ""))
    if kind in "sr":
        text = value = sandbox.represented(value) if kind == "r" else sandbox.shown(value)
        kind = "s"
        if not width and precision is None:
            return text
    elif type(value) not in SCALARS:
        raise TypeError(f"%{kind} format: a number is required, not {type(value).__name__}")
    sandbox.budget.make(2 * MAX_WIDTH if width or precision else MAX_BITS)
    if isinstance(value, str):
        sandbox.budget.make(len(value))
    is_tainted = isinstance(value, TaintedText)
    text = (start + width + ("" if precision is None else "." + precision) + kind) % (
        plain_of(value) if is_tainted else value
    )
    return sandbox.taints.taint(text) if is_tainted else text


def _check_width(spec: str) -> None:
    if any(len(number) > 4 for number in _NUMBER.findall(spec)):
        raise over_limit(f"a format field wider than {MAX_WIDTH}", MAX_WIDTH)


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
            _check_width(format_spec)
            if type(value) not in SCALARS:
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
