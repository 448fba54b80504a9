"""Programs written for llama-cpp-python, on that package and on the drop-in for it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lora_file
import pytest
import tiny_archs

from polargrid_local import NotFoundError, ValidationError
from polargrid_local.llama_cpp_compat import (
    ASKS_NOTHING,
    Llama,
    LlamaGrammar,
    LogitsProcessorList,
    StoppingCriteriaList,
)

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.peer

QUESTION = "Q: Name the planets in the solar system? A: "
STORY = "Once upon a time there was a fox"
CAPITAL = [
    {"role": "system", "content": "You are an assistant who knows the world."},
    {"role": "user", "content": "What is the capital of France?"},
]
IN_JSON = [
    {"role": "system", "content": "You are a helpful assistant that outputs in JSON."},
    {"role": "user", "content": "Who won the world series in 2020"},
]
TEAM = {"type": "object", "properties": {"team_name": {"type": "string"}}, "required": ["team_name"]}
PERSON = {
    "type": "object",
    "title": "UserDetail",
    "properties": {"name": {"title": "Name", "type": "string"}, "age": {"title": "Age", "type": "integer"}},
    "required": ["name", "age"],
}
EXTRACT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "The assistant calls functions with appropriate input when necessary"},
        {"role": "user", "content": "Extract Jason is 25 years old"},
    ],
    "temperature": 0,
    "max_tokens": 100,
}
FORCED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "UserDetail", "parameters": PERSON}}],
    "tool_choice": {"type": "function", "function": {"name": "UserDetail"}},
}
OLDER: dict[str, Any] = {
    "functions": [{"name": "UserDetail", "parameters": PERSON}],
    "function_call": {"name": "UserDetail"},
}


class Both(NamedTuple):
    theirs: Any
    ours: Any

    def each(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What both answer; iterators as lists. Of what was read before, which would change the rounding, the one
        remembers nothing; for the other every comparison of texts has a prompt of its own."""
        self.theirs.reset()
        answers = [getattr(llm, method)(*args, **kwargs) for llm in self]
        theirs, ours = (list(answer) if inspect.isgenerator(answer) else answer for answer in answers)
        return theirs, ours


@pytest.fixture(scope="module")
def both(smollm2: Path) -> Iterator[Both]:
    """ggml's kernels and its plain attention on both sides, so that greedy answers are the same."""
    theirs = llama_cpp.Llama(model_path=str(smollm2), n_ctx=512, seed=1337, logits_all=True, verbose=False)
    options: dict[str, Any] = {"flash_attn": False, "kernels": False}
    with Llama(model_path=str(smollm2), n_ctx=512, seed=1337, logits_all=True, verbose=False, **options) as ours:
        yield Both(theirs, ours)
    theirs.close()


@pytest.fixture(scope="module")
def embedders(smollm2: Path) -> Iterator[Both]:
    mean: dict[str, Any] = {"n_ctx": 256, "n_batch": 64, "embedding": True, "pooling_type": 1, "verbose": False}
    theirs = llama_cpp.Llama(str(smollm2), **mean)
    with Llama(str(smollm2), **mean) as ours:
        yield Both(theirs, ours)
    theirs.close()


