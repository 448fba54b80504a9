"""Lossless speculation: with drafts and without, every answer is the same, and so is what it leaves behind.

`speculate="always"` drafts whatever it finds, so that nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_archs
import tiny_model
from helpers import Native, stats_of, wait_until_idle
from tiny_model import gguf_file

from polargrid_local import Engine, InvalidModelError, NotFoundError, ValidationError

LIST = "\n".join(f"item {n}: the price of the {word} is {n * 7} coins" for n, word in enumerate(tiny_model.WORDS[4:16]))
SCHEMA = {
    "type": "object",
    "properties": {
        "first_name_of_the_person": {"type": "string", "maxLength": 12},
        "favourite_colour_of_the_person": {"enum": ["red", "green", "blue"]},
    },
    "required": ["first_name_of_the_person", "favourite_colour_of_the_person"],
    "additionalProperties": False,
}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seed": {"temperature": 0.8, "seed": 11},
    "hot": {"temperature": 1.5, "seed": 3, "top_p": 1, "min_p": 0.02},
    "penalties": {"temperature": 0.7, "seed": 5, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "repetition": {"temperature": 0.7, "seed": 6, "repetition_penalty": 1.1, "top_k": 40},
    "stop": {"temperature": 0, "stop": ["item 3", "coins\nitem 5"]},
    "filter": {"temperature": 0, "content_filter": ["item 2"]},
    "schema": {"temperature": 0.5, "seed": 4, "json_schema": SCHEMA},
    "pattern": {"temperature": 1, "seed": 8, "regex": "(item [0-9]: [a-z ]{1,20}\n){3}"},
    "thought": {"temperature": 0, "thinking_token_budget": 12, "chat_template": tiny_model.CHATML + "<think>\n"},
    "short": {"temperature": 0, "max_tokens": 3},
}


def question(name: str) -> dict[str, Any]:
    request = {"max_tokens": 40, "logprobs": True, "top_logprobs": 3, **REQUESTS[name]}
    return {"messages": [{"role": "user", "content": f"Repeat this list:\n{LIST}"}], **request}


def needs_kernels(engine: Engine) -> None:
    if engine.info()["kernels"] == "off":
        pytest.skip("drafts are on where our kernels are")


def observed(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """All that a reader learns but for times and drafts."""
    text, logprobs = "", []
    with engine.chat_completion_stream(request) as stream:
        for chunk in stream:
            [choice] = chunk["choices"]
            text += choice["delta"].get("content") or ""
            logprobs += (choice.get("logprobs") or {}).get("content", [])
        usage = {key: value for key, value in stream.usage.items() if key != "completion_tokens_details"}
        return {"text": text, "logprobs": logprobs, "usage": usage, "reason": stream.finish_reason}


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Every request's answer without drafts, per type of the cache."""
    answers: dict[str, dict[str, Any]] = {}
    for cache_type in ("f16", "q8_0"):
        with Engine(smollm2, n_ctx=1024, max_streams=2, speculate=False, cache_type=cache_type) as engine:
            assert engine.info()["speculation"] == "off: speculate='off'"
            answers[cache_type] = {name: observed(engine, question(name)) for name in REQUESTS}
            assert stats_of(engine)["n_accepted_tokens"] == stats_of(engine)["n_rejected_tokens"] == 0
    yield answers


@pytest.mark.parametrize(
    ("cache_type", "n_threads", "speculate"),
    [("f16", 1, "always"), ("q8_0", 2, "always"), ("f16", 7, "always"), ("f16", 2, "auto")],
)
def test_drafts_change_no_answer(
    smollm2: Path, plain: dict[str, dict[str, Any]], cache_type: str, n_threads: int, speculate: str
) -> None:
    """Also not drafts that are always right, always wrong, or a dice's."""
    dice = random.Random(1)
    options = {"n_ctx": 1024, "max_streams": 2, "cache_type": cache_type, "n_threads": n_threads}
    with Engine(smollm2, speculate=speculate, **options) as engine:
        needs_kernels(engine)
        assert engine.info()["speculation"] == "lookup"
        for name in ("hot", "schema") if n_threads > 2 else REQUESTS:  # more threads than cores are slow
            expected = plain[cache_type][name]
            scrambled = expected["text"].split(" ")
            dice.shuffle(scrambled)
            for prediction in (None, expected["text"], "Nothing of this will ever be said! " * 9, " ".join(scrambled)):
                request = question(name) | ({} if prediction is None else {"prediction": prediction})
                before = stats_of(engine)
                assert observed(engine, request) == expected, (name, prediction)
                stats = stats_of(engine)
                accepted, rejected = (stats[key] - before[key] for key in ("n_accepted_tokens", "n_rejected_tokens"))
                n = expected["usage"]["completion_tokens"]
                assert 0 <= accepted < max(n, 1)
                if speculate == "always" and n > 20 and prediction == expected["text"]:
                    assert accepted > n / 2, name
                if speculate == "always" and n > 20 and prediction is not None and prediction[:7] == "Nothing":
                    assert rejected > 0, name


