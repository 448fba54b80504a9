"""The command line over a scripted engine: what reaches stdout, stderr, the exit code, and the engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CATALOGUE_FILE, FakeEngine, FakeStream, environment, open_chat, program

import polargrid_local
from polargrid_local.errors import ContextLengthError, EngineClosed, NetworkError
from polargrid_local.models.store import Store
from polargrid_local.options import EngineOptions, limits


def test_stdout_is_the_answer_and_nothing_else(run):
    result = run("chat", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello, wörld 👍🏽\n", "")
    (engine,) = FakeEngine.made
    assert engine.closed and engine.streams[0].closed
    assert engine.model == "smollm2-135m"
    assert engine.requests == [{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1024}]


def test_options_reach_the_request_and_the_engine(run, tmp_path):
    flags = "--max-tokens 7 --temperature 0 --top-p 0.5 --top-k 3 --seed 0 --stop a --stop b -m some-model --n-ctx 512"
    flags += " --device cpu --n-gpu-layers 0 --threads 1 --no-kernels"
    result = run("chat", "hi", "--system", "be brief", "--models-dir", tmp_path, *flags.split())
    assert result.exit_code == 0, result.output
    (engine,) = FakeEngine.made
    (request,) = engine.requests
    assert request.pop("messages") == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    sampling = {"max_tokens": 7, "temperature": 0.0, "top_p": 0.5, "top_k": 3, "seed": 0, "stop": ["a", "b"]}
    assert request == sampling
    engine.options.pop("on_load_progress")
    options = {"n_ctx": 512, "device": "cpu", "n_gpu_layers": 0, "n_threads": 1, "kernels": False, "max_streams": 1}
    assert (engine.model, engine.options) == ("some-model", {**options, "models_dir": tmp_path})


def test_complete_sends_the_bare_text(run):
    assert run("complete", "Once").stdout == "Hello, wörld 👍🏽\n"
    assert FakeEngine.made[0].requests == [{"prompt": "Once", "max_tokens": 256}]


@pytest.mark.parametrize("arguments", [["chat"], ["chat", "-"], ["complete"], ["complete", "-"]])
def test_a_pipe_is_the_prompt(run, arguments):
    assert run(*arguments, stdin="two\nlines\n").exit_code == 0
    request = FakeEngine.made[0].requests[0]
    assert (request.get("prompt") or request["messages"][0]["content"]) == "two\nlines"


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_json_prints_the_raw_chunks(run, command):
    lines = run(command, "hi", "--json").stdout.splitlines()
    chunks = [json.loads(line) for line in lines]
    kind = "chat" if command == "chat" else "completion"
    assert chunks == list(FakeStream(kind, ["Hello", ", ", "wörld 👍🏽"]))
    assert "👍🏽" in lines[2]


def test_sse_prints_the_raw_events(run):
    events = run("chat", "hi", "--sse").stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert [json.loads(event.removeprefix("data: ")) for event in events[:-2]] == list(
        FakeStream("chat", ["Hello", ", ", "wörld 👍🏽"])
    )
    assert run("chat", "hi", "--sse", "--json").exit_code == 1


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_a_schema_is_read_from_its_file(run, command, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    assert run(command, "hi", "--schema", file).exit_code == 0
    held = FakeEngine.made[0].requests[0]["response_format"]
    assert held == {"type": "json_schema", "json_schema": {"schema": {"type": "object"}, "strict": True}}
    assert run(command, "hi").exit_code == 0 and "response_format" not in FakeEngine.made[1].requests[0]
    file.write_text("{")
    result = run(command, "hi", "--schema", file)
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {file}: is no JSON")
    assert run(command, "hi", "--schema", tmp_path / "nowhere").exit_code == 2


@pytest.mark.parametrize("flags", [[], ["--json"], ["--sse"]])
def test_a_stream_that_breaks_keeps_its_text_and_fails(run, flags):
    FakeEngine.answers = [["Half", EngineClosed("the engine was closed")]]
    result = run("chat", "hi", *flags)
    assert result.exit_code == 1
    assert "Half" in result.stdout and "[DONE]" not in result.stdout
    assert result.stderr == "error: the engine was closed\n"
    assert FakeEngine.made[0].closed


def test_errors_are_one_line_and_tracebacks_are_asked_for(run):
    FakeEngine.answers = [ContextLengthError("prompt of 9000 tokens, context of 8192")] * 2
    result = run("chat", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (
        1,
        "",
        "error: prompt of 9000 tokens, context of 8192\n",
    )
    assert isinstance(run("--debug", "chat", "hi").exception, ContextLengthError)
    FakeEngine.answers = [ZeroDivisionError("oh")]
    result = run("chat", "hi")
    assert result.exit_code == 1 and result.stderr.startswith("internal error: ZeroDivisionError: oh")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["frob"], ["chat", "--bogus"], ["chat", "x", "--max-tokens", "0"], ["chat", "x", "--seed", "y"], ["pull"]],
)
def test_wrong_usage_is_exit_code_2(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and "Error: " in result.stderr and result.stdout == ""
    assert FakeEngine.made == []


def test_ctrl_c_is_130_and_closes_the_engine(run):
    FakeEngine.answers = [["Half", KeyboardInterrupt()]]
    result = run("chat", "hi")
    assert (result.exit_code, result.stdout) == (130, "Half")
    assert FakeEngine.made[0].closed and FakeEngine.made[0].streams[0].closed


def test_without_a_model_the_preferred_one_wins_when_it_is_here(run, tmp_path):
    (tmp_path / "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert run("chat", "hi").exit_code == 0
    assert FakeEngine.made[0].model == "llama-3.1-8b"


def test_the_embedded_default_is_fetched_once_and_said_so(run, tmp_path, monkeypatch):
    pulled = []

    def pull(self, name, progress):
        pulled.append(name)
        progress(1, 2)
        (self.models_dir / CATALOGUE_FILE).write_bytes(b"GGUF")

    monkeypatch.setattr(Store, "pull", pull)
    (tmp_path / CATALOGUE_FILE).unlink()
    result = run("chat", "hi")
    assert (result.exit_code, result.stdout, pulled) == (0, "Hello, wörld 👍🏽\n", ["smollm2-135m"])
    assert (
        result.stderr == "No --model and no llama-3.1-8b on this disk: fetching smollm2-135m once (98 MB, Apache-2.0)\n"
    )
    assert run("chat", "hi").stderr == "" and pulled == ["smollm2-135m"]


def test_when_nothing_can_be_fetched_the_message_says_what_to_put_where(run, tmp_path, monkeypatch):
    (tmp_path / CATALOGUE_FILE).unlink()
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # a frozen program has no pip
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    result = run("chat", "hi")
    assert result.exit_code == 1 and FakeEngine.made == []
    assert f"Or put {CATALOGUE_FILE} " in result.stderr and f"into {tmp_path}" in result.stderr


def test_pull_prints_the_path(run, tmp_path, monkeypatch):
    def pull(self, name, progress):
        if name == "broken":
            raise NetworkError("cut")
        return self.models_dir / name

    monkeypatch.setattr(Store, "pull", pull)
    result = run("pull", "x")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'x'}\n")
    assert (run("pull", "broken").exit_code, run("pull", "broken").stderr) == (1, "error: cut\n")


def test_list_shows_what_is_here_and_what_could_be(run, tmp_path):
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    result = run("list")
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()[1:]}
    assert rows == {"llama-3.1-8b": "-", "llama-3.2-1b": "-", "llama-3.2-3b": "-", "smollm2-135m": "yes", "own": "yes"}
    assert str(tmp_path) in result.stderr
    parsed = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert [(row["id"], row["bytes"]) for row in parsed][-2:] == [("smollm2-135m", 104), ("own", 4)]


def test_info_estimates_memory_at_a_context_length(run, monkeypatch):
    file = {
        "architecture": "llama", "quantization": "Q4_1", "n_layer": 30, "n_vocab": 49152, "n_ctx_train": 8192,
        "tensor_bytes": 90_000_000, "cache_bytes_f16": 20_000, "cache_bytes_q8_0": 10_000,
        "chat_template": "{{ x }}", "metadata": {},
    }  # fmt: skip
    device = {"name": "CUDA0", "description": "Some GPU", "gpu": True, "memory_bytes": 8e9, "free_bytes": 5e9}
    machine = {
        "devices": [device],
        "cpu_features": ["avx2"],
        "n_threads": 2,
        "kernels": "avx2",
        "build": "b1",
        "gpu_problem": "",
    }
    machine["available_bytes"] = 6e9
    monkeypatch.setattr("polargrid_local.engine.inspect_model", lambda path: file)
    monkeypatch.setattr("polargrid_local.engine.system_info", lambda: machine)

    def estimate(path, n_ctx, cache_type, max_streams):
        assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and max_streams == 1
        total = 90_000_000 + n_ctx * (20_000 if cache_type == "f16" else 10_000)
        return {"n_ctx": n_ctx, "total_bytes": total, "fits": total < 200_000_000, "max_n_ctx": 5500}

    monkeypatch.setattr("polargrid_local.engine.Engine.estimate", estimate, raising=False)  # a FakeEngine
    text = run("info", "smollm2-135m", "--n-ctx", 1000).stdout
    assert "110 MB with a context of 1000 tokens\n" in text and "100 MB with its cache in q8_0\n" in text
    assert "GPU Some GPU, 5.0 GB of 8.0 GB free" in text and "Apache-2.0" in text
    facts = json.loads(run("info", "smollm2-135m", "--json").stdout)
    totals = {form: need["total_bytes"] for form, need in facts["estimate"].items()}
    assert totals == {"f16": 90_000_000 + 8192 * 20_000, "q8_0": 90_000_000 + 8192 * 10_000}
    assert "254 MB with a context of 8192 tokens; only 5500 tokens fit here" in run("info", "smollm2-135m").stdout
    assert "model" not in json.loads(run("info", "--json").stdout)
    assert run("info", "llama-3.1-8b").exit_code == 1


def test_bench_reports_prefill_and_decode(run):
    result = run("bench", "--n-prompt", 5, "--n-generate", 4, "--repeat", 2)
    assert result.exit_code == 0, result.stderr
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[1:]] == [
        "prefill of 8 tokens", "first token", "decode of 4 tokens",
    ]  # fmt: skip
    requests = FakeEngine.made[0].requests
    assert len({request["prompt"] for request in requests}) == len(requests) == 3
    assert all(request["ignore_eos"] and request["max_tokens"] == 4 for request in requests)


def other_value(name, field):
    """(the words of its flag, a value that is not the default)"""
    flag = name.replace("_", "-")
    if isinstance(field.default, bool):
        return [f"--{'no-' if field.default else ''}{flag}"], not field.default
    value = (
        77
        if limits(name) and limits(name)[1] >= 77
        else {
            "device": "cpu",
            "cache_type": "q8_0",
            "tool_format": "hermes",
            "speculate": "off",
            "draft_model": "small",
            "isolation": "thread",
        }.get(name, 3)
    )
    return [f"--{flag}", value], value


@pytest.mark.parametrize("command", ["chat x", "complete x", "bench --repeat 1", "serve -m m"])
def test_every_option_of_the_engine_is_a_flag(run, monkeypatch, command):
    import polargrid_local.server as server

    served = []
    monkeypatch.setattr(server, "run", served.append)
    fields = {name: field for name, field in EngineOptions.model_fields.items() if name != "flash_attention"}
    said = {name: other_value(name, field) for name, field in fields.items()}
    result = run(*command.split(), *(word for words, _ in said.values() for word in words))
    assert result.exit_code == 0, result.output
    given = {name: value for name, (_, value) in said.items()}
    used = served[0].engine_options() if served else FakeEngine.made[0].options
    assert {name: used[name] for name in given} == given


@pytest.mark.parametrize("command", ["chat", "complete", "bench", "serve"])
def test_help_tells_of_every_option_of_the_engine(run, command):
    text = " ".join(run(command, "--help").stdout.split())
    for name, field in EngineOptions.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text and field.description[1:] in text
        own = {"isolation": "process"} if command == "serve" else {"max_streams": 1}
        default = own.get(name, field.default)
        assert f"({default})" in text.partition(field.description[1:])[2].partition(" --")[0]


@pytest.mark.parametrize("name", [name for name in EngineOptions.model_fields if limits(name)])
def test_flags_are_held_to_the_range(run, name):
    for command in ("chat x", "complete x", "bench", "serve"):
        for value in (limits(name)[0] - 1, limits(name)[1] + 1, "many"):
            result = run(*command.split(), f"--{name.replace('_', '-')}={value}")
            assert result.exit_code == 2 and "Error: " in result.stderr and FakeEngine.made == []


def test_what_was_not_given_is_left_to_the_engine(run):
    for command in ("chat x", "complete x", "bench --repeat 1"):
        assert run(*command.split()).exit_code == 0
        assert set(FakeEngine.made[-1].options) == {"models_dir", "on_load_progress", "max_streams"}
        assert FakeEngine.made[-1].options["max_streams"] == 1


def test_serve_passes_flags_on_and_names_the_extra(run, monkeypatch, tmp_path):
    import polargrid_local.server as server
    from polargrid_local import extras

    served = []
    monkeypatch.setattr(server, "run", served.append)
    result = run("serve", "--port", 9, "--device", "cpu", "--threads", 1, "--no-kernels", "-m", "a", "-m", "b")
    assert result.exit_code == 0, result.output
    (config,) = served
    assert (config.port, config.device, config.n_threads, config.kernels, config.model) == (
        9,
        "cpu",
        1,
        False,
        ("a", "b"),
    )
    assert run("serve").exit_code == 0 and served[1].model == ("smollm2-135m",)
    assert run("serve", "--host", "0.0.0.0").exit_code == 1
    monkeypatch.undo()
    monkeypatch.setenv("POLARGRID_LOCAL_MODELS", str(tmp_path))
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    said = run("serve", "-m", "a").stderr
    assert "pip install fastapi uvicorn prometheus-client" in said and "polargrid-local[" not in said


def test_a_reader_who_leaves_ends_it_silently(tmp_path):
    setup = "FakeEngine.answers = [['x' * 70000] * 50]; sys.argv[1:] = ['chat', 'hi']"
    done = _script(setup, tmp_path, '</dev/null | head -c 10; echo " ${PIPESTATUS[0]}"')
    assert (done.stdout, done.stderr) == ("x" * 10 + " 141\n", "")
    done = _script(
        setup.replace("'hi'", "'hi', '--json'"), tmp_path, '</dev/null | head -c 1; echo " ${PIPESTATUS[0]}"'
    )
    assert (done.stdout, done.stderr) == ("{ 141\n", "")


def test_output_that_cannot_show_an_answer_does_not_end_it(tmp_path):
    done = _script("sys.argv[1:] = ['chat', 'hi']", tmp_path, "</dev/null", PYTHONIOENCODING="ascii")
    assert (done.stdout, done.stderr, done.returncode) == ("Hello, w?rld ??\n", "", 0)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_file_name_is_listed_in_columns(tmp_path, encoding):
    names = [b"caf\xe9.gguf", "日本語.gguf".encode(), b"new\nline\x1b[31m.gguf", b"my model (1).gguf"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"GGUF")
    done = _script("sys.argv[1:] = ['list']", tmp_path, "", PYTHONIOENCODING=encoding, text=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 4 + len(names)
    assert b"\x1b" not in done.stdout
    done = _script("sys.argv[1:] = ['list', '--json']", tmp_path, "", PYTHONIOENCODING=encoding)
    assert "日本語" in [json.loads(line)["id"] for line in done.stdout.splitlines()]


def test_help_is_quick_and_version_is_printed(tmp_path):
    script = """
