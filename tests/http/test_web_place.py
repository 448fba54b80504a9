"""The chat page behind a proxy, below a path such as https://host/llm/: it loads, streams, keeps its own chats."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import ask, finished
from scripted_server import DONE, ScriptedServer, answer, chunk
from serving import SAID, ServerProcess

pytestmark = pytest.mark.browser


class Proxy:
    """Serves each server below a path of its own, without the path; what comes is passed on as it comes. Else: 404."""

    def __init__(self, **servers: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def pass_on(self) -> None:
                _, name, path = (*self.path.split("/", 2), "")[:3]
                if name not in servers:
                    self.send_error(404)
                    return
                upstream = http.client.HTTPConnection(urlsplit(servers[name]).netloc, timeout=120)
                headers = {
                    key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")
                }
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                try:
                    upstream.request(self.command, f"/{path}", body, headers)
                    reply = upstream.getresponse()
                    self.send_response_only(reply.status)
                    for key, value in reply.getheaders():
                        if key.lower() not in ("transfer-encoding", "connection"):
                            self.send_header(key, value)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    while piece := reply.read1(65536):
                        self.wfile.write(piece)
                except (BrokenPipeError, ConnectionError):
                    self.close_connection = True
                finally:
                    upstream.close()

            do_GET = do_POST = do_OPTIONS = pass_on

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def proxied() -> Iterator[Callable[..., str]]:
    """proxied(name=url, ...): the address of a proxy that serves each url below /name/."""
    running: list[Proxy] = []

    def begin(**servers: str) -> str:
        running.append(Proxy(**servers))
        return running[-1].url

    yield begin
    for proxy in running:
        proxy.close()


def opened(context: Any, url: str) -> Any:
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.locator("#model-dot[data-state=loaded]").wait_for()
    assert all(one.startswith(url) for one in asked), asked
    return page


def test_below_a_path_everything_is_asked_there_and_streams(
    context: Any, scripted: ScriptedServer, proxied: Callable[..., str]
) -> None:
    page = opened(context, f"{proxied(llm=scripted.url)}/llm/")
    assert page.locator(".brand img").evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.locator(".brand").evaluate("node => getComputedStyle(node).display") == "flex"
    gate = threading.Event()
    scripted.say(chunk(), chunk("piece "), gate, chunk("by piece"), chunk(reason="stop"), DONE)
    ask(page, "go")
    page.locator(".body", has_text="piece").wait_for()  # it arrives before the rest is said
    gate.set()
    assert finished(page).locator(".body").inner_text() == "piece by piece"
    page.get_by_label("Theme").click()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    page.locator("#chat-list .chat", has_text="go").click()
    assert page.locator(".body").inner_text() == "piece by piece"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background


def test_servers_of_one_origin_keep_apart(context: Any, scripted: ScriptedServer, proxied: Callable[..., str]) -> None:
    second = ScriptedServer()
    try:
        url = proxied(one=scripted.url, two=second.url)
        left, right = opened(context, f"{url}/one/"), opened(context, f"{url}/two/")
        for page, server, words in ((left, scripted, "left"), (right, second, "right")):
            page.get_by_role("button", name="Settings").click()
            page.get_by_label("API key").fill(f"key_{words}")
            page.locator("#settings .primary").click()
            server.say(*answer(words))
            ask(page, words)
            assert finished(page).locator(".body").inner_text() == words
        for page, server, words in ((left, scripted, "left"), (right, second, "right")):
            page.reload()
            page.locator("#chat-list .chat").first.wait_for()
            assert page.locator("#chat-list .chat").all_inner_texts() == [words]
            server.say(*answer("again"))
            ask(page, "again")
            finished(page)
            assert server.headers[-1]["authorization"] == f"Bearer key_{words}"
    finally:
        second.close()


def test_a_real_server_below_a_path(context: Any, server: ServerProcess, proxied: Callable[..., str]) -> None:
    url = f"{proxied(llm=server.url)}/llm/"
    page = context.new_page()
    page.goto(url)
    page.locator("#model-button").click()
    page.locator("#model-menu b", has_text="scripted").click()
    page.locator("#model-dot[data-state=loaded]").wait_for()
    ask(page, "\ue001")
    page.locator(".message footer .figures", has_text=f"{len(SAID)} tokens").wait_for()
    assert page.locator(".body").text_content() == "".join(SAID)
    base = page.evaluate("import('./polargrid.js').then(({ PolarGrid }) => new PolarGrid().baseUrl)")
    assert f"{base}/" == url
