"""What a model writes, as the page shows it: Markdown with its structure, and never markup."""

from __future__ import annotations

import json
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


# What is written, and the elements that must stand in the answer; its text must be there as it was written.
AS_WRITTEN = [
    r"Inline \(x\), \(a_1 * b * c_2\) and $x_1*y*z_2$.",
    r"\[ \frac{a}{b} \\ \sqrt{x_1*y*z} \]",
    "\\[\na_1 \\\\\n- b\n= c\n# d\n\\]",
    "$$\na_b\n* c\n\n\\text{d e}\n$$",
    r"Before $$x^2 + y_1 * z_1 * w$$ after.",
    "\\begin{align}\na &= b \\\\\nc &= d * e * f\n\\end{align}",
    r"\textbf{a_b} costs 50\% \& more, \{x\}",
    r"never closed \( x_1 \, y \\ z",
    "\\[ never closed \\frac{a}{b} \\,",
    r"C:\new\table, D:\_old\x, \\server\share\_dir and C:\_y",
    r"\d+\.\d, ^\w+\s*$, [a-z]+ and \bfoo\.\*\b*",
    "ends with a backslash\\\nand goes on\\",
    "between <tag> and </tag>, <think>, a<b and c>d, <x y='1'>",
    "from 3~5 to 6~7, ~10 and 2*3*4 = 24, x**2 + y**2, a*b*c",
    "snake_case_name, __init__ and __name__, *args and **kwargs, *.txt and *.md",
    "costs $5 and $10, US$5-$10, $HOME/$USER and 5$",
    "&unknown; AT&T; a & b &",
    "[note]: something\n\n[1]: https://example.org/a",
    "#hashtag, 1) one, C# and F#",
    "(see [1], [x] and [^2])",
]
# Markdown that stays Markdown: what is written, what is shown, and an element that must be there.
STILL_MARKDOWN = [
    (r"\*not\* snake\_case \`x\` \# \~~no\~~ \<b\>", "*not* snake_case `x` # ~~no~~ <b>", None),
    (r"costs \$5", "costs $5", None),
    ("1\\. A year", "1. A year", None),
    ("\\- no list", "- no list", None),
    ("&amp; &lt;b&gt; &#x41;", "& <b> A", None),
    ("**LLM**s are *so* good", "LLMs are so good", "strong"),
    ("**C:\\new\\x**, **$a*b$** and *\\(a*b\\)*", "C:\\new\\x, $a*b$ and \\(a*b\\)", "em > code.math"),
    ("\u8fd9\u662f*\u91cd\u70b9*\u5185\u5bb9", "\u8fd9\u662f\u91cd\u70b9\u5185\u5bb9", "em"),
    ("__two words__ and _one_", "two words and one", "strong"),
    ("~~gone~~", "gone", "del"),
    (r"`\(x\)` and ``a`b``", r"\(x\) and a`b", "code:not(.math)"),
]


def said(page: Any, scripted: ScriptedServer, text: str) -> Any:
    scripted.say(*answer(text))
    page.locator("#new-chat").click()
    ask(page, "go")
    return finished(page)


def test_what_means_itself_is_shown_as_it_was_written(page: Any, scripted: ScriptedServer) -> None:
    for text in AS_WRITTEN:
        message = said(page, scripted, text)
        seen = message.locator(".body").inner_text()
        assert seen.split() == text.split()
        assert message.locator(".body :is(em, del, li, h3, hr)").count() == 0, text
        message.get_by_label("Copy the answer").click()
        until(page, f"navigator.clipboard.readText().then(copied => copied === {json.dumps(text)})")


def test_markdown_still_means_what_it_means(page: Any, scripted: ScriptedServer) -> None:
    for text, seen, selector in STILL_MARKDOWN:
        body = said(page, scripted, text).locator(".body")
        assert body.inner_text() == seen
        assert selector is None or body.locator(selector).count() > 0, text


def test_tex_in_every_place_and_a_fence_is_code(page: Any, scripted: ScriptedServer) -> None:
    text = (
        "# Head \\(h_1\\)\n\n1. Compute:\n   \\[\n   x_1 * y\n   - z\n   \\]\n2. next $n_1$\n\n"
        "> quoted \\(q_1*q*q\\)\n\n| a | b |\n|---|---|\n| \\(t_1\\) | $t_2$ |\n\n"
        "```latex\n\\[ \\frac{a}{b} \\]\n```\n\n**Bold \\(b_1*b\\)**"
    )
    body = said(page, scripted, text).locator(".body")
    for selector, seen in {
        "h3 code.math": r"\(h_1\)",
        "ol > li .formula": "\\[\nx_1 * y\n- z\n\\]",
        "ol > li:nth-child(2) code.math": "$n_1$",
        "blockquote code.math": r"\(q_1*q*q\)",
        "td:first-child code.math": r"\(t_1\)",
        "td:nth-child(2) code.math": "$t_2$",
        "pre code": r"\[ \frac{a}{b} \]",
        "strong code.math": r"\(b_1*b\)",
    }.items():
        assert body.locator(selector).inner_text() == seen, selector
    assert body.locator("ol").count() == 1
    assert body.locator("ol ul").count() == 0


