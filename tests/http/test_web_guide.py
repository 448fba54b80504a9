"""The guide's browser example and React hook in Chromium, as a page of another local port against a real server."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from browser import NODE_MODULES
from scripted_server import WEB
from serving import SAID, ServerProcess

pytestmark = pytest.mark.browser

JS = NODE_MODULES.parent
NODE = shutil.which("node")

HEAD = '<!doctype html><link rel="icon" href="data:,">'
LOOP = """
import { PolarGrid } from '%s/polargrid.js';
const client = new PolarGrid({ apiKey: 'pg_any' });
const output = document.getElementById('output');
document.getElementById('ask').addEventListener('click', async () => {
  output.textContent = '';
  const stream = client.chatCompletionStream({ model: 'scripted', messages: [{ role: 'user', content: '\\ue001' }] });
  for await (const chunk of stream) {
    const content = chunk.choices[0]?.delta?.content;
    if (content) output.textContent += content;
  }
  for await (const chunk of client.completionStream({ model: 'scripted', prompt: '\\ue000', maxTokens: 50 })) {
    output.textContent += chunk.choices[0].text;
  }
  output.dataset.done = client.baseUrl;
});
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at: an app of the user's own, on a port of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_browser_example(context: Any, site: tuple[Path, str], server: ServerProcess) -> None:
    folder, url = site
    (folder / "index.html").write_text(
        HEAD + '<button id="ask">Ask</button><pre id="output">old</pre><script type="module" src="app.js"></script>'
    )
    (folder / "app.js").write_text(LOOP % server.url)
    page = context.new_page()
    page.goto(url)
    page.click("#ask")
    page.locator("#output[data-done]").wait_for()
    assert page.locator("#output").text_content() == "".join(SAID) * 2
    assert (
        page.locator("#output").get_attribute("data-done") == server.url
    )  # the module asks the server that it was loaded from


@pytest.mark.node
@pytest.mark.skipif(
    NODE is None or not (NODE_MODULES / "react-dom").is_dir(),
    reason="needs Node.js and React: run npm install in tests/http/js",
)
def test_the_react_hook(context: Any, site: tuple[Path, str], server: ServerProcess) -> None:
    folder, url = site
    subprocess.run(
        [NODE_MODULES / ".bin" / "esbuild", "hook.jsx", "--bundle", "--format=esm", "--jsx=automatic",
         f"--outfile={folder / 'hook.js'}",
         f"--alias:polargrid={WEB / 'polargrid.js'}", "--log-level=warning", "--log-override:empty-import-meta=error"],
        cwd=JS, check=True, timeout=60)  # fmt: skip
    (folder / "index.html").write_text(HEAD + '<div id="root"></div><script type="module" src="hook.js"></script>')
    page = context.new_page()
    page.goto(f"{url}/?{urlencode({'server': server.url, 'model': 'scripted'})}")
    for _ in range(2):  # the client is shared by successive calls
        page.get_by_text("Ask", exact=True).click()
        page.locator("output[data-busy=false]", has_text="!").wait_for()
        assert page.locator("output").text_content() == "".join(SAID)
    page.get_by_text("Ask wrongly").click()
    assert page.get_by_role("alert").text_content() == "ValidationError"
    assert page.locator("output").get_attribute("data-busy") == "false"
