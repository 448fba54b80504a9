"""Names: what the store finds on disk, what it refuses, and what its messages tell people to do."""

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import polargrid_local.models.catalog
from polargrid_local.cli.commands import app
from polargrid_local.errors import InvalidModelError, NotFoundError, ServerError, ValidationError
from polargrid_local.models.catalog import HubSource, WheelSource, parse_source
from polargrid_local.models.store import Store

GGUF = b"GGUF" + bytes(60)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def put(store, name, data=GGUF):
    path = store.models_dir / name
    path.write_bytes(data)
    return path


def test_shipped_catalogue_is_complete_enough_to_pull_and_verify(store):
    assert list(store.catalog.entries) == ["llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "smollm2-135m"]
    for entry in store.catalog.entries.values():
        assert entry.sha256 and entry.bytes and entry.context and entry.licence
        assert parse_source(entry.source).member.endswith(entry.file)
    assert store.catalog.find("Meta-Llama-3.1-8B-Instruct").id == "llama-3.1-8b"
    assert (store.catalog.preferred, store.catalog.embedded) == ("llama-3.1-8b", "smollm2-135m")


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "LLAMA-3.1-8B", "Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"]
)
def test_every_alias_finds_the_same_file(store, name):
    path = put(store, store.catalog.entries["llama-3.1-8b"].file)
    found = store.resolve(name)
    assert (found.id, found.path, found.entry) == ("llama-3.1-8b", path, store.catalog.entries["llama-3.1-8b"])
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
    path = put(store, store.catalog.entries["smollm2-135m"].file)
    assert store.resolve(path).id == "smollm2-135m"
    assert store.resolve(str(path)).entry is store.catalog.entries["smollm2-135m"]


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
    ["", ".", "..", "../secret", "../secret.gguf", "..\\secret", "/etc/passwd", "a/../b", "nul\0byte", "C:model",
     "folder",
     "folder/../secret", "folder/../../secret", "folder/", "/inside", "./inside", "folder//inside", "inside/", "~/x",
     "file:///etc/passwd", ".store", ".store/part", ".hidden", "é", "x" * 5000],
)  # fmt: skip
def test_names_never_lead_out_of_the_directory(tmp_path, name):
    models = tmp_path / "models"
    inside = ("inside.gguf", "folder/inside.gguf", ".store/part.gguf", ".hidden")
    for file in ("secret", "secret.gguf", *(f"models/{name}" for name in inside)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(GGUF)
    with pytest.raises(NotFoundError) as caught:
        Store(models).resolve(name, paths=False)
    assert caught.value.code == "model_not_found"
    assert set(Store(models).list()) == {"inside", "folder/inside"}


ODD = [
    "my model.gguf", "x (1).gguf", "Модель Q4.gguf", "模型.gguf", "a+b&c=d?e#f%20.gguf", "x" * 150 + ".gguf",
    "Upper.GGUF", ".gguf",
    ".hidden.gguf", "..gguf", "-rf.gguf", "a,b;c.gguf", "quote'\".gguf", "back\\slash.gguf",
    "new\nline\x1b[31m.gguf", " space .gguf",
    "nai\u0308ve.gguf", "👍🏽.gguf", "status.gguf", "x.gguf.gguf", "C:drive.gguf", "~home.gguf", "file:x.gguf",
    "model.Q4_K_M.gguf",
    "a-00001-of-00000.gguf", "a-00004-of-00003.gguf", "CON.gguf", "x\u202egpj.gguf",
]  # fmt: skip


def test_any_file_name_is_listed_and_found_by_that_name(store):
    paths = {put(store, name) for name in ODD}
    listed = store.list()
    assert {model.path for model in listed.values()} == paths and len(listed) == len(ODD)
    for id, model in listed.items():
        for name in (id, model.path.name):
            assert store.resolve(name, paths=False).path == store.resolve(name).path == model.path
            assert store.resolve(name).id == id
        assert id in (model.path.name, model.path.name[: -len(".gguf")])
        assert store.resolve(model.path).id == id


def test_a_name_that_is_not_utf8_is_listed_in_letters_and_found_by_them(store):
    path = put(store, os.fsdecode(b"caf\xe9 \xff.gguf"))
    (found,) = store.list().values()
    assert (found.id, found.path) == (r"caf\xe9 \xff", path)
    for name in (r"caf\xe9 \xff", r"caf\xe9 \xff.gguf", path.name, path, bytes(path)):
        assert store.resolve(name).path == path and store.resolve(name).id == found.id
    with pytest.raises(NotFoundError) as caught:
        store.resolve(os.fsdecode(b"none\xff"))
    str(caught.value).encode()


def test_files_of_one_name_in_several_folders_are_told_apart(store):
    for folder in ("", "vendor", "vendor/deep er", "Ünï"):
        (store.models_dir / folder).mkdir(exist_ok=True)
        put(store, os.path.join(folder, "m.gguf"))
    assert list(store.list()) == ["m", "vendor/m", "Ünï/m", "vendor/deep er/m"]
    for id, model in store.list().items():
        assert model.path == store.models_dir / f"{id}.gguf"
        for name in (id, id + ".gguf", model.path, str(model.path)):
            assert (store.resolve(name).id, store.resolve(name).path) == (id, model.path)


def test_of_two_files_that_a_name_could_mean_the_whole_name_wins(store):
    files = ["x.gguf", "x.gguf.gguf", "x.GGUF", "x-00001-of-00002.gguf", "x-00002-of-00002.gguf", "smollm2-135m.gguf",
             "SmolLM2-135M-Instruct.gguf", "smollm2-135m-instruct.q4_1.gguf"]  # fmt: skip
    for file in files:
        put(store, file)
    ids = {model.path.name: id for id, model in store.list().items()}
    assert ids == {
        "x.gguf": "x", "x.gguf.gguf": "x.gguf.gguf", "x.GGUF": "x.GGUF", "x-00001-of-00002.gguf": "x-00001-of-00002",
        "smollm2-135m.gguf": "smollm2-135m.gguf", "SmolLM2-135M-Instruct.gguf": "SmolLM2-135M-Instruct.gguf",
        "smollm2-135m-instruct.q4_1.gguf": "smollm2-135m-instruct.q4_1",
    }  # fmt: skip
    for file, id in ids.items():
        assert store.resolve(id).path.name == store.resolve(file).path.name == file
    with pytest.raises(
        NotFoundError, match="polargrid-local pull smollm2-135m"
    ):  # the catalogue's name stays the catalogue's
        store.resolve("smollm2-135m")


def test_a_link_counts_as_what_it_leads_to(store, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.gguf").write_bytes(GGUF)
    put(store, "near.gguf")
    for link, goal in {
        "link.gguf": elsewhere / "far.gguf", "again.gguf": "link.gguf", "folder": elsewhere, "broken.gguf": "nothing",
        "loop.gguf": "loop2.gguf", "loop2.gguf": "loop.gguf", "self": ".", "up": "..",
    }.items():  # fmt: skip
        (store.models_dir / link).symlink_to(goal)
    (elsewhere / "back").symlink_to(store.models_dir)
    listed = set(store.list())  # "up" leads to where other tests' files may lie
    assert {id for id in listed if not id.startswith("up/")} == {"near", "link", "again", "folder/far"}
    assert store.resolve("folder/far").path == store.models_dir / "folder" / "far.gguf"
    with pytest.raises(NotFoundError, match="is a broken link"):
        store.resolve(store.models_dir / "broken.gguf")
    with pytest.raises(NotFoundError, match="cannot be opened"):
        store.resolve(store.models_dir / "loop.gguf")


def test_what_is_no_file_hides_nothing_else(store):
    put(store, "good.gguf")
    (store.models_dir / "folder.gguf").mkdir()
    put(store, "folder.gguf/inner.gguf")
    os.mkfifo(store.models_dir / "pipe.gguf")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(store.models_dir / "socket.gguf"))
    assert list(store.list()) == ["good", "folder.gguf/inner"]
    for name in ("folder", "pipe", "socket.gguf"):
        with pytest.raises(NotFoundError):
            store.resolve(name, paths=False)


def test_a_folder_that_cannot_be_read_hides_nothing_else_and_is_told(store, monkeypatch, caplog):
    (store.models_dir / "shut").mkdir()
    put(store, "shut/in.gguf"), put(store, "good.gguf")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    told = f"{store.models_dir / 'shut'}: Permission denied"
    assert list(store.list()) == ["good"] and store.resolve("good")
    assert [record.getMessage() for record in caplog.records] == [f"a folder of models is left out: {told}"]
    with pytest.raises(NotFoundError, match=re.escape(told)):
        store.resolve("shut/in", paths=False)
    listed = CliRunner().invoke(app, ["list", "--models-dir", str(store.models_dir)])
    assert listed.exit_code == 0 and f"left out: {told}" in listed.stderr


def test_the_layout_of_the_hubs_own_cache_works(store):
    repo = store.models_dir / "models--org--repo"
    (
        (repo / "blobs").mkdir(parents=True),
        (repo / "snapshots" / "c0ffee").mkdir(parents=True),
        (repo / ".no_exist").mkdir(),
    )
    names = [f"m-0000{n}-of-00002.gguf" for n in (1, 2)] + ["single.gguf"]
    for n, name in enumerate(names):
        (repo / "blobs" / f"abc{n}").write_bytes(GGUF)
        (repo / "snapshots" / "c0ffee" / name).symlink_to(f"../../blobs/abc{n}")
    (repo / "blobs" / "def.incomplete").write_bytes(GGUF)
    ids = [f"models--org--repo/snapshots/c0ffee/{name}" for name in ("m", "single")]
    assert sorted(store.list()) == ids
    assert store.resolve(ids[0]).path.name == names[0] and store.resolve(ids[0]).n_bytes == 2 * len(GGUF)


def test_thousands_of_files_are_listed_with_one_look_at_each_folder(store, monkeypatch):
    for n in range(2000):
        put(store, f"m{n:04}.gguf", b"")
    scanned = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or real(path))
    assert len(store.list()) == 2000 and len(scanned) == 1


