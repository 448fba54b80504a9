"""The flags that several commands share, among them one for every option of the engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar, get_args

import typer

from polargrid_local.options import EngineOptions, limits, unit

Model = Annotated[
    Optional[str],
    typer.Option(
        "--model", "-m", help="Catalogue name, .gguf path, or file name in the models directory.", show_default=False
    ),
]
ModelsDir = Annotated[Optional[Path], typer.Option(help="Where model files lie.", show_default=False)]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    Optional[float], typer.Option(help="0 = always the likeliest token; else 0.7.", show_default=False)
]
TopP = Annotated[
    Optional[float], typer.Option(help="Sample from this much of the probability; else 0.9.", show_default=False)
]
TopK = Annotated[Optional[int], typer.Option(help="Sample from this many tokens; 0 = all.", show_default=False)]
Seed = Annotated[Optional[int], typer.Option(help="Same seed, same prompt, same text.", show_default=False)]
Stop = Annotated[Optional[list[str]], typer.Option(help="End before this text; may be repeated.", show_default=False)]
System = Annotated[Optional[str], typer.Option(help="System message.", show_default=False)]
SchemaFile = Annotated[
    Optional[Path],
    typer.Option(
        "--schema",
        help="Answer in JSON that fits the schema in this file.",
        dir_okay=False,
        exists=True,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the raw chunks, one per line.")]
AsSse = Annotated[bool, typer.Option("--sse", help="Print the raw events of the server's stream.")]

F = TypeVar("F", bound=Callable[..., Any])


def engine_flags(defaults: dict[str, Any]) -> Callable[[F], F]:
    """Gives a command, in place of its **options, a flag for every option of the engine; None where it was not given.
    `defaults` (for --help): the command's own, where they differ from those of EngineOptions."""

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        parameters = [item for item in signature.parameters.values() if item.kind != inspect.Parameter.VAR_KEYWORD]
        for name, field in EngineOptions.model_fields.items():
            default, flag, about = defaults.get(name, field.default), name.replace("_", "-"), field.description or ""
            flags = [f"--{flag}/--no-{flag}" if isinstance(default, bool) else f"--{flag}"]
            if name == "n_threads":
                flags.append("--threads")  # its first name here
            choices = "" if isinstance(default, bool) else unit(name) or ", ".join(get_args(field.annotation))
            low, high = limits(name) or (None, None)
            option = typer.Option(
                *flags,
                min=low,
                max=high,
                show_default=str(default),
                help=f"{about[0].upper()}{about[1:]}{f' ({choices})' if choices else ''}.",
            )
            kind: Any = Annotated[Optional[type(default)], option]
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by typer
        return command

    return decorate


def given(**fields: Any) -> dict[str, Any]:
    """Only the fields that were given: the API has its own defaults."""
    return {name: value for name, value in fields.items() if value not in (None, [])}