def keys(value: Any) -> Any:
    """The shape of a reply: its keys at every level, without what stands there."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    return [keys(inner) for inner in value] if isinstance(value, list) else None


def without_ids(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key not in ("id", "created")}


# --- the examples of llama-cpp-python's README ------------------------------------------------------------------------


def test_a_completion_with_echo_and_stop(both: Both) -> None:
    theirs, ours = both.each("__call__", QUESTION, max_tokens=32, stop=["Q:", "\n"], echo=True, temperature=0)
    assert keys(ours) == keys(theirs)
    assert without_ids(ours) == without_ids(theirs)
    assert ours["id"].startswith("cmpl-") and ours["choices"][0]["text"].startswith(QUESTION)


def test_a_chat(both: Both) -> None:
    theirs, ours = both.each("create_chat_completion", messages=CAPITAL, temperature=0, max_tokens=24)
    assert keys(ours) == keys(theirs)
    assert without_ids(ours) == without_ids(theirs)
    assert ours["id"].startswith("chatcmpl-")


def test_json_mode(both: Both) -> None:
    asked: dict[str, Any] = {"response_format": {"type": "json_object"}, "temperature": 0, "max_tokens": 24}
    theirs, ours = both.each("create_chat_completion", messages=IN_JSON, **asked)
    assert keys(ours) == keys(theirs)
    for reply in (theirs, ours):
        assert reply["choices"][0]["message"]["content"].startswith("{")


def test_json_schema_mode(both: Both) -> None:
    form = {"type": "json_object", "schema": {**TEAM, "additionalProperties": False}}
    theirs, ours = both.each("create_chat_completion", messages=IN_JSON, response_format=form, temperature=0)
    assert keys(ours) == keys(theirs)
    for reply in (theirs, ours):
        assert list(json.loads(reply["choices"][0]["message"]["content"])) == ["team_name"]


@pytest.mark.parametrize("how", [FORCED, OLDER], ids=["tools", "functions"])
def test_function_calling(both: Both, how: dict[str, Any]) -> None:
    theirs, ours = both.each("create_chat_completion", **EXTRACT, **how)
    assert keys(ours) == keys(theirs)
    for reply in (theirs, ours):
        (choice,) = reply["choices"]
        message = choice["message"]
        assert (choice["finish_reason"], message["content"]) == ("tool_calls", None)
        (call,) = message["tool_calls"]
        assert call["function"] == message["function_call"]
        assert json.loads(call["function"]["arguments"])["age"] == 25


def test_a_streamed_call_joins_to_the_whole_one(both: Both) -> None:
    theirs, ours = both.each("create_chat_completion", **EXTRACT, **FORCED, stream=True)
    whole = both.ours.create_chat_completion(**EXTRACT, **FORCED)["choices"][0]["message"]["function_call"]
    for chunks in (theirs, ours):
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        pieces = [delta["tool_calls"][0] for delta in deltas if delta.get("tool_calls")]
        assert {piece["function"]["name"] for piece in pieces} == {"UserDetail"}
        assert len({piece["id"] for piece in pieces}) == 1
        assert {tuple(piece) for piece in pieces} == {("index", "id", "type", "function")}
        assert [delta["function_call"] for delta in deltas if delta.get("function_call")] == [
            piece["function"] for piece in pieces
        ]
        assert json.loads("".join(piece["function"]["arguments"] for piece in pieces))["age"] == 25
    ours_joined = "".join(
        piece["function"]["arguments"] for chunk in ours for piece in chunk["choices"][0]["delta"].get("tool_calls", ())
    )
    assert ours_joined == whole["arguments"]


def test_embeddings(embedders: Both) -> None:
    theirs, ours = embedders.each("create_embedding", ["Hello, world!", "Goodbye, world!"])
    assert keys(ours) == keys(theirs)
    assert ours["usage"] == theirs["usage"]
    theirs, ours = embedders.each("embed", "Hello, world!", normalize=True)
    assert ours == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize("kind", ["bert", "bert-cls", "llama-last"])
def test_embeddings_of_models_that_say_their_pooling(tmp_path: Path, kind: str) -> None:
    made: dict[str, Any] = {"n_ctx": 128, "n_batch": 64, "embedding": True, "verbose": False}
    path = str(tiny_archs.write(tmp_path / "m.gguf", kind))
    theirs = llama_cpp.Llama(path, **made)
    with Llama(path, **made) as ours:
        for text in ("the cat sat", "the cat sat " * 40):
            their_vector, our_vector = Both(theirs, ours).each("embed", [text], normalize=True)
            assert our_vector[0] == pytest.approx(their_vector[0], abs=0.02)
    theirs.close()


def test_a_longer_text_is_read_as_far_as_a_batch_goes(embedders: Both) -> None:
    text = "The sea was calm that morning. " * 20
    (_, their_count), (_, our_count) = embedders.each("embed", text, normalize=True, return_count=True)
    assert our_count == their_count == 64
    whole = embedders.ours.embed([text], truncate=False, return_count=True)[1]
    assert whole == len(embedders.ours.tokenize(text.encode()))


@pytest.mark.parametrize(("prompt", "logprobs"), [("1, 2, 3, 4,", None), ("Monday, Tuesday, Wednesday,", 2)])
def test_a_streamed_completion(both: Both, prompt: str, logprobs: int | None) -> None:
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "logprobs": logprobs}
    theirs, ours = both.each("create_completion", prompt, **asked, stream=True)
    for chunks in (theirs, ours):
        assert {tuple(keys(chunk)) for chunk in chunks} == {("id", "object", "created", "model", "choices")}
        assert {tuple(chunk["choices"][0]) for chunk in chunks} == {("text", "index", "logprobs", "finish_reason")}
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "length"]
    texts = ["".join(chunk["choices"][0]["text"] for chunk in chunks) for chunks in (theirs, ours)]
    assert texts[0] == texts[1]


def test_a_streamed_chat(both: Both) -> None:
    theirs, ours = both.each("create_chat_completion", CAPITAL[1:], temperature=0, max_tokens=6, stream=True)
    assert [keys(chunk) for chunk in ours] == [keys(chunk) for chunk in theirs]
    assert [chunk["choices"] for chunk in ours] == [chunk["choices"] for chunk in theirs]


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["__init__", "create_completion", "__call__", "create_chat_completion"])
def test_arguments_and_defaults_are_theirs(method: str) -> None:
    def parameters(cls: Any) -> dict[str, Any]:
        found = inspect.signature(getattr(cls, method)).parameters.values()
        named = {parameter.name: parameter.default for parameter in found if parameter.kind != parameter.VAR_KEYWORD}
        return {name: [] if default == () else default for name, default in named.items()}

    differ = {"flash_attn"} if method == "__init__" else set()  # left out, it is as the engine does by itself
    ours, theirs = parameters(Llama), parameters(llama_cpp.Llama)
    assert list(ours) == list(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == differ


def test_logprobs_are_the_same_numbers(both: Both) -> None:
    theirs, ours = both.each("__call__", "Water is made of", max_tokens=8, temperature=0, logprobs=2)
    theirs, ours = (reply["choices"][0]["logprobs"] for reply in (theirs, ours))
    assert ours.keys() == theirs.keys()
    assert (ours["tokens"], ours["text_offset"]) == (theirs["tokens"], theirs["text_offset"])
    for one, other in zip(ours["token_logprobs"], theirs["token_logprobs"], strict=True):
        assert one == pytest.approx(float(other), abs=1e-3)


def test_logprobs_of_an_echo_begin_with_the_prompt(both: Both) -> None:
    """Theirs are one token out of step."""
    (choice,) = both.ours("The capital of France is", max_tokens=2, logprobs=1, echo=True)["choices"]
    assert choice["logprobs"]["text_offset"][0] == 0 and choice["logprobs"]["token_logprobs"][0] is None
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_logprobs_of_a_chat(both: Both) -> None:
    theirs, ours = both.each(
        "create_chat_completion", IN_JSON, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert keys(ours["choices"][0]["logprobs"]["content"][0]).keys() == {"token", "logprob", "bytes", "top_logprobs"}
    assert ours["choices"][0]["logprobs"].keys() == theirs["choices"][0]["logprobs"].keys()


@pytest.mark.parametrize("max_tokens", [None, 0, -1, 100_000])
def test_without_a_limit_the_context_is_the_limit(both: Both, max_tokens: int | None) -> None:
    prompt = STORY + " and a hen" * 164
    ours = both.ours(prompt, max_tokens=max_tokens, temperature=0, logit_bias={2: float("-inf")})
    assert ours["choices"][0]["finish_reason"] == "length"
    assert ours["usage"]["total_tokens"] == both.ours.n_ctx()


def test_a_grammar_holds_the_answer(both: Both, tmp_path: Path) -> None:
    text = 'root ::= "yes" | "no"'
    (tmp_path / "answer.gbnf").write_text(text)
    for grammar in (text, LlamaGrammar.from_string(text), LlamaGrammar.from_file(tmp_path / "answer.gbnf")):
        assert both.ours("Is water wet?", grammar=grammar)["choices"][0]["text"] in ("yes", "no")
    schema = LlamaGrammar.from_json_schema(json.dumps({"enum": ["yes", "no"]}))
    assert both.ours("Is water wet?", grammar=schema)["choices"][0]["text"] in ('"yes"', '"no"')


def test_functions_over_logits_change_both_alike(both: Both) -> None:
    """A token is never said twice in a row, nor is one of the first hundred."""

    def never_again(input_ids: Any, scores: Any) -> Any:
        scores[input_ids[-1]] = -float("inf")
        return scores

    def no_early_ones(input_ids: Any, scores: Any) -> Any:
        scores[:100] = -float("inf")
        return scores

    given, asked = [never_again, no_early_ones], {"max_tokens": 12, "temperature": 0}
    both.theirs.reset()
    theirs = both.theirs("One, one, one,", logits_processor=llama_cpp.LogitsProcessorList(given), **asked)
    for functions in (
        LogitsProcessorList(given),
        given,
        llama_cpp.LogitsProcessorList(given),
        LogitsProcessorList(given).__call__,
    ):
        ours = both.ours("One, one, one,", logits_processor=functions, **asked)
        assert without_ids(ours) == without_ids(theirs)
    assert without_ids(both.ours("One, one, one,", **asked)) != without_ids(theirs)
    chat = both.ours.create_chat_completion(CAPITAL, logits_processor=LogitsProcessorList(given), max_tokens=3)
    assert chat["choices"][0]["message"]["content"]


def test_criteria_stop_both_alike(both: Both) -> None:
    n_prompt = len(both.ours.tokenize(b"Up, up, up and"))

    def long_enough(input_ids: Any, logits: Any) -> bool:
        return len(input_ids) >= n_prompt + 5

    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    both.theirs.reset()
    theirs = both.theirs("Up, up, up and", stopping_criteria=llama_cpp.StoppingCriteriaList([long_enough]), **asked)
    ours = both.ours("Up, up, up and", stopping_criteria=StoppingCriteriaList([long_enough]), **asked)
    assert without_ids(ours) == without_ids(theirs)
    assert ours["choices"][0]["finish_reason"] == "stop"
    assert both.ours("Up, up, up and", stopping_criteria=[long_enough], **asked)["choices"] == ours["choices"]
    never = both.ours("Up, up, up and", stopping_criteria=StoppingCriteriaList([lambda ids, logits: False]), **asked)
    assert never["choices"] == both.ours("Up, up, up and", **asked)["choices"]
    with pytest.raises(ValidationError, match="^stopping_criteria: .* beside a grammar"):
        both.ours("x", stopping_criteria=[long_enough], grammar='root ::= "yes"')


def test_seeds(both: Both) -> None:
    def texts(n: int, **seed: int) -> list[str]:
        return [both.ours(STORY, max_tokens=4, **seed)["choices"][0]["text"] for _ in range(n)]

    once, again = texts(2, seed=7)
    assert once == again
    both.ours.set_seed(5)
    first = texts(3)
    both.ours.set_seed(5)
    assert texts(3) == first and len(set(first)) > 1
    both.ours.set_seed(-1)
    assert len(set(texts(3))) > 1


def test_a_temperature_below_zero_draws_from_everything(both: Both) -> None:
    drawn = {
        both.ours(STORY, max_tokens=1, temperature=-1, top_k=1, seed=seed)["choices"][0]["text"] for seed in range(8)
    }
    assert len(drawn) > 1


def test_token_ids_are_a_prompt_and_an_empty_one_is_the_beginning(both: Both) -> None:
    tokens = both.ours.tokenize(b"January, February, March,")
    theirs, ours = both.each("create_completion", tokens, max_tokens=4, temperature=0)
    assert without_ids(ours) == without_ids(theirs)
    assert both.ours("", max_tokens=1)["usage"]["prompt_tokens"] == 1


def test_tokens_are_the_same(both: Both) -> None:
    for text in ("", "Hello <|im_end|> x", "Grüße 🙂"):
        for add_bos in (True, False):
            for special in (True, False):
                theirs, ours = both.each("tokenize", text.encode(), add_bos, special)
                assert ours == theirs
    tokens = both.ours.tokenize("🙂<|im_end|>".encode(), special=True)
    for some in (tokens, tokens[:1], []):
        for special in (True, False):
            theirs, ours = both.each("detokenize", some, special=special)
            assert ours == theirs
    assert both.ours.detokenize(tokens[1:], tokens[:1]) == "🙂".encode()[len(both.ours.detokenize(tokens[:1])) :]
    for method in ("n_ctx", "n_vocab", "n_embd", "token_bos", "token_eos", "token_nl"):
        theirs, ours = both.each(method)
        assert ours == theirs, method
    assert both.ours.metadata.keys() == both.theirs.metadata.keys()


def test_a_chat_format_by_their_name(smollm2: Path) -> None:
    with Llama(smollm2, chat_format="chatml-function-calling", n_ctx=512, type_k=8, type_v=8, n_threads=2) as llm:
        message = llm.create_chat_completion(**EXTRACT, **FORCED)["choices"][0]["message"]
        assert message["function_call"]["name"] == "UserDetail"
        with pytest.raises(ValidationError) as caught:
            llm.embed("x")
        assert caught.value.param == "embedding"


def test_an_adapter_and_its_scale(tmp_path: Path) -> None:
    model = str(tiny_archs.write(tmp_path / "m.gguf", "llama"))
    width = tiny_archs.N_EMBD
    adapter = str(lora_file.write(tmp_path / "a.gguf", {"blk.0.attn_output.weight": ((4, width), (width, 4))}))

    def logprob(cls: Any, **lora: Any) -> float:
        llm = cls(model, n_ctx=128, logits_all=True, verbose=False, **lora)
        reply = llm([5, 9, 12], max_tokens=1, temperature=0, logprobs=1)
        llm.close()
        return float(reply["choices"][0]["logprobs"]["token_logprobs"][0])

    theirs, ours = (logprob(cls, lora_path=adapter, lora_scale=0.1) for cls in (llama_cpp.Llama, Llama))
    assert ours == pytest.approx(theirs, abs=0.01)
    for other in ({}, {"lora_path": adapter}):
        assert abs(logprob(Llama, **other) - ours) > 0.05


def test_the_classes_of_openai(both: Both) -> None:
    pytest.importorskip("openai")
    assert both.ours.create_chat_completion_openai_v1(IN_JSON, max_tokens=2).choices[0].message.content
    chunks = list(both.ours.create_chat_completion_openai_v1(IN_JSON, max_tokens=2, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"


# --- refusals ---------------------------------------------------------------------------------------------------------

IN_CONSTRUCTOR = sorted(ASKS_NOTHING.keys() & inspect.signature(Llama).parameters.keys())
OTHER = {
    "chat_format": "functionary-v2",
    "flash_attn": "yes",
    "n_ctx": -5,
    "n_thread": 4,
    "type_k": 2,
    "type_v": 8,
    "use_mmap": "yes",
}


@pytest.mark.parametrize(("name", "value"), [*((name, "something") for name in IN_CONSTRUCTOR), *OTHER.items()])
def test_what_a_model_cannot_be_made_with_is_refused_by_name(smollm2: Path, name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"^{name}: ") as caught:
        Llama(str(smollm2), **{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 3),
        ("grammar", 5),
        ("grammar", "no grammar"),
        ("logit_bias", {1: 101}),
        ("logits_processor", [5]),
        ("logprobs", 50),
        ("max_tokens", "many"),
        ("min_p", 2),
        ("mirostat_mode", 3),
        ("repeat_penalty", 0),
        ("stop", [""]),
        ("stopping_criteria", [5]),
        ("suffix", "."),
        ("temperature", None),
        ("temperature", 3),
        ("tfs_z", 0.5),
        ("top_p", -1),
        ("typical_p", 0),
    ],
)
def test_what_no_completion_can_be_asked_is_refused_by_name(both: Both, name: str, value: Any) -> None:
    for stream in (False, True):
        with pytest.raises(ValidationError, match=f"^{name}") as caught:
            both.ours(STORY, **{name: value}, stream=stream)
        assert str(caught.value.param).startswith(name)


def test_what_no_chat_can_be_asked_is_refused_by_name(both: Both) -> None:
    for name, value in (("tool_choice", FORCED["tool_choice"]), ("logits_processor", [5]), ("repeat_penalty", 0)):
        with pytest.raises(ValidationError, match=f"^{name}"):
            both.ours.create_chat_completion(IN_JSON, **{name: value})


@pytest.mark.parametrize("method", ["__call__", "create_completion", "create_chat_completion", "embed", "tokenize"])
def test_unknown_arguments_are_refused_by_name(both: Both, method: str) -> None:
    with pytest.raises(TypeError, match="n_predict"):
        getattr(both.ours, method)(STORY, n_predict=4)


@pytest.mark.parametrize("method", ["eval", "sample", "generate", "save_state", "load_state", "tokenizer"])
def test_low_level_methods_say_what_to_use(both: Both, method: str) -> None:
    with pytest.raises(ValidationError, match=f"^{method}: not supported"):
        getattr(both.ours, method)([1, 2])


def test_other_refusals(both: Both, embedders: Both, smollm2: Path) -> None:
    with pytest.raises(ValidationError, match="polargrid-local pull"):
        Llama.from_pretrained(repo_id="owner/repo", filename="*q8_0.gguf")
    with pytest.raises(NotFoundError, match="/nowhere/adapter.gguf"):
        Llama(smollm2, lora_path="/nowhere/adapter.gguf")
    with pytest.raises(ValidationError, match="^normalize"):
        embedders.ours.embed("x", normalize=False)
    with pytest.raises(ValidationError, match="^text"):
        both.ours.tokenize("text")
    with pytest.raises(ValidationError, match="^text: .*byte 1"):
        both.ours.tokenize(b"a\xff")
    with pytest.raises(ValidationError, match="^tokens"):
        both.ours.detokenize([both.ours.n_vocab()])


def test_one_vector_per_token_is_refused(embedders: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    for pooling in (-1, 0, 2, 3):
        monkeypatch.setattr(embedders.ours, "_pooling_type", pooling)
        with pytest.raises(ValidationError, match="^pooling_type"):
            embedders.ours.embed("x")


def test_what_changes_no_answer_is_accepted(both: Both) -> None:
    both.ours.reset()
    both.ours.set_cache(object())
    both.ours.set_cache(None)
    pending = both.ours(STORY, max_tokens=4, stream=True)
    next(pending)
    assert both.ours(STORY, max_tokens=1)["choices"]  # while a stream waits to be read
    pending.close()