# --- split models ---


def put_shards(store, stem, numbers, count):
    return [put(store, f"{stem}-{n:05}-of-{count:05}.gguf", GGUF + bytes(n)) for n in numbers]


def test_a_split_model_is_one_model(store):
    (store.models_dir / "sub").mkdir()
    for stem in ("big one", "sub/big"):
        first, *later = put_shards(store, stem, (1, 2, 3), 3)
        assert [id for id in store.list() if id.startswith(stem)] == [stem]
        for name in (stem, stem + ".gguf", f"{stem}-00001-of-00003", f"{stem}-00001-of-00003.gguf", first, str(first)):
            found = store.resolve(name)
            assert (found.id, found.path, found.n_bytes) == (stem, first, 3 * len(GGUF) + 6)
        for shard in later:
            for name in (shard, str(shard), shard.relative_to(store.models_dir).as_posix().removesuffix(".gguf")):
                with pytest.raises(InvalidModelError, match=f"open its first file, {first.name}"):
                    store.resolve(name)


@pytest.mark.parametrize("here", [(1, 3), (1,), (2, 3), (3,)])
def test_an_incomplete_split_model_is_not_listed_and_says_what_is_missing(store, here):
    put_shards(store, "big", here, 3)
    put(store, "other.gguf")
    assert list(store.list()) == ["other"]
    for name in ("big", "big.gguf"):
        with pytest.raises(InvalidModelError) as caught:
            store.resolve(name, paths=False)
        for n in (1, 2, 3):
            assert (f"big-0000{n}-of-00003.gguf is missing" in str(caught.value).replace(", ", " is missing ")) == (
                n not in here
            )
        assert caught.value.details["missing"] == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3) if n not in here]


