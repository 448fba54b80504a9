"""Settings and counters of the server, without a server."""

from __future__ import annotations

import asyncio
import datetime
import errno
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polargrid_local.cli.commands import app
from polargrid_local.errors import ValidationError
from polargrid_local.server import ServeConfig
from polargrid_local.server.config import is_loopback
from polargrid_local.server.metrics import Histogram, Metrics
from polargrid_local.server.process import bind
from polargrid_local.service.settings import SERVER_SETTINGS, ServiceSettings
from polargrid_local.service.usage import UsageCounter

FILE = """
model = ["a", "b"]
port = 1111
n_ctx = 512
keep_alive_s = 60
[aliases]
"llama-3.1-8b" = "a"
"""


def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(FILE)
    env = {
        "POLARGRID_LOCAL_PORT": "2222",
        "POLARGRID_LOCAL_N_CTX": "1024",
        "POLARGRID_LOCAL_CONFIG": str(file),
        "OTHER": "x",
    }
    config = ServeConfig.load({"port": 3333, "n_ctx": None, "model": []}, env)
    assert (config.port, config.n_ctx, config.keep_alive_s, config.model) == (3333, 1024, 60, ("a", "b"))
    assert config.aliases == {"llama-3.1-8b": "a"}
    assert ServeConfig.load({}, {"POLARGRID_LOCAL_PORT": "2222"}, file).port == 2222
    assert ServeConfig.load({}, {}, file).port == 1111


def test_what_a_variable_can_say() -> None:
    config = ServeConfig.load(
        {},
        {
            "POLARGRID_LOCAL_MODEL": "a, b",
            "POLARGRID_LOCAL_ALIASES": "x=a,*=b",
            "POLARGRID_LOCAL_MODELS": "/srv/models",
            "POLARGRID_LOCAL_KERNELS": "false",
            "POLARGRID_LOCAL_ALLOW_ORIGINS": "https://a.example",
            "POLARGRID_LOCAL_HOST": "",
        },
    )
    assert (config.model, config.aliases, config.models_dir) == (("a", "b"), {"x": "a", "*": "b"}, Path("/srv/models"))
    assert (config.kernels, config.allow_origins, config.host) == (False, ("https://a.example",), "127.0.0.1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 70000}, "port"),
        ({"heartbeat_s": 0}, "heartbeat_s"),
        ({"drain_s": float("inf")}, "drain_s"),
        ({"keep_alive_s": float("nan")}, "keep_alive_s"),
        ({"device": "tpu"}, "device"),
        ({"aliases": ["nonsense"]}, "aliases: .*NAME=MODEL"),
        ({"unknown": 1}, "unknown"),
        ({"host": "0.0.0.0"}, "api_key"),
        ({"root_path": "/a//b"}, "root_path"),
        ({"root_path": "/a?b"}, "root_path"),
        ({"max_tokens_limit": -1}, "max_tokens_limit"),
        ({"idle_connection_s": 0}, "idle_connection_s"),
        ({"max_json_depth": "deep"}, "max_json_depth"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServeConfig.load(settings)


def test_the_doors_settings_as_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[ServeConfig] = []
    monkeypatch.setattr("polargrid_local.server.run", seen.append)
    file = tmp_path / "keys"
    file.write_text("cid=kc")
    flags = ["--api-key", "k", "--api-keys", "ann=ka@5/50", "--api-keys", "bob=kb", "--api-key-file", str(file),
             "--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem"]  # fmt: skip
    told = CliRunner().invoke(app, ["serve", "--model", "m", *flags])
    assert told.exit_code == 0, told.output
    assert {name: key.key for name, key in seen[0].keys.items()} == {
        "default": "k", "ann": "ka", "bob": "kb", "cid": "kc",
    }  # fmt: skip
    assert (seen[0].keys["ann"].requests_per_minute, seen[0].keys["ann"].tokens_per_minute) == (5, 50)
    assert (seen[0].ssl_certfile, seen[0].ssl_keyfile) == (Path("cert.pem"), Path("key.pem"))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="missing.toml"):
        ServeConfig.load({}, {}, tmp_path / "missing.toml")
    (tmp_path / "broken.toml").write_text("port = = 1")
    with pytest.raises(ValidationError, match="broken.toml"):
        ServeConfig.load({}, {}, tmp_path / "broken.toml")


def test_a_client_in_process_reads_its_part_of_the_servers_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file and the variables are shared: what is the server's alone is passed over, a mistake is not."""
    assert set(ServeConfig.model_fields) - set(ServiceSettings.model_fields) == SERVER_SETTINGS
    file = tmp_path / "serve.toml"
    file.write_text(FILE)
    env = {f"POLARGRID_LOCAL_{name.upper()}": "1" for name in SERVER_SETTINGS}
    settings = ServiceSettings.load({}, env, file)
    assert (settings.model, settings.n_ctx, settings.keep_alive_s) == (("a", "b"), 512, 60)
    assert not caplog.text
    file.write_text("n_ctxx = 512")
    with pytest.raises(ValidationError, match="n_ctxx: unknown setting; did you mean 'n_ctx'"):
        ServiceSettings.load({}, {}, file)


def test_a_key_is_not_shown() -> None:
    assert "pg_secret" not in repr(ServeConfig(api_key="pg_secret"))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "127.0.0.1", "127.255.0.3", "::1", "[::1]", "0:0:0:0:0:0:0:1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "1", "2130706433"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_usage_counts_by_day_and_model() -> None:
    day = datetime.date(2026, 5, 1)
    later = datetime.date(2026, 5, 3)
    counter = UsageCounter(day)
    counter.add(day, "a", 10, 100)
    counter.add(later, "a", 5, 200)
    counter.add(later, "b", 7, 300)
    report = counter.report(later, None, None)
    assert report["period"] == {"start_date": "2026-05-01", "end_date": "2026-05-03"}
    assert report["usage"] == {
        "total_requests": 3,
        "total_tokens": 22,
        "total_cost": 0.0,
        "by_model": [
            {"model_id": "a", "requests": 2, "tokens": 15, "cost": 0.0},
            {"model_id": "b", "requests": 1, "tokens": 7, "cost": 0.0},
        ],
        "by_region": [{"region": "local", "requests": 3, "avg_latency_ms": 200}],
    }
    assert counter.report(later, "2026-05-02", None)["usage"]["total_requests"] == 2
    assert counter.report(later, None, "2026-05-02")["usage"]["total_requests"] == 1
    assert counter.report(later, "2027-01-01", None)["usage"]["by_region"] == []
    assert (counter.latency_ms("a"), counter.latency_ms("nobody")) == (150, 0)
    with pytest.raises(ValidationError, match="start_date"):
        counter.report(later, "soon", None)


def test_histograms_are_cumulative() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0):
        histogram.observe(seconds)
    samples = {(s.name, s.labels.get("le")): s.value for s in histogram.family("x", "help").samples}
    assert samples["x_bucket", "0.1"] == 2
    assert samples["x_bucket", "1.0"] == 3
    assert samples["x_bucket", "+Inf"] == samples["x_count", None] == 4
    assert samples["x_sum", None] == pytest.approx(3.65)


