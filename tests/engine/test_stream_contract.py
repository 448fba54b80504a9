"""The stream contract on forced outputs: whatever the text and however tokens cut it, joined stream == plain answer,
every chunk is whole text, a stop string never leaks and never eats text, and there is exactly one finish reason."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polargrid_local import AsyncEngine, Engine

TEXTS = [
    "plain words, then an end",
    "family 👨‍👩‍👧‍👦 and flag 🏳️‍🌈!",
    "東京は日本の首都です。終わり",
    "Z̶̢͑a̷l̵g̶o̴ é e\u0301 ñ n\u0303",
    'a\u2028b\u2029c\u0085d "quotes" \\ back',
    "    def f():\n\t\treturn 1\n\n\n",
    "mixed 🎉🎉 aXb ÄÖÜ ß — “dash”",
]
CUTS = [1, 2, 3, 5, 64]  # bytes per token: characters split every way there is


@pytest.fixture(scope="module")
def speaker(scripted: Any) -> tuple[Engine, Any]:
    scripts = [tiny_model.split(text, range(cut, len(text.encode()), cut)) for text in TEXTS for cut in CUTS]
    return scripted(scripts, n_ctx=512, max_streams=8)


def collect(engine: Engine, request: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    chunks = list(engine.completion_stream(**request))
    return "".join(chunk["choices"][0]["text"] for chunk in chunks), chunks


@pytest.mark.parametrize("script", range(len(TEXTS) * len(CUTS)))
def test_forced_text_arrives_whole(speaker: tuple[Engine, Any], script: int) -> None:
    engine, said = speaker
    request = {"prompt": said.prompt(script), "max_tokens": 400}
    joined, chunks = collect(engine, request)
    plain = engine.completion(**request)
    assert joined == plain["choices"][0]["text"] == TEXTS[script // len(CUTS)]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert plain["usage"]["completion_tokens"] == len(said.tokens[script]) - 1
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_stops_in_every_position(speaker: tuple[Engine, Any], data: st.DataObject) -> None:
    engine, said = speaker
    script = data.draw(st.integers(0, len(TEXTS) * len(CUTS) - 1))
    text = TEXTS[script // len(CUTS)]

    def piece() -> str:
        start = data.draw(st.integers(0, len(text) - 1))
        found = text[start : start + data.draw(st.integers(1, 6))]
        return found + data.draw(st.sampled_from(["", "", "x", "🎉"]))

    stops = [piece() for _ in range(data.draw(st.integers(1, 3)))]
    budget = data.draw(st.sampled_from([400, 3, 1]))
    request = {"prompt": said.prompt(script), "max_tokens": budget, "stop": stops}
    joined, chunks = collect(engine, request)
    plain = engine.completion(**request)
    assert joined == plain["choices"][0]["text"]
    assert not any(stop in joined for stop in stops)
    assert text.startswith(joined)
    first = min((at for at in (text.find(stop) for stop in stops) if at >= 0), default=len(text))
    if budget == 400:
        assert joined == text[:first]
    assert plain["usage"]["completion_tokens"] <= budget
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]] == [
        plain["choices"][0]["finish_reason"]
    ]


@pytest.mark.parametrize("script", range(0, len(TEXTS) * len(CUTS), 3))
def test_a_filtered_phrase_never_leaks(speaker: tuple[Engine, Any], script: int) -> None:
    engine, said = speaker
    text = TEXTS[script // len(CUTS)]
    phrase = text[len(text) // 2 :][:4]
    for content_filter in ([phrase], lambda so_far: phrase in so_far):
        stream = engine.completion_stream(prompt=said.prompt(script), max_tokens=400, content_filter=content_filter)
        joined = "".join(chunk["choices"][0]["text"] for chunk in stream)
        assert stream.finish_reason == "content_filter"
        assert phrase not in joined
        assert text.startswith(joined)


async def test_async_is_the_same(scripted: Any, speaker: tuple[Engine, Any]) -> None:
    sync_engine, said = speaker
    async with AsyncEngine(said.path, n_ctx=512, max_streams=8) as engine:
        for script in range(0, len(TEXTS) * len(CUTS), 4):
            request = {"messages": [{"role": "user", "content": said.message(script)}], "max_tokens": 400, "seed": 7}
            one = [chunk["choices"][0] async for chunk in engine.chat_completion_stream(**request)]
            other = [chunk["choices"][0] for chunk in sync_engine.chat_completion_stream(**request)]
            assert one == other