def test_tex_keeps_its_backslashes_while_it_arrives(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    scripted.say(
        chunk(), chunk("So:\n\n\\[\n\\frac{a_1}{b_1} \\\\"), gate, chunk("\n\\]\nDone."), chunk(reason="stop"), DONE
    )
    ask(page, "go")
    page.locator(".body .formula", has_text=r"\frac{a_1}{b_1} \\").wait_for()
    gate.set()
    body = finished(page).locator(".body")
    assert body.inner_text().split() == ["So:", "\\[", "\\frac{a_1}{b_1}", "\\\\", "\\]", "Done."]
    assert body.locator("p").count() == 2


def test_lists_and_tables_lose_nothing(page: Any, scripted: ScriptedServer) -> None:
    text = (
        "5. five\n4. four\n3. three\n\n-\n\n1. one\n1. two\n   - deep\n     - deeper\n       1. deepest\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 | 3 | x \\| y |\n| only |"
    )
    body = said(page, scripted, text).locator(".body")
    numbers = "[...document.querySelectorAll('.body > ol:first-of-type > li')].map(item => item.value)"
    assert page.evaluate(numbers) == [5, 4, 3]
    assert body.locator("ol ul ul ol li").inner_text() == "deepest"
    assert body.locator("tbody tr").first.locator("td").all_inner_texts() == ["1", "2", "3", r"x \| y"]
    assert body.locator("tbody tr").last.locator("td").all_inner_texts() == ["only", ""]


ARABIC = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645"
HEBREW = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd"
# Where the first and the last character of a text stand: 1 when the text goes from left to right, -1 the other way.
WAY = """node => {
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (walker.currentNode.data.trim()) texts.push(walker.currentNode);
  const range = document.createRange();
  const left = (text, at) => {
    range.setStart(text, at);
    range.setEnd(text, at + 1);
    return range.getBoundingClientRect().left;
  };
  const last = texts.at(-1);
  return Math.sign(left(last, last.data.trimEnd().length - 1) - left(texts[0], texts[0].data.search(/\\S/)));
}"""
# 1 when an element's text is nearer to the left side of its block, -1 when nearer to the right.
SIDE = """(node, block) => {
  const range = document.createRange();
  range.selectNodeContents(node);
  const text = range.getBoundingClientRect();
  const box = node.closest(block).getBoundingClientRect();
  return Math.sign((box.right - text.right) - (text.left - box.left));
}"""


@pytest.mark.parametrize("words", [ARABIC, HEBREW])
def test_right_to_left_text_is_laid_out_from_the_right(page: Any, scripted: ScriptedServer, words: str) -> None:
    text = (
        f"# {words}\n\n{words}\n\n**HTML** {words}: {words}\n\nEnglish, {words}, and more English here.\n\n"
        f"- {words}\n- **API**: {words}\n\n1. {words}\n\n> {words}\n\n| {words} | B |\n|---|---|\n| {words} | 1 |\n\n"
        f"```\n{words} = x\n```\n\n{words} `{words} = x` \\(x = {words}\\)"
    )
    page.set_viewport_size({"width": 1180, "height": 1600})
    scripted.say(*answer(text))
    page.fill("#prompt", words)
    assert page.locator("#prompt").evaluate("node => getComputedStyle(node).direction") == "rtl"
    ask(page, f"{words}\nthen English\n{words}")
    body = finished(page).locator(".body")
    for selector, way in {
        "h3": -1, "p >> nth=0": -1, "p >> nth=1": -1, "p >> nth=2": 1, "ul > li >> nth=0": -1, "ul > li >> nth=1": -1,
        "ol > li": -1, "blockquote p": -1,
    }.items():  # fmt: skip
        node = body.locator(selector)
        assert node.evaluate(WAY) == way, selector
        assert node.evaluate(SIDE, ".body") == way, selector
    for code in ("pre code", "p:last-child code >> nth=0", "p:last-child code >> nth=1"):
        assert body.locator(code).evaluate("node => getComputedStyle(node).direction") == "ltr", code
    boxes = [body.locator(f"tbody td >> nth={n}").bounding_box() for n in (0, 1)]
    assert boxes[0]["x"] > boxes[1]["x"]  # the first column is the rightmost
    table = body.locator("table").bounding_box()
    assert abs(table["x"] + table["width"] - body.bounding_box()["x"] - body.bounding_box()["width"]) < 2
    for selector in ("ul", "ol", "blockquote"):
        assert body.locator(selector).evaluate("node => getComputedStyle(node).direction") == "rtl"
    title = page.locator("#chat-list .chat span")
    assert title.evaluate(WAY) == -1 and title.get_attribute("dir") == "auto"
    lines = page.locator(".bubble").evaluate(
        """node => [...node.textContent.matchAll(/[^\\n]+/g)].map(({ 0: line, index }) => {
          const range = document.createRange();
          const left = at => {
            range.setStart(node.firstChild, at);
            range.setEnd(node.firstChild, at + 1);
            return range.getBoundingClientRect().left;
          };
          return Math.sign(left(index + line.length - 1) - left(index));
        })"""
    )
    assert lines == [-1, 1, -1]  # each line by itself


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
    "\\(" * 60_000,
    "\\[\n" * 40_000,
    "$a " * 40_000,
    "\\_" * 60_000,
    "[x\n" * 40_000,
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
