"""The chat page on a real server with a real model: it is served, it talks, it stops, it loads and unloads."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from browser import ask
from serving import SAID, SMOLLM2, ServerProcess

pytestmark = pytest.mark.browser


def opened(context: Any, server: ServerProcess, model: str) -> Any:
    page = context.new_page()
    page.goto(server.url)
    page.locator("#model-button").click()
    page.locator("#model-menu b", has_text=model).click()
    page.locator("#model-dot[data-state=loaded]").wait_for()
    assert page.locator("#model-name").inner_text() == model
    return page


def test_a_trained_model_answers_twice_and_remembers(context: Any, server: ServerProcess) -> None:
    page = opened(context, server, SMOLLM2)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("24")
    page.locator("#settings .primary").click()
    for n, question in enumerate(["Write a short poem about the sea.", "Say it in other words."]):
        ask(page, question)
        page.locator(".message[data-role=assistant]").nth(n).locator("footer .figures").wait_for(timeout=120_000)
        assert len(page.locator(".body").nth(n).inner_text()) > 10
        assert page.locator(".error").count() == 0
    page.get_by_text("The answer was cut").last.wait_for()


def test_an_answer_is_held_to_the_schema_that_was_set(context: Any, server: ServerProcess) -> None:
    page = opened(context, server, SMOLLM2)
    schema = {
        "type": "object",
        "properties": {"colourName": {"enum": ["red", "blue"]}, "is_warm": {"type": "boolean"}},
        "required": ["colourName", "is_warm"],
        "additionalProperties": False,
    }
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("JSON schema").fill(json.dumps(schema))
    page.locator("#settings .primary").click()
    ask(page, "Name a colour.")
    page.locator(".message footer .figures").wait_for(timeout=120_000)
    said = json.loads(page.locator(".body pre code").text_content())
    assert said["colourName"] in ("red", "blue") and isinstance(said["is_warm"], bool) and len(said) == 2
    page.get_by_role("button", name="JSON schema").click()
    page.get_by_label("JSON schema").fill('{"type": "object", "properties": {"a": {"if": {"type": "null"}}}}')
    page.locator("#settings .primary").click()
    ask(page, "And now?")
    refused = page.get_by_role("alert").get_by_text("properties")
    refused.wait_for()
    assert "schema.properties.a.if" in refused.inner_text().lower(), refused.inner_text()


def test_a_model_calls_a_tool_and_goes_on_with_the_result(context: Any, server: ServerProcess) -> None:
    page = opened(context, server, SMOLLM2)
    city = {"type": "string", "maxLength": 20}
    parameters = {"type": "object", "properties": {"cityName": city}, "required": ["cityName"]}
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tools").fill(
        json.dumps([{"name": "get_weather", "parameters": parameters | {"additionalProperties": False}}])
    )
    page.get_by_label("Tool choice").select_option("required")
    page.locator("#settings .primary").click()
    ask(page, "What is the weather in Paris?")
    page.get_by_label("Result of get_weather").first.wait_for(timeout=120_000)
    for shown in page.locator(".call pre").all_inner_texts():
        assert list(json.loads(shown)) == ["cityName"]
    for _ in range(page.locator(".call").count()):
        page.get_by_role("textbox", name="Result of").first.fill("22 degrees and sunny")
        page.keyboard.press("Enter")
    page.locator(".message footer .figures").nth(1).wait_for(timeout=120_000)
    assert page.locator(".error").count() == 0
    assert len(page.locator(".body").nth(1).inner_text()) > 10


def test_every_piece_arrives(context: Any, server: ServerProcess) -> None:
    page = opened(context, server, "scripted")
    ask(page, "\ue001")
    page.locator(".message footer .figures", has_text=f"{len(SAID)} tokens").wait_for()
    assert page.locator(".body").text_content() == "".join(SAID)


@pytest.fixture
def endless(context: Any, start: Callable[..., ServerProcess]) -> tuple[Any, ServerProcess]:
    """A page on a server whose model reads and talks for minutes, whatever the machine."""
    server = start(max_streams=1, n_batch=32).wait_ready()
    page = opened(context, server, "random")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("130000")
    page.locator("#settings .primary").click()
    return page, server


def stop(page: Any, server: ServerProcess) -> None:
    assert server.metric("polargrid_running_requests") == 1
    page.locator("#stop").click()
    page.get_by_text("You stopped this answer.").wait_for()
    server.wait_for(
        lambda: server.metric("polargrid_open_streams") == 0 and server.metric("polargrid_running_requests") == 0
    )


def test_stop_frees_the_engine(endless: tuple[Any, ServerProcess]) -> None:
    page, server = endless
    ask(page, "go on for ever")
    page.locator(".status .figures", has_text="tokens").wait_for()
    stop(page, server)
    assert page.locator(".body").inner_text() != ""


def test_a_long_prefill_tells_how_far_it_is_and_can_be_stopped(endless: tuple[Any, ServerProcess]) -> None:
    page, server = endless
    ask(page, "of the " * 60_000)  # the later half alone has attention over 60,000 tokens and more
    page.get_by_text(re.compile(r"Reading the prompt, [\d,]+ of 12\d,\d{3} tokens")).wait_for()
    stop(page, server)
    assert page.locator(".body").inner_text() == ""


def test_a_question_that_waits_for_its_turn_can_be_stopped(endless: tuple[Any, ServerProcess]) -> None:
    """The engine is held by another stream, which ends when it is told to: the page's own never gets its turn."""
    page, server = endless
    talk = {
        "model": "random",
        "messages": [{"role": "user", "content": "the"}],
        "max_tokens": 130_000,
        "ignore_eos": True,
    }
    with httpx.Client(timeout=60, trust_env=False) as client:
        with client.stream("POST", f"{server.url}/v1/chat/completions", json={**talk, "stream": True}) as other:
            lines = other.iter_lines()  # kept in a name: an iterator that is dropped closes the stream
            assert any('"content":' in line for line in lines)
            ask(page, "of the " * 5000)
            server.wait_for(lambda: server.metric("polargrid_waiting_requests") == 1)
            page.get_by_text("Thinking").wait_for()
            page.locator("#stop").click()
            page.get_by_text("You stopped this answer.").wait_for()
            server.wait_for(lambda: server.metric("polargrid_waiting_requests") == 0)
            assert server.metric("polargrid_running_requests") == 1
    assert page.locator(".body").inner_text() == ""


