"""Fixtures for tests in headless Chromium: a fresh page per test that forbids itself errors and outside requests."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from scripted_server import ScriptedServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NODE_MODULES = Path(__file__).parent / "js" / "node_modules"
AXE = NODE_MODULES / "axe-core" / "axe.min.js"
NEEDS_AXE = pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: run npm install in tests/http/js")
MARKDOWN = """## Head

Some *soft* and **bold** `code & <b>` text.

```python
print("<hi>")
```

1. one
2. two
   - [x] deep

| a | b |
|---|--:|
| 1 | **2** |

> said

[site](https://example.org/a) &amp; &#x41; ~~gone~~

---

end"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser per module: Playwright's event loop would be in the way of asynchronous tests elsewhere."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package").sync_playwright
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH")
    with playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    """A browser profile of its own.

    At the end: no script error, no refusal by the page's own policy, nothing asked of other machines."""
    context = chromium.new_context(viewport={"width": 1180, "height": 800}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(60_000)
    complaints: list[str] = []

    def watch(page: Any) -> None:
        page.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
        page.on(
            "console",
            lambda message: (
                message.type == "error"
                and not message.text.startswith("Failed to load resource")
                and complaints.append(f"console: {message.text}")
            ),
        )
        page.on(
            "request",
            lambda request: (
                urlsplit(request.url).hostname not in ("127.0.0.1", "localhost", None, "")
                and complaints.append(f"asked another machine: {request.url}")
            ),
        )

    context.on("page", watch)
    yield context
    context.close()
    assert complaints == []


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def page(context: Any, scripted: ScriptedServer) -> Any:
    """The chat page on a scripted server, ready to be typed into."""
    page = context.new_page()
    page.goto(scripted.url)
    page.locator("#model-name", has_text="scripted").wait_for()
    return page


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def finished(page: Any, n: int = 1) -> Any:
    """The n-th answer, once it is complete."""
    last = page.locator(".message[data-role=assistant]").nth(n - 1)
    last.locator("css=[data-state=done]").wait_for()
    return last


def until(page: Any, expression: str) -> None:
    """Waits for a JavaScript expression to hold. (Playwright's wait_for_function needs a policy that allows eval.)"""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def check_by_axe(page: Any, where: str) -> None:
    """axe-core, an independent checker of accessibility, finds nothing on the page as it is now."""
    page.evaluate(AXE.read_text())
    report = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert [(where, rule["id"], [node["html"] for node in rule["nodes"]]) for rule in report["violations"]] == []