import sys
sys.argv = ["x", "--version"]
from polargrid_local.cli.main import main
try:
    main()
except SystemExit:
    heavy = ("polargrid_local.engine", "huggingface_hub", "jinja2", "numpy", "fastapi", "prompt_toolkit", "wcwidth")
    print([m for m in heavy if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True)
    assert done.stdout.splitlines() == [polargrid_local.__version__, "[]"], done.stderr


# --- at a terminal ---


def _script(setup, models_dir, rest, text=True, **variables):
    (models_dir / CATALOGUE_FILE).write_bytes(b"GGUF")
    command = f'"$0" -c "$1" {rest}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, program(setup)],
        env={**environment(models_dir), **variables},
        capture_output=True,
        text=text,
    )


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(tmp_path):
    with open_chat(tmp_path, "[['One', ' moment', None], ['Two']]") as chat:
        chat.expect("Ctrl-D ends the chat")
        chat.expect("> ")
        chat.send("first\r")
        chat.expect("One moment")
        chat.send("\x03")
        chat.expect("[stopped]")
        chat.expect("> ")
        chat.send("second\r")
        chat.expect("Two\r\n")
        chat.expect("> ")
        chat.send("\x03")
        chat.expect("Ctrl-C again, Ctrl-D or /bye to leave", again="\x03")
        chat.expect("> ")
        chat.send("\x04")
        chat.expect("REQUESTS [[{'role': 'user', 'content': 'first'}], [{'role': 'user', 'content': 'first'}, ")
        chat.expect("{'role': 'assistant', 'content': 'One moment'}, {'role': 'user', 'content': 'second'}]]")
        assert chat.end() == 0