def test_a_server_that_dies_and_comes_back_is_shown(context: Any, start: Callable[..., ServerProcess]) -> None:
    server = start().wait_ready()
    page = opened(context, server, "random")
    server.stop(signal.SIGKILL)
    page.locator("#model-dot[data-state=gone]").wait_for()
    assert page.locator("#model-button").get_attribute("title") == "Model: random, the server does not answer"
    start(port=server.port)
    page.locator("#model-dot[data-state=loaded]").wait_for()
    ask(page, "hi")
    page.locator(".message footer .figures", has_text="tokens").wait_for()


def test_a_prompt_longer_than_the_context_is_explained(context: Any, server: ServerProcess) -> None:
    page = opened(context, server, SMOLLM2)
    ask(page, "word " * 5000)
    page.get_by_role("alert").get_by_text("This chat no longer fits").wait_for()


def test_models_are_unloaded_and_loaded_again_when_asked(context: Any, server: ServerProcess) -> None:
    page = opened(context, server, "scripted")
    page.locator("#model-button").click()
    page.get_by_label("Unload scripted").click()
    page.locator("#model-menu li", has_text="scripted").get_by_text("not loaded").wait_for()
    page.keyboard.press("Escape")
    ask(page, "\ue001")
    page.locator(".message footer .figures").wait_for()
    assert page.locator(".body").text_content() == "".join(SAID)
    assert "scripted" in server.get("/v1/models/status").json()["loaded"]
