"""What a model writes, as the page shows it: Markdown with its structure, and never markup."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from browser import MARKDOWN, ask, finished, until
from scripted_server import DONE, ScriptedServer, answer, chunk

pytestmark = pytest.mark.browser

HOSTILE = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg/onload=window.pwned=1>",
    '<a href="javascript:window.pwned=1">x</a>',
    "[x](javascript:window.pwned=1)",
    "[x](<java\nscript:window.pwned=1>)",
    "[x](data:text/html,<script>window.pwned=1</script>)",
    "[x](vbscript:window.pwned=1) [y](//evil.example/z) [z](/v1/models)",
    '[x](https://evil.example/" onclick="window.pwned=1)',
    "![x](https://evil.example/beacon.png) ![y](javascript:window.pwned=1)",
    '![x](https://evil.example/a.png "t\\" onerror=\\"window.pwned=1")',
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<style>body{display:none}</style><link rel=stylesheet href=https://evil.example/x.css>",
    "<form action=https://evil.example><button>go</button></form>",
    "```<img src=x onerror=window.pwned=1>\n</code></pre><script>window.pwned=1</script>\n```",
    "| <img src=x onerror=window.pwned=1> |\n|---|\n| <script>window.pwned=1</script> |",
    "&lt;script&gt;window.pwned=1&lt;/script&gt; &#60;img src=x onerror=window.pwned=1&#62;",
    "<think><img src=x onerror=window.pwned=1></think>",
    "<https://evil.example/><javascript:window.pwned=1>",
    "[ref]: javascript:window.pwned=1\n\n[ref]",
]


def test_markdown_has_its_structure_and_code_can_be_copied(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(*answer(*MARKDOWN))
    ask(page, "show me")
    body = finished(page).locator(".body")
    for selector, text in {
        "h3": "Head",
        "em": "soft",
        "strong": "bold",
        "p > code": "code & <b>",
        "pre code": 'print("<hi>")',
        "figcaption span": "python",
        "ol > li:first-child": "one",
        "td:first-child": "1",
        "td.to-right": "2",
        "blockquote": "said",
        "del": "gone",
        "hr": "",
    }.items():
        assert body.locator(selector).first.inner_text() == text, selector
    assert body.locator("li.task input[type=checkbox]").is_checked()
    assert body.locator("a").get_attribute("href") == "https://example.org/a"
    assert "noopener" in (body.locator("a").get_attribute("rel") or "")
    assert "& A" in body.inner_text()
    body.get_by_label("Copy code").click()
    page.locator(".copy use[href='#i-check']").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == 'print("<hi>")'
    finished(page).get_by_label("Copy the answer").click()
    until(page, "navigator.clipboard.readText().then(text => text.startsWith('## Head'))")


FOREIGN = """() => {
  const foreign = 'script, img, iframe, style, link, object, embed, base, meta, form';
  const inside = `:is(#transcript, #sidebar nav) :is(${foreign})`;
  const bad = [...document.querySelectorAll(inside)].map(node => node.outerHTML);
  for (const node of document.querySelectorAll('*')) {
    for (const { name, value } of node.attributes) {
      const elsewhere = name === 'href' && !/^(https?:|mailto:|#|app.css|icon.svg)/.test(value);
      if (name.startsWith('on') || name === 'srcdoc' || elsewhere) bad.push(node.outerHTML);
    }
  }
  return bad.concat(window.pwned ? ['pwned'] : []);
}"""


def test_nothing_a_model_or_a_user_writes_becomes_markup(page: Any, scripted: ScriptedServer) -> None:
    for hostile in HOSTILE:
        scripted.say(*answer(*hostile))
        page.locator("#new-chat").click()
        ask(page, hostile)
        finished(page)
        assert page.evaluate(FOREIGN) == []
        assert page.locator(".bubble").inner_text() == hostile
    page.reload()  # and again as saved chats, with their titles
    for n in range(len(HOSTILE)):
        page.locator("#chat-list .chat").nth(n).click()
        finished(page)
        assert page.evaluate(FOREIGN) == []


BREAKERS = [
    ">" * 4000,
    "[" * 20_000,
    "*a " * 20_000,
    "- " * 3000,
    "`" * 9999,
    "| " * 9000,
    "<" * 9000,
    "x" * 250_000,
    "&#99999999;\0",
]


def test_text_made_to_break_parsers_is_shown_anyway(page: Any, scripted: ScriptedServer) -> None:
    for text in BREAKERS:
        scripted.say(*answer(text[: len(text) // 2], text[len(text) // 2 :]))
        page.locator("#new-chat").click()
        ask(page, "go")
        assert finished(page).locator(".body").inner_text().strip() or set(text) <= set(">-| ")


def test_a_character_cut_in_two_arrives_whole(page: Any, scripted: ScriptedServer) -> None:
    first, second = threading.Event(), threading.Event()
    raw = chunk("x").replace(b'"x"', '"né👩‍👧世"'.encode())
    cut = raw.index("👩".encode()) + 2
    scripted.say(chunk(), raw[:cut], first, raw[cut:-1], second, raw[-1:], chunk(reason="stop"), DONE)
    ask(page, "go")
    first.set()
    second.set()
    assert finished(page).locator(".body").inner_text() == "né👩‍👧世"
