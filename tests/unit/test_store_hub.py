"""Downloads from a hub on loopback that serves ranges, cuts connections, and lies about lengths and hashes."""

import contextlib
import errno
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import huggingface_hub
import pytest
from hub import FILE, MODEL, Hub

import polargrid_local.models.store
from polargrid_local.errors import InvalidModelError, NetworkError, NotFoundError, ServerError, ValidationError
from polargrid_local.models import partial, transfer
from polargrid_local.models.store import Store

ROOT = Path(polargrid_local.models.store.__file__).parents[2]
OTHER = b"GGUF" + random.Random(2).randbytes(250_000)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(transfer, "RETRY_DELAYS_S", (0, 0))
    monkeypatch.setattr(partial, "BLOCK_BYTES", 64 << 10)
    yield server
    if server.hold is not None:
        server.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()
    with contextlib.suppress(AttributeError):
        huggingface_hub.close_session()


def make_store(path, sha256="", n_bytes=0):
    """A store whose catalogue knows one model of the stand-in hub."""
    path.mkdir(exist_ok=True)
    known = (f'sha256 = "{sha256}"\n' if sha256 else "") + (f"bytes = {n_bytes}\n" if n_bytes else "")
    (path / "catalog.toml").write_text(f'[models.house]\nsource = "hf:site/models@v1/{FILE}"\nfile = "{FILE}"\n{known}')
    return Store(path)


def make_exact_store(path, data=MODEL):
    return make_store(path, hashlib.sha256(data).hexdigest(), len(data))


def leftovers(store):
    return sorted(item.name for item in (store.models_dir / ".store").iterdir() if not item.name.endswith(".lock"))