def test_shards_outside_the_directory(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    files = [folder / f"big-0000{n}-of-00002.gguf" for n in (1, 2)]
    for file in files:
        file.write_bytes(GGUF)
    assert (store.resolve(files[0]).id, store.resolve(files[0]).n_bytes) == ("big", 2 * len(GGUF))
    with pytest.raises(InvalidModelError, match=files[0].name):
        store.resolve(files[1])
    files[0].unlink()
    with pytest.raises(InvalidModelError, match="which is missing"):
        store.resolve(files[1])


# --- unusual places ---


def test_models_directories_that_are_none(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(GGUF)
    with pytest.raises(ValidationError, match="is a file, not a directory"):
        Store(file)
    nothing = Store(tmp_path / "nothing" / "deep")
    assert nothing.list() == {} and nothing.default() == "smollm2-135m" and nothing.resolve(file).path == file
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ServerError, match="loop"):
        Store(loop).list()
    with pytest.raises(ValidationError):
        Store(tmp_path / "nul\0")


def test_a_models_directory_that_cannot_be_read(store, monkeypatch, tmp_path_factory):
    file = tmp_path_factory.mktemp("out") / "model.gguf"
    file.write_bytes(GGUF)

    def scandir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ServerError, match="Permission denied") as caught:
        store.list()
    assert caught.value.code == "storage_error"
    assert store.resolve(file).path == file and store.default() == "smollm2-135m"
    with pytest.raises(NotFoundError, match="Permission denied"):
        store.resolve("some model")


