"""EleutherAI's lm-evaluation-harness, unchanged: what it measures over HTTP is what the engine says in process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import SMOLLM2, ServerProcess

from polargrid_local import Engine

REASON = "needs lm-evaluation-harness, some 700 MB: pip install 'polargrid-local[test-peers]'"
pytest.importorskip("lm_eval", reason=REASON)

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

PAIRS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " a café"),
    ("One, two, three,", " four, five"),
    ("def add(a, b):\n    return", " a + b"),
]
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Größe: 3 m"]
GENERATE = {"until": ["\n"], "max_gen_toks": 12, "temperature": 0}


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    with Engine(smollm2, n_ctx=512, n_threads=1) as engine:
        yield engine


def harness(server: ServerProcess, **settings: Any) -> Any:
    """Left to itself it finds that the server tells of tokens, and needs no tokenizer of its own."""
    address = f"{server.url}/v1/completions"
    return LocalCompletionsAPI(model=SMOLLM2, base_url=address, max_length=2048, max_retries=1, **settings)


def instances(kind: Any, arguments: list[Any]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=given, idx=i) for i, given in enumerate(arguments)]


WAYS = [
    {"tokenized_requests": True},
    {"tokenized_requests": False},
    {"tokenized_requests": True, "batch_size": 3},
    {"tokenized_requests": False, "batch_size": 3},
    {"tokenized_requests": True, "batch_size": 2, "num_concurrent": 2},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_how_likely_a_continuation_is(server: ServerProcess, engine: Engine, way: dict[str, Any]) -> None:
    measured = harness(server, **way).loglikelihood(instances("loglikelihood", PAIRS))
    expected = [engine.score(prompt, continuation) for prompt, continuation in PAIRS]
    assert [logprob for logprob, _ in measured] == pytest.approx([score["logprob"] for score in expected], abs=1e-4)
    greedy = [is_greedy for _, is_greedy in measured]
    assert greedy == [score["greedy"] for score in expected] and len(set(greedy)) == 2


def test_a_continuation_after_which_the_answer_ends(server: ServerProcess, engine: Engine) -> None:
    """The harness asks for one token more, and passes over the last entry, which it takes for that one's."""
    chat: Any = [{"role": "user", "content": "Hi"}]
    prompt = engine.apply_template(messages=chat)
    choice = engine.chat_completion(messages=chat, temperature=0, max_tokens=100)["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"]
    continuation = choice["message"]["content"]
    [(logprob, greedy)] = harness(server).loglikelihood(instances("loglikelihood", [(prompt, continuation)]))
    asked = {"prompt": prompt + continuation, "echo": True, "logprobs": 1, "max_tokens": 0}
    said = engine.completion(asked)["choices"][0]["logprobs"]
    assert said is not None
    n_prompt = len(engine.tokenize(prompt, parse_special=True))
    assert logprob == pytest.approx(sum(value or 0 for value in said["token_logprobs"][n_prompt:]), abs=1e-4)
    assert greedy


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_how_likely_a_text_is(server: ServerProcess, engine: Engine, way: dict[str, Any]) -> None:
    """Its first token, too: the harness puts the token before it that begins a text."""
    measured = harness(server, **way).loglikelihood_rolling(instances("loglikelihood_rolling", [(t,) for t in TEXTS]))
    for text, logprob in zip(TEXTS, measured, strict=True):
        tokens = engine.tokenize(f"{engine.info()['bos_text']}{text}", parse_special=True)
        said = engine.completion(prompt=tokens, echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]
        assert said is not None
        assert logprob == pytest.approx(sum(value or 0 for value in said["token_logprobs"]), abs=1e-4)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_generated_text(server: ServerProcess, engine: Engine, way: dict[str, Any]) -> None:
    prompts = [prompt for prompt, _ in PAIRS[1:]]
    said = harness(server, **way).generate_until(instances("generate_until", [(p, GENERATE) for p in prompts]))
    fields: Any = {"max_tokens": 12, "temperature": 0, "stop": ["\n"]}
    assert said == [engine.completion(prompt=prompt, **fields)["choices"][0]["text"] for prompt in prompts]
    assert all(said)


@pytest.mark.parametrize("concurrent", [1, 2])
def test_chats(server: ServerProcess, engine: Engine, concurrent: int) -> None:
    model: Any = LocalChatCompletion(
        model=SMOLLM2, base_url=f"{server.url}/v1/chat/completions", num_concurrent=concurrent, max_retries=1
    )
    chats: Any = [[{"role": "user", "content": question}] for question in ("How are you?", "Count to three.")]
    asked = [(model.apply_chat_template(chat), GENERATE) for chat in chats]
    said = model.generate_until(instances("generate_until", asked))
    fields: Any = {"max_tokens": 12, "temperature": 0, "stop": ["\n"]}
    assert said == [engine.chat_completion(messages=c, **fields)["choices"][0]["message"]["content"] for c in chats]
