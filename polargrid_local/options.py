"""EngineOptions: name, default, range, unit and help of every engine option, for the API, the command line, the
server and the docs alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from os import PathLike
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import pydantic
from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from polargrid_local.errors import ValidationError, did_you_mean


def _whole(value: Any) -> Any:
    """What counts as a whole number: also numpy's integers, but neither True nor 2.5."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_value", "a truth value is no number")
    return int(value) if isinstance(value, Integral) else value


def _switch(value: Any) -> Any:
    """An option of two words may be given as a switch: True is auto, False is off."""
    if isinstance(value, bool):
        return "auto" if value else "off"
    return value


def _name(value: Any) -> Any:
    """A name or a path, as text; none is empty."""
    return "" if value is None else str(value) if isinstance(value, PathLike) else value


# How models write the calls of tools: `chat/tool_formats.py`. "auto": as the chat template does.
ToolFormatName = Literal[
    "auto",
    "harmony",
    "qwen3-coder",
    "hermes",
    "mistral-nemo",
    "mistral-small",
    "devstral",
    "phi4-mini",
    "granite3",
    "nemotron2",
    "firefunction2",
    "deepseek3",
    "deepseek3.1",
    "command-r7b",
    "functionary3.1",
    "llama3",
    "generic",
]
F = TypeVar("F", bound=Callable[..., Any])
Whole = Annotated[int, BeforeValidator(_whole)]


def _option(default: Any, help: str, unit: str = "", *, low: int | None = None, high: int | None = None) -> Any:
    return Field(default, ge=low, le=high, description=help, json_schema_extra={"unit": unit})