def test_drafts_are_counted_everywhere(smollm2: Path) -> None:
    with Engine(smollm2, n_ctx=1024, max_streams=1, speculate="always") as engine:
        needs_kernels(engine)
        answer = observed(engine, question("greedy"))["text"]
        before = stats_of(engine)
        stream = engine.chat_completion_stream(question("greedy"), prediction=answer)
        for _ in stream:
            pass
        stats = stats_of(engine)
        details = stream.usage["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] == stream.timings["accepted_draft_tokens"] > 20
        assert details["rejected_prediction_tokens"] == stream.timings["rejected_draft_tokens"]
        for stat, timing in (("n_accepted_tokens", "accepted"), ("n_rejected_tokens", "rejected")):
            assert stats[stat] - before[stat] == stream.timings[f"{timing}_draft_tokens"]
        # The pass over the prompt gave the first token; each other pass one, and what came true beside it.
        n_passes = stats["n_steps"] - before["n_steps"] - 1
        assert n_passes == stream.usage["completion_tokens"] - 1 - details["accepted_prediction_tokens"]


def test_what_a_grammar_forces_is_drafted(smollm2: Path) -> None:
    """The names of the properties leave the model no choice: they come several a pass."""
    with Engine(smollm2, n_ctx=1024, max_streams=1, speculate="always") as engine:
        needs_kernels(engine)
        request = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 80, "temperature": 0}
        stream = engine.chat_completion_stream(request, json_schema=SCHEMA)
        for _ in stream:
            pass
        assert stream.timings["accepted_draft_tokens"] >= 8


def test_the_next_turn_finds_the_same_prefix(smollm2: Path) -> None:
    seen = []
    for speculate in ("off", "always"):
        with Engine(smollm2, n_ctx=1024, max_streams=2, speculate=speculate) as engine:
            request = question("greedy")
            answer = observed(engine, request)
            cells = stats_of(engine)["n_cells_used"]
            messages = [*request["messages"], {"role": "assistant", "content": answer["text"]}]
            messages.append({"role": "user", "content": "And now backwards."})
            stream = engine.chat_completion_stream(messages=messages, temperature=0, max_tokens=30)
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream)
            seen.append((answer, cells, stream.timings["cached_tokens"], text, stats_of(engine)["n_cells_used"]))
    assert seen[0] == seen[1]
    assert seen[0][2] > len(seen[0][0]["text"]) / 10


def test_a_neighbour_that_comes_and_goes_changes_nothing(smollm2: Path) -> None:
    with Engine(smollm2, n_ctx=1024, max_streams=3, speculate="off") as engine:
        expected = observed(engine, question("seed") | {"max_tokens": 120})
    with Engine(smollm2, n_ctx=1024, max_streams=3, speculate="always") as engine:
        done = threading.Event()

        def neighbours() -> None:
            number = 0
            while not done.is_set():
                number += 1
                engine.completion(prompt=f"{number} and then", max_tokens=number % 7 + 1, temperature=0)

        thread = threading.Thread(target=neighbours)
        thread.start()
        try:
            for _ in range(4):
                assert observed(engine, question("seed") | {"max_tokens": 120}) == expected
        finally:
            done.set()
            thread.join()


SCRIPT = [" " + word for word in "the day the water the day the way the day the water the day the people".split()]


