"""Names: what the store finds on disk, what it refuses, and what its messages tell people to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import polargrid_local.store
from polargrid_local.errors import NotFoundError, ValidationError
from polargrid_local.store import HubSource, Store, WheelSource, parse_source

GGUF = b"GGUF" + bytes(60)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def put(store, name, data=GGUF):
    path = store.models_dir / name
    path.write_bytes(data)
    return path


def test_shipped_catalogue_is_complete_enough_to_pull_and_verify(store):
    assert list(store.entries) == ["llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "smollm2-135m"]
    for entry in store.entries.values():
        assert entry.sha256 and entry.bytes and entry.context and entry.licence
        assert parse_source(entry.source).member.endswith(entry.file)
    assert store.entry("Meta-Llama-3.1-8B-Instruct").id == "llama-3.1-8b"
    assert (store.preferred, store.embedded) == ("llama-3.1-8b", "smollm2-135m")


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "LLAMA-3.1-8B", "Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"]
)
def test_every_alias_finds_the_same_file(store, name):
    path = put(store, store.entries["llama-3.1-8b"].file)
    found = store.resolve(name)
    assert (found.id, found.path, found.entry) == ("llama-3.1-8b", path, store.entries["llama-3.1-8b"])
    assert found.sha256 is None  # put there by hand: nobody verified it


def test_file_names_paths_and_urls_find_the_file(store, tmp_path_factory, monkeypatch):
    inside = put(store, "My_Model.Q8_0.gguf")
    outside = tmp_path_factory.mktemp("else where") / "other%20model.gguf"
    outside.write_bytes(GGUF)
    for name in ("My_Model.Q8_0.gguf", "My_Model.Q8_0", inside, str(inside), inside.as_uri()):
        assert (store.resolve(name).id, store.resolve(name).path) == ("My_Model.Q8_0", inside)
    for name in (outside, str(outside), outside.as_uri(), f"file://localhost{outside.as_uri()[7:]}"):
        assert (store.resolve(name).id, store.resolve(name).path) == ("other%20model", outside)
    monkeypatch.chdir(outside.parent)
    assert store.resolve(outside.name).path == outside
    assert store.resolve(f"./{outside.name}").path == outside


def test_a_path_to_a_catalogue_file_in_the_directory_is_that_model(store):
    path = put(store, store.entries["smollm2-135m"].file)
    assert store.resolve(path).id == "smollm2-135m"
    assert store.resolve(str(path)).entry is store.entries["smollm2-135m"]


def test_missing_catalogue_model_says_the_command_and_the_file(store):
    with pytest.raises(NotFoundError) as caught:
        store.resolve("Llama-3.1-8B-Instruct")
    assert (caught.value.code, caught.value.param, caught.value.status) == ("model_not_found", "model", 404)
    message = str(caught.value)
    assert "polargrid-local pull llama-3.1-8b" in message
    assert "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf" in message and str(store.models_dir) in message


def test_unknown_name_suggests_the_nearest(store):
    with pytest.raises(NotFoundError, match="did you mean 'llama-3.1-8b'"):
        store.resolve("lama-3.1-8b")
    with pytest.raises(NotFoundError, match="Unknown model 'zzz'"):
        store.pull("zzz")
    assert not (store.models_dir / ".store").exists()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret", "..\\secret", "/etc/passwd", "a/../b", "nul\0byte", "C:model", "link", "link.gguf",
     "folder", "~/x", "x" * 97, "file:///etc/passwd", ".store", ".hidden", "é"],
)  # fmt: skip
def test_names_never_lead_out_of_the_directory(tmp_path, name):
    (tmp_path / "secret").write_bytes(GGUF)
    models = tmp_path / "models"
    models.mkdir()
    (models / "link.gguf").symlink_to(tmp_path / "secret")
    (models / "folder").mkdir()
    (models / ".hidden").write_bytes(GGUF)
    (models / ("x" * 97)).write_bytes(GGUF)
    with pytest.raises(NotFoundError) as caught:
        Store(models).resolve(name, paths=False)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    "name", ["/no/such/file.gguf", "no/such.gguf", "file:///no/such.gguf", Path("nothing.gguf"), ""]
)
def test_paths_that_are_not_files(store, name):
    with pytest.raises(NotFoundError):
        store.resolve(name)
    with pytest.raises(NotFoundError, match="is not a regular file"):
        store.resolve(store.models_dir)
    with pytest.raises(ValidationError, match="Not a file on this machine"):
        store.resolve("file://elsewhere/model.gguf")


def test_default_is_the_preferred_model_once_it_is_on_disk(store):
    assert store.default() == "smollm2-135m"
    put(store, store.entries["llama-3.1-8b"].file)
    assert store.default() == "llama-3.1-8b"


def test_list_shows_catalogue_models_first(store):
    assert store.list() == {}
    put(store, "a.gguf"), put(store, store.entries["smollm2-135m"].file), put(store, "notes.txt")
    assert list(store.list()) == ["smollm2-135m", "a"]


def test_a_site_adds_its_own_catalogue(tmp_path):
    (tmp_path / "catalog.toml").write_text(
        'embedded = "house"\n[models.house]\naliases = ["Haus"]\n'
        'source = "hf:site/models@v1/sub/house.gguf"\nfile = "house.gguf"\n'
    )
    store = Store(tmp_path)
    put(store, "house.gguf")
    assert store.resolve("haus").id == store.default() == "house"
    assert store.entry("llama-3.1-8b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models = 3", "catalog.toml"),
        ("[models.x", "catalog.toml"),
        ('[models.x]\nfile = "x.gguf"', "source"),
        ('[models.x]\nsource = "hf:a/b/x.gguf"\nfile = "../x.gguf"', "'file'"),
        ('[models.x]\nsource = "hf:a/b/x.gguf"\nfile = "x.bin"', "'file'"),
        ('[models.x]\nsource = "hf:a/b/x.gguf"\nfile = "x.gguf"\nsha256 = "abc"', "'sha256'"),
        ('[models.x]\nsource = "hf:a/b/x.gguf"\nfile = "x.gguf"\nbytes = -1', "'bytes'"),
        ('[models.x]\nsource = "hf:a/b/x.gguf"\nfile = "x.gguf"\naliases = "y"', "'aliases'"),
        ('[models.x]\nsource = "hf:a/b/x.gguf"\nfile = "x.gguf"\ncolour = "red"', "colour"),
        ('[models."../x"]\nsource = "hf:a/b/x.gguf"\nfile = "x.gguf"', "'id'"),
        ('[models.x]\nsource = "https://a/b/x.gguf"\nfile = "x.gguf"', "Not a model source"),
    ],
)
def test_a_broken_catalogue_is_refused_by_field(tmp_path, text, says):
    (tmp_path / "catalog.toml").write_text(text)
    with pytest.raises(ValidationError, match=says):
        Store(tmp_path)


def test_sources():
    assert parse_source("hf:a/b/c/d.gguf") == HubSource("a/b", None, "c/d.gguf")
    assert parse_source("hf:a/b@main/d.gguf") == HubSource("a/b", "main", "d.gguf")
    assert parse_source("pypi:p-q==1.2.post1/p_q/d.gguf") == WheelSource("p-q==1.2.post1", "p_q/d.gguf")
    for bad in ("hf:a/d.gguf", "hf:a/b/../d.gguf", "hf:a/b/d.bin", "pypi:p/d.gguf", "pypi:p>=1/d.gguf",
                "pypi:-r==1/d.gguf",
                "pypi:p==1 --index-url=x/d.gguf", "http://x/y.gguf", "hf:a/b/d.gguf\n"):  # fmt: skip
        with pytest.raises(ValidationError, match="Not a model source"):
            parse_source(bad)


def test_where_models_live(monkeypatch, tmp_path):
    monkeypatch.setenv("POLARGRID_LOCAL_MODELS", str(tmp_path / "env"))
    assert Store().models_dir == tmp_path / "env"
    assert Store(tmp_path / "given").models_dir == tmp_path / "given"
    monkeypatch.delenv("POLARGRID_LOCAL_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in Store().models_dir.parents
    assert not (tmp_path / "env").exists() and not (tmp_path / "data").exists()


def test_looking_up_names_imports_no_network_code():
    root = Path(polargrid_local.store.__file__).parents[1]
    script = (
        "import sys; from polargrid_local.store import Store; s = Store(sys.argv[1]); s.list(); s.default()\n"
        "try: s.resolve('llama-3.1-8b')\n"
        "except Exception: pass\n"
        "print([m for m in ('socket', 'ssl', 'http.client', 'huggingface_hub', 'subprocess') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
