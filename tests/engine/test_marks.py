"""Marks: where a control token that a request asks about comes in its answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_model
from helpers import Native
from tiny_model import Control

TAG, END = "<|python_tag|>", "<|im_end|>"
CALL = Control(TAG)
START = Control("<|im_start|>")
SCRIPTS: dict[str, list[Any]] = {
    "text around it": ["Let me ", "see.", CALL, "{", "}"],
    "first": [CALL, "x"],
    "last": ["x", CALL],
    "alone": [CALL],
    "twice in a row": ["a", CALL, CALL, "b"],
    "another control token": ["a", START, "b", CALL, "c"],
    "its literal as text": ["a", "<|python", "_tag|>", "b", CALL, "c"],
    "a stop begins before it": ["a<|", "e", CALL, "nd|>b"],
    "a stop behind it": ["a", CALL, "b<|end|>", "c"],
    "a stop before it": ["a<|end|>", CALL, "b"],
    "a stop inside a longer one": ["x ab", "c", CALL, "d"],
    "half a character": ["a", b"\xe6\x97", CALL, b"\xa5", "b"],
}
# The answer when TAG is a mark and "<|end|>", "bc" and "abcd" are stop strings: text, and marks in their places.
MARKED: dict[str, list[str]] = {
    "text around it": ["Let me see.", TAG, "{}"],
    "first": ["", TAG, "x"],
    "last": ["x", TAG, ""],
    "alone": ["", TAG, ""],
    "twice in a row": ["a", TAG, "", TAG, "b"],
    "another control token": ["ab", TAG, "c"],
    "its literal as text": [f"a{TAG}b", TAG, "c"],
    "a stop begins before it": ["a<|e", TAG, "nd|>b"],
    "a stop behind it": ["a", TAG, "b"],
    "a stop before it": ["a"],
    "a stop inside a longer one": ["x a"],
    "half a character": ["a", TAG, "\ufffdb"],
}
NAMES = list(SCRIPTS)
STOP = ["<|end|>", "bc", "abcd"]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("marks") / "said.gguf"
    return tiny_model.write_scripted(path, list(SCRIPTS.values()), controls=[TAG])


@pytest.fixture(scope="module")
def native(said: Any) -> Iterator[Native]:
    native = Native(said.path)
    yield native
    native.engine.close()


def split_at_marks(events: list[Any]) -> list[str]:
    """Text and marks in turn."""
    assert events[-1].kind == "finished", events[-1].text
    parts = [""]
    for event in events:
        parts[-1] += event.text
        if event.mark:
            parts += [event.mark, ""]
    return parts


@pytest.mark.parametrize("name", NAMES)
def test_marks_come_between_the_texts_around_them(native: Native, said: Any, name: str) -> None:
    prompt = said.prompt(NAMES.index(name))
    assert split_at_marks(native.ask(prompt, marks=[TAG], stop=STOP)) == MARKED[name]
    [free] = split_at_marks(native.ask(prompt, marks=["<|endoftext|>"]))  # not asked about: no border at all
    joined = b"".join(p.encode() if isinstance(p, str) else p for p in SCRIPTS[name] if not isinstance(p, Control))
    assert free == joined.decode()


def test_all_marks_are_told_apart(native: Native, said: Any) -> None:
    prompt = said.prompt(NAMES.index("another control token"))
    assert split_at_marks(native.ask(prompt, marks=[TAG, START.text])) == ["a", START.text, "b", TAG, "c"]


def test_what_ends_the_answer_is_no_mark_unless_it_is_to_be_ignored(native: Native, said: Any) -> None:
    prompt = said.prompt(NAMES.index("first"))
    assert split_at_marks(native.ask(prompt, marks=[END])) == ["x"]
    events = native.ask(prompt, marks=[TAG, END], ignore_eos=True, max_tokens=3)
    assert split_at_marks(events) == ["", TAG, "x", END, ""]
    assert (events[-1].kind, events[-1].reason, events[-1].mark) == ("finished", "length", END)


def test_a_mark_may_be_the_last_token_there_is_room_for(native: Native, said: Any) -> None:
    events = native.ask(said.prompt(NAMES.index("text around it")), marks=[TAG], max_tokens=3)
    assert split_at_marks(events) == ["Let me see.", TAG, ""]
    assert events[-1].reason == "length" and events[-1].n_generated == 3


def test_logprobs_come_with_the_text_that_they_belong_to(native: Native, said: Any) -> None:
    i = NAMES.index("a stop begins before it")
    events = native.ask(said.prompt(i), marks=[TAG], stop=STOP, sampling={"n_logprobs": 0})
    before = next(event for event in events if event.mark)
    assert [entry["token"] for event in events for entry in event.logprobs] == list(said.tokens[i][:-1])
    assert before.logprobs[-1]["token"] == said.tokens[i][2] and before.logprobs[-1]["bytes"] == b""


def test_what_is_no_control_token_is_refused_by_name(native: Native, said: Any) -> None:
    for mark in ("assistant", "<|nowhere|>", ""):
        with pytest.raises(Exception) as caught:
            native.submit(said.prompt(0), marks=[TAG, mark])
        code, message, details = caught.value.args
        assert (code, details) == ("invalid_request", {"field": "marks", "value": mark}) and repr(mark)[1:-1] in message
    with pytest.raises(Exception, match="marks"):
        native.submit(said.prompt(0), marks=TAG)


def test_a_slow_reader_gets_them_in_their_places(said: Any) -> None:
    """More than an outbox holds piece by piece lies unread: later text is not gathered into what a mark ends."""
    native = Native(said.path)
    try:
        ids = [native.submit(said.prompt(i), marks=[TAG], stop=STOP) for i in [*range(len(NAMES))] * 30]
        while native.engine.stats()["n_finished"] < len(ids):
            threading.Event().wait(0.01)
        events = native.events(*ids)
        for n, id in enumerate(ids):
            assert split_at_marks([event for event in events if event.id == id]) == MARKED[NAMES[n % len(NAMES)]]
    finally:
        native.engine.close()


def test_marks_and_a_grammar(native: Native, said: Any) -> None:
    """A grammar may name a control token by its id; the event says where it came."""
    number = native.engine.info()["control_tokens"][TAG]
    grammar = {"kind": "lark", "text": f'start: "See." <[{number}]> "{{" /[0-9]/ "}}"'}
    events = native.ask("x", marks=[TAG], constraint=grammar)
    before, mark, after = split_at_marks(events)
    assert (before, mark, after[0], after[2:]) == ("See.", TAG, "{", "}") and after[1].isdigit()
    assert events[-1].reason == "stop"


def test_a_model_names_its_control_tokens(native: Native) -> None:
    texts = [*tiny_model.SPECIALS, TAG]
    assert native.engine.info()["control_tokens"] == {text: id for id, text in enumerate(texts)}
