"""Fields of other engines' requests: each does what its name says, on the real model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny_archs
import tiny_model
from helpers import chat, content_of

from polargrid_local import AsyncEngine, ContextLengthError, Engine, LogitsProcessorError, ValidationError
from polargrid_local.api.parse import parse_request

CAPITAL = "The capital of France is"  # " Paris.\n\n..."
HI = [{"role": "user", "content": "Hi"}]


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


def test_an_echo_with_logprobs_tells_the_end_of_the_answer_too(engine: Engine) -> None:
    """Who asks for one token more than a text has passes over the last entry, which is that one's."""
    chat: Any = [{"role": "user", "content": "Hi"}]
    prompt = engine.apply_template(messages=chat)
    answer = engine.chat_completion(messages=chat, temperature=0, max_tokens=100)["choices"][0]
    assert answer["finish_reason"] == "stop" and answer["message"]["content"]
    whole = prompt + answer["message"]["content"]
    read = said(engine, prompt=whole, echo=True, logprobs=1, max_tokens=0)["logprobs"]
    more = said(engine, prompt=whole, echo=True, logprobs=1, max_tokens=1)
    assert more["finish_reason"] == "stop" and more["text"] == whole
    assert more["logprobs"]["tokens"][:-1] == read["tokens"]
    assert more["logprobs"]["token_logprobs"][:-1] == read["token_logprobs"]


def test_a_prompt_is_cut_to_its_last_tokens(engine: Engine) -> None:
    ids = engine.tokenize("Words that are cut off. " + CAPITAL)
    kept = len(engine.tokenize(CAPITAL))
    assert said(engine, prompt=ids, truncate_prompt_tokens=kept) == said(engine, prompt=ids[-kept:])
    first = said(engine, prompt=ids, truncate_prompt_tokens=kept, truncation_side="right")
    assert first == said(engine, prompt=ids[:kept])
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
    high: Any = engine.chat_completion(**hi, reasoning_effort="high")
    assert high["choices"] == engine.chat_completion(**hi)["choices"]
    assert high["pg_metadata"]["ignored_fields"] == ["reasoning_effort"]


def test_counts_come_with_every_chunk_where_asked_for(engine: Engine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(engine.chat_completion_stream(**chat("Count to five.", max_tokens=6), stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 0 and counts[-1] > 0
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1


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


def test_an_embedding_is_that_of_a_texts_last_tokens(engine: Engine) -> None:
    ids = engine.tokenize("Words that are cut off. " + CAPITAL)
    kept = engine.embeddings(input=ids, truncate_prompt_tokens=4)
    first = engine.embeddings(input=ids, truncate_prompt_tokens=4, truncation_side="right")
    assert first["data"] == engine.embeddings(input=ids[:4])["data"]
    assert kept["usage"]["prompt_tokens"] == 4
    assert kept["data"] == engine.embeddings(input=ids[-4:])["data"] != engine.embeddings(input=ids)["data"]
    assert engine.embeddings(input=ids, truncate_prompt_tokens=-1)["data"] == engine.embeddings(input=ids)["data"]


def test_documents_are_ranked_by_their_first_tokens(tmp_path: Path) -> None:
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "bert-reranker"), device="cpu") as engine:
        whole = "what is it that is it"
        first = [*engine.tokenize(whole, add_special=False)][:2]
        cut = engine.detokenize(first)
        asked: Any = engine.rerank(query="is it", documents=[whole, "it"], max_tokens_per_doc=2)
        short: Any = engine.rerank(query="is it", documents=[cut, "it"])
        assert asked["results"] == short["results"] and asked["usage"] == short["usage"]
        everything: Any = engine.rerank(query="is it", documents=[whole, "it"], max_tokens_per_doc=0)
        assert everything["usage"]["prompt_tokens"] > asked["usage"]["prompt_tokens"]


def test_an_input_cut_to_what_the_model_takes_is_embedded(tmp_path: Path) -> None:
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "bert"), device="cpu") as engine:
        long = "a b c " * 500
        with pytest.raises(ContextLengthError):
            engine.embeddings(input=long)
        reply = engine.embeddings(input=long, truncate_prompt_tokens=-1)
        assert reply["usage"]["prompt_tokens"] == engine.info()["n_ctx_train"]


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
    async with AsyncEngine(smollm2, n_ctx=512, device="cpu") as other:
        assert await other.score(CAPITAL, " Paris") == engine.score(CAPITAL, " Paris")


