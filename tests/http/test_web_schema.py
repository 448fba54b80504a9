"""Answers that are JSON, and the JSON schema that they are held to: set on the page, sent, shown, kept."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from browser import ask, finished, until
from scripted_server import DONE, ScriptedServer, answer, chunk

pytestmark = pytest.mark.browser

SCHEMA = {"type": "object", "properties": {"maxTokens": {"type": "integer"}, "snake_case": {"$ref": "#/$defs/x"}}}


def set_schema(page: Any, text: str) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("JSON schema").fill(text)
    page.locator("#settings .primary").click()


def test_a_schema_reaches_the_server_as_it_is_and_is_kept(page: Any, scripted: ScriptedServer) -> None:
    set_schema(page, json.dumps(SCHEMA, indent=1))
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    for _ in range(2):
        scripted.say(*answer("{}"))
        ask(page, "go")
        finished(page)
        assert scripted.asked[-1]["response_format"] == wanted
        page.reload()
        page.locator("#model-name", has_text="scripted").wait_for()
    page.locator("#composer").get_by_role("button", name="JSON schema").click()
    assert page.get_by_label("JSON schema").input_value() == json.dumps(SCHEMA, indent=1)
    page.get_by_label("JSON schema").fill(" ")
    page.locator("#settings .primary").click()
    assert page.locator("#open-forms").is_hidden()
    scripted.say(*answer("free"))
    ask(page, "go")
    finished(page)
    assert "response_format" not in scripted.asked[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type": }', "This is not JSON"),
        ("object", "This is not JSON"),
        ("{'type': 'object'}", "This is not JSON"),
        ("[]", "A JSON schema is an object"),
        ("null", "A JSON schema is an object"),
        ('"text"', "A JSON schema is an object"),
        ('{"name": "answer", "schema": {"type": "object"}}', "only that one belongs here"),
        ('{"type": "json_schema", "json_schema": {"schema": {}}}', "only that one belongs here"),
    ],
)
def test_what_is_no_schema_is_refused_at_the_field(page: Any, scripted: ScriptedServer, text: str, words: str) -> None:
    set_schema(page, text)
    page.locator("#schema-problem", has_text=words).wait_for()
    assert page.locator("#settings").is_visible()
    assert page.evaluate("document.activeElement.name") == "schema"
    assert page.get_by_label("JSON schema").get_attribute("aria-describedby") == "schema-problem"
    page.keyboard.press("Escape")
    scripted.say(*answer("free"))
    ask(page, "go")
    finished(page)
    assert "response_format" not in scripted.asked[0]  # nothing of it was kept
    page.get_by_role("button", name="Settings", exact=True).click()
    assert page.locator("#schema-problem").is_hidden()
    assert page.get_by_label("JSON schema").input_value() == ""


def test_a_refused_schema_is_shown_with_the_path_of_its_keyword(page: Any, scripted: ScriptedServer) -> None:
    set_schema(page, '{"not": {}}')
    words = "response_format.json_schema.schema.not: the keyword cannot be honoured"
    scripted.refuse(400, words, "invalid_request_error", "invalid_request")
    ask(page, "go")
    page.get_by_role("alert").get_by_text("keyword cannot be honoured").wait_for()
    assert words[1:] in page.locator(".error").inner_text()


def test_a_json_answer_is_readable_as_it_comes_and_is_copied(page: Any, scripted: ScriptedServer) -> None:
    steps = [threading.Event(), threading.Event()]
    pieces = ('{"name":"A', ', B","size":1.50,"li', 'st":[1,{}],"big":12345678901234567890}')
    scripted.say(
        chunk(), chunk(pieces[0]), steps[0], chunk(pieces[1]), steps[1], chunk(pieces[2]), chunk(reason="stop"), DONE
    )
    ask(page, "go")
    code = page.locator(".body pre code")
    until(page, """document.querySelector('.body code')?.textContent === '{\\n  "name": "A'""")
    page.locator(".body pre").focus()
    steps[0].set()
    until(page, """document.querySelector('.body code').textContent.endsWith('"size": 1.50,\\n  "li')""")
    steps[1].set()
    finished(page)
    whole = '{\n  "name": "A, B",\n  "size": 1.50,\n  "list": [\n    1,\n    {}\n  ],\n  "big": 12345678901234567890\n}'
    assert code.text_content() == whole
    assert page.evaluate("document.activeElement.tagName") == "PRE"  # the block stayed while it grew
    page.get_by_label("Copy code").click()
    until(page, f"navigator.clipboard.readText().then(text => text === {json.dumps(whole)})")
    finished(page).get_by_label("Copy the answer").click()
    until(page, f"navigator.clipboard.readText().then(text => text === {json.dumps(''.join(pieces))})")


@pytest.mark.parametrize(
    ("said", "with_schema", "is_code"),
    [
        ("[1, 2]", False, True),
        ("42", False, False),
        ("42", True, True),
        ('"a text"', True, True),
        ("[1] The first source.", False, False),
        ("[site](https://example.org/)", False, False),
        ("{not json}", False, False),
        ('<think>{"a": 1}</think>{"b": 2}', False, True),
        ('{"cut": "in the mid', False, True),
    ],
)
def test_what_is_shown_as_json(
    page: Any, scripted: ScriptedServer, said: str, with_schema: bool, is_code: bool
) -> None:
    if with_schema:
        set_schema(page, "{}")
    scripted.say(*answer(said))
    ask(page, "go")
    body = finished(page).locator(".body")
    assert body.locator("figcaption", has_text="json").count() == is_code
    page.reload()
    page.locator("#chat-list .chat").click()
    assert body.locator("figcaption", has_text="json").count() == is_code


def test_long_json_needs_no_wider_screen(page: Any, scripted: ScriptedServer) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    scripted.say(*answer(json.dumps({"w" * 200: ["long words " * 60]})))
    ask(page, "go")
    finished(page)
    assert page.evaluate("(s => s.scrollWidth - s.clientWidth)(document.querySelector('#scroller'))") <= 0
    assert page.evaluate("(p => p.scrollWidth - p.clientWidth)(document.querySelector('.body pre'))") <= 0
