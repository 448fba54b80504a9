"""Many at once: every answer is the one it would be alone, cancels hurt nobody else, nothing leaks."""

from __future__ import annotations

import gc
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import HOLD, chat, content_of, stats_of, wait_until_idle

from polargrid_local import Engine, RateLimitError

QUESTIONS = [f"Write {n} words about {topic}." for n in (5, 9) for topic in ("rain", "bread", "iron", "birds")]


def sampled(question: str, seed: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 32, "temperature": 0.9, "seed": seed}


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_many_equal_alone_cold_and_cached(smollm2: Path, cache_type: str) -> None:
    requests = [sampled(question, seed) for seed, question in enumerate(QUESTIONS)]
    with Engine(smollm2, n_ctx=512, max_streams=1, prefix_cache_bytes=0, cache_type=cache_type) as engine:
        alone = [content_of(engine.chat_completion(**request)) for request in requests]
    with Engine(smollm2, n_ctx=512, max_streams=8, cache_type=cache_type) as engine:
        for _ in range(2):  # cold, then out of the prefix cache
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(lambda r: content_of(engine.chat_completion(**r)), requests)) == alone
        stats = wait_until_idle(engine)
    assert stats["n_cached_tokens"] > 0


def test_tokens_chosen_side_by_side_are_those_chosen_alone(smollm2: Path) -> None:
    """Enough streams that several threads share the choosing; with grammars, penalties and logprobs among them."""
    more = ({}, {"frequency_penalty": 1.0}, {"logprobs": True, "top_logprobs": 2}, {"regex": "[a-z ]{1,60}"})
    requests = [{**sampled(QUESTIONS[i % 8], i), "max_tokens": 16, **more[i % 4]} for i in range(16)]
    with Engine(smollm2, n_ctx=256, max_streams=16, n_threads=4) as engine:
        alone = [engine.chat_completion(**request)["choices"] for request in requests]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda request: engine.chat_completion(**request)["choices"], requests))
    assert together == alone


def test_thirty_two_threads_with_mixed_cancels(engine: Engine) -> None:
    before = wait_until_idle(engine)
    expected = content_of(engine.chat_completion(**chat(QUESTIONS[0])))
    failures: list[Any] = []

    def worker(number: int) -> None:
        dice = random.Random(number)
        try:
            for _ in range(3):
                how = dice.choice(["full", "break", "close", "cancel", "drop"])
                stream = engine.chat_completion_stream(**chat(QUESTIONS[0]))
                if how == "full":
                    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream)
                    if text != expected:
                        failures.append((number, text))
                    continue
                for _ in range(dice.randrange(6)):
                    next(stream, None)
                if how == "close":
                    stream.close()
                elif how == "cancel":
                    stream.cancel()
                del stream
        except Exception as error:
            failures.append((number, error))

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert failures == []
    stats = wait_until_idle(engine)
    assert stats["n_requests"] - before["n_requests"] == 32 * 3 + 1
    assert content_of(engine.chat_completion(**chat(QUESTIONS[0]))) == expected


def test_a_thousand_cancelled_streams_leave_capacity_whole_and_memory_flat(scripted: Any) -> None:
    engine, said = scripted([["la "]], endless=True, n_ctx=512, max_streams=4, max_queue=64, n_threads=1)

    def cancel_some(n: int) -> None:
        streams = []
        for i in range(n):
            streams.append(engine.completion_stream(prompt=said.prompt(0), max_tokens=300))
            if i % 3 == 0:
                next(streams[-1])
            if len(streams) == 8:
                for stream in streams:
                    stream.close()
                streams.clear()
        wait_until_idle(engine)

    cancel_some(100)
    before = resident_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()
    cancel_some(1000)
    after = resident_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[0] - before[0] < 8 << 20
    assert after[1:] == before[1:]
    streams = [engine.completion_stream(prompt=said.prompt(0), max_tokens=20) for _ in range(4)]
    assert all(len([c for c in stream if c["choices"][0]["text"]]) == 20 for stream in streams)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_full_queue_is_an_error_at_once(busy_model: Path) -> None:
    with Engine(busy_model, n_ctx=131072, max_streams=2, max_queue=3, n_threads=1) as engine:
        streams = [engine.completion_stream(prompt=HOLD, max_tokens=1) for _ in range(5)]
        with pytest.raises(RateLimitError, match="queue is full") as refusal:
            engine.completion_stream(prompt="the")
        assert refusal.value.details["max_queue"] == 3
        for stream in streams:
            stream.close()
        assert wait_until_idle(engine)["n_cancelled"] == 5
        assert engine.completion(prompt="the", max_tokens=2, ignore_eos=True)["usage"]["completion_tokens"] == 2


def test_a_long_prompt_lets_others_speak(smollm2: Path) -> None:
    """While one prompt is computed in chunks, another stream goes on: counted in its tokens, not in time."""
    with Engine(smollm2, n_ctx=2048, max_streams=2, n_batch=32) as engine:
        talker = engine.chat_completion_stream(
            **chat("Count to two hundred in words.", max_tokens=1900, ignore_eos=True)
        )
        next(talker)
        next(talker)
        long = engine.chat_completion_stream(**chat("".join(f"word{n} " for n in range(380)), max_tokens=1))
        before = stats_of(engine)["n_generated_tokens"]
        list(long)
        spoken = stats_of(engine)["n_generated_tokens"] - before
        assert not talker.finish_reason
        assert spoken >= long.usage["prompt_tokens"] // 32 - 1


def test_two_engines_in_one_process(smollm2: Path, engine: Engine) -> None:
    with Engine(smollm2, n_ctx=512, max_streams=2) as other:
        request = chat(QUESTIONS[1])
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(lambda e: content_of(e.chat_completion(**request)), (engine, other))
    assert one == two == content_of(engine.chat_completion(**request))


def test_slots_apart_still_answer_alike(smollm2: Path) -> None:
    """Streams that end leave free slots between running ones; these are computed along, and keep their prefix."""
    with Engine(smollm2, n_ctx=512, max_streams=4) as engine:
        requests = [
            sampled(question, 1) | {"max_tokens": 8 if i % 2 else 48} for i, question in enumerate(QUESTIONS[:4])
        ]
        alone = [content_of(engine.chat_completion(**request)) for request in requests]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda r: content_of(engine.chat_completion(**r)), requests)) == alone
        assert [content_of(engine.chat_completion(**request)) for request in requests] == alone
        assert stats_of(engine)["n_running"] == 0
