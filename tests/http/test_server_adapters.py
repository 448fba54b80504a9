"""Adapters, defaults and fingerprints over HTTP: one server of a tiny model with two adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lora_file
import ollama
import openai
import pytest
from serving import ServerProcess

HEADER = "x-polargrid-fingerprint"
ASK: dict[str, Any] = {"prompt": "the time of day", "max_tokens": 6, "temperature": 0}
HI: Any = [{"role": "user", "content": "hi"}]
NAMES = ("random", "random:one", "random:two")


@pytest.fixture(scope="module")
def server(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("adapters")
    targets = {"one": "blk.0.attn_output.weight", "two": "blk.1.attn_output.weight"}
    for name, target in targets.items():
        lora_file.write(folder / f"{name}.gguf", {target: ((4, 128), (128, 4))})
    config = folder / "serve.toml"
    config.write_text(
        f'model = ["random"]\nn_threads = 1\nn_ctx = 512\nmax_streams = 4\nmax_tokens_limit = 100\n'
        f"[defaults]\nseed = 7\n"
        f'[adapters]\n"random:one" = "{folder}/one.gguf"\n"random:two" = "{folder}/two.gguf@0.5"\n'
        f'[models."scripted"]\nchat_template = "template of its own: {{{{ messages[0].content }}}}"\n'
    )
    process = ServerProcess(tiny_dir, folder / "log", config=config)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def said(server: ServerProcess, **fields: Any) -> str:
    reply = server.post("/v1/completions", {**ASK, **fields})
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["text"]
    return text


def test_each_adapter_is_a_model_of_its_own(server: ServerProcess) -> None:
    texts = [said(server, model=name) for name in NAMES]
    assert len(set(texts)) == 3
    assert said(server) == texts[0]
    assert said(server, lora=[{"id": 0, "scale": 1}]) == texts[1]
    assert said(server, model="random:one", lora=[{"id": 1, "scale": 0.5}]) == texts[2]
    reply = server.post("/completion", {"prompt": ASK["prompt"], "n_predict": 6, "temperature": 0, "lora": [{"id": 0}]})
    assert reply.json()["content"] == texts[1]
    assert reply.json()["generation_settings"]["lora"] == [{"id": 0}]


def test_clients_of_others_find_and_ask_them(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        rows = {model.id: model.to_dict() for model in client.models.list()}
        assert [rows[name]["parent"] for name in NAMES] == [None, "random", "random"]
        assert client.models.retrieve("random:one").to_dict() == rows["random:one"]
        row: Any = rows["random:two"]
        limits = (row["max_model_len"], row["max_completion_tokens"], row["max_streams"], row["tasks"])
        assert limits == (512, 100, 4, ["generate"])
        assert (row["meta"]["n_ctx_train"], row["meta"]["architecture"]) == (131072, "llama")
        chat = client.chat.completions.create(model="random:two", messages=HI, max_tokens=2)
        assert chat.model == "random:two"
        with pytest.raises(openai.NotFoundError, match="no adapter 'ones'; did you mean 'one'"):
            client.chat.completions.create(model="random:ones", messages=HI)
    with ollama.Client(host=server.url, trust_env=False) as client:
        listed = {model.model: model for model in client.list().models}
    assert listed["random:one"].details is not None and listed["random:one"].details.parent_model == "random"


def test_llama_servers_users_read_the_adapters_and_are_told_how_to_choose(server: ServerProcess) -> None:
    assert server.get("/lora-adapters", params={"model": "random:two"}).json() == [
        {"id": 0, "path": "one.gguf", "scale": 0.0, "name": "random:one"},
        {"id": 1, "path": "two.gguf", "scale": 0.5, "name": "random:two"},
    ]
    refusal = server.post("/lora-adapters", [{"id": 0, "scale": 1.0}])
    assert refusal.status_code == 405 and "each request has its own `lora`" in refusal.text
    refusal = server.post("/v1/completions", {**ASK, "lora": [{"id": 2}]})
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "lora[0].id")


def test_answers_carry_the_fingerprint_of_what_made_them(server: ServerProcess) -> None:
    told = []
    for name in NAMES:
        plain = server.post("/v1/chat/completions", {"model": name, "messages": HI, "max_tokens": 2})
        told.append(plain.headers[HEADER])
        assert plain.json()["system_fingerprint"] == plain.json()["pg_metadata"]["system_fingerprint"] == told[-1]
    assert len(set(told)) == 3
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        asked: Any = {"messages": HI, "model": "random", "max_tokens": 2, "stream": True}
        chunks = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
        assert [chunk.system_fingerprint for chunk in chunks] == [None] * (len(chunks) - 1) + [told[0]]
        stream = client.chat.completions.with_raw_response.create(**asked)
        assert stream.headers[HEADER] == told[0]
        stream.parse().close()
    asked = {"model": "random", "prompt": "hi", "options": {"num_predict": 2}}
    assert server.post("/api/generate", asked).headers[HEADER] == told[0]


def test_a_request_says_how_long_its_model_stays(server: ServerProcess) -> None:
    one_token: Any = {"options": {"num_predict": 1}}
    with ollama.Client(host=server.url, trust_env=False) as client:
        assert client.generate(model="random:one", keep_alive=-1, **one_token).model == "random:one"
        (loaded,) = client.ps().models
        assert (loaded.model, loaded.expires_at) == ("random:latest", None)
        client.chat(model="random", messages=HI, **one_token)
        assert client.ps().models[0].expires_at is None  # as before
        client.chat(model="random", messages=HI, keep_alive="10m", **one_token)
        assert client.ps().models[0].expires_at is not None
        assert client.generate(model="random", keep_alive=0).done_reason == "unload"
        server.wait_for(lambda: not client.ps().models)


def test_defaults_and_templates_of_the_settings_apply_to_every_api(server: ServerProcess) -> None:
    sampled = {"prompt": "the time of day", "max_tokens": 6, "temperature": 1.5}
    assert said(server, **sampled) == said(server, **sampled) == said(server, **sampled, seed=7)
    assert said(server, **sampled, seed=8) != said(server, **sampled)
    asked = {"model": "random", "prompt": "hi", "raw": True, "stream": False, "options": {"num_predict": 6}}
    replies = [server.post("/api/generate", asked).json()["response"] for _ in range(2)]
    assert replies[0] == replies[1]
    prompt = server.post("/apply-template", {"model": "scripted", "messages": HI}).json()["prompt"]
    assert prompt == "template of its own: hi"
    refusal = server.post("/v1/chat/completions", {"messages": HI, "chat_template": "{{ messages[0].content }}"})
    assert refusal.status_code == 400 and refusal.json()["error"]["param"] == "chat_template"