def test_without_a_home_or_a_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ValidationError, match="no home directory"):
        Store("~/models")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ValidationError, match="not an absolute path"):
        Store(tmp_path).resolve("x/y.gguf")


def test_without_a_catalogue_paths_and_files_work(monkeypatch, tmp_path):
    monkeypatch.setattr(polargrid_local.models.catalog, "shipped_catalog", lambda: tmp_path / "none.toml")
    store = Store(tmp_path)
    assert store.catalog.entries == {} and store.list() == {}
    path = put(store, "x.gguf")
    assert store.resolve("x").path == store.resolve(path).path == path
    with pytest.raises(NotFoundError, match="No model was named"):
        store.default()


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
    put(store, store.catalog.entries["llama-3.1-8b"].file)
    assert store.default() == "llama-3.1-8b"


def test_list_shows_catalogue_models_first(store):
    assert store.list() == {}
    put(store, "a.gguf"), put(store, store.catalog.entries["smollm2-135m"].file), put(store, "notes.txt")
    assert list(store.list()) == ["smollm2-135m", "a"]


def test_a_site_adds_its_own_catalogue(tmp_path):
    (tmp_path / "catalog.toml").write_text(
        'embedded = "house"\n[models.house]\naliases = ["Haus"]\n'
        'source = "hf:site/models@v1/sub/house.gguf"\nfile = "house.gguf"\n'
    )
    store = Store(tmp_path)
    put(store, "house.gguf")
    assert store.resolve("haus").id == store.default() == "house"
    assert store.catalog.find("llama-3.1-8b")


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
        ('[models.x]\nsource = "hf:a/b/x-00001-of-00002.gguf"\nfile = "x.gguf"', "'file'"),
        ('[models.x]\nsource = "hf:a/b/x-00002-of-00002.gguf"\nfile = "x-00002-of-00002.gguf"', "'file'"),
        ("preferred = 3", "'preferred'"),
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
    assert parse_source("hf:a/b/sub/big Модель+(1)-Q4_K_M") == HubSource("a/b", None, "sub/big Модель+(1)-Q4_K_M.gguf")
    for source in ("hf:a/b/c/d.gguf", "hf:a/b@main/d.gguf", "pypi:p-q==1.2.post1/p_q/d.gguf"):
        assert str(parse_source(source)) == source
    for bad in ("hf:a/b/.d.gguf", "hf:a/b/x\\y.gguf", "hf:a/b//d.gguf", "hf:a/b/d.safetensors",
                "hf:a/d.gguf", "hf:a/b/../d.gguf", "hf:a/b/d.bin", "pypi:p/d.gguf", "pypi:p>=1/d.gguf",
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
    root = Path(polargrid_local.models.catalog.__file__).parents[2]
    script = (
        "import sys; from polargrid_local.models.store import Store; s = Store(sys.argv[1]); s.list(); s.default()\n"
        "try: s.resolve('llama-3.1-8b')\n"
        "except Exception: pass\n"
        "network = ('socket', 'ssl', 'http.client', 'httpx', 'huggingface_hub', 'subprocess')\n"
        "print([m for m in network if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
