"""Chats in several tabs of one browser, and in a browser whose storage is full: nothing that was said is lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from browser import ask, finished, until
from scripted_server import DONE, ScriptedServer, answer, chunk

pytestmark = pytest.mark.browser

TEXTS = "[...document.querySelectorAll('.bubble, .body')].map(node => node.innerText)"


def opened(context: Any, scripted: ScriptedServer, title: str | None = None) -> Any:
    """A further tab, showing the chat of this title."""
    page = context.new_page()
    page.goto(scripted.url)
    page.locator("#model-name", has_text="scripted").wait_for()
    if title:
        page.locator("#chat-list .chat", has_text=title).click()
        page.locator(".bubble").first.wait_for()
    return page


def shows(page: Any, *texts: str) -> None:
    page.locator(".message").nth(len(texts) - 1).wait_for()
    until(page, f"JSON.stringify({TEXTS}) === JSON.stringify({list(texts)!r})")


@pytest.fixture
def tabs(page: Any, context: Any, scripted: ScriptedServer) -> tuple[Any, Any]:
    """Two tabs on one chat: "one", answered "first"."""
    scripted.say(*answer("first"))
    ask(page, "one")
    finished(page)
    return page, opened(context, scripted, "one")


def test_two_tabs_take_turns_in_one_chat(tabs: tuple[Any, Any], context: Any, scripted: ScriptedServer) -> None:
    left, right = tabs
    scripted.say(*answer("second"))
    ask(left, "two")
    shows(right, "one", "first", "two", "second")
    scripted.say(*answer("third"))
    ask(right, "three")
    finished(right, 3)
    all_of_it = ["one", "first", "two", "second", "three", "third"]
    shows(left, *all_of_it)
    shows(opened(context, scripted, "one"), *all_of_it)
    assert [message["content"] for message in scripted.asked[-1]["messages"]] == all_of_it[:-1]


def test_two_tabs_are_answered_at_once_in_one_chat(
    tabs: tuple[Any, Any], context: Any, scripted: ScriptedServer
) -> None:
    left, right = tabs
    first, second = threading.Event(), threading.Event()
    scripted.say(chunk(), chunk("a"), first, chunk("b"), chunk(reason="stop"), DONE)
    ask(left, "from the left")
    shows(right, "one", "first", "from the left", "a")
    right.get_by_text("Another tab is writing this answer").wait_for()
    scripted.say(chunk(), chunk("c"), second, chunk("d"), chunk(reason="stop"), DONE)
    ask(right, "from the right")
    shows(right, "one", "first", "from the left", "a", "from the right", "c")
    first.set()
    finished(left, 2)
    second.set()
    finished(right, 3)
    all_of_it = ["one", "first", "from the left", "ab", "from the right", "cd"]
    for page in (left, right, opened(context, scripted, "one")):
        shows(page, *all_of_it)
        until(page, "!/interrupted|Another tab/.test(document.querySelector('#transcript').innerText)")


def test_a_chat_is_renamed_while_another_tab_adds_to_it(
    tabs: tuple[Any, Any], context: Any, scripted: ScriptedServer
) -> None:
    left, right = tabs
    gate = threading.Event()
    scripted.say(chunk(), chunk("so"), gate, chunk(" on"), chunk(reason="stop"), DONE)
    right.locator("#chat-list .chat").hover()
    right.get_by_label("Rename one").click()
    right.keyboard.type("A better ")
    ask(left, "two")
    shows(right, "one", "first", "two", "so")  # the title being typed in the list stays
    right.keyboard.type("name")
    right.keyboard.press("Enter")
    left.locator("#chat-list .chat", has_text="A better name").wait_for()
    gate.set()
    finished(left, 2)
    last = opened(context, scripted, "A better name")
    for page in (left, right, last):
        shows(page, "one", "first", "two", "so on")
        assert page.locator("#chat-list .chat").all_inner_texts() == ["A better name"]


def test_a_chat_deleted_elsewhere_stops_and_can_be_brought_back(
    tabs: tuple[Any, Any], context: Any, scripted: ScriptedServer
) -> None:
    left, right = tabs
    gate = threading.Event()
    scripted.say(chunk(), chunk("half"), gate)
    ask(left, "two")
    left.get_by_text("half").wait_for()
    right.locator("#chat-list .chat").hover()
    right.get_by_label("Delete one").click()
    left.get_by_text("“one” was deleted in another tab.").wait_for()
    assert scripted.gone.wait(60)
    gate.set()
    shows(left, "one", "first", "two", "half")  # nothing vanishes under the reader's eyes
    left.get_by_text("You stopped this answer.").wait_for()
    assert left.locator("#chat-list .chat").count() == 0
    assert (
        opened(context, scripted).locator("#chat-list .chat").count() == 0
    )  # the end of the answer did not store the chat again
    left.locator("#toast").get_by_text("Undo").click()
    right.locator("#chat-list .chat", has_text="one").wait_for()
    shows(opened(context, scripted, "one"), "one", "first", "two", "half")


def test_who_goes_on_in_a_deleted_chat_keeps_it(tabs: tuple[Any, Any], context: Any, scripted: ScriptedServer) -> None:
    left, right = tabs
    right.locator("#chat-list .chat").hover()
    right.get_by_label("Delete one").click()
    left.locator("#chat-list .chat").wait_for(state="detached")
    scripted.say(*answer("second"))
    ask(left, "two")
    finished(left, 2)
    shows(opened(context, scripted, "one"), "one", "first", "two", "second")


def test_an_answer_replaced_elsewhere_stops(tabs: tuple[Any, Any], context: Any, scripted: ScriptedServer) -> None:
    left, right = tabs
    gate = threading.Event()
    scripted.say(chunk(), chunk("half"), gate)
    ask(left, "two")
    shows(right, "one", "first", "two", "half")
    scripted.say(*answer("new"))
    right.locator(".bubble").first.hover()
    right.get_by_label("Edit", exact=True).first.click()
    right.get_by_label("Edit the message").fill("one, better")
    right.keyboard.press("Enter")
    assert scripted.gone.wait(60)
    gate.set()
    for page in (left, right, opened(context, scripted, "one, better")):
        shows(page, "one, better", "new")


def test_both_edit_one_question(tabs: tuple[Any, Any], scripted: ScriptedServer) -> None:
    _left, _right = tabs
    for page in tabs:
        page.locator(".bubble").first.hover()
        page.get_by_label("Edit", exact=True).first.click()
    for page, words in zip(tabs, ("left", "right"), strict=True):
        scripted.say(*answer(f"{words} answer"))
        page.get_by_label("Edit the message").fill(words)
        page.get_by_label("Edit the message").press("Enter")
        page.locator(".body", has_text=f"{words} answer").wait_for()
    for page in tabs:
        shows(page, "left", "left answer", "right", "right answer")


def test_tabs_closed_in_the_middle_lose_nothing_that_was_shown(
    tabs: tuple[Any, Any], context: Any, scripted: ScriptedServer
) -> None:
    _left, _right = tabs
    gates = [threading.Event(), threading.Event()]
    for page, words, gate in zip(tabs, ("left", "right"), gates, strict=True):
        scripted.say(chunk(), chunk(f"half of {words}"), gate)
        ask(page, words)
        page.locator(".body", has_text=f"half of {words}").wait_for()
    watching = opened(context, scripted, "one")
    until(watching, "document.body.innerText.split('Another tab is writing this answer').length === 3")
    for page in tabs:
        page.close(run_before_unload=True)
    shows(watching, "one", "first", "left", "half of left", "right", "half of right")
    until(watching, "document.body.innerText.split('This answer was interrupted.').length === 3")
    for gate in gates:
        gate.set()
    watching.reload()
    watching.locator("#chat-list .chat").click()
    shows(watching, "one", "first", "left", "half of left", "right", "half of right")


REFUSING = """
  const { put } = IDBObjectStore.prototype;
  IDBObjectStore.prototype.put = function (...given) {
    if (sessionStorage.refuses) throw new DOMException('no', sessionStorage.refuses);
    return put.apply(this, given);
  };
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("QuotaExceededError", "The storage of this browser is full"),
        ("UnknownError", "This browser could not store the chat"),
    ],
)
def test_a_store_that_refuses_is_said_and_loses_nothing(
    context: Any, scripted: ScriptedServer, error: str, words: str
) -> None:
    context.add_init_script(REFUSING)
    page = opened(context, scripted)
    scripted.say(*answer("first"))
    ask(page, "one")
    finished(page)
    page.locator("#chat-list .chat").hover()
    page.get_by_label("Rename one").click()
    page.keyboard.type("named")
    page.keyboard.press("Enter")
    page.locator("#chat-list .chat", has_text="named").wait_for()
    opened(context, scripted, "named").close()  # the name is stored
    page.evaluate(f"sessionStorage.refuses = '{error}'")
    for question, words_back in (("two", "second"), ("three", "third")):
        scripted.say(*answer(words_back))
        ask(page, question)
        page.locator(".body", has_text=words_back).wait_for()
    alert = page.get_by_role("alert").get_by_text(words)
    alert.wait_for()
    all_of_it = ["one", "first", "two", "second", "three", "third"]
    page.locator("#new-chat").click()
    page.locator("#chat-list .chat", has_text="named").click()
    shows(page, *all_of_it)
    for _ in range(2):  # set aside as the page goes, shown again, and set aside again
        page.reload()
        alert.wait_for()
        page.locator("#chat-list .chat", has_text="named").click()
        shows(page, *all_of_it)
    page.evaluate("delete sessionStorage.refuses")
    page.get_by_role("button", name="Save now").click()
    page.locator("#unsaved").wait_for(state="hidden")
    shows(opened(context, scripted, "named"), *all_of_it)
    page.reload()
    page.locator("#chat-list .chat", has_text="named").click()
    shows(page, *all_of_it)
    assert page.evaluate("Object.keys(localStorage).filter(key => key.includes('unsaved')).length") == 0


def test_deleting_a_chat_makes_room_for_what_was_not_stored(context: Any, scripted: ScriptedServer) -> None:
    context.add_init_script(REFUSING)
    page = opened(context, scripted)
    scripted.say(*answer("old answer"))
    ask(page, "old")
    finished(page)
    page.evaluate("sessionStorage.refuses = 'QuotaExceededError'")
    page.locator("#new-chat").click()
    scripted.say(*answer("new answer"))
    ask(page, "new")
    finished(page)  # until then the list may be drawn anew, under the pointer
    page.locator("#unsaved").wait_for()
    page.evaluate("delete sessionStorage.refuses")
    page.locator("#chat-list .chat", has_text="old").hover()
    page.get_by_label("Delete old").click()
    page.locator("#unsaved").wait_for(state="hidden")
    shows(opened(context, scripted, "new"), "new", "new answer")
