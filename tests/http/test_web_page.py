"""The chat page, clicked through in Chromium against a scripted server."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any

import pytest
from browser import MARKDOWN, NEEDS_AXE, ask, check_by_axe, finished, until
from scripted_server import DONE, ScriptedServer, answer, chunk, usage

pytestmark = pytest.mark.browser


def test_an_answer_streams_in_with_its_figures(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    scripted.say(chunk(), chunk("Hello "), gate, chunk("there"), chunk(reason="stop"), usage(1234, 2), DONE)
    assert page.locator("#send").is_disabled()
    ask(page, "  hi\nyou  ")
    body = page.locator(".body")
    body.get_by_text("Hello").wait_for()
    assert page.locator("#stop").is_visible() and not page.locator("#send").is_visible()
    assert page.locator("article[aria-busy=true]").count() == 1
    gate.set()
    assert finished(page).locator(".body").inner_text() == "Hello there"
    figures = finished(page).locator(".figures").inner_text()
    assert "2 tokens" in figures and "prompt 1,234" in figures and "scripted" in figures and "per second" in figures
    assert "Hello there" in page.locator("#announcer").inner_text()
    (asked,) = scripted.asked
    assert asked == {
        "model": "scripted",
        "messages": [{"role": "user", "content": "hi\nyou"}],
        "max_tokens": 2048,
        "reasoning_format": "deepseek",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert page.title() == "hi · PolarGrid Local"


def test_a_long_prefill_shows_progress_and_can_be_stopped(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    scripted.say(b": prefill 512 2048\n\n", chunk(), gate)
    scripted.say(*answer("second"))
    ask(page, "a very long text")
    waiting = page.get_by_text("Reading the prompt, 512 of 2,048 tokens")
    waiting.wait_for()
    assert page.locator(".waiting progress").get_attribute("value") == "0.25"
    page.locator("#stop").click()
    page.get_by_text("You stopped this answer.").wait_for()
    assert scripted.gone.wait(60)
    gate.set()
    page.get_by_label("Answer again").click()
    assert finished(page).locator(".body").inner_text() == "second"
    assert scripted.asked[1] == scripted.asked[0]


def test_stop_keeps_what_was_said(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    scripted.say(chunk(), chunk("as far as this"), gate)
    scripted.say(*answer("ok"))
    ask(page, "go")
    page.get_by_text("as far as this").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("You stopped this answer.").wait_for()
    assert scripted.gone.wait(60)
    gate.set()
    ask(page, "on")
    finished(page, 2)
    assert [(m["role"], m["content"]) for m in scripted.asked[1]["messages"]] == [
        ("user", "go"),
        ("assistant", "as far as this"),
        ("user", "on"),
    ]


def test_edit_and_answer_again(page: Any, scripted: ScriptedServer) -> None:
    for words in ("one", "two", "three", "four", "five"):
        scripted.say(*answer(words))
    ask(page, "first")
    finished(page)
    ask(page, "second")
    finished(page, 2)
    page.keyboard.press("Control+Shift+E")
    page.locator(".body", has_text="three").wait_for()
    assert scripted.asked[2]["messages"] == scripted.asked[1]["messages"]
    # A first answer has nothing to repeat; one that replaces another has that one.
    assert ["prediction" in asked for asked in scripted.asked] == [False, False, True]
    assert scripted.asked[2]["prediction"] == {"type": "content", "content": "two"}

    page.keyboard.press("ArrowUp")  # the box is empty: edits the last message
    editor = page.get_by_label("Edit the message")
    assert editor.input_value() == "second"
    page.keyboard.press("Escape")
    editor.wait_for(state="detached")
    page.locator(".bubble").first.hover()
    page.get_by_label("Edit", exact=True).first.click()
    editor.fill("first, better")
    page.keyboard.press("Enter")
    assert finished(page).locator(".body").inner_text() == "four"
    assert page.locator(".message").count() == 2
    assert scripted.asked[3]["messages"] == [{"role": "user", "content": "first, better"}]
    assert scripted.asked[3]["prediction"] == {"type": "content", "content": "one"}  # what answered that message
    ask(page, "third")
    finished(page, 2)
    assert "prediction" not in scripted.asked[4]


ONE_IS_STORED = """async () => {
    const [{ name }] = (await indexedDB.databases()).filter((each) => each.name.startsWith('polargrid'));
    const database = await new Promise((done) => {
        const opening = indexedDB.open(name);
        opening.onsuccess = () => done(opening.result);
    });
    const count = await new Promise((done) => {
        const counting = database.transaction('chats').objectStore('chats').count();
        counting.onsuccess = () => done(counting.result);
    });
    database.close();
    return count === 1;
}"""


def test_chats_are_kept_renamed_deleted_and_brought_back(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(*answer("red"))
    scripted.say(*answer("blue"))
    ask(page, "about red")
    finished(page)
    page.keyboard.press("Control+Shift+O")
    assert page.locator(".message").count() == 0
    ask(page, "about blue")
    finished(page)
    titles = page.locator("#chat-list .chat")
    assert titles.all_inner_texts() == ["about blue", "about red"]

    page.reload()
    titles.first.wait_for()
    titles.nth(1).click()
    assert page.locator(".body").inner_text() == "red"
    titles.nth(1).hover()
    page.get_by_label("Rename about red").click()
    page.keyboard.type("Rouge")
    page.keyboard.press("Enter")
    page.locator("#chat-list .chat", has_text="Rouge").wait_for()
    page.reload()
    page.locator("#chat-list .chat", has_text="Rouge").hover()
    page.get_by_label("Delete Rouge").click()
    page.locator("#chat-list .chat", has_text="Rouge").wait_for(state="detached")
    page.locator("#toast").get_by_text("Undo").click()
    page.locator("#chat-list .chat", has_text="Rouge").wait_for()
    assert page.locator(".body").inner_text() == "red"
    page.locator("#chat-list .chat", has_text="about blue").hover()
    page.get_by_label("Delete about blue").click()
    page.locator("#chat-list .chat", has_text="about blue").wait_for(state="detached")
    page.wait_for_function(ONE_IS_STORED)  # it leaves the store a moment later
    page.reload()
    page.locator("#chat-list .chat").first.wait_for()
    assert titles.all_inner_texts() == ["Rouge"]


def test_two_tabs_share_the_chats(page: Any, context: Any, scripted: ScriptedServer) -> None:
    other = context.new_page()
    other.goto(scripted.url)
    other.locator("#model-name", has_text="scripted").wait_for()
    scripted.say(*answer("shared"))
    ask(page, "from the first tab")
    finished(page)
    other.locator("#chat-list .chat", has_text="from the first tab").click()
    other.locator(".body", has_text="shared").wait_for()
    other.get_by_label("Delete from the first tab").click(force=True)
    page.locator("#chat-list .chat").wait_for(state="detached")


def test_a_browser_that_forbids_storage_still_talks(context: Any, scripted: ScriptedServer) -> None:
    context.add_init_script("""
      for (const name of ['indexedDB', 'localStorage']) {
        Object.defineProperty(window, name, { get() { throw new DOMException('forbidden', 'SecurityError'); } });
      }
    """)
    page = context.new_page()
    page.goto(scripted.url)
    page.locator("#model-name", has_text="scripted").wait_for()
    for n, words in enumerate(("one", "two")):
        scripted.say(*answer(words))
        page.locator("#new-chat").click()
        ask(page, words)
        assert finished(page).locator(".body").inner_text() == words
        assert page.locator("#chat-list .chat").count() == n + 1
    page.get_by_text("This browser keeps no chats").wait_for()
    page.locator("#chat-list .chat").nth(1).click()
    assert page.locator(".body").inner_text() == "one"
    page.get_by_role("button", name="Theme").click()


def test_two_chats_are_answered_at_once(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    scripted.say(chunk(), chunk("slow "), gate, chunk("but sure"), chunk(reason="stop"), DONE)
    scripted.say(*answer("quick"))
    ask(page, "slow one")
    page.locator(".body", has_text="slow").wait_for()
    page.locator("#new-chat").click()
    ask(page, "quick one")
    assert finished(page).locator(".body").inner_text() == "quick"
    assert page.locator("#chat-list [aria-label='being answered']").count() == 1
    gate.set()
    page.locator("#chat-list [aria-label='being answered']").wait_for(state="detached")
    page.locator("#chat-list .chat", has_text="slow one").click()
    assert finished(page).locator(".body").inner_text() == "slow but sure"


def test_a_reload_in_the_middle_loses_nothing_that_was_shown(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    scripted.say(chunk(), chunk("half of it"), gate)
    ask(page, "go")
    page.get_by_text("half of it").wait_for()
    page.reload()
    gate.set()
    page.locator("#chat-list .chat").click()
    page.get_by_text("This answer was interrupted.").wait_for()
    assert page.locator(".body").inner_text() == "half of it"


def test_settings_reach_the_server(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(*answer("a"))
    scripted.say(*answer("b"))
    page.get_by_role("button", name="Settings").click()
    form = page.locator("#settings-form")
    form.get_by_label("System prompt").fill("Be brief.")
    form.get_by_label("Temperature").fill("3")
    form.get_by_text("Save").click()
    assert page.locator("#settings").is_visible()  # 3 is out of range
    form.get_by_label("Temperature").fill("0")
    form.get_by_label("Longest answer").fill("")
    form.get_by_label("Seed").fill("7")
    form.get_by_label("Stop at").fill("END\n###")
    form.get_by_text("Save").click()
    page.locator("#settings").wait_for(state="hidden")
    ask(page, "go")
    finished(page)
    wanted = {"temperature": 0, "seed": 7, "stop": ["END", "###"]}
    assert {
        key: value
        for key, value in scripted.asked[0].items()
        if key not in ("model", "messages", "stream", "stream_options", "reasoning_format")
    } == wanted
    assert scripted.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    page.locator("#model-name", has_text="scripted").wait_for()
    ask(page, "again")
    finished(page)
    assert scripted.asked[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "again"},
    ]
    assert "max_tokens" not in scripted.asked[1] and scripted.asked[1]["seed"] == 7


def test_a_model_is_picked_and_loaded_with_progress(page: Any, scripted: ScriptedServer) -> None:
    scripted.models["other"] = "unloaded"
    scripted.load_gate.clear()
    scripted.load_progress = 0.5
    scripted.say(*answer("from other"))
    page.locator("#model-button").click()
    menu = page.locator("#model-menu")
    menu.get_by_text("not loaded").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    while "other" not in page.evaluate("document.activeElement.innerText"):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#model-progress[value='0.5']").wait_for()
    ask(page, "wait for it")
    page.get_by_text("Loading the model").wait_for()
    scripted.load_gate.set()
    assert finished(page).locator(".body").inner_text() == "from other"
    assert scripted.asked[0]["model"] == "other" and scripted.loads == ["other"]
    assert page.locator("#model-progress").is_hidden()
    page.locator("#model-button").click()
    page.get_by_label("Unload other").click()
    menu.locator("li", has_text="other").get_by_text("not loaded").wait_for()


def test_a_load_that_ends_while_the_server_is_asked_is_not_begun_again(page: Any, scripted: ScriptedServer) -> None:
    scripted.models["other"] = "unloaded"
    scripted.load_gate.clear()
    page.locator("#model-button").click()
    page.locator("#model-menu b", has_text="other").click()
    page.locator("#model-dot[data-state=loading]").wait_for()
    late: list[Any] = []

    def keep(route: Any) -> None:
        if scripted.load_gate.is_set():
            route.continue_()
        else:
            late.append((route, route.fetch()))

    page.route("**/v1/models/status", keep)
    scripted.say(*answer("from other"))
    ask(page, "go")
    page.get_by_text("Loading the model").wait_for()
    while len(late) < 2:  # one of the load under way, one of the answer
        page.wait_for_timeout(20)
    with page.expect_response("**/v1/models/load"):
        scripted.load_gate.set()
    for route, reply in late:
        route.fulfill(response=reply)
    assert finished(page).locator(".body").inner_text() == "from other"
    assert scripted.loads == ["other"]


def test_a_load_begun_elsewhere_is_shown(context: Any, scripted: ScriptedServer) -> None:
    scripted.models["scripted"] = "loading"
    scripted.load_gate.clear()
    scripted.load_progress = 0.25
    page = context.new_page()
    page.goto(scripted.url)
    page.locator("#model-progress[value='0.25']").wait_for()
    assert page.locator("#model-dot").get_attribute("data-state") == "loading"
    scripted.load_gate.set()
    page.locator("#model-dot[data-state=loaded]").wait_for()
    assert page.locator("#model-progress").is_hidden()


def test_no_model_is_said_plainly(context: Any, scripted: ScriptedServer) -> None:
    scripted.models.clear()
    page = context.new_page()
    page.goto(scripted.url)
    page.locator("#model-button").click()
    page.get_by_text("There is no model on this machine yet.").wait_for()
    page.keyboard.press("Escape")
    page.fill("#prompt", "hi")
    assert page.locator("#send").is_disabled()


def test_an_error_in_the_middle_keeps_the_text_and_offers_another_try(page: Any, scripted: ScriptedServer) -> None:
    event = {
        "detail": "<b>NaN</b> in the logits",
        "error": {
            "message": "<b>NaN</b> in the logits",
            "type": "server_error",
            "code": "numeric_error",
            "param": None,
        },
    }
    scripted.say(chunk(), chunk("so far"), b"data: " + json.dumps(event).encode() + b"\n\n")
    scripted.say(chunk(), chunk("cut"))  # ends without a reason
    scripted.say(*answer("whole"))
    ask(page, "go")
    page.get_by_role("alert").get_by_text("<b>NaN</b> in the logits").wait_for()
    assert page.locator(".body").inner_text() == "so far"
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    page.get_by_role("button", name="Try again").click()
    assert finished(page).locator(".body").inner_text() == "whole"


@pytest.mark.parametrize(
    ("status", "kind", "code", "words"),
    [
        (429, "rate_limit_error", "queue_full", "Try again in 4 s."),
        (400, "invalid_request_error", "context_length_exceeded", "no longer fits"),
        (404, "not_found_error", "model_not_loaded", "That model is not here"),
        (503, "server_error", "unavailable", "Server words"),
    ],
)
def test_a_refusal_says_what_to_do(
    page: Any, scripted: ScriptedServer, status: int, kind: str, code: str, words: str
) -> None:
    scripted.refuse(status, "Server words", kind, code, **{"Retry-After": "4"})
    scripted.say(*answer("fine"))
    ask(page, "go")
    page.get_by_role("alert").get_by_text(words).first.wait_for()
    ask(page, "and now?")
    assert finished(page, 2).locator(".body").inner_text() == "fine"
    assert scripted.asked[1]["messages"] == [{"role": "user", "content": "go\n\nand now?"}]  # turns alternate


def test_a_wanted_api_key_is_asked_for(context: Any, scripted: ScriptedServer) -> None:
    scripted.api_key = "pg_secret"
    scripted.say(*answer("let in"))
    page = context.new_page()
    page.goto(scripted.url)
    page.get_by_role("alert").get_by_text("This server wants an API key").wait_for()
    page.locator("#banner").get_by_text("Enter the key").click()
    page.get_by_label("API key").fill("pg_secret")
    page.keyboard.press("Enter")
    page.locator("#model-name", has_text="scripted").wait_for()
    assert page.locator("#banner").is_hidden()
    ask(page, "go")
    assert finished(page).locator(".body").inner_text() == "let in"
    assert scripted.headers[0]["authorization"] == "Bearer pg_secret"


def test_a_dead_server_is_named_and_the_page_recovers(page: Any, context: Any, scripted: ScriptedServer) -> None:
    context.set_offline(True)
    ask(page, "anyone?")
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    context.set_offline(False)
    scripted.say(*answer("here"))
    page.get_by_role("button", name="Try again").click()
    assert finished(page).locator(".body").inner_text() == "here"


def test_the_banner_goes_with_the_next_good_answer(page: Any, scripted: ScriptedServer) -> None:
    scripted.models["other"] = "unloaded"
    scripted.load_refusals.append("needs 9 GB, has 1 GB")
    page.locator("#model-button").click()
    page.locator("#model-menu b", has_text="other").click()
    page.locator("#banner").get_by_text("Needs 9 GB, has 1 GB").wait_for()
    gate = threading.Event()
    scripted.say(chunk(), chunk("fi"), gate, chunk("ne"), chunk(reason="stop"), DONE)
    ask(page, "go")
    page.locator(".body", has_text="fi").wait_for()
    assert page.locator("#banner").is_hidden()
    gate.set()
    assert finished(page).locator(".body").inner_text() == "fine"
    assert page.locator("#banner").is_hidden() and page.get_by_role("alert").locator("visible=true").count() == 0


def test_an_old_error_is_no_alarm(page: Any, scripted: ScriptedServer) -> None:
    scripted.refuse(503, "out of memory")
    scripted.say(*answer("fine"))
    background = "getComputedStyle(document.querySelector('.error')).backgroundColor"
    ask(page, "go")
    page.locator(".error").wait_for()
    alarm = page.evaluate(background)
    ask(page, "and now?")
    finished(page, 2)
    assert page.locator(".error").count() == 1
    assert page.evaluate(background) != alarm


def test_the_dot_tells_whether_the_server_is_there(page: Any, context: Any, scripted: ScriptedServer) -> None:
    def shows(state: str, words: str, note: str) -> None:
        page.locator(f"#model-dot[data-state={state}]").wait_for()
        button = page.locator("#model-button")
        assert button.get_attribute("title") == button.get_attribute("aria-label") == f"Model: scripted, {words}"
        assert page.locator("#server-state").inner_text() == note

    shows("loaded", "loaded", "")
    context.set_offline(True)
    shows("gone", "the server does not answer", "no answer from the server")
    page.locator("#announcer", has_text="The server does not answer").wait_for()
    context.set_offline(False)
    shows("loaded", "loaded", "")
    for status in (503, 200):
        scripted.health = (status, {"status": "degraded", "models": {}})
        shows("degraded", "loaded, but the server is degraded", "degraded")
        scripted.health = (200, {"status": "healthy"})
        shows("loaded", "loaded", "")
    scripted.health = (502, {"detail": "a proxy without its server"})
    shows("gone", "the server does not answer", "no answer from the server")
    scripted.health = (200, {"status": "healthy"})
    shows("loaded", "loaded", "")
    assert page.locator("#banner").is_hidden()


def test_a_failed_answer_shows_at_once_that_the_server_is_gone(
    page: Any, context: Any, scripted: ScriptedServer
) -> None:
    page.clock.install()
    page.reload()
    page.locator("#model-dot[data-state=loaded]").wait_for()
    page.clock.pause_at(
        page.evaluate("Date.now()") + 3_600_000
    )  # the page's clock stands still: no timer asks for /health
    context.set_offline(True)
    ask(page, "anyone?")
    page.locator("#model-dot[data-state=gone]").wait_for()


def test_a_page_that_nobody_sees_asks_nothing(page: Any, scripted: ScriptedServer) -> None:
    seen = "hidden => { Object.defineProperty(document, 'hidden', { configurable: true, value: hidden });"
    seen += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.clock.install()
    page.reload()
    page.locator("#model-dot[data-state=loaded]").wait_for()
    with page.expect_response("**/health"):
        page.clock.run_for(6000)
    page.evaluate(seen, True)
    asked = scripted.health_asked
    page.clock.run_for(3_600_000)
    assert scripted.health_asked == asked
    with page.expect_response("**/health"):
        page.evaluate(seen, False)
    assert scripted.health_asked == asked + 1


def test_the_page_follows_the_answer_only_while_the_reader_does(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    scripted.say(chunk(), chunk("line\n\n" * 80), gate, chunk("last words"), chunk(reason="stop"), DONE)
    ask(page, "go")
    until(
        page,
        "(({ scrollHeight: all, clientHeight: seen, scrollTop: top }) => all > seen * 2 && all - top - seen < 5)"
        "(document.querySelector('#scroller'))",
    )
    page.evaluate("document.querySelector('#scroller').scrollTop = 300")
    page.locator("#latest").wait_for()
    top = page.evaluate("document.querySelector('#scroller').scrollTop")
    gate.set()
    finished(page)
    assert page.evaluate("document.querySelector('#scroller').scrollTop") == top
    page.locator("#latest").click()
    page.locator("#latest").wait_for(state="hidden")


def test_the_theme_is_kept(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_label("Theme").click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark
    page.get_by_label("Theme").click()
    assert page.evaluate(background) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == light  # chosen by hand


def test_a_narrow_screen_has_room_for_everything(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(
        *answer(
            "`" + "long" * 60 + "`\n\n```\n" + "wide " * 60 + "\n```\n\n" + "| wide " * 20 + "|\n" + "|---" * 20 + "|\n"
        )
    )
    page.set_viewport_size({"width": 320, "height": 640})
    ask(page, "w" * 200)
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("(s => s.scrollWidth - s.clientWidth)(document.querySelector('#scroller'))") <= 0
    page.locator("#toggle-sidebar").click()
    assert page.evaluate("document.querySelector('#main').inert && !document.querySelector('#sidebar').inert")
    page.keyboard.press("Escape")
    assert page.evaluate("!document.querySelector('#main').inert && document.querySelector('#sidebar').inert")
    assert page.evaluate("document.activeElement.id") == "toggle-sidebar"


def test_everything_works_from_the_keyboard(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(*answer("one"))
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    finished(page)
    assert scripted.asked[0]["messages"][0]["content"] == "first line\nsecond line"
    page.keyboard.press("Control+/")
    page.get_by_role("heading", name="Keyboard shortcuts").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+b")
    assert not page.locator("#sidebar").is_visible()
    page.keyboard.press("Control+b")
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("(n => n.getAttribute('aria-label') || n.id || n.textContent.trim())(document.activeElement)")
        )
    order = [
        "New chat",
        "first line",
        "List of chats",
        "Model: scripted, loaded",
        "Theme",
        "Settings",
        "Conversation",
        "Edit",
        "Answer again",
        "Message",
    ]
    labels = [
        next(
            i
            for i, label in enumerate(seen)
            if label.startswith(wanted) or (wanted == "New chat" and label == "new-chat")
        )
        for wanted in order
    ]
    assert labels == sorted(labels), seen


@NEEDS_AXE
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility_by_axe(page: Any, scripted: ScriptedServer, theme: str) -> None:
    """axe-core, an independent checker, finds nothing on any face of the page."""

    check = partial(check_by_axe, page)
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    gate = threading.Event()
    scripted.say(*answer(MARKDOWN))
    scripted.refuse(503, "out of memory")
    scripted.say(b": prefill 1 2\n\n", gate)
    check("empty")
    ask(page, "show me")
    finished(page)
    page.locator("#prompt").focus()
    check("answer")
    ask(page, "break")
    page.get_by_role("alert").locator("visible=true").wait_for()
    ask(page, "wait")
    page.locator(".waiting progress").wait_for()
    check("error and waiting")
    page.keyboard.press("Escape")
    gate.set()
    page.locator("#model-button").click()
    page.locator("#model-menu small").wait_for()
    check("models")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    check("settings")
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 360, "height": 700})
    check("narrow")
    page.locator("#toggle-sidebar").click()
    check("drawer")
