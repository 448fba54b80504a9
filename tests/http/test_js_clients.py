"""The JavaScript client, the official clients of OpenAI, Anthropic and Ollama for Node, and the AI SDK, run by Node's
own test runner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import ALIAS, SAID, SMOLLM2, ServerProcess

JS = Path(__file__).parent / "js"
NODE = shutil.which("node")

pytestmark = [pytest.mark.node, pytest.mark.skipif(NODE is None, reason="needs Node.js 18 or newer on the PATH")]


def needs(package: str) -> pytest.MarkDecorator:
    installed = (JS / "node_modules" / package).is_dir()
    return pytest.mark.skipif(not installed, reason=f"needs {package} of npm: run npm install in tests/http/js")


def run(*command: str | Path, **env: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("POLARGRID_")}
    done = subprocess.run(command, cwd=JS, env=inherited | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if "--test" in command:
        assert "\n# fail 0\n" in done.stdout and "\n# pass 0\n" not in done.stdout, done.stdout


def node_tests(file: str, **env: str) -> None:
    assert NODE is not None
    run(NODE, "--test", "--test-reporter=tap", file, **env)


def live(server: ServerProcess) -> dict[str, str]:
    return {"POLARGRID_BASE_URL": server.url, "SMOLLM2": SMOLLM2, "ALIAS": ALIAS, "SAID": json.dumps(SAID)}


def test_client_against_scripted_bytes() -> None:
    node_tests("client.test.mjs")


def test_chats_of_two_tabs_are_merged() -> None:
    node_tests("merge.test.mjs")


def test_json_is_indented_as_it_comes() -> None:
    node_tests("json.test.mjs")


def test_client_against_a_real_server(server: ServerProcess) -> None:
    node_tests("guide.test.mjs", **live(server))


@needs("openai")
def test_openai_for_node(server: ServerProcess) -> None:
    node_tests("openai.test.mjs", **live(server))


@needs("@anthropic-ai/sdk")
def test_anthropic_for_node(server: ServerProcess) -> None:
    node_tests("anthropic.test.mjs", **live(server))


@needs("ollama")
def test_ollama_for_node(server: ServerProcess) -> None:
    node_tests("ollama.test.mjs", **live(server))


@needs("@ai-sdk/openai")
@needs("@ai-sdk/anthropic")
@needs("ai")
def test_the_ai_sdk(server: ServerProcess) -> None:
    node_tests("ai.test.mjs", **live(server))


@needs("typescript")
def test_declarations_compile() -> None:
    assert NODE is not None
    run(NODE, "node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--target", "es2022", "--lib",
        "es2022,dom,dom.iterable,dom.asynciterable",
        "--module", "nodenext", "--moduleResolution", "nodenext", "types.ts")  # fmt: skip