@pytest.fixture(scope="module")
def singer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(model, an engine without drafts, one with): a model that sings, in weights that our kernels take."""
    said = tiny_model.write_scripted(tmp_path_factory.mktemp("singer") / "singer.gguf", [SCRIPT], weights="q8_0")
    with Engine(said.path, n_ctx=256, max_streams=2, speculate=False) as off:
        with Engine(said.path, n_ctx=256, max_streams=2, speculate="always") as always:
            needs_kernels(always)
            assert always.info()["speculation"] == "lookup"
            yield said, off, always


def test_every_end_falls_inside_a_draft(singer: Any) -> None:
    """The end of the turn, a limit, a stop string and a filter, at every place."""
    said, off, always = singer
    song = "".join(SCRIPT)
    ends: list[dict[str, Any]] = [{}]
    ends += [{"max_tokens": n} for n in range(1, len(SCRIPT) + 2)]
    ends += [{field: [song[at : at + 5]]} for at in range(len(song) - 5) for field in ("stop", "content_filter")]
    for end in ends:
        request = {"prompt": said.prompt(0), "max_tokens": 40, "temperature": 0, "prediction": song + song, **end}
        answers = []
        for engine in (off, always):
            reply = engine.completion(request)
            del reply["usage"]["completion_tokens_details"]
            answers.append((reply["choices"], reply["usage"], stats_of(engine)["n_cells_used"]))
        assert answers[0] == answers[1], end
    assert stats_of(always)["n_accepted_tokens"] > 100
    assert stats_of(always)["n_failed"] == 0


def test_the_context_ends_where_it_ends(tmp_path: Path) -> None:
    """To the last cell, with a draft that would reach beyond it."""
    path = tiny_model.write_random(tmp_path / "random.gguf", weights="q8_0", n_embd=256)
    replies = []
    for speculate in ("off", "always"):
        with Engine(path, n_ctx=64, max_streams=2, speculate=speculate) as engine:
            request = {"prompt": "the word of the word of the", "max_tokens": -1, "temperature": 0, "ignore_eos": True}
            text = engine.completion(request)["choices"][0]["text"]
            reply = engine.completion(request, prediction=text + text)
            replies.append((text, reply["choices"], reply["usage"]["total_tokens"], stats_of(engine)["n_cells_used"]))
            drafted = stats_of(engine)["n_accepted_tokens"]
            assert (drafted > 10) is (engine.info()["speculation"] == "lookup"), drafted
    assert replies[0] == replies[1]
    assert replies[0][2] == 64


def test_a_cancel_inside_a_draft_leaves_nothing_behind(singer: Any) -> None:
    said, _, always = singer
    song = "".join(SCRIPT)
    request = {"prompt": said.prompt(0), "max_tokens": 40, "temperature": 0, "prediction": song}
    expected = always.completion(request)["choices"]
    for n in range(1, 12):
        stream = always.completion_stream(request)
        for _ in range(n):
            next(stream, None)
        stream.cancel()
        stream.close()
    assert wait_until_idle(always)["n_running"] == 0
    assert always.completion(request)["choices"] == expected


def test_events_of_a_draft_come_one_by_one(singer: Any) -> None:
    """The same events, each with the counts of its moment, and one last."""
    said, _, _ = singer
    seen = []
    for speculate in ("off", "always"):
        native = Native(said.path, n_ctx=256, speculate=speculate)
        events = native.ask(said.prompt(0), max_tokens=12, prediction="".join(SCRIPT), sampling={"temperature": 0.0})
        native.engine.close()
        assert [event.kind for event in events].count("finished") == 1
        assert events[-1].n_accepted > 6 or speculate == "off"
        seen.append([(event.kind, event.text, event.n_generated, event.reason) for event in events])
    assert seen[0] == seen[1]


def test_a_guess_that_computes_nonsense_harms_nobody(tmp_path: Path) -> None:
    """A token whose embedding is NaN: it was guessed, computed beside the right ones, and does not come."""
    path = tiny_model.write_random(tmp_path / "nan.gguf", weights="q8_0", n_embd=256)
    whole = gguf_file.Reader(path)
    (_, n_embd), _ = whole.tensors["token_embd.weight"]
    start = -(-whole.n_header_bytes // gguf_file.ALIGNMENT) * gguf_file.ALIGNMENT
    with Engine(path, n_ctx=256, max_streams=1, speculate=False) as engine:
        plain = engine.completion(prompt="the word", max_tokens=40, temperature=0)["choices"]
        poison = engine.tokenize("Q")[-1]
        assert "Q" not in plain[0]["text"]
        words = [" " + word for word in plain[0]["text"].split()]
    data = bytearray(path.read_bytes())
    for block in range(n_embd // 32):
        at = start + (poison * (n_embd // 32) + block) * 34
        data[at : at + 2] = b"\x00\x7e"  # the scale: NaN
    path.write_bytes(data)
    for cache_type in ("f16", "q8_0"):
        with Engine(path, n_ctx=256, max_streams=1, speculate=False, cache_type=cache_type) as engine:
            expected = engine.completion(prompt="the word", max_tokens=40, temperature=0)["choices"]
        with Engine(path, n_ctx=256, max_streams=1, speculate="always", cache_type=cache_type) as engine:
            needs_kernels(engine)
            assert engine.info()["speculation"] == "lookup"
            for n in range(1, 12):
                guess = "".join(words[:n]) + "QQQ" + "".join(words[n:])
                reply = engine.completion(prompt="the word", max_tokens=40, temperature=0, prediction=guess)
                assert reply["choices"] == expected, (cache_type, n)
            assert stats_of(engine)["n_rejected_tokens"] > 0


def test_where_rows_depend_on_each_other_nothing_is_drafted(tmp_path: Path, smollm2: Path) -> None:
    """And info() says why: weights that llama.cpp's own products take, or kernels that are off."""
    path = tiny_model.write_random(tmp_path / "f32.gguf", weights="f32")
    for file, options, why in (
        (path, {}, "off: MUL_MAT of blk.0.attn_q.weight (f32) is computed by llama.cpp's kernels"),
        (smollm2, {"kernels": False}, "off: "),
        (smollm2, {"flash_attention": False}, "off: MUL_MAT"),
    ):
        with Engine(file, n_ctx=256, max_streams=1, speculate="always", **options) as engine:
            info = engine.info()
            assert info["speculation"].startswith(why if info["kernels"] != "off" or options else "off: "), options
            assert info["row_invariant"] is False
            reply = engine.completion(prompt="one one one one one one", max_tokens=8, prediction="one one")
            assert reply["usage"]["completion_tokens_details"] == {
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
            assert stats_of(engine)["n_accepted_tokens"] == stats_of(engine)["n_rejected_tokens"] == 0


def test_a_sliding_window_is_moved_back_with_a_draft(tmp_path: Path) -> None:
    """Gemma's layers forget what is behind their window; what a draft pushed out of it must be there again."""
    path = tiny_archs.write(tmp_path / "gemma3.gguf", "gemma3", weights="q8_0")
    prompt = "one two three four five six seven eight nine ten " * 3
    request = {"prompt": prompt, "max_tokens": 60, "temperature": 0.9, "seed": 2, "ignore_eos": True}
    texts = []
    for speculate in ("off", "always"):
        with Engine(path, n_ctx=256, max_streams=1, speculate=speculate) as engine:
            for prediction in (None, "one two three four " * 20):
                reply = engine.completion(request | ({} if prediction is None else {"prediction": prediction}))
                texts.append(reply["choices"][0]["text"])
            drafted = stats_of(engine)["n_accepted_tokens"] + stats_of(engine)["n_rejected_tokens"]
            assert (drafted > 0) is (engine.info()["speculation"] == "lookup")
            print(engine.info()["speculation"], drafted)
    assert len(set(texts)) == 1


def test_a_draft_model_changes_no_answer(smollm2: Path, tmp_path: Path) -> None:
    """One that is always right where nothing is drawn, for it is the same model; and one that knows nothing."""
    fool = tiny_archs.write(
        tmp_path / "fool.gguf", "llama", vocab_file=smollm2, metadata={"llama.context_length": 1024}
    )
    options = {"n_ctx": 1024, "max_streams": 1, "n_threads": 2}
    requests = {name: question(name) | {"max_tokens": 16} for name in ("greedy", "seed", "schema", "short")}
    with Engine(smollm2, speculate="off", **options) as engine:
        expected = {name: observed(engine, request) for name, request in requests.items()}
        needs_kernels(engine)
    for helper in (smollm2, fool):
        with Engine(smollm2, speculate="always", draft_model=helper, **options) as engine:
            assert engine.info()["speculation"] == "lookup and a draft model"
            assert engine.info()["draft_model_bytes"] > helper.stat().st_size / 2
            for name, request in requests.items():
                before = stats_of(engine)
                assert observed(engine, request) == expected[name], (helper, name)
                accepted = stats_of(engine)["n_accepted_tokens"] - before["n_accepted_tokens"]
                if name == "greedy":
                    assert accepted > 12 if helper == smollm2 else accepted < 4
            stream = engine.chat_completion_stream(requests["greedy"])
            next(stream)
            stream.close()
            wait_until_idle(engine)
            assert observed(engine, requests["greedy"]) == expected["greedy"]


def test_a_draft_model_that_cannot_be_one_is_refused(smollm2: Path, tmp_path: Path) -> None:
    other = tiny_model.write_random(tmp_path / "other.gguf", weights="q8_0", n_embd=256)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and then nothing")
    with pytest.raises(NotFoundError, match="nothing-like-this"):
        Engine(smollm2, draft_model="nothing-like-this")
    with pytest.raises(InvalidModelError, match="draft_model: "):
        Engine(smollm2, draft_model=broken)
    with pytest.raises(
        ValidationError, match='draft_model: its vocabulary is another one: token 0 is "<.bos.>"'
    ) as caught:
        Engine(smollm2, draft_model=other)
    assert (caught.value.details or {})["field"] == "draft_model"
    for options in ({"speculate": False}, {"kernels": False}):
        with pytest.raises(ValidationError, match="draft_model: the model is not drafted for: off: "):
            Engine(smollm2, draft_model=smollm2, **options)
    with pytest.raises(ValidationError, match="draft_model: must be a name or a path"):
        Engine(smollm2, draft_model=3)
