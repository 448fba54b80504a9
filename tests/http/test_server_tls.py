"""https, spoken by the server itself: a real one with a certificate of this test, and certificates of no use."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import openai
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from serving import SAID, ServerProcess

from polargrid_local.errors import ValidationError
from polargrid_local.server import ServeConfig
from polargrid_local.server.process import run
from polargrid_local.server.tls import server_context

SAY: Any = [{"role": "user", "content": "\ue001"}]  # what the scripted model answers with SAID
PASSWORD = "pg_secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem by ca.pem; key.pem, or locked.pem under PASSWORD; both in one file; other.pem, another key; junk.pem."""
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    cert = ca.issue_cert("localhost", "127.0.0.1")
    key = cert.private_key_pem.bytes()
    (folder / "cert.pem").write_bytes(b"".join(part.bytes() for part in cert.cert_chain_pems))
    (folder / "key.pem").write_bytes(key)
    (folder / "both.pem").write_bytes(cert.private_key_and_cert_chain_pem.bytes())
    locked = load_pem_private_key(key, None)
    for name, form in (("locked", BestAvailableEncryption(PASSWORD.encode())), ("pkcs8", NoEncryption())):
        (folder / f"{name}.pem").write_bytes(locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form))
    (folder / "both_locked.pem").write_bytes((folder / "locked.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    ca.issue_cert("localhost").private_key_pem.write_to_path(folder / "other.pem")
    (folder / "junk.pem").write_text("junk")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"ssl_certfile": "both.pem"},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem"},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "pkcs8.pem"},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem", "ssl_keyfile_password": PASSWORD},
        {"ssl_certfile": "both_locked.pem", "ssl_keyfile_password": PASSWORD},
    ],
)
def test_certificates_that_will_do(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    monkeypatch.chdir(folder)
    context = server_context(ServeConfig.load(settings))
    assert context is not None and context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert server_context(ServeConfig()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ssl_certfile": "no.pem"}, "ssl_certfile: no.pem cannot be read: No such file"),
        ({"ssl_certfile": "."}, "ssl_certfile: . cannot be read: Is a directory"),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "no.pem"}, "ssl_keyfile: no.pem cannot be read"),
        ({"ssl_certfile": "junk.pem"}, "ssl_certfile: junk.pem has no certificate"),
        ({"ssl_certfile": "key.pem"}, "ssl_certfile: key.pem has no certificate"),
        ({"ssl_certfile": "cert.pem"}, "ssl_certfile: cert.pem has no private key"),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "junk.pem"}, "ssl_keyfile: junk.pem has no private key"),
        ({"ssl_certfile": "cert.pem", "ssl_keyfile": "other.pem"}, "ssl_keyfile: the key in other.pem is not that of"),
        (
            {"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem"},
            "ssl_keyfile: the key in locked.pem is encrypted: set ssl_keyfile_password",
        ),
        ({"ssl_certfile": "both_locked.pem"}, "ssl_certfile: the key in both_locked.pem is encrypted"),
        (
            {"ssl_certfile": "cert.pem", "ssl_keyfile": "locked.pem", "ssl_keyfile_password": "pg_wrong"},
            "ssl_keyfile: locked.pem .*ssl_keyfile_password is not its password",
        ),
        ({"ssl_keyfile": "key.pem"}, "ssl_keyfile .* go with an ssl_certfile"),
        ({"ssl_keyfile_password": "pg_wrong"}, "ssl_keyfile_password go with an ssl_certfile"),
    ],
)
def test_what_will_not_do_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValidationError, match=message) as refused:
        server_context(ServeConfig.load(settings))
    assert "pg_" not in repr(refused.value)


def test_it_is_refused_before_anything_is_loaded(folder: Path) -> None:
    engine = Mock()
    with pytest.raises(ValidationError, match="ssl_keyfile"):
        run(ServeConfig(port=0, ssl_certfile=folder / "cert.pem", ssl_keyfile=folder / "other.pem"), engine)
    assert not engine.mock_calls


def test_clients_over_https(start: Callable[..., ServerProcess], folder: Path) -> None:
    server = start(
        model="scripted", n_ctx=512, api_keys="ann=pg_ann",
        ssl_certfile=folder / "cert.pem", ssl_keyfile=folder / "locked.pem", ssl_keyfile_password=PASSWORD,
    )  # fmt: skip
    server.trust(folder / "ca.pem")
    server.wait_ready()
    assert server.url.startswith("https://") and f"listening on {server.url}" in server.log
    key = {"Authorization": "Bearer pg_ann"}
    for origin in (f"https://127.0.0.1:{server.port}", "https://localhost:3000"):
        page = server.get("/v1/models", headers={**key, "Origin": origin})
        assert (page.status_code, page.headers["access-control-allow-origin"]) == (200, origin)
    assert server.get("/v1/models", headers={**key, "Origin": "https://evil.example"}).status_code == 403
    assert server.get("/").headers["content-type"].startswith("text/html")

    trusting = ssl.create_default_context(cafile=folder / "ca.pem")
    with (
        openai.DefaultHttpxClient(verify=trusting) as http,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="pg_ann", max_retries=0, http_client=http) as client,
    ):
        answer = client.chat.completions.create(model="scripted", messages=SAY, max_tokens=50)
        assert answer.choices[0].message.content == "".join(SAID)
        stream = client.chat.completions.create(model="scripted", messages=SAY, max_tokens=50, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "".join(SAID)

    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{server.url}/health", trust_env=False)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.port}/health", trust_env=False)
    assert server.stop() == 0
    assert "pg_" not in server.log and "Traceback" not in server.log