def test_two_registries_do_not_meet() -> None:
    one, two = Metrics(dict), Metrics(lambda: {"m": {"n_running": 2}})
    one.requests["/health", 200] += 1
    assert b'polargrid_requests_total{route="/health"' in one.render()
    assert b'route="/health"' not in two.render()
    assert b'polargrid_running_requests{model="m"} 2.0' in two.render()


async def test_small_writes_leave_at_once() -> None:
    """Nagle's algorithm would hold each event back until the one before it was acknowledged."""
    sockets = bind(ServeConfig(port=0))
    accepted: list[socket.socket] = []

    async def see(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer.get_extra_info("socket"))
        assert accepted[-1].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.write(b"x")
        writer.close()

    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        server = await asyncio.start_server(see, sock=sock)
        reader, writer = await asyncio.open_connection(*sock.getsockname()[:2])
        assert await reader.read() == b"x"
        writer.close()
        server.close()
        await server.wait_closed()


def test_a_taken_port_is_named() -> None:
    sockets = bind(ServeConfig(port=0))
    port = sockets[0].getsockname()[1]
    with pytest.raises(ValidationError, match=f"cannot listen on 127.0.0.1 port {port}"):
        bind(ServeConfig(port=port))
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("call", ["__init__", "listen"])
def test_a_socket_that_cannot_be_had_is_no_server_on_half_of_its_addresses(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, call, fail)
    with pytest.raises(ValidationError, match=r"cannot listen on 127\.0\.0\.1 port 0: Too many open files"):
        bind(ServeConfig(port=0))


PREFIX = "POLARGRID_LOCAL_"


@pytest.mark.parametrize(("variable", "meant"), [
    ("MAX_STREAM", "MAX_STREAMS"), ("THREADS", "N_THREADS"), ("MODELS_DIR", "MODELS"), ("KEEP_ALIVE", "KEEP_ALIVE_S"),
    ("APIKEY", "API_KEY"), ("ALIAS", "ALIASES"), ("NUM_CTX", "N_CTX"), ("port", "PORT"), ("CONFIG_FILE", "CONFIG"),
])  # fmt: skip
def test_a_misspelt_variable_is_told_with_the_one_meant(
    variable: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    ServeConfig.load({}, {PREFIX + variable: "1"})
    assert f"{PREFIX}{variable} is no setting" in caplog.text
    assert f"did you mean '{PREFIX}{meant}'?" in caplog.text


def test_what_kubernetes_injects_for_a_service_of_our_name_is_neither_a_setting_nor_a_mistake(
    caplog: pytest.LogCaptureFixture,
) -> None:
    injected = {
        "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "8484", "SERVICE_PORT_HTTP": "8484", "PORT": "tcp://10.0.0.1:8484",
        "PORT_8484_TCP": "tcp://10.0.0.1:8484", "PORT_8484_TCP_PROTO": "tcp", "PORT_8484_TCP_PORT": "8484",
        "PORT_8484_TCP_ADDR": "10.0.0.1", "CHAT_SERVICE_HOST": "10.0.0.2", "CHAT_PORT": "tcp://10.0.0.2:80",
    }  # fmt: skip
    assert ServeConfig.load({}, {PREFIX + name: text for name, text in injected.items()}) == ServeConfig()
    exact = {PREFIX + name: "1" for name in ("MODELS", "MAX_STREAMS")}
    ServeConfig.load({}, {**exact, f"{PREFIX}TOTALLY_ELSE": "1", "PATH": "/bin"})
    assert not caplog.text
