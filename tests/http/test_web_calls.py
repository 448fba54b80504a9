"""Tool calls and reasoning on the page: shown as they come, answered by the reader, sent back, kept."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any

import pytest
from browser import NEEDS_AXE, ask, check_by_axe, finished, until
from scripted_server import DONE, ScriptedServer, answer, call, chunk, delta
from test_web_markup import HOSTILE

pytestmark = pytest.mark.browser

WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"cityName": {"type": "string"}}, "required": ["cityName"]},
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "What time it is"}}
PARIS = ('{"city', 'Name": "Par', 'is"}')
ENDED = (chunk(reason="tool_calls"), DONE)


def set_field(page: Any, label: str, text: str) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label(label).fill(text)
    page.locator("#settings .primary").click()


def give(page: Any, name: str, text: str) -> None:
    field = page.get_by_role("textbox", name=f"Result of {name}").last
    field.fill(text)
    field.press("Enter")


def sent_call(index: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_call_is_shown_as_it_comes_and_its_result_goes_back(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    set_field(page, "Tools", json.dumps([WEATHER, CLOCK]))
    head, first, *rest = call(0, "get_weather", *PARIS)
    scripted.say(chunk(), chunk("Let me look."), head, first, gate, *rest, *ENDED)
    ask(page, "How is Paris?")
    block = page.get_by_role("group", name="Call of get_weather")
    block.locator("pre", has_text='"city').wait_for()
    assert block.locator("pre").inner_text() == '{\n  "city'
    assert block.locator("textarea").count() == 0
    gate.set()
    page.get_by_label("Result of get_weather").wait_for()
    assert block.locator("pre").inner_text() == '{\n  "cityName": "Paris"\n}'
    assert page.locator(".body").inner_text() == "Let me look."
    assert "calls get_weather" in page.locator("#announcer").inner_text()
    assert scripted.asked[0]["tools"] == [{"type": "function", "function": WEATHER}, CLOCK]
    assert "tool_choice" not in scripted.asked[0]

    scripted.say(*answer("It is sunny."))
    give(page, "get_weather", "sunny")
    assert finished(page, 2).locator(".body").inner_text() == "It is sunny."
    assert scripted.asked[1]["messages"] == [
        {"role": "user", "content": "How is Paris?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [sent_call(0, "get_weather", "".join(PARIS))],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
    ]
    page.reload()
    page.locator("#chat-list .chat").click()
    assert page.locator(".call pre").all_inner_texts() == ['{\n  "cityName": "Paris"\n}', "sunny"]
    assert page.locator(".call textarea").count() == 0
    finished(page).get_by_label("Copy the answer").click()
    copied = 'Let me look.\n\nget_weather({"cityName": "Paris"})\nsunny'
    until(page, f"navigator.clipboard.readText().then(text => text === {json.dumps(copied)})")


def test_the_talk_goes_on_when_every_call_has_its_result(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(chunk(), *call(0, "get_weather", *PARIS), *call(1, "clock", "{}"), *ENDED)
    ask(page, "go")
    finished(page)
    page.get_by_label("Result of get_weather").fill("half a dra")
    give(page, "clock", "")  # a tool may return nothing
    page.locator(".call", has_text="clock").locator("figcaption", has_text="Result").wait_for()
    assert page.get_by_label("Result of get_weather").input_value() == "half a dra"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Result of get_weather"
    assert len(scripted.asked) == 1
    page.reload()
    page.locator("#chat-list .chat").click()
    scripted.say(*answer("done"))
    page.get_by_label("Result of get_weather").fill('{"t":1.50}')
    page.get_by_role("button", name="Send the result").click()
    assert finished(page, 2).locator(".body").inner_text() == "done"
    assert page.locator(".call pre").nth(1).inner_text() == '{\n  "t": 1.50\n}'
    assert scripted.asked[1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [sent_call(0, "get_weather", "".join(PARIS)), sent_call(1, "clock", "{}")],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": '{"t":1.50}'},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ]


def test_a_result_is_edited_and_what_followed_is_replaced(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(chunk(), *call(0, "clock", "{}"), *ENDED)
    scripted.say(*answer("noon"))
    scripted.say(*answer("midnight"))
    ask(page, "What time is it?")
    finished(page)
    give(page, "clock", "12:00")
    finished(page, 2)
    page.get_by_label("Edit the result of clock").click()
    assert page.get_by_label("Result of clock", exact=True).input_value() == "12:00"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Edit the result of clock"
    page.keyboard.press("Enter")
    page.get_by_label("Result of clock", exact=True).fill("00:00")
    page.keyboard.press("Enter")
    page.locator(".body", has_text="midnight").wait_for()
    assert page.locator(".message").count() == 3
    assert scripted.asked[2]["messages"][2]["content"] == "00:00"
    assert [asked.get("prediction", {}).get("content") for asked in scripted.asked] == [None, None, "noon"]
    scripted.say(*answer("none"))
    page.get_by_label("Answer again").first.click()
    page.locator(".body", has_text="none").wait_for()
    assert scripted.asked[3]["messages"] == [{"role": "user", "content": "What time is it?"}]
    assert "prediction" not in scripted.asked[3]  # the answer replaced was a call alone
    assert page.locator(".call").count() == 0 and page.locator(".message").count() == 2


def test_stop_and_reload_in_the_middle_of_a_call_keep_what_came(page: Any, scripted: ScriptedServer) -> None:
    gate = threading.Event()
    for _ in range(2):
        scripted.say(chunk(), *call(0, "clock", '{"zone": "U'), gate)
    ask(page, "one")
    page.locator(".call pre", has_text='"U').wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("You stopped this answer.").wait_for()
    page.get_by_text("This call is not whole.").wait_for()
    page.keyboard.press("Control+Shift+E")
    page.locator("article[aria-busy=true] .call pre", has_text='"U').wait_for()
    page.reload()
    gate.set()
    page.locator("#chat-list .chat").click()
    page.get_by_text("This answer was interrupted.").wait_for()
    assert page.locator(".call pre").all_inner_texts() == ['{\n  "zone": "U']
    assert page.locator(".call textarea").count() == 0


def test_calls_without_a_result_and_cut_calls_are_not_sent_and_say_so(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(chunk(), *call(0, "clock", "{}"), *ENDED)
    scripted.say(chunk(), chunk("Well,"), *call(0, "clock", '{"zo'), chunk(reason="length"), DONE)
    scripted.say(*answer("fine"))
    ask(page, "one")
    finished(page)
    ask(page, "no tools, please")
    finished(page, 2)
    page.get_by_text("No result was given.").wait_for()
    page.get_by_text("This call is not whole.").wait_for()
    assert page.locator(".call textarea").count() == 0
    ask(page, "three")
    finished(page, 3)
    assert scripted.asked[1]["messages"] == [{"role": "user", "content": "one\n\nno tools, please"}]
    assert scripted.asked[2]["messages"][1:] == [
        {"role": "assistant", "content": "Well,"},
        {"role": "user", "content": "three"},
    ]
    scripted.say(*answer("so late"))
    page.get_by_label("Give a result of clock").click()
    give(page, "clock", "late")
    page.locator(".body", has_text="so late").wait_for()
    assert [message["role"] for message in scripted.asked[3]["messages"]] == ["user", "assistant", "tool"]


def test_a_required_call_is_required_of_each_message_not_of_results(page: Any, scripted: ScriptedServer) -> None:
    set_field(page, "Tools", json.dumps([CLOCK]))
    page.get_by_role("button", name="1 tool").click()
    page.get_by_label("Tool choice").select_option("required")
    page.locator("#settings .primary").click()
    for _ in range(2):
        scripted.say(chunk(), *call(0, "clock", "{}"), *ENDED)
        scripted.say(*answer("noon"))
    for turn in (0, 1):
        ask(page, "time?")
        finished(page, 2 * turn + 1)
        give(page, "clock", "12:00")
        finished(page, 2 * turn + 2)
    assert [asked.get("tool_choice") for asked in scripted.asked] == ["required", None] * 2
    page.reload()
    page.locator("#model-name", has_text="scripted").wait_for()
    page.get_by_role("button", name="1 tool").click()
    assert page.get_by_label("Tool choice").input_value() == "required"
    page.get_by_label("Tool choice").select_option("none")
    page.locator("#settings .primary").click()
    scripted.say(*answer("no"))
    ask(page, "time?")
    finished(page)
    assert scripted.asked[-1]["tool_choice"] == "none" and scripted.asked[-1]["tools"] == [CLOCK]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{]", "This is not JSON"),
        ('{"name": "f"}', "Tools are a list"),
        ('[{"name": "f"}, {"description": "no name"}]', "Tool 2 has no name"),
        ('[{"type": "function", "function": {}}]', "Tool 1 has no name"),
        ('["f"]', "Tool 1 has no name"),
        ('[{"type": "web_search"}]', "Tool 1 is of another type"),
    ],
)
def test_tools_that_are_none_are_refused_at_their_field(
    page: Any, scripted: ScriptedServer, text: str, words: str
) -> None:
    set_field(page, "Tools", text)
    page.locator("#tools-problem", has_text=words).wait_for()
    assert page.locator("#settings").is_visible()
    assert page.evaluate("document.activeElement.name") == "tools"
    assert page.get_by_label("Tools").get_attribute("aria-invalid") == "true"
    page.get_by_label("Tools").fill('[{"type": "function", "name": "flat"}]')
    assert page.locator("#tools-problem").is_hidden()
    page.locator("#settings .primary").click()
    scripted.say(*answer("ok"))
    ask(page, "go")
    finished(page)
    assert scripted.asked[0]["tools"] == [{"type": "function", "function": {"name": "flat"}}]


def test_results_given_in_two_tabs_meet(page: Any, context: Any, scripted: ScriptedServer) -> None:
    scripted.say(chunk(), *call(0, "left", "{}"), *call(1, "right", "{}"), *ENDED)
    ask(page, "go")
    finished(page)
    other = context.new_page()
    other.goto(scripted.url)
    other.locator("#chat-list .chat").click()
    other.get_by_label("Result of right").wait_for()
    give(page, "left", "L")
    other.locator(".call pre", has_text="L").wait_for()
    scripted.say(*answer("both"))
    give(other, "right", "R")
    for tab in (other, page):
        tab.locator(".body", has_text="both").wait_for()
        assert tab.locator(".call pre").all_inner_texts() == ["{}", "L", "{}", "R"]
    assert [m.get("content") for m in scripted.asked[1]["messages"]] == ["go", None, "L", "R"]


def test_results_that_met_without_an_answer_can_be_sent_on(page: Any, scripted: ScriptedServer) -> None:
    """Where two tabs gave the last two results at one moment, or the page was closed: no answer follows."""
    scripted.say(chunk(), *call(0, "clock", "{}"), *ENDED)
    ask(page, "go")
    finished(page)
    page.evaluate("""async () => {
      const { newResult } = await import('./chats.js');
      const done = (request) => new Promise((resolve) => { request.onsuccess = () => resolve(request.result); });
      const database = await done(indexedDB.open('polargrid', 1));
      const store = database.transaction('chats', 'readwrite').objectStore('chats');
      const [chat] = await done(store.getAll());
      chat.messages.push(newResult(chat.messages[1], 0, '12:00'));
      await done(store.put(chat));
      database.close();
      new BroadcastChannel('polargrid.chats').postMessage(chat.id);
    }""")
    scripted.say(*answer("noon"))
    page.get_by_role("button", name="Go on with these results").click()
    assert finished(page, 2).locator(".body").inner_text() == "noon"
    assert scripted.asked[1]["messages"][-1] == {"role": "tool", "tool_call_id": "call_0", "content": "12:00"}
    assert page.get_by_role("button", name="Go on with these results").count() == 0


@pytest.mark.parametrize("inline", [False, True])
def test_reasoning_is_open_while_it_streams_and_goes_back(page: Any, scripted: ScriptedServer, inline: bool) -> None:
    thoughts, words = threading.Event(), threading.Event()
    thinking = (
        (chunk("<think>\nfirst "), thoughts, chunk("then\n</think>"), chunk("\n\n"))
        if inline
        else (delta(reasoning_content="first "), thoughts, delta(reasoning_content="then"))
    )
    scripted.say(chunk(), *thinking, chunk("Five"), words, chunk(" *it is*."), chunk(reason="stop"), DONE)
    ask(page, "2 + 3?")
    details = page.locator("details.thought")
    page.locator("details.thought[open]", has_text="first").wait_for()
    assert page.locator(".body").inner_text() == ""
    thoughts.set()
    page.locator(".body", has_text="Five").wait_for()
    assert details.get_attribute("open") is None
    details.locator("summary").click()
    words.set()
    assert finished(page).locator(".body").inner_text() == "Five it is."
    assert details.get_attribute("open") is not None  # as the reader left it
    assert details.locator(".plain").inner_text() == "first then"
    assert page.locator("details.thought + .body").count() == 1
    finished(page).get_by_label("Copy the answer").click()
    until(page, "navigator.clipboard.readText().then(text => text === 'Five *it is*.')")
    page.reload()
    page.locator("#chat-list .chat").click()
    assert details.get_attribute("open") is None
    details.get_by_text("Reasoning").click()
    assert details.locator(".plain").inner_text() == "first then"
    scripted.say(*answer("ok"))
    ask(page, "thanks")
    finished(page, 2)
    assert scripted.asked[1]["messages"][1] == {
        "role": "assistant",
        "content": "Five *it is*.",
        "reasoning_content": "first then",
    }


def test_reasoning_before_a_call_goes_back_with_it(page: Any, scripted: ScriptedServer) -> None:
    scripted.say(chunk(), delta(reasoning_content="I need the time."), *call(0, "clock", "{}"), *ENDED)
    scripted.say(*answer("noon"))
    ask(page, "time?")
    finished(page)
    assert page.locator("details.thought").get_attribute("open") is None
    give(page, "clock", "12:00")
    finished(page, 2)
    assert scripted.asked[1]["messages"][1] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I need the time.",
        "tool_calls": [sent_call(0, "clock", "{}")],
    }


def test_a_strangers_text_is_never_markup_in_a_call(page: Any, scripted: ScriptedServer) -> None:
    for n, hostile in enumerate(HOSTILE, 1):
        arguments = json.dumps({"x": hostile})
        thought = delta(reasoning_content=hostile)
        scripted.say(chunk(), thought, *call(0, hostile, arguments), *call(1, "f", hostile), *ENDED)
        page.locator("#new-chat").click()
        ask(page, f"{n}")
        finished(page)
        for field in page.locator(".call textarea").all():
            field.fill(hostile)
        scripted.say(*answer(json.dumps([hostile])))
        page.locator(".call textarea").first.press("Enter")
        page.locator(".call textarea").last.press("Enter")
        finished(page, 2)
        assert page.locator(".call figcaption span").first.text_content() == hostile
        assert page.locator(".call pre").all_text_contents()[2:] == [hostile, hostile]
        assert page.evaluate("document.querySelectorAll('.thought *, .call *, .body *').length") > 0
        inside = "script, img, iframe, style, link, form[action], a, [onerror], [onclick], [onload]"
        assert page.locator("#transcript").locator(inside).count() == 0
    assert page.evaluate("window.pwned") is None


def test_calls_fit_on_a_narrow_screen(page: Any, scripted: ScriptedServer) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    wide = json.dumps({"w" * 90: "x" * 300, "list": ["y" * 90]})
    scripted.say(chunk(), delta(reasoning_content="z" * 200), *call(0, "n" * 120, wide), *call(1, "f", "{}"), *ENDED)
    ask(page, "go")
    finished(page)
    page.locator(".thought summary").click()
    page.locator(".call textarea").first.fill("r" * 300)
    page.locator(".call textarea").first.press("Enter")
    page.locator(".call figcaption", has_text="Result").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("(s => s.scrollWidth - s.clientWidth)(document.querySelector('#scroller'))") <= 0


@NEEDS_AXE
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility_by_axe(page: Any, scripted: ScriptedServer, theme: str) -> None:
    check = partial(check_by_axe, page)
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    set_field(page, "Tools", "[{}]")
    page.locator("#tools-problem").wait_for()
    check("a wrong field")
    page.get_by_label("Tools").fill("[]")
    page.locator("#settings .primary").click()
    thought = delta(reasoning_content="Thinking.")
    scripted.say(chunk(), thought, chunk('{"a":1}'), *call(0, "f", "{}"), *call(1, "g", "{}"), *ENDED)
    ask(page, "go")
    finished(page)
    page.locator(".thought summary").click()
    give(page, "f", "1")
    check("one of two results")
    page.get_by_label("Edit the result of f").click()
    check("editing")
    page.keyboard.press("Escape")
    ask(page, "on")
    page.get_by_text("No result was given.").wait_for()
    check("passed")