class EngineOptions(BaseModel):
    """What an engine is made with. `csrc/request.h` states the ranges of `native()` too; a test compares the two."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "gpu"] = _option("auto", "where the model runs; auto: on a GPU if there is one")
    n_gpu_layers: Whole = _option(
        -1, "how much of the model the GPU gets; -1: as much as fits", "layers", low=-1, high=10_000
    )
    n_ctx: Whole = _option(
        0, "context of each stream; 0: the model's own, as far as it fits into memory", "tokens", low=0, high=1 << 24
    )
    max_streams: Whole = _option(4, "how many run at once", "requests", low=1, high=64)
    max_queue: Whole = _option(512, "how many more wait; the next one is refused", "requests", low=0, high=100_000)
    n_threads: Whole = _option(0, "on the CPU; 0: what this process may use", "threads", low=0, high=512)
    n_batch: Whole = _option(512, "how much of a prompt one pass reads", "tokens", low=32, high=8192)
    cache_type: Literal["f16", "q8_0"] = _option("f16", "numbers of the KV cache; q8_0 needs flash_attention")
    flash_attention: bool = _option(True, "attention in one fused operation")
    mmap: bool = _option(True, "map the model file instead of reading it")
    kernels: bool = _option(True, "this package's own CPU kernels; False: those of llama.cpp")
    speculate: Annotated[Literal["auto", "off", "always"], BeforeValidator(_switch)] = _option(
        "auto",
        "draft tokens from what was said before, and check several in one pass, where no bit of an answer depends "
        "on it; auto: where it pays; always: also where it costs more than it gains",
    )
    draft_model: Annotated[str, BeforeValidator(_name)] = _option(
        "", "a smaller model of the same vocabulary, whose guesses are drafts too: a catalogue name or a .gguf path"
    )
    prefix_cache_bytes: Whole = _option(
        -1,
        "host memory for the beginnings of earlier prompts; -1: as much as the model takes",
        "bytes",
        low=-1,
        high=1 << 44,
    )
    check_tensors: bool = _option(False, "read every weight at load and refuse NaN and infinity")
    embeddings: bool = _option(True, "allow embeddings()")
    isolation: Literal["auto", "thread", "process"] = _option(
        "auto",
        "where the engine runs: thread, in this process; process, in one of its own, which may die in its place; auto: "
        "in this process where the file is known to be good",
    )
    tool_format: ToolFormatName = _option("auto", "how the model writes calls of tools; auto: as its template does")

    @field_validator("flash_attention")
    @classmethod
    def _needed_by_the_cache(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("cache_type") == "q8_0":
            raise ValueError("cannot be off with cache_type 'q8_0'")
        return value

    def native(self) -> dict[str, Any]:
        """Those of the native engine."""
        return self.model_dump(exclude={"tool_format", "isolation"})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> EngineOptions:
        """The options of `values`, the defaults for the rest. ValidationError names the option and what it may be."""
        for name in values:
            if name not in cls.model_fields:
                raise unknown_option(name)
        try:
            return cls.model_validate(dict(values), strict=True)
        except pydantic.ValidationError as error:
            raise refused(error) from None


class EngineKeywords(TypedDict, total=False):
    """The keyword arguments of Engine and AsyncEngine, for type checkers and editors: EngineOptions, and what only a
    program can give. Paths of adapters come alone or as (path, scale); those of `adapters` by "MODEL:NAME". Templates
    come alone or by model, "*" being every other one."""

    device: Literal["auto", "cpu", "gpu"]
    n_gpu_layers: int
    n_ctx: int
    max_streams: int
    max_queue: int
    n_threads: int
    n_batch: int
    cache_type: Literal["f16", "q8_0"]
    flash_attention: bool
    mmap: bool
    kernels: bool
    speculate: Literal["auto", "off", "always"] | bool
    draft_model: str | PathLike[str] | None
    prefix_cache_bytes: int
    check_tensors: bool
    embeddings: bool
    isolation: Literal["auto", "thread", "process"]
    tool_format: ToolFormatName
    models_dir: str | PathLike[str] | None
    lora: Iterable[str | PathLike[str] | tuple[str | PathLike[str], float]] | None
    adapters: Mapping[str, str | PathLike[str] | tuple[str | PathLike[str], float]] | None
    content_filter: str | Iterable[str] | Callable[[str], Any] | None
    chat_template: str | Mapping[str, str] | None
    on_load_progress: Callable[[float], Any] | None
    engine_factory: Callable[..., Any] | None


def described(function: F) -> F:
    """`function(..., **options)` with the options in its signature and its docstring, for help() and for consoles."""
    signature = inspect.signature(function)
    fields, hints = EngineOptions.model_fields, get_type_hints(EngineKeywords)
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hint,
            default=fields[name].default if name in fields else None,
        )
        for name, hint in hints.items()
    ]
    own = [parameter for parameter in signature.parameters.values() if parameter.kind != inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]  # read by help()
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{table()}"
    return function


def limits(name: str) -> tuple[int, int] | None:
    """The lowest and the highest value of a whole-number option."""
    metadata = EngineOptions.model_fields[name].metadata
    low = next((item.ge for item in metadata if isinstance(item, Ge)), None)
    high = next((item.le for item in metadata if isinstance(item, Le)), None)
    return (low, high) if isinstance(low, int) and isinstance(high, int) else None


def unit(name: str) -> str:
    """What a whole-number option counts: "tokens"; "" for the others."""
    extra = EngineOptions.model_fields[name].json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def allowed(name: str) -> str:
    """What an option may be, in words."""
    if (bounds := limits(name)) is not None:
        low, high = bounds
        return f"an integer in {low}..{high}"
    if EngineOptions.model_fields[name].annotation is str:
        return "a name or a path"
    choices = get_args(EngineOptions.model_fields[name].annotation)
    return f"one of {', '.join(choices)}" if choices else "True or False"


def refused(error: pydantic.ValidationError) -> ValidationError:
    """The first problem with a value of EngineOptions, in our words."""
    first = error.errors(include_url=False)[0]
    name, given = str(first["loc"][0]), first["input"]
    details: dict[str, Any] = {"field": name}
    if (bounds := limits(name)) is not None:
        details |= {"ge": bounds[0], "le": bounds[1]}
    shown = "a huge number" if isinstance(given, int) and abs(given) >= 2**80 else repr(given)[:80]
    problem = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"must be {allowed(name)}, got {shown}"
    return ValidationError(f"{name}: {problem}", param=name, details=details)


def unknown_option(name: str) -> ValidationError:
    """For an option that no engine has."""
    hint = did_you_mean(name, ("model", *EngineKeywords.__annotations__))
    return ValidationError.at(name[:80], f"unknown engine option{hint}")


def table() -> str:
    """The options as rows of a Markdown table, as README.md shows them."""
    rows = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for name, field in EngineOptions.model_fields.items():
        bounds = limits(name)
        values = f"{bounds[0]}..{bounds[1]} {unit(name)}" if bounds else allowed(name).removeprefix("one of ")
        rows.append(f"| `{name}` | {field.default} | {values} | {field.description} |")
    return "\n".join(rows)
