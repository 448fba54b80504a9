"""Fields of other engines' requests: each does what its name says, on the real model."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers import chat, content_of

from polargrid_local import ContextLengthError, Engine, ValidationError

CAPITAL = "The capital of France is"  # " Paris.\n\n..."


def said(engine: Engine, **fields: Any) -> dict[str, Any]:
    """The first choice of a completion, greedy and of eight tokens unless `fields` say otherwise."""
    asked = {"prompt": CAPITAL, "max_tokens": 8, "temperature": 0, **fields}
    reply: Any = engine.completion(**asked)
    joined = "".join(
        choice["text"] for chunk in engine.completion_stream(**asked) for choice in chunk["choices"]
        if choice["index"] == 0
    )  # fmt: skip
    assert joined == reply["choices"][0]["text"]  # whatever the field
    choice: dict[str, Any] = reply["choices"][0]
    return choice


# --- several answers ---


def test_each_of_several_answers_is_the_one_that_its_seed_gives_alone(engine: Engine) -> None:
    asked = {**chat("Name a colour.", max_tokens=6), "temperature": 1.0}
    reply = engine.chat_completion(**asked, seed=7, n=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    alone = [engine.chat_completion(**asked, seed=seed) for seed in (7, 8, 9)]
    assert [choice["message"]["content"] for choice in reply["choices"]] == [content_of(one) for one in alone]
    assert reply["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    assert reply["usage"]["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in alone)


def test_the_streams_of_several_answers_are_the_answers(engine: Engine) -> None:
    asked = {**chat("Name a colour.", max_tokens=6), "temperature": 1.0, "seed": 7, "n": 3}
    expected = [choice["message"]["content"] for choice in engine.chat_completion(**asked)["choices"]]
    joined, reasons, roles = [""] * 3, [""] * 3, [0] * 3
    for chunk in engine.chat_completion_stream(**asked):
        for choice in chunk["choices"]:
            joined[choice["index"]] += choice["delta"].get("content", "")
            roles[choice["index"]] += "role" in choice["delta"]
            reasons[choice["index"]] += choice["finish_reason"] or ""
    assert joined == expected
    assert roles == [1, 1, 1]
    assert set(reasons) <= {"stop", "length"}


def test_prompts_times_answers_come_in_the_prompts_order(engine: Engine) -> None:
    prompts = [CAPITAL, "One, two, three,"]
    reply = engine.completion(prompt=prompts, n=2, max_tokens=4, temperature=0)
    alone = [engine.completion(prompt=prompt, max_tokens=4, temperature=0) for prompt in prompts]
    texts = [one["choices"][0]["text"] for one in alone]
    assert [choice["text"] for choice in reply["choices"]] == [texts[0], texts[0], texts[1], texts[1]]
    assert reply["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)


# --- prompts ---


def test_token_ids_are_the_prompt_that_they_spell(engine: Engine) -> None:
    ids = engine.tokenize(CAPITAL)
    assert said(engine, prompt=ids) == said(engine)
    assert engine.detokenize(ids) == CAPITAL
    with pytest.raises(ValidationError, match="prompt: token id 1000000 is not below"):
        engine.completion(prompt=[10**6])


def test_the_logprobs_of_an_echo_are_those_of_the_answers(engine: Engine) -> None:
    """What the model says of a text that it has written, and of one that it reads."""
    written = said(engine, logprobs=3)
    read = said(engine, prompt=CAPITAL + written["text"], echo=True, max_tokens=0, logprobs=3)
    assert read["text"] == CAPITAL + written["text"]
    n = len(written["logprobs"]["tokens"])
    for field in ("tokens", "token_logprobs", "top_logprobs"):
        assert read["logprobs"][field][-n:] == written["logprobs"][field]
    assert read["logprobs"]["token_logprobs"][0] is None
    for offset, token in zip(read["logprobs"]["text_offset"], read["logprobs"]["tokens"], strict=True):
        assert read["text"][offset:].startswith(token)
    assert all(sum(map(math.exp, top.values())) < 1.01 for top in read["logprobs"]["top_logprobs"][1:])


def test_an_echo_comes_before_the_answer(engine: Engine) -> None:
    answer = said(engine)["text"]
    assert said(engine, echo=True)["text"] == CAPITAL + answer
    ids = engine.tokenize(CAPITAL)
    assert said(engine, prompt=ids, echo=True)["text"] == CAPITAL + answer
    whole = said(engine, echo=True, logprobs=0)
    assert whole["logprobs"]["tokens"] == said(engine, prompt=ids, echo=True, logprobs=0)["logprobs"]["tokens"]
    reply = engine.completion(prompt=CAPITAL, echo=True, max_tokens=0)
    assert reply["choices"][0]["text"] == CAPITAL
    assert reply["usage"]["completion_tokens"] == 0


def test_a_prompt_is_cut_to_its_last_tokens(engine: Engine) -> None:
    ids = engine.tokenize("Words that are cut off. " + CAPITAL)
    kept = len(engine.tokenize(CAPITAL))
    assert said(engine, prompt=ids, truncate_prompt_tokens=kept) == said(engine, prompt=ids[-kept:])
    long = "word " * 3 * engine.info()["n_ctx"]
    with pytest.raises(ContextLengthError):
        engine.completion(prompt=long, max_tokens=1)
    reply = engine.completion(prompt=long, max_tokens=1, truncate_prompt_tokens=-1)
    assert reply["usage"]["prompt_tokens"] == engine.info()["n_ctx"] - 1


# --- the end of an answer ---


def test_a_token_ends_the_answer_and_is_named(engine: Engine) -> None:
    [paris] = engine.tokenize(" Paris")
    ended = said(engine, stop_token_ids=[paris])
    assert (ended["text"], ended["finish_reason"], ended["stop_reason"]) == ("", "stop", paris)
    shown = said(engine, stop_token_ids=[paris], include_stop_str_in_output=True)
    assert shown["text"].endswith(" Paris")


def test_a_stop_string_is_named_and_may_be_shown(engine: Engine) -> None:
    plain = said(engine)["text"]
    stop = plain[3:5]
    ended = said(engine, stop=["never", stop])
    assert (ended["text"], ended["stop_reason"]) == (plain[:3], stop)
    assert said(engine, stop=[stop], include_stop_str_in_output=True)["text"] == plain[:5]
    assert "stop_reason" not in said(engine)


def test_nothing_ends_an_answer_before_its_least_length(engine: Engine) -> None:
    plain = said(engine)["text"]
    ended = engine.completion(prompt=CAPITAL, temperature=0, max_tokens=8, min_tokens=8, stop=[plain[1:4]])
    assert ended["usage"]["completion_tokens"] == 8
    [paris] = engine.tokenize(" Paris")
    longer = engine.completion(prompt=CAPITAL, temperature=0, max_tokens=8, min_tokens=3, stop_token_ids=[paris])
    assert longer["usage"]["completion_tokens"] >= 3
    assert not longer["choices"][0]["text"].startswith(" Paris")


# --- what may be said ---


def test_a_bad_word_is_not_said_and_others_are(engine: Engine) -> None:
    assert "Paris" in said(engine)["text"]
    held = said(engine, bad_words=["Paris"], max_tokens=16)
    assert "Paris" not in held["text"]
    assert held["text"]
    phrase = said(engine, max_tokens=3)["text"].strip()
    assert phrase not in said(engine, bad_words=[phrase], max_tokens=12)["text"]


def test_only_allowed_tokens_are_said(engine: Engine) -> None:
    allowed = engine.tokenize(" yes no")
    answer = said(engine, allowed_token_ids=allowed, max_tokens=6, temperature=1.0, seed=1)
    assert set(engine.tokenize(answer["text"])) <= set(allowed)


# --- chats ---


def test_an_answer_goes_on_where_the_last_message_ends(engine: Engine) -> None:
    begun = {"role": "assistant", "content": "The capital of France is"}
    messages = [{"role": "user", "content": "What is the capital of France?"}, begun]
    asked = {"messages": messages, "max_tokens": 4, "temperature": 0}
    reply = content_of(engine.chat_completion(**asked, continue_final_message=True))
    assert reply.startswith(" Paris")
    prompt = engine.apply_template(**asked, continue_final_message=True)
    assert prompt.endswith("The capital of France is")
    closed = engine.apply_template(**asked, add_generation_prompt=False)
    assert closed.startswith(prompt)
    assert len(closed) > len(prompt)
    with pytest.raises(ValidationError, match="continue_final_message"):
        engine.chat_completion(**asked | {"messages": [*messages, {"role": "assistant", "content": ""}]},
                               continue_final_message=True)  # fmt: skip


def test_variables_reach_the_template_and_efforts_only_one_that_knows_them(engine: Engine) -> None:
    hi = chat("Hi", max_tokens=1)
    assert engine.chat_completion(**hi, chat_template_kwargs={"some_variable": 1})["choices"]
    assert engine.chat_completion(**hi, reasoning_effort="none")["choices"]
    with pytest.raises(ValidationError, match="reasoning_effort: this model's chat template knows none"):
        engine.chat_completion(**hi, reasoning_effort="high")


def test_counts_come_with_every_chunk_where_asked_for(engine: Engine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(engine.chat_completion_stream(**chat("Count to five.", max_tokens=6), stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks[1:]]
    assert counts == sorted(counts)
    assert counts[-1] > 0


# --- vectors ---


def test_an_embedding_is_shortened_to_a_vector_of_length_one(engine: Engine) -> None:
    whole = engine.embeddings(input="hello")["data"][0]["embedding"]
    short = engine.embeddings(input="hello", dimensions=8)["data"][0]["embedding"]
    length = math.sqrt(sum(x * x for x in whole[:8]))
    assert short == pytest.approx([x / length for x in whole[:8]], abs=1e-6)
    assert engine.embeddings(input="hello", dimensions=len(whole))["data"][0]["embedding"] == pytest.approx(whole)
    with pytest.raises(ValidationError, match="dimensions: must be between 1 and"):
        engine.embeddings(input="hello", dimensions=len(whole) + 1)


def test_an_embedding_of_token_ids_is_that_of_their_text(engine: Engine) -> None:
    text = "hello there"
    assert engine.embeddings(input=engine.tokenize(text))["data"] == engine.embeddings(input=text)["data"]


# --- scores ---


def test_a_score_is_what_the_model_said_of_its_own_words(engine: Engine) -> None:
    written = said(engine, logprobs=1)
    score = engine.score(CAPITAL, written["text"])
    assert score["greedy"]
    assert score["tokens"] == written["logprobs"]["tokens"]
    assert score["token_logprobs"] == written["logprobs"]["token_logprobs"]
    assert score["logprob"] == pytest.approx(sum(written["logprobs"]["token_logprobs"]))
    worse = engine.score(CAPITAL, " a banana, as everybody knows")
    assert not worse["greedy"]
    assert worse["logprob"] < score["logprob"]


async def test_a_score_is_the_same_in_a_task(smollm2: Any, engine: Engine) -> None:
    from polargrid_local import AsyncEngine

    async with AsyncEngine(smollm2, n_ctx=512, device="cpu") as other:
        assert await other.score(CAPITAL, " Paris") == engine.score(CAPITAL, " Paris")