def test_commands_of_the_chat(tmp_path):
    with open_chat(
        tmp_path, "[['One'], ['Two'], ['Three'], ['Four'], ['Five'], ['Six'], ['Seven']]", "--system", "old"
    ) as chat:
        for line, answer in [
            ("first", "One"), ("/help", "/system [TEXT]"), ("/?", "/system [TEXT]"),
            ("/reset", "conversation forgotten"), ("second", "Two"),
            ("/system new", "system message set"), ("third", "Three"),
            ("/reset", "conversation forgotten"), ("/system", "system message removed"),
            ("//bye", "Four"), ("///x", "Five"), (" /exit", "Six"), ('"""', "... "),
        ]:  # fmt: skip
            chat.expect("> ")
            chat.send(line + "\r")
            chat.expect(answer)
        chat.send("/quit\r")
        chat.expect("... ")
        chat.send('  end"""\r')
        chat.expect("Seven")
        chat.expect("> ")
        chat.send("/quit\r")
        chat.expect("REQUESTS ")
        system = "{'role': 'system', 'content': '%s'}"
        chat.expect(f"[[{system % 'old'}, {{'role': 'user', 'content': 'first'}}], ")
        chat.expect(f"[{system % 'old'}, {{'role': 'user', 'content': 'second'}}], ")
        chat.expect(f"[{system % 'new'}, {{'role': 'user', 'content': 'second'}}, ")
        chat.expect("{'role': 'assistant', 'content': 'Two'}, ")
        chat.expect("{'role': 'user', 'content': 'third'}], ")
        chat.expect("[{'role': 'user', 'content': '/bye'}], ")
        for said in ("/bye", "//x", " /exit"):
            chat.expect(f"{{'role': 'user', 'content': '{said}'}}, ")
        chat.expect("{'role': 'user', 'content': '/quit\\n  end'}]]")
        assert chat.end() == 0