# --- token ids ---


def ids_of(chunks: list[Any]) -> list[int]:
    """Those of the first choice, joined."""
    return [id for chunk in chunks for choice in chunk["choices"] for id in choice.get("token_ids", ())]


@pytest.mark.parametrize("fields", [{}, {"stop": ["\n"]}, {"prediction": " Paris.\n\nThe capital"}, {"echo": True}])
def test_the_token_ids_of_a_completion_spell_it(engine: Engine, fields: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"prompt": CAPITAL, "max_tokens": 12, "temperature": 0, "return_token_ids": True, **fields}
    reply: Any = engine.completion(**asked)
    choice = reply["choices"][0]
    assert choice["prompt_token_ids"] == engine.tokenize(CAPITAL)
    assert len(choice["token_ids"]) == reply["usage"]["completion_tokens"]
    told = choice["text"].removeprefix(CAPITAL) if "echo" in fields else choice["text"]
    assert engine.detokenize(choice["token_ids"]).startswith(told)
    if "stop" not in fields:  # the tokens that the stop string came with are among them
        assert engine.detokenize(choice["token_ids"]) == told
    chunks: list[Any] = list(engine.completion_stream(**asked))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == choice["prompt_token_ids"]
    assert ids_of(chunks) == choice["token_ids"]
    if not fields:
        for chunk in chunks:
            assert engine.detokenize(chunk["choices"][0]["token_ids"]) == chunk["choices"][0]["text"]


