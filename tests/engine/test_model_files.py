"""Real models in odd places: split into shards, under any name, and files that are refused with a reason."""

import gzip
import os
import shutil

import pytest
import tiny_model

from polargrid_local import Engine, InvalidModelError, ModelFileChanged, NotFoundError, ValidationError, inspect_model


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    return tiny_model.write_scripted(tmp_path_factory.mktemp("scripted") / "scripted.gguf", [["Hi", " there", "!"]])


def answer(engine, said, name=None):
    messages = [{"role": "user", "content": said.message(0)}]
    return engine.chat_completion(messages=messages, model=name)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_split_model_answers_as_the_whole_one(scripted, tmp_path, count):
    whole = inspect_model(scripted.path)
    (tmp_path / "sub dir").mkdir()
    files = tiny_model.cut_in_shards(shutil.copy(scripted.path, tmp_path / "sub dir" / "big.gguf"), count)
    facts = inspect_model(files[0])
    assert (facts["n_splits"], facts["n_params"], facts["tensor_bytes"]) == (
        count,
        whole["n_params"],
        whole["tensor_bytes"],
    )
    with Engine("sub dir/big", models_dir=tmp_path, n_threads=1) as engine:
        assert [row["id"] for row in engine.list_models()["data"]] == ["sub dir/big"]
        for name in (None, "sub dir/big", "sub dir/big.gguf", str(files[0])):
            assert answer(engine, scripted, name) == "Hi there!"
        engine.unload_model("sub dir/big.gguf")
        assert engine.get_model_status()["loaded"] == []
    for later in files[1:]:
        with pytest.raises(InvalidModelError, match=f"open its first file, {files[0].name}"):
            Engine(later)
        with pytest.raises(InvalidModelError, match=f"open its first file, {files[0].name}"):
            inspect_model(later)


def test_a_chat_says_which_shard_is_missing_and_a_change_of_any_is_seen(scripted, tmp_path):
    files = tiny_model.cut_in_shards(shutil.copy(scripted.path, tmp_path / "big.gguf"), 3)
    with Engine("big", models_dir=tmp_path, n_threads=1) as engine:
        os.utime(files[2], ns=(1, 1))
        with pytest.raises(ModelFileChanged):
            answer(engine, scripted, "big")
        files[1].rename(tmp_path / "away")
        with pytest.raises(InvalidModelError, match=f"{files[1].name} is missing"):
            answer(engine, scripted, "big.gguf")
        with pytest.raises(InvalidModelError, match=f"{files[1].name} is missing"):
            engine.load_model("big")
    with pytest.raises(InvalidModelError, match="-00002-of-00003.gguf"):
        inspect_model(files[0])


@pytest.mark.parametrize(
    "name", ["my model", "x (1)", "Модель", "模型 👍🏽", "a+b%20&c#d?e", "x" * 200, "vendor/deep/m.Q4"]
)
def test_a_model_of_any_name_is_loaded_and_answers_by_it(scripted, tmp_path, name):
    path = tmp_path / f"{name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(scripted.path)
    with Engine(models_dir=tmp_path, n_threads=1) as engine:
        assert [row["id"] for row in engine.list_models()["data"]] == [name]
        assert engine.get_model(name)["id"] == engine.get_model(f"{name}.gguf")["id"] == name
        for load, ask in ((name, f"{name}.gguf"), (f"{name}.gguf", name), (path, str(path))):
            engine.load_model(load)
            assert answer(engine, scripted, ask) == "Hi there!"
            engine.unload_model(ask)


def test_a_refused_file_says_what_it_looks_like_and_where_it_is(scripted, tmp_path):
    whole = scripted.path.read_bytes()
    for says, data in {
        "this looks like an HTML page": b"<!DOCTYPE html><title>Sign in</title>",
        "this looks like a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "this looks like a big-endian GGUF": b"GGUF\0\0\0\x03" + bytes(100),
        "this looks like a gzip archive": gzip.compress(whole),
        "this looks like an empty file": b"",
        "this looks like a partial download": whole[:-1],
        "this looks like a partial download, zeros": bytes(len(whole)),
        "'llama.block_count' is missing": whole.replace(b"llama.block_count", b"llama.block_cnt__"),
    }.items():
        path = tmp_path / "bad file.gguf"
        path.write_bytes(data)
        for refuse in (inspect_model, Engine, lambda path: Engine("bad file", models_dir=path.parent)):
            with pytest.raises(InvalidModelError) as caught:
                refuse(path)
            assert says in str(caught.value) and str(path) in str(caught.value), says
            assert caught.value.path == str(path)
    whole_cut = tmp_path / "short.gguf"
    whole_cut.write_bytes(whole[:3000])
    with pytest.raises(InvalidModelError, match="this looks like a partial download"):
        inspect_model(whole_cut)


def test_an_adapter_that_is_none_is_the_one_that_is_called_names(scripted, tmp_path):
    adapter = tmp_path / "adapter.gguf"
    adapter.write_bytes(b"<html>")
    with pytest.raises(InvalidModelError, match="adapter.gguf looks like an HTML page"):
        Engine(scripted.path, lora=[adapter], n_threads=1)


@pytest.mark.parametrize(
    "path", [b"/tmp/\xff.gguf", "/tmp/\udcff.gguf", "/tmp/\ud800.gguf", "/tmp/nul\0.gguf", "/tmp/" + "x" * 5000]
)
def test_impossible_paths_are_typed_errors(path):
    for refuse in (inspect_model, Engine):
        with pytest.raises((NotFoundError, ValidationError)) as caught:
            refuse(path)
        str(caught.value).encode()


def test_a_real_file_whose_name_is_not_utf8_is_a_typed_error_and_hides_no_other(scripted, tmp_path):
    bad = os.fsencode(tmp_path) + b"/caf\xe9.gguf"
    shutil.copy(scripted.path, os.fsdecode(bad))
    shutil.copy(scripted.path, tmp_path / "good.gguf")
    for refuse in (
        inspect_model,
        lambda path: Engine(os.fsdecode(path)),
        lambda path: Engine(r"caf\xe9", models_dir=tmp_path),
    ):
        with pytest.raises(ValidationError, match="UTF-8|surrogate") as caught:
            refuse(bad)
        str(caught.value).encode()
    with Engine("good", models_dir=tmp_path, n_threads=1) as engine:
        assert {row["id"] for row in engine.list_models()["data"]} == {"good", r"caf\xe9"}
