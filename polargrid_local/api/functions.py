"""Functions that a model may call: a Python function -> the tool that a request names, its arguments and result."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, cast, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json
from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.answer_type import closed
from polargrid_local.api.docstrings import parameter_texts, summary
from polargrid_local.api.plain import path
from polargrid_local.errors import ValidationError, refused

Function = Callable[..., Any]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ANYTHING: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_FORMATS = {
    "binary",
    "path",
    "file-path",
    "directory-path",
    "password",
    "regex",
    "base64",
    "base64url",
}  # pydantic's own
_MOST_PROBLEMS = 5  # of one call's arguments that the model is told of


class _Schema(GenerateJsonSchema):
    """Without titles, which repeat the names; without defaults that are no JSON; and without what no grammar says while
    pydantic takes any such value, or checks it: items that are given twice to a set, and formats of its own."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def set_schema(self, schema: Any) -> dict[str, Any]:
        return _without("uniqueItems", super().set_schema(schema))

    def frozenset_schema(self, schema: Any) -> dict[str, Any]:
        return _without("uniqueItems", super().frozenset_schema(schema))

    def generate_inner(self, schema: Any) -> dict[str, Any]:
        made = super().generate_inner(schema)
        return _without("format", made) if made.get("format") in _FORMATS else made


def _without(key: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


@dataclass(frozen=True)
class Tool:
    """A function under the name, the description and the JSON schema (of an object) that a model is shown.

    The function gets the arguments as keywords, as the JSON has them; `Tool.of(function)` reads all of it from a
    function's signature and docstring, and its arguments become what their type hints say. Raises ValidationError for a
    name that is not 1..64 letters, digits, _ or -."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Function
    _arguments: TypeAdapter[Any] = field(default=_ANYTHING, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise refused("tools", f"a name must be 1 to 64 letters, digits, _ or -, got {str(self.name)[:80]!r}")
        if not callable(self.function):
            raise refused("tools", f"'{self.name}' has no function to call, got {type(self.function).__name__}")

    @classmethod
    def of(cls, function: Function) -> Tool:
        """A function, bound method, functools.partial or callable object with a `__name__`; `async` ones are for
        AsyncEngine. Every parameter needs a type hint that has a JSON schema; what it is for is taken from `Field` or a
        string in `Annotated`, or else from the docstring. Raises ValidationError naming what no model could fill."""
        inner = function
        while isinstance(inner, partial):
            inner = inner.func
        name = getattr(function, "__name__", None) or getattr(inner, "__name__", None)
        if not callable(inner) or isinstance(inner, type) or not isinstance(name, str):
            problem = "must be functions with a __name__; anything else that can be called goes into a Tool"
            raise refused("tools", f"{problem}, got {type(function).__name__}")
        code = inspect.unwrap(inner if inspect.isroutine(inner) else type(inner).__call__)
        if inspect.isasyncgenfunction(code):
            raise refused("tools", f"'{name}' is an async generator: a tool gives one result")
        doc = inspect.cleandoc((inspect.getdoc(inner) if inner is code else code.__doc__ or inner.__doc__) or "")
        adapter, schema = _arguments_of(name, function, code, doc)
        return cls(name, summary(doc), schema, function, adapter)

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as a request's `tools` have it."""
        described = {"description": self.description} if self.description else {}
        function = {"name": self.name, **described, "parameters": dict(self.parameters), "strict": True}
        return {"type": "function", "function": function}

    def read(self, arguments: str) -> dict[str, Any]:
        """A call's arguments as keywords for the function. Raises ValidationError."""
        try:
            return cast(dict[str, Any], self._arguments.validate_json(arguments))
        except PydanticError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_PROBLEMS]
            found = "; ".join(f"{path(problem['loc']) or 'arguments'}: {problem['msg']}" for problem in problems)
            raise ValidationError(f"{self.name}: {found}", param=self.name) from None


def _arguments_of(name: str, function: Function, code: Any, doc: str) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    """What reads the arguments of `function`, and their schema. `code` has the names that its type hints use."""
    bound = function.keywords if isinstance(function, partial) else {}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise refused("tools", f"'{name}' has no signature to read: {error}") from None
    shown = [parameter for parameter in parameters if parameter.name not in bound]
    for parameter in shown:
        where = f"'{name}': parameter '{parameter.name}'"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise refused("tools", f"{where} stands for any number of arguments; a tool's parameters have names")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise refused("tools", f"{where} is positional-only; a tool's arguments are passed by name")
        if parameter.annotation is parameter.empty:
            raise refused("tools", f"{where} has no type hint")
    texts = parameter_texts(doc)
    try:
        return _adapted(name, shown, code, texts)
    except Exception as error:  # of any kind: type hints are evaluated, and have code of their own
        where, problem = f"'{name}'", _first_line(error)
        for parameter in shown:
            try:
                _adapted(name, [parameter], code, texts)
            except Exception as cause:
                where, problem = f"'{name}': parameter '{parameter.name}'", _first_line(cause)
                break
        raise refused("tools", f"{where} has a type hint without a JSON schema: {problem}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _adapted(
    name: str, parameters: Sequence[inspect.Parameter], code: Any, texts: Mapping[str, str]
) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    make: Any = TypedDict  # of keys that no type checker knows
    kind = make(name, {each.name: _field_of(each, code, texts.get(each.name)) for each in parameters})
    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    adapter = TypeAdapter[Any](kind)
    schema = closed(adapter.json_schema(schema_generator=_Schema))
    schema.pop("title")
    return adapter, schema


def _field_of(parameter: inspect.Parameter, code: Any, text: str | None) -> Any:
    """A parameter as an item of a TypedDict. `text`: what the docstring says of it."""
    holder: Any = SimpleNamespace(__annotations__={"hint": parameter.annotation})
    hint: Any = get_type_hints(holder, getattr(code, "__globals__", {}), include_extras=True)["hint"]
    if parameter.default is parameter.empty:
        info = FieldInfo.from_annotation(hint)
    else:
        info = FieldInfo.from_annotated_attribute(hint, parameter.default)
    text = next((item for item in info.metadata if isinstance(item, str)), text)
    # The bare type: what else the hint holds is in `info`, and would be applied twice.
    described: Any = Annotated[info.annotation, info, Field(description=info.description or text)]
    return described if info.is_required() else NotRequired[described]


def result_text(value: Any, limit: int) -> str:
    """What a tool gave, for a model to read: a str as it is, anything else as JSON. Past `limit` characters it is cut,
    and says so."""
    if isinstance(value, str):
        text = str.__str__(value)
    else:
        try:
            text = to_json(value, fallback=str).decode()
        except ValueError:  # a value that holds itself, or bytes that are no text
            text = str(value)
    text = text.encode("utf-8", "backslashreplace").decode()  # with lone surrogates no tokenizer takes it
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: these are the first {limit} of {len(text)} characters]"