def test_the_token_ids_of_a_chat_spell_it(engine: Engine) -> None:
    asked: Any = {**chat("Count to three.", max_tokens=16), "temperature": 0, "return_token_ids": True}
    reply: Any = engine.chat_completion(**asked)
    assert reply["prompt_token_ids"] == engine.tokenize(messages=asked["messages"])
    assert engine.detokenize(reply["choices"][0]["token_ids"]) == content_of(reply)
    assert len(reply["choices"][0]["token_ids"]) == reply["usage"]["completion_tokens"]
    first, *others = chunks = list(engine.chat_completion_stream(**asked))
    assert first["prompt_token_ids"] == reply["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in others)
    assert ids_of(chunks) == reply["choices"][0]["token_ids"]
    again = engine.completion(prompt=reply["prompt_token_ids"], max_tokens=16, temperature=0)
    assert again["choices"][0]["text"] == content_of(reply)  # the prompt's tokens are all of the prompt


@pytest.mark.parametrize("special", [True, False])
def test_the_token_ids_of_a_call_are_all_of_it(engine: Engine, special: bool) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    asked: Any = {"messages": HI, "tools": [tool], "tool_choice": "required", "max_tokens": 32, "temperature": 0}
    asked |= {"return_token_ids": True, "skip_special_tokens": special}
    reply: Any = engine.chat_completion(**asked)
    choice = reply["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "add"
    assert len(choice["token_ids"]) == reply["usage"]["completion_tokens"]
    assert "add" in engine.detokenize(choice["token_ids"])
    assert ids_of(list(engine.chat_completion_stream(**asked))) == choice["token_ids"]


def test_logprobs_name_tokens_by_numbers_that_spell_the_answer(engine: Engine) -> None:
    choice = said(engine, logprobs=2, return_tokens_as_token_ids=True, return_token_ids=True)
    assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in choice["token_ids"]]
    assert choice["logprobs"]["token_logprobs"] == said(engine, logprobs=2)["logprobs"]["token_logprobs"]


def likely(reply: Any) -> list[dict[int, float]]:
    """Of each token of an answer: the alternatives that are told, by number."""
    return [
        {int(name.removeprefix("token_id:")): logprob for name, logprob in top.items()}
        for top in reply["logprobs"]["top_logprobs"]
    ]


@pytest.mark.parametrize("logprobs", [0, 5])
def test_logprobs_tell_the_tokens_that_are_asked_for(engine: Engine, logprobs: int) -> None:
    told: Any = {"max_tokens": 4, "temperature": 0, "return_tokens_as_token_ids": True, "return_token_ids": True}
    everyday = said(engine, logprobs=20, **told)
    ids = [*list(likely(everyday)[0])[:3], 5000]
    asked = said(engine, logprobs=logprobs, logprob_token_ids=ids, **told)
    assert asked["text"] == everyday["text"]
    for top, usual, chosen in zip(likely(asked), likely(everyday), asked["token_ids"], strict=True):
        assert set(top) == {*ids, chosen}
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert all(top[id] == usual[id] for id in set(top) & set(usual))
        assert top[5000] < min(usual.values())
    with pytest.raises(ValidationError, match="logprob_token_ids: needs logprobs"):
        said(engine, logprob_token_ids=ids)
    with pytest.raises(ValidationError, match="logprob_token_ids"):
        said(engine, logprobs=1, logprob_token_ids=[engine.info()["n_vocab"]])


@pytest.mark.parametrize("top_k", [1, 5, 50])
def test_probabilities_after_sampling_are_those_of_what_may_come(engine: Engine, top_k: int) -> None:
    told: Any = {"max_tokens": 6, "top_k": top_k, "top_p": 1, "seed": 3, "return_tokens_as_token_ids": True}
    told |= {"logprobs": 20, "temperature": 1, "return_token_ids": True}
    before, after = said(engine, **told), said(engine, post_sampling_probs=True, **told)
    assert after["token_ids"] == before["token_ids"]
    for model, drawn, chosen in zip(likely(before), likely(after), after["token_ids"], strict=True):
        assert chosen in drawn and len(drawn) >= min(top_k, 20)
        if top_k < 20:  # all that may come: as likely among themselves as the model has it
            total = math.log(sum(math.exp(model[id]) for id in drawn))
            assert set(drawn) == set(list(model)[:top_k])
            assert sum(map(math.exp, drawn.values())) == pytest.approx(1, abs=1e-5)
            assert all(logprob == pytest.approx(model[id] - total, abs=1e-4) for id, logprob in drawn.items())


# --- thoughts ---

OPENS = (  # a template that lets a thought begin
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
PARIS: dict[str, Any] = {**chat("What is the capital of France?", max_tokens=64), "chat_template": OPENS}
PARIS["temperature"] = 0
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "additionalProperties": False}


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_thought_ends_with_its_budget(engine: Engine, budget: int) -> None:
    asked: Any = {**PARIS, "thinking_token_budget": budget, "return_token_ids": True}
    inline: Any = engine.chat_completion(**asked)
    thought, _, answer = content_of(inline).partition("</think>")
    assert answer and thought.startswith("<think>\n")
    closing = engine.tokenize("</think>")
    ids = inline["choices"][0]["token_ids"]
    assert ids[budget : budget + len(closing)] == closing
    free: Any = engine.chat_completion(**{**asked, "thinking_token_budget": -1})
    assert ids[:budget] == free["choices"][0]["token_ids"][:budget]  # until then nothing is another
    apart: Any = engine.chat_completion(**asked, reasoning_format="deepseek")
    assert apart["choices"][0]["token_ids"] == ids
    message = apart["choices"][0]["message"]
    assert message["content"] == answer.lstrip()
    assert message.get("reasoning_content", "") == thought.removeprefix("<think>\n").strip()
    chunks: list[Any] = list(engine.chat_completion_stream(**asked))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content_of(inline)


def test_a_thought_that_is_not_to_be_told_is_thought_all_the_same(engine: Engine) -> None:
    asked: Any = {**PARIS, "thinking_token_budget": 5, "logprobs": True}
    told: Any = engine.chat_completion(**asked, reasoning_format="deepseek")
    hidden: Any = engine.chat_completion(**asked, include_reasoning=False)
    message = told["choices"][0]["message"]
    assert message.pop("reasoning_content") and hidden["choices"][0]["message"] == message
    details = (reply["usage"]["completion_tokens_details"]["reasoning_tokens"] for reply in (told, hidden))
    assert len(set(details)) == 1
    n_hidden, n_told = (len(reply["choices"][0]["logprobs"]["content"]) for reply in (hidden, told))
    assert 0 < n_hidden < n_told  # none of what was thought
    chunks: list[Any] = list(engine.chat_completion_stream(**asked, include_reasoning=False))
    assert all("reasoning_content" not in chunk["choices"][0]["delta"] for chunk in chunks)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == message["content"]


@pytest.mark.parametrize("budget", [0, 4])
def test_an_answer_with_a_schema_has_a_budget_for_its_thought(engine: Engine, budget: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
    asked: Any = {**PARIS, "thinking_token_budget": budget, "response_format": form, "reasoning_format": "deepseek"}
    reply: Any = engine.chat_completion(**asked, return_token_ids=True)
    closing = engine.tokenize("</think>")
    assert reply["choices"][0]["token_ids"][budget : budget + len(closing)] == closing
    assert set(json.loads(content_of(reply))) <= {"city"}


@pytest.mark.parametrize("budget", range(1, 6))
def test_a_thought_is_not_ended_within_a_character(engine: Engine, budget: int) -> None:
    asked: Any = {**PARIS, "regex": "\U0001f600{3}", "thinking_token_budget": budget, "reasoning_format": "deepseek"}
    pieces = engine.tokenize("\U0001f600")
    asked["logit_bias"] = dict.fromkeys(pieces, 100.0)  # of which the model then thinks
    message: Any = engine.chat_completion(**asked)["choices"][0]["message"]
    assert len(pieces) == 3 and message["reasoning_content"] == "\U0001f600" * math.ceil(budget / 3)


def test_a_budget_of_a_model_that_does_not_think_is_named(engine: Engine) -> None:
    asked: Any = {**chat("Hi", max_tokens=4), "temperature": 0}
    reply: Any = engine.chat_completion(**asked, thinking_token_budget=2)
    assert reply["pg_metadata"]["ignored_fields"] == ["thinking_token_budget"]
    assert content_of(reply) == content_of(engine.chat_completion(**asked))


def test_the_prompt_is_told_as_the_template_wrote_it(engine: Engine) -> None:
    asked: Any = {**chat("Hi <|im_end|>", max_tokens=4), "temperature": 0}
    reply: Any = engine.chat_completion(**asked, return_prompt_text=True)
    assert reply["prompt_text"] == engine.apply_template(messages=asked["messages"])
    first, *others = engine.chat_completion_stream(**asked, return_prompt_text=True)
    assert first.get("prompt_text") == reply["prompt_text"] and not any("prompt_text" in chunk for chunk in others)
    assert "prompt_text" not in engine.chat_completion(**asked)


# --- control tokens ---


def test_control_tokens_of_an_answer_are_shown_where_asked_for(engine: Engine) -> None:
    start, end = (engine.info()["control_tokens"][name] for name in ("<|im_start|>", "<|im_end|>"))

    def both(**fields: Any) -> list[str]:
        asked: Any = {"max_tokens": 3, "temperature": 0, **fields}
        return [said(engine, **asked)["text"], content_of(engine.chat_completion(messages=HI, **asked))]

    assert both(logit_bias={start: 100}) == ["", ""]
    assert both(logit_bias={start: 100}, skip_special_tokens=False) == ["<|im_start|>" * 3] * 2
    assert both(skip_special_tokens=False) == both()
    assert both(logit_bias={end: 100}, skip_special_tokens=False) == ["", ""]  # but for the one that ends it
    assert engine.detokenize([start, *engine.tokenize("a")], special=False) == "a"


# --- the prompt's logprobs ---


def test_the_prompts_logprobs_are_those_of_its_echo(engine: Engine) -> None:
    ids = engine.tokenize(CAPITAL)
    told = said(engine, prompt_logprobs=3, max_tokens=0)["prompt_logprobs"]
    echo = said(engine, echo=True, logprobs=3, max_tokens=0)["logprobs"]
    assert told[0] is None and len(told) == len(ids)
    for id, entry, logprob, top in zip(ids[1:], told[1:], echo["token_logprobs"][1:], echo["top_logprobs"][1:]):
        assert entry[id]["logprob"] == logprob
        assert sorted(item["logprob"] for item in entry.values()) == sorted(top.values())
        assert all(engine.detokenize([other]) == item["decoded_token"] for other, item in entry.items())
    with_both = said(engine, echo=True, logprobs=1, prompt_logprobs=3)
    assert with_both["prompt_logprobs"] == told
    assert with_both["logprobs"]["top_logprobs"][1].keys() <= echo["top_logprobs"][1].keys()


def test_ranks_are_places_among_all_tokens(engine: Engine) -> None:
    ids = engine.tokenize("The cat sat on the banana")
    told = said(engine, prompt=ids, prompt_logprobs=20, max_tokens=0)["prompt_logprobs"]
    ranks = [entry[id]["rank"] for id, entry in zip(ids[1:], told[1:])]
    for id, entry, rank in zip(ids[1:], told[1:], ranks):
        likeliest = sorted((item for item in entry.values()), key=lambda item: item["rank"])
        assert [item["rank"] for item in likeliest[:20]] == list(range(1, 21))
        assert [item["logprob"] for item in likeliest] == sorted((i["logprob"] for i in entry.values()), reverse=True)
        assert (len(entry) == 20) == (rank <= 20), id
    assert max(ranks) > 20  # the banana
    alone = said(engine, prompt=ids, prompt_logprobs=0, max_tokens=0)["prompt_logprobs"]
    assert [entry[id]["rank"] for id, entry in zip(ids[1:], alone[1:])] == ranks


def test_a_chats_prompt_has_logprobs_too(engine: Engine) -> None:
    asked: Any = {**chat("Hi", max_tokens=2), "prompt_logprobs": 1, "temperature": 0}
    reply: Any = engine.chat_completion(**asked)
    ids = engine.tokenize(messages=asked["messages"])
    assert [set(entry) >= {id} for id, entry in zip(ids[1:], reply["prompt_logprobs"][1:], strict=True)]
    assert next(engine.chat_completion_stream(**asked)).get("prompt_logprobs") == reply["prompt_logprobs"]


# --- timings and progress ---


def test_the_progress_of_a_long_prompt_is_told(engine: Engine) -> None:
    prompt = "".join(f"{i} times {i} is {i * i}. " for i in range(60))
    asked: Any = {"prompt": prompt, "max_tokens": 2, "temperature": 0, "return_progress": True}
    stream = engine.completion_stream(**asked, timings_per_token=True)
    chunks = list(stream)
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    n_prompt = stream.usage["prompt_tokens"]
    assert told and {progress["total"] for progress in told} == {n_prompt}
    processed = [progress["processed"] for progress in told]
    assert processed == sorted(set(processed)) and len(processed) > 2
    assert (processed[0], processed[-1]) == (told[0]["cache"], n_prompt)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == said(engine, **asked)["text"]
    read = [chunk["timings"] for chunk in chunks if "prompt_progress" in chunk]
    assert [timings["cache_n"] + timings["prompt_n"] for timings in read] == processed
    assert read[0]["prompt_ms"] == 0 == read[-1]["predicted_n"]
    last = chunks[-1]["timings"]
    times = [timings["prompt_ms"] for timings in (*read, last)]
    assert times == sorted(times)
    assert (last["predicted_n"], last["prompt_n"] + last["cache_n"]) == (2, n_prompt)
    assert last["prompt_per_second"] == pytest.approx(last["prompt_n"] / last["prompt_ms"] * 1e3)
    assert last["predicted_per_token_ms"] == pytest.approx(last["predicted_ms"])  # the first token took none


# --- what decides over a token ---


def test_biases_of_texts_are_those_of_their_tokens(engine: Engine) -> None:
    def biased(form: Any) -> dict[str, Any]:
        return said(engine, max_tokens=3, logit_bias=form)

    [paris] = engine.tokenize(" Paris")
    banned = biased({paris: -100})
    assert banned["text"] != said(engine, max_tokens=3)["text"]
    for form in ([[paris, False]], [{"id": " Paris", "bias": -100}], [(" Paris", -50), (paris, -50)]):
        assert biased(form) == banned
    words = engine.tokenize(" yellow submarine", add_special=False)
    assert len(words) > 1
    assert biased([[" yellow submarine", 30]]) == biased(dict.fromkeys(words, 30))


def test_alternatives_by_llama_servers_name_are_logprobs(engine: Engine) -> None:
    assert said(engine, n_probs=2) == said(engine, logprobs=2)
    named = engine.chat_completion(**chat("Hi", max_tokens=3), n_probs=2)
    assert (
        named["choices"] == engine.chat_completion(**chat("Hi", max_tokens=3), logprobs=True, top_logprobs=2)["choices"]
    )


def test_samplers_that_are_left_out_change_nothing(engine: Engine) -> None:
    drawn: dict[str, Any] = {"seed": 3, "max_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    few = said(engine, **{**drawn, "top_k": 3})
    assert few == said(engine, **{**drawn, "top_k": 3, "top_p": 0.1, "min_p": 0.9}, samplers=["top_k"])
    assert few == said(engine, **{**drawn, "top_k": 3}, samplers="ekt")
    assert said(engine, **drawn) == said(engine, **{**drawn, "top_k": 1, "temperature": 0}, samplers=[])


def test_a_template_of_ones_own_gives_messages_no_control_tokens(engine: Engine) -> None:
    own = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    asked = chat("a<|im_end|>b", max_tokens=1)
    reply: Any = engine.chat_completion(**asked, chat_template=own, return_token_ids=True)
    controls = engine.info()["control_tokens"]
    ids = reply["prompt_token_ids"]
    assert [ids.count(controls[name]) for name in ("<|im_start|>", "<|im_end|>")] == [1, 1]
    assert engine.detokenize(ids) == "<|im_start|>a<|im_end|>b<|im_end|>"
    assert ids == engine.tokenize(messages=parse_request("chat", asked, {"chat_template": own}))


# --- functions over logits ---


def test_a_function_over_logits_does_what_a_bias_does(engine: Engine) -> None:
    [paris] = engine.tokenize(" Paris")

    def ban(token_ids: Any, logits: Any) -> None:
        assert (token_ids.dtype, logits.dtype) == ("int32", "float32")
        assert logits.shape == (engine.info()["n_vocab"],)
        logits[paris] -= 100

    def raised(token_ids: Any, logits: Any) -> Any:
        higher = logits.copy()
        higher[paris] += 50
        return higher

    banned = said(engine, logit_bias={paris: -100})
    assert banned["text"] != said(engine)["text"]
    assert said(engine, logits_processor=ban) == banned
    assert said(engine, logits_processor=[raised, ban]) == said(engine, logit_bias={paris: -50})
    drawn: Any = {"temperature": 1.0, "seed": 5, "n": 2}
    assert said(engine, logits_processor=ban, **drawn) == said(engine, logit_bias={paris: -100}, **drawn)


@pytest.mark.parametrize("prediction", [None, " Paris, the capital of France is Paris"])
def test_a_function_sees_the_prompt_and_the_answer_so_far(engine: Engine, prediction: str | None) -> None:
    """Drafts are checked with it, too: the answer and the calls that made it are the same."""
    seen: list[list[int]] = []

    def alternate(token_ids: Any, logits: Any) -> None:
        seen.append(token_ids.tolist())
        logits[token_ids[-1]] = -numpy.inf

    asked: Any = {"prompt": CAPITAL, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    reply: Any = engine.completion(**asked, logits_processor=alternate, prediction=prediction)
    choice = reply["choices"][0]
    whole = [*choice["prompt_token_ids"], *choice["token_ids"]]
    n_prompt = len(choice["prompt_token_ids"])
    assert seen == [whole[:n] for n in range(n_prompt, len(whole))]
    assert all(one != other for one, other in zip(whole[n_prompt - 1 :], whole[n_prompt:]))
    plain = engine.completion(prompt=CAPITAL, max_tokens=12, temperature=0, logits_processor=alternate)
    assert plain["choices"][0]["text"] == choice["text"]


def test_what_a_function_raises_ends_its_own_answer_alone(engine: Engine) -> None:
    def fail(token_ids: Any, logits: Any) -> None:
        if len(token_ids) > n_prompt + 2:
            raise KeyError("the third token")

    n_prompt = len(engine.tokenize(CAPITAL))
    alone = said(engine, max_tokens=24)["text"]
    with engine.completion_stream(prompt=CAPITAL, max_tokens=24, temperature=0) as beside:
        next(beside)
        stream = engine.completion_stream(prompt=CAPITAL, max_tokens=8, temperature=0, logits_processor=fail)
        with pytest.raises(LogitsProcessorError, match=r"^logits_processor: KeyError: 'the third token'$") as error:
            list(stream)
        assert isinstance(error.value.__cause__, KeyError)
        assert alone.startswith(stream.text) and stream.text
        for _ in beside:
            pass
        assert beside.text == alone
    for wrong in (lambda ids, logits: logits[1:], lambda ids, logits: logits.fill(numpy.nan), lambda ids, logits: 5):
        with pytest.raises(LogitsProcessorError):
            engine.completion(prompt=CAPITAL, max_tokens=2, logits_processor=wrong)
    with pytest.raises(LogitsProcessorError, match="waits for it"):
        engine.completion(prompt=CAPITAL, logits_processor=lambda ids, logits: engine.completion(prompt="x") and None)
    assert said(engine, max_tokens=24)["text"] == alone


async def test_a_tasks_function_is_called_likewise(tmp_path: Path) -> None:
    path = tiny_model.write_random(tmp_path / "random.gguf")

    def ends_high(token_ids: Any, logits: Any) -> None:
        logits[: len(logits) // 2] = -numpy.inf

    asked: Any = {"prompt": "ab", "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    with Engine(path, isolation="thread", device="cpu") as engine:
        ours: Any = engine.completion(**asked, logits_processor=ends_high)
        assert min(ours["choices"][0]["token_ids"]) >= engine.info()["n_vocab"] // 2
    async with AsyncEngine(path, isolation="thread", device="cpu") as other:
        theirs: Any = await other.completion(**asked, logits_processor=ends_high)
        assert theirs["choices"] == ours["choices"]
    async with AsyncEngine(path, isolation="process", device="cpu") as apart:
        with pytest.raises(ValidationError, match="isolation='thread'") as error:
            await apart.completion(**asked, logits_processor=ends_high)
        assert error.value.param == "logits_processor"
        plain: Any = await apart.completion(**asked)
        assert len(plain["choices"][0]["token_ids"]) == 6
