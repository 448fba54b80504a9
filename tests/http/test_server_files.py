"""Models of any file name over real HTTP, and what is said about files that cannot be loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import openai
import pytest
import tiny_model
from polargrid import PolarGridSync
from serving import ServerProcess

NAMES = [
    "my model",
    "x (1)",
    "Модель",
    "模型 👍🏽",
    "a+b%20&c#d?e",
    "x" * 150,
    "vendor/model",
    "vendor/deep er/model",
    "split one",
]
ODD = r"caf\xe9"  # how a file whose name is not UTF-8 is called


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my models")
    said = tiny_model.write_scripted(folder / "first.gguf", [["Hi", " there"]])
    for name in NAMES[:-1]:
        path = folder / f"{name}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(said.path)
    tiny_model.write_scripted(folder / "split one.gguf", [["Hi", " there"]])
    tiny_model.cut_in_shards(folder / "split one.gguf", 3)
    (folder / "lacking-00001-of-00002.gguf").write_bytes(b"GGUF")
    (folder / "bad page.gguf").write_bytes(b"<!DOCTYPE html>")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.gguf")).write_bytes(b"GGUF")
    (folder / "broken.gguf").symlink_to("nothing")
    (folder / "loop.gguf").symlink_to("loop.gguf")
    (folder.parent / "outside.gguf").write_bytes(b"GGUF")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(folder, tmp_path_factory.mktemp("server") / "log", model="first", n_threads=1, n_ctx=512)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


MESSAGES = [{"role": "user", "content": chr(0xE001)}]  # what the scripted models answer


def test_all_are_listed(server: ServerProcess) -> None:
    listed = [row["id"] for row in server.get("/v1/models").json()["data"]]
    assert sorted(listed) == sorted(["first", *NAMES, "bad page", ODD])


@pytest.mark.parametrize("name", NAMES)
def test_each_is_found_loaded_asked_and_unloaded_by_its_name(server: ServerProcess, name: str) -> None:
    for spelt in (name, f"{name}.gguf"):
        reply = server.get(f"/v1/models/{quote(spelt, safe='')}")
        assert (reply.status_code, reply.json()["id"]) == (200, spelt)
        body = {"model": spelt, "messages": MESSAGES}
        reply = server.post("/v1/chat/completions", body)
        assert (reply.status_code, reply.json()["model"]) == (200, spelt)
        assert reply.json()["choices"][0]["message"]["content"] == "Hi there"
        assert server.post("/v1/models/unload", {"model_name": spelt}).json()["status"] == "success"
        assert server.post("/v1/models/load", {"model_name": spelt}).json()["status"] == "success"
    assert name in server.get("/v1/models/status").json()["loaded"]
    assert server.post("/v1/models/unload", {"model_name": name}).status_code == 200


def test_both_clients_take_them(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        for name in NAMES:
            assert client.models.retrieve(name).id == name
        answer = client.chat.completions.create(model=NAMES[-2], messages=MESSAGES)
        assert answer.choices[0].message.content == "Hi there"
    sdk = PolarGridSync(base_url=server.url, api_key="any")
    for name in NAMES:
        assert sdk.get_model(name).id == name


@pytest.mark.parametrize(
    "name",
    ["../outside", "vendor/../../outside", "/etc/passwd", "nul\0", "C:first", "vendor", "loop", "broken", ".store"],
)
def test_no_name_leads_out(server: ServerProcess, name: str) -> None:
    for reply in (
        server.get(f"/v1/models/{quote(name, safe='')}"),
        server.post("/v1/chat/completions", {"model": name, "messages": MESSAGES}),
        server.post("/v1/models/load", {"model_name": name}),
    ):
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_loaded")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bad page", "bad page.gguf: header"),
        ("bad page", "this looks like an HTML page"),
        ("lacking", "lacking-00002-of-00002.gguf is missing"),
        ("split one-00002-of-00003", "open its first file, split one-00001-of-00003.gguf"),
        (ODD, r"caf\xe9.gguf: the path of a model must be UTF-8"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why_and_not_where(
    server: ServerProcess, folder: Path, name: str, says: str
) -> None:
    for path, body in (
        ("/v1/chat/completions", {"model": name, "messages": MESSAGES}),
        ("/v1/chat/completions", {"model": name, "messages": MESSAGES, "stream": True}),
        ("/v1/models/load", {"model_name": name}),
    ):
        reply = server.post(path, body)
        # A name that leads to no whole model is the request's fault; a file that is there and bad is not.
        bad_file = path != "/v1/models/load" and not name.startswith(("lacking", "split one"))
        assert reply.status_code == (503 if bad_file else 400) and says in reply.json()["error"]["message"], reply.text
        assert folder.name not in reply.text and str(folder.parent) not in reply.text
    assert server.get("/health").json()["status"] == "healthy"


def test_the_command_line_lists_them(folder: Path) -> None:
    command = [sys.executable, "-m", "polargrid_local", "list", "--models-dir", str(folder)]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    table = subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    rows = subprocess.run(
        [*command, "--json"], env=env, capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout
    ids = {row["id"]: row for row in map(json.loads, rows.splitlines())}
    for name in (*NAMES, ODD):
        assert any(line.startswith(f"{name}  ") for line in table.splitlines()) and ids[name]["path"]
    assert ids["split one"]["bytes"] == sum(path.stat().st_size for path in folder.glob("split one-*"))


def test_two_files_of_one_name_named_by_their_paths_are_two_models(folder: Path, tmp_path: Path) -> None:
    twin = tmp_path / "first.gguf"
    twin.symlink_to(folder / "first.gguf")
    process = ServerProcess(folder, tmp_path / "log", model=f"{twin},{folder / 'first.gguf'}", n_threads=1, n_ctx=512)
    try:
        process.wait_ready()
        assert len(process.get("/v1/models/status").json()["loaded"]) == 2
    finally:
        process.stop()