@pytest.mark.parametrize(
    "line, why", [("/etc/hosts", "unknown command /etc/hosts"), ("/help me", "/help takes nothing more")]
)
def test_what_looks_like_a_command_is_asked_about(tmp_path, line, why):
    with open_chat(tmp_path, "[['One']]") as chat:
        for answer in ("n", "", "\x04", "y"):
            chat.expect("> ")
            chat.send(line + "\r")
            chat.expect(why)
            chat.expect("send it as a message? [y/N] ")
            chat.send(answer + "\r" * (answer != "\x04"))
        chat.expect("One")
        chat.expect("> ")
        chat.send("/bye\r")
        chat.expect(f"REQUESTS [[{{'role': 'user', 'content': '{line}'}}]]")
        assert chat.end() == 0


@pytest.mark.parametrize(
    "failure, told",
    [
        ("ContextLengthError('too long')", "error: too long"),
        ("ZeroDivisionError('oh')", "internal error: ZeroDivisionError: oh"),
        ("['Half', ContextLengthError('too long')]", "Half\r\nerror: too long"),
    ],
)
def test_an_error_is_told_and_the_chat_goes_on_without_that_turn(tmp_path, failure, told):
    with open_chat(tmp_path, f"[{failure}, ['Two']]") as chat:
        chat.expect("> ")
        chat.send("first\r")
        chat.expect(told)
        chat.expect("> ")
        chat.send("second\r")
        chat.expect("Two")
        chat.expect("> ")
        chat.send("/exit\r")
        chat.expect("[{'role': 'user', 'content': 'second'}]]")
        assert chat.end() == 0