def test_pull_publishes_a_verified_read_only_file(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")
    seen = []
    path = store.pull("house", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == MODEL
    assert path.stat().st_mode & 0o777 == 0o444
    assert store.resolve("house").sha256 == hashlib.sha256(MODEL).hexdigest()
    assert leftovers(store) == [f"{FILE}.json"]
    assert seen[0] == (0, len(MODEL)) and seen[-1] == (len(MODEL), len(MODEL))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub, tmp_path):
    make_exact_store(tmp_path / "models").pull("house")
    assert [(method, auth) for method, _, _, auth in hub.requests] == [("HEAD", "Bearer hf_secret"), ("GET", None)]
    assert hub.requests[0][1] == f"/site/models/resolve/v1/{FILE}"
    hub.storage = f"http://127.0.0.1:{hub.server_port}"  # served by the hub itself
    make_exact_store(tmp_path / "more").pull("house")
    assert hub.gets[-1][:2] == ("GET", f"/blob/{FILE}")
    assert hub.gets[-1][3] == "Bearer hf_secret"


def test_a_second_pull_fetches_nothing(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")
    store.pull("house")
    n_requests = len(hub.requests)
    store.pull("house")
    make_exact_store(tmp_path / "models").pull(FILE)
    assert len(hub.requests) == n_requests


def test_a_file_put_there_by_hand_is_verified_and_kept_or_replaced(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")
    (store.models_dir / FILE).write_bytes(MODEL)
    store.pull("house")
    assert hub.requests == [] and store.resolve("house").sha256
    (store.models_dir / FILE).write_bytes(OTHER)
    assert store.resolve("house").sha256 is None
    assert store.pull("house").read_bytes() == MODEL
    same_length = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    (store.models_dir / FILE).chmod(0o644)
    (store.models_dir / FILE).write_bytes(same_length)
    assert store.pull("house").read_bytes() == MODEL


@pytest.mark.parametrize("damage", ["flip", "truncate", "zero tail", "empty"])
@pytest.mark.parametrize("catalogued", [True, False])
def test_pull_repairs_what_a_disk_has_spoilt(hub, tmp_path, damage, catalogued):
    """Also where length and time of the file are those that were noted when it came."""
    store = make_exact_store(tmp_path / "models") if catalogued else make_store(tmp_path / "models")
    path = store.pull("house")
    stat = path.stat()
    path.chmod(0o644)
    spoilt = {
        "flip": MODEL[:9] + bytes([MODEL[9] ^ 1]) + MODEL[10:], "truncate": MODEL[:-1], "empty": b"",
        "zero tail": MODEL[:200_000] + bytes(len(MODEL) - 200_000),
    }[damage]  # fmt: skip
    path.write_bytes(spoilt)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    hub.statuses = [404]  # as long as nothing better is there, the old file stays
    with pytest.raises(NetworkError):
        store.pull("house")
    assert path.read_bytes() == spoilt
    assert store.pull("house").read_bytes() == MODEL
    n_requests = len(hub.requests)
    assert store.pull("house") == path and len(hub.requests) == n_requests


@pytest.mark.parametrize("record", [None, b"", b"{garbled", b"[]", b'{"sha256": 3}', b"\xff"])
def test_without_its_record_only_the_catalogue_can_tell_what_a_file_must_be(hub, tmp_path, record):
    for store, known in ((make_exact_store(tmp_path / "exact"), True), (make_store(tmp_path / "unknown"), False)):
        path = store.pull("house")
        note = store.models_dir / ".store" / f"{FILE}.json"
        note.unlink()
        if record is not None:
            note.write_bytes(record)
        if known:
            n_gets = len(hub.gets)
            assert store.pull("house") == path and len(hub.gets) == n_gets
            assert store.resolve("house").sha256 == hashlib.sha256(MODEL).hexdigest()
        else:
            with pytest.raises(ValidationError, match="is there already and did not come from"):
                store.pull("house")


def test_a_link_that_is_spoilt_is_replaced_and_what_it_leads_to_is_left_alone(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")
    (tmp_path / "theirs.gguf").write_bytes(OTHER)
    (store.models_dir / FILE).symlink_to(tmp_path / "theirs.gguf")
    assert store.pull("house").read_bytes() == MODEL
    assert (tmp_path / "theirs.gguf").read_bytes() == OTHER and not (store.models_dir / FILE).is_symlink()


def test_a_folder_in_the_way_is_refused_before_the_first_byte(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")
    (store.models_dir / FILE).mkdir()
    with pytest.raises(ServerError, match="in the way"):
        store.pull("house")
    assert hub.requests == []


def test_the_right_file_on_a_read_only_disk_is_enough(hub, tmp_path, monkeypatch):
    store = make_exact_store(tmp_path / "models")
    (store.models_dir / FILE).write_bytes(MODEL)

    def mkdir(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert store.pull("house") == store.models_dir / FILE and hub.requests == []
    (store.models_dir / FILE).write_bytes(OTHER)
    with pytest.raises(ServerError, match="Read-only") as caught:
        store.pull("house")
    assert caught.value.code == "storage_error" and hub.requests == []


# --- split models ---

SHARDS = {f"sub/big model-{n:05}-of-00003.gguf": b"GGUF" + random.Random(n).randbytes(90_000 + n) for n in (1, 2, 3)}
NAMES = [name.rpartition("/")[2] for name in SHARDS]


@pytest.mark.parametrize("named", [*SHARDS, "sub/big model.gguf", "sub/big model"])
def test_pull_brings_every_shard(hub, tmp_path, named):
    hub.files = SHARDS
    hub.cuts = [40_000, 0]
    store = Store(tmp_path)
    seen = []
    source = f"hf:site/models@v1/{named}"
    path = store.pull(source, lambda done, total: seen.append((done, total)))
    assert path == tmp_path / NAMES[0]
    assert [(tmp_path / name).read_bytes() for name in NAMES] == list(SHARDS.values())
    n_all = sum(map(len, SHARDS.values()))
    assert seen[-1] == (n_all, n_all) and {total for _, total in seen} == {n_all}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert list(store.list()) == ["big model"] and store.resolve("big model").n_bytes == n_all
    assert leftovers(store) == [f"{name}.json" for name in NAMES]
    n_requests = len(hub.requests)
    assert store.pull(source) == path and len(hub.requests) == n_requests


def test_only_the_spoilt_and_the_missing_shard_are_fetched_again(hub, tmp_path):
    hub.files = SHARDS
    store = Store(tmp_path)
    store.pull(f"hf:site/models/{next(iter(SHARDS))}")
    (tmp_path / NAMES[0]).chmod(0o644)
    (tmp_path / NAMES[0]).write_bytes(b"?")
    (tmp_path / NAMES[1]).unlink()
    hub.requests.clear()
    store.pull("hf:site/models/sub/big model.gguf")
    assert [urllib.parse.unquote(path) for _, path, _, _ in hub.gets] == [f"/blob/{name}" for name in list(SHARDS)[:2]]
    assert [(tmp_path / name).read_bytes() for name in NAMES] == list(SHARDS.values())


def test_a_cut_split_model_is_not_there_until_its_last_shard_is(hub, tmp_path):
    hub.files = SHARDS
    hub.broken = NAMES[2]
    store = Store(tmp_path)
    with pytest.raises(NetworkError):
        store.pull("hf:site/models/sub/big model")
    assert store.list() == {} and sorted(path.name for path in tmp_path.glob("*.gguf")) == NAMES[:2]
    hub.broken = None
    store.pull("hf:site/models/sub/big model")
    assert list(store.list()) == ["big model"] and [path for _, path, _, _ in hub.gets].count(hub.gets[-1][1]) == 2


def test_a_shard_that_the_hub_lacks_is_said_before_the_first_byte(hub, tmp_path):
    hub.files = dict(list(SHARDS.items())[:2])
    for name in ("sub/big model-00001-of-00003.gguf", "sub/big model"):
        with pytest.raises(NotFoundError, match="no such file on the hub"):
            Store(tmp_path).pull(f"hf:site/models/{name}")
    assert hub.gets == [get for get in hub.gets if "/api/" in get[1]]


def test_too_small_a_disk_for_all_shards_is_refused_before_the_first_byte(hub, tmp_path, monkeypatch):
    hub.files = SHARDS
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 200_000})())
    with pytest.raises(ServerError) as caught:
        Store(tmp_path).pull(f"hf:site/models/{next(iter(SHARDS))}")
    assert caught.value.code == "disk_full" and hub.gets == []


def test_a_split_model_of_the_catalogue(hub, tmp_path):
    hub.files = SHARDS
    first = next(iter(SHARDS.values()))
    (tmp_path / "catalog.toml").write_text(
        '[models.big]\nsource = "hf:site/models/sub/big model-00001-of-00003.gguf"\nfile = "big-00001-of-00003.gguf"\n'
        f'sha256 = "{hashlib.sha256(first).hexdigest()}"\nbytes = {len(first)}\n'
    )
    store = Store(tmp_path)
    assert store.pull("big") == tmp_path / "big-00001-of-00003.gguf" == store.resolve("big").path
    assert list(store.list()) == ["big"] and store.resolve("big").sha256 == hashlib.sha256(first).hexdigest()
    (tmp_path / "big-00003-of-00003.gguf").unlink()
    with pytest.raises(InvalidModelError, match="big-00003-of-00003.gguf is missing"):
        store.resolve("big")


def test_cut_connections_go_on_at_the_very_byte(hub, tmp_path):
    hub.cuts = [1, 10_000, 70_000, 100_000]
    make_exact_store(tmp_path / "models").pull("house")
    assert [asked for _, _, asked, _ in hub.gets] == [None, "bytes=1-", "bytes=10001-", "bytes=80001-", "bytes=180001-"]


def test_a_link_that_always_breaks_keeps_going_while_bytes_arrive(hub, tmp_path):
    hub.cuts = [9_000] * 40
    assert make_exact_store(tmp_path / "models").pull("house").read_bytes() == MODEL


def test_a_dead_link_is_a_network_error_and_the_next_pull_resumes(hub, tmp_path):
    hub.cuts = [100_000, 0, 0, 0]
    store = make_exact_store(tmp_path / "models")
    with pytest.raises(NetworkError) as caught:
        store.pull("house")
    assert caught.value.retryable and caught.value.code == "network_error"
    assert f"{FILE} of the Hugging Face repository site/models) into {store.models_dir}" in str(caught.value)
    assert store.list() == {} and len(hub.gets) == 4
    assert store.pull("house").read_bytes() == MODEL
    assert hub.gets[-1][2] == "bytes=100000-"


def test_no_hub_at_all(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"put house\.gguf"):
        make_exact_store(tmp_path / "models").pull("house")


def test_a_hub_without_ranges_starts_over(hub, tmp_path):
    hub.ranges, hub.cuts = False, [200_000]
    assert make_exact_store(tmp_path / "models").pull("house").read_bytes() == MODEL


def test_a_passing_server_error_is_tried_again_and_a_refusal_is_not(hub, tmp_path):
    hub.statuses = [503, 429]
    store = make_exact_store(tmp_path / "models")
    assert store.pull("house").read_bytes() == MODEL
    hub.statuses = [401]
    with pytest.raises(NetworkError, match="answered 401"):
        make_exact_store(tmp_path / "more").pull("house")
    assert hub.statuses == []


def test_an_unknown_file_is_not_found(hub, tmp_path):
    store = Store(tmp_path)
    with pytest.raises(NotFoundError, match="no such file on the hub"):
        store.pull("hf:site/models/nothing.gguf")
    assert store.list() == {}


@pytest.mark.parametrize("field", ["sha256", "bytes"])
def test_a_hub_that_disagrees_with_the_catalogue_is_refused_before_the_first_byte(hub, tmp_path, field):
    sha256, n_bytes = hashlib.sha256(MODEL).hexdigest(), len(MODEL)
    store = make_store(tmp_path / "models", "0" * 64 if field == "sha256" else sha256, n_bytes + (field == "bytes"))
    with pytest.raises(NetworkError) as caught:
        store.pull("house")
    assert caught.value.code == "checksum_mismatch"
    assert hub.gets == [] and store.list() == {}


@pytest.mark.parametrize("lie", ["content", "longer", "shorter", "hash"])
@pytest.mark.parametrize("catalogued", [True, False])
def test_lies_are_never_installed(hub, tmp_path, lie, catalogued):
    hub.stated_sha256, hub.stated_bytes = hashlib.sha256(MODEL).hexdigest(), len(MODEL)
    if lie == "content":
        hub.data = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    elif lie == "longer":
        hub.data = MODEL + b"more" * 100_000
    elif lie == "shorter":
        hub.data = MODEL[:-10]
    else:
        hub.stated_sha256 = "f" * 64
    store = make_exact_store(tmp_path / "models") if catalogued else make_store(tmp_path / "models")
    with pytest.raises(NetworkError):
        store.pull("house")
    assert store.list() == {} and leftovers(store) in ([], [n for n in leftovers(store) if ".part" in n])
    hub.data, hub.stated_sha256, hub.stated_bytes = MODEL, None, None
    assert store.pull("house").read_bytes() == MODEL


def test_the_hubs_own_hash_verifies_what_the_catalogue_does_not_know(hub, tmp_path):
    store = make_store(tmp_path / "models")
    store.pull("house")
    assert store.resolve("house").sha256 == hashlib.sha256(MODEL).hexdigest()


def test_without_any_hash_or_length_only_a_gguf_is_accepted(hub, tmp_path):
    hub.etag_is_sha256, hub.lengths = False, False
    store = make_store(tmp_path / "models")
    assert store.pull("house").read_bytes() == MODEL
    hub.data = b"<html>please log in</html>"
    with pytest.raises(NetworkError, match="not a GGUF file"):
        make_store(tmp_path / "more").pull("house")


def test_a_new_revision_does_not_continue_the_old_ones_bytes(hub, tmp_path):
    store = make_store(tmp_path / "models")
    hub.cuts = [100_000, 0, 0, 0]
    with pytest.raises(NetworkError):
        store.pull("house")
    hub.data = OTHER
    assert store.pull("house").read_bytes() == OTHER
    assert hub.gets[-1][2] is None and leftovers(store) == [f"{FILE}.json"]


def test_any_file_of_the_hub_by_source(hub, tmp_path):
    store = Store(tmp_path)
    path = store.pull(f"hf:someone/models/{FILE}")
    assert store.resolve("house").path == path and store.resolve("house").sha256
    n_requests = len(hub.requests)
    store.pull(f"hf:someone/models/{FILE}")
    assert len(hub.requests) == n_requests
    with pytest.raises(
        ValidationError, match="did not come from"
    ):  # the same file name from elsewhere is not the same model
        store.pull(f"hf:else/models/{FILE}")


def test_storage_on_another_scheme_is_refused(hub, tmp_path):
    hub.storage = "file:///etc"
    with pytest.raises(NetworkError, match="refused to follow"):
        make_exact_store(tmp_path / "models").pull("house")


class Stop(Exception):
    pass


def test_what_progress_raises_ends_the_download_and_the_next_one_goes_on(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")

    def stop(done, total):
        if done:
            raise Stop

    with pytest.raises(Stop):
        store.pull("house", stop)
    assert store.list() == {} and len(hub.gets) == 1
    assert store.pull("house").read_bytes() == MODEL
    assert hub.gets[-1][2] and hub.gets[-1][2] != "bytes=0-"


# --- the disk ---


class FullDisk(io.FileIO):
    """A file on a disk with `room` bytes left."""

    room = 0

    def write(self, data):
        n = min(len(data), FullDisk.room)
        if n == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        FullDisk.room -= n
        return super().write(memoryview(data)[:n])


@pytest.mark.parametrize("room", [0, 1, 50_000, 64 << 10, 100_000, 250_000, len(MODEL) - 1])
def test_a_full_disk_is_typed_and_the_rest_comes_later(hub, tmp_path, monkeypatch, room):
    store = make_exact_store(tmp_path / "models")
    FullDisk.room = room

    def open_on_full_disk(path, mode, **kwargs):
        return (
            io.BufferedRandom(FullDisk(path, mode.replace("b", "")))
            if str(path).endswith(".part")
            else open(path, mode, **kwargs)
        )

    with monkeypatch.context() as full:
        full.setattr(partial, "open", open_on_full_disk, raising=False)
        with pytest.raises(ServerError) as caught:
            store.pull("house")
    assert caught.value.code == "disk_full" and caught.value.details["errno"] == errno.ENOSPC
    assert store.list() == {}
    assert store.pull("house").read_bytes() == MODEL
    resumed = int((hub.gets[-1][2] or "bytes=0-")[6:-1])
    assert room - partial.BLOCK_BYTES < resumed <= room or resumed == 0


def test_too_small_a_disk_is_refused_before_the_first_byte(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ServerError, match="only 1000 bytes free") as caught:
        make_exact_store(tmp_path / "models").pull("house")
    assert caught.value.code == "disk_full" and caught.value.details["need_bytes"] == len(MODEL)
    assert hub.gets == []


def test_an_unwritable_directory_is_typed(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")
    (store.models_dir / ".store").write_text("in the way")
    with pytest.raises(ServerError) as caught:
        store.pull("house")
    assert caught.value.code == "storage_error"


@pytest.mark.parametrize("damage", ["flip", "zeros", "short", "journal", "torn journal", "no journal"])
def test_what_a_power_cut_spoils_is_fetched_again(hub, tmp_path, damage):
    store = make_exact_store(tmp_path / "models")
    hub.cuts = [200_000, 0, 0, 0]
    with pytest.raises(NetworkError):
        store.pull("house")
    part = next((store.models_dir / ".store").glob("*.part"))
    journal = part.with_name(part.name + ".sums")
    data, block = part.read_bytes(), partial.BLOCK_BYTES
    assert len(data) == 200_000
    if damage == "flip":
        part.write_bytes(data[: block + 5] + b"?" + data[block + 6 :])
    elif damage == "zeros":
        part.write_bytes(data[: 2 * block] + bytes(len(data) - 2 * block))
    elif damage == "short":
        part.write_bytes(data[: block + 1])
    elif damage == "journal":
        journal.write_text("99999999999999 x\n")
    elif damage == "torn journal":
        journal.write_bytes(journal.read_bytes()[:-30])
    else:
        journal.unlink()
    assert store.pull("house").read_bytes() == MODEL
    resumed = {"flip": block, "zeros": 2 * block, "short": block, "torn journal": 3 * block}.get(damage)
    assert hub.gets[-1][2] == (resumed and f"bytes={resumed}-")


# A forked child pulls and kills itself at its n-th line of store and download code, n spread over all of them. What
# one leaves behind is what the next one finds.
KILLER = f"""
import hashlib, os, random, shutil, signal, sys
from polargrid_local.models import download
from polargrid_local.models import partial
from polargrid_local.models import store
import huggingface_hub.utils, huggingface_hub.errors, filelock
partial.BLOCK_BYTES = 64 << 10
import httpx
FOLDER = os.path.dirname(store.__file__)
models, wanted, old = sys.argv[1:]
path = os.path.join(models, {FILE!r})

def pull(kill_at):
    n_lines, visits = 0, {{}}
    def trace(frame, event, arg):
        nonlocal n_lines
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        # How often the bytes come, and so how often the loops over them turn, is the network's affair: not counted.
        place = frame.f_code.co_filename, frame.f_lineno
        visits[place] = visits.get(place, 0) + 1
        n_lines += visits[place] <= 2
        if n_lines == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        sys.settrace(trace)
        store.Store(models).pull("house")
        sys.settrace(None)
        os.write(into, str(n_lines).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as told:
        n_lines = told.read()
    os.waitpid(child, 0)
    return int(n_lines or 0)

def digest():
    return hashlib.sha256(open(path, "rb").read()).hexdigest() if os.path.exists(path) else ""

def begin():
    if os.path.exists(path):
        os.unlink(path)
    if old:
        shutil.copy(old, path)

begin()
n_all = pull(0)
assert digest() == wanted
begin()
before = digest()
states, n_kills = set(), 0
points = [n_all * n // 16 for n in range(1, 12)] + [n_all - n for n in range(0, 60, 6)]
random.Random(int(wanted, 16)).shuffle(points)
for kill_at in points:
    finished = pull(kill_at)
    n_kills += not finished
    found = digest()
    assert found in (before, wanted), (kill_at, found)
    verified = store.Store(models).resolve("house").sha256 if found else None
    assert verified in (None, found), (kill_at, verified, found)
    states.add(found)
    if found == wanted:
        begin()
assert states == {{before, wanted}}, states
assert pull(0) and digest() == wanted
print(n_kills)
"""


@pytest.mark.parametrize("replaces_old", [False, True])
def test_kill_at_any_moment_leaves_the_old_state_or_the_new(hub, tmp_path, replaces_old):
    store = make_exact_store(tmp_path / "models")
    (tmp_path / "old.gguf").write_bytes(OTHER)
    arguments = [
        str(store.models_dir),
        hashlib.sha256(MODEL).hexdigest(),
        str(tmp_path / "old.gguf") if replaces_old else "",
    ]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10  # of 21: a pull that goes on where the last one was killed is shorter


def test_processes_and_threads_pulling_one_model_fetch_it_once(hub, tmp_path):
    store = make_exact_store(tmp_path / "models")
    hub.hold = threading.Event()
    script = "import sys; from polargrid_local.models.store import Store; print(Store(sys.argv[1]).pull('house'))"
    command = [sys.executable, "-c", script, str(store.models_dir)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    others = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.pull("house"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    hub.hold.set()
    for thread in threads:
        thread.join()
    for other in others:
        out, err = other.communicate(timeout=60)
        assert out.strip() == str(store.models_dir / FILE), err
    assert found == [store.models_dir / FILE] * 3
    assert len(hub.gets) == 1
    assert found[0].read_bytes() == MODEL
