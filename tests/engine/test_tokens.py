"""Tokens: Llama-3.1's vocabulary and template against reference vectors, and user text that stays text."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tiny_archs
import tiny_model

from polargrid_local import Engine, ValidationError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import synthetic

LITERALS = [
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|begin_of_text|>",
    "<|python_tag|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "[INST]",
]


@pytest.fixture(scope="session")
def llama_tree() -> Path:
    """The llama.cpp tree that the build fetched, or was told to use."""
    tree = os.environ.get("PGL_LLAMA_CPP_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "polargrid_local"
    for candidate in [Path(tree)] if tree else sorted(cache.glob("llama-cpp-python-*/*/vendor/llama.cpp")):
        if (candidate / "models/ggml-vocab-llama-bpe.gguf").is_file():
            return candidate
    pytest.skip("no llama.cpp tree with the Llama-3 vocabulary: set PGL_LLAMA_CPP_DIR")


@pytest.fixture(scope="session")
def llama31(llama_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Llama-3.1's own vocabulary and chat template on a tiny body of random weights."""
    path = tmp_path_factory.mktemp("llama31") / "llama31.gguf"
    synthetic.write(path, shape="tiny", vocab=llama_tree / "models/ggml-vocab-llama-bpe.gguf")
    template = (llama_tree / "models/templates/meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    with Engine(path, n_ctx=1024, max_streams=1, chat_template=template) as engine:
        yield engine


def test_llama_bpe_reference_vectors(llama31: Engine, llama_tree: Path) -> None:
    stem = llama_tree / "models/ggml-vocab-llama-bpe.gguf"
    texts = Path(f"{stem}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(n) for n in line.split()] for line in Path(f"{stem}.out").read_text().split("\n")][: len(texts)]
    compared = 0
    for text, ids in zip(texts, expected, strict=True):
        if text:
            assert llama31.tokenize(text)[1:] == ids, text  # without the BOS token that a prompt gets
            compared += 1
    assert compared >= 40


VOCABULARIES = (
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_reference_vectors_of_other_vocabularies(name: str, llama_tree: Path, tmp_path: Path) -> None:
    """A user's text is tokenized as the model's own tokenizer does it: only control tokens are treated apart."""
    stem = llama_tree / f"models/ggml-vocab-{name}.gguf"
    if not Path(f"{stem}.out").is_file():
        pytest.skip(f"this llama.cpp tree has no vectors for {name}")
    tiny_archs.write(tmp_path / "m.gguf", "llama", vocab_file=stem)
    texts = Path(f"{stem}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(n) for n in line.split()] for line in Path(f"{stem}.out").read_text().split("\n")][: len(texts)]
    with Engine(tmp_path / "m.gguf", n_ctx=512, max_streams=1) as engine:
        skipped = int(engine.info()["add_bos"])
        compared = {text: engine.tokenize(text)[skipped:] for text in texts if text}
    assert compared == {text: ids for text, ids in zip(texts, expected, strict=True) if text} and len(compared) >= 40


def test_llama31_chat_ids(llama31: Engine) -> None:
    """The layout Meta documents: header, blank line, text, end of turn; text ids are the vocabulary's own."""
    bos, start, end, eot = 128000, 128006, 128007, 128009
    ids = llama31.tokenize(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello world"}]
    )

    def plain(text: str) -> list[int]:
        return llama31.tokenize(text)[1:]

    assert ids[0] == bos
    assert ids.count(bos) == 1
    turns: list[list[int]] = []
    for token in ids[1:]:
        if token == start:
            turns.append([])
        else:
            turns[-1].append(token)
    assert [turn[0] for turn in turns] == [plain(role)[0] for role in ("system", "user", "assistant")]
    assert turns[1] == [*plain("user"), end, *plain("\n\nHello world"), eot]
    assert turns[2] == [*plain("assistant"), end, *plain("\n\n")]


@pytest.mark.peer
def test_llama31_chat_ids_equal_the_reference_tokenization(llama31: Engine, llama_tree: Path) -> None:
    import jinja2

    llama_cpp = pytest.importorskip("llama_cpp")
    reference = llama_cpp.Llama(str(llama_tree / "models/ggml-vocab-llama-bpe.gguf"), vocab_only=True, verbose=False)
    text = (llama_tree / "models/templates/meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    today = datetime.now().strftime("%d %b %Y")
    for content in ("Hello world", "a\n\nb  c", "日本 🎉", "def f():\n\treturn 1", "x" * 300):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": content}]
        rendered = environment.from_string(text).render(
            messages=messages, add_generation_prompt=True, bos_token="<|begin_of_text|>", date_string=today
        )
        expected = reference.tokenize(rendered.encode(), add_bos=False, special=True)
        assert llama31.tokenize(messages=messages) == expected


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_no_literal_in_a_message_becomes_a_control_token(
    llama31: Engine, engine: Engine, literal: str, role: str
) -> None:
    for model in (llama31, engine):

        def controls(content: str) -> list[int]:
            messages = [{"role": "user", "content": "x"}, {"role": role, "content": content}]
            ids = model.tokenize(messages=messages)
            return [token for token in ids if token in special]

        special = {token for text in LITERALS for token in special_ids(model, text)}
        assert controls(f"a {literal} b{literal}") == controls("harmless")


def special_ids(model: Engine, literal: str) -> list[int]:
    """The control token that a template may write with this text, if the vocabulary has one."""
    ids = model._models.find(None).model.tokenize([(literal, True)], add_bos=False)
    return ids if len(ids) == 1 else []


def test_a_long_run_of_one_character_is_no_stack_overflow(engine: Engine) -> None:
    import threading

    outcomes: list[str] = []

    def attempt() -> None:
        for character in ("a", "!", " ", "\n", "語", "\u0301"):
            try:
                engine.tokenize(character * 100_000)
                outcomes.append("tokens")
            except ValidationError:
                outcomes.append("refused")

    threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(0)
    assert len(outcomes) == 6


@pytest.mark.parametrize("text", ["", "\0", "a\0b", "\u200b", "\ufffd", "🏳️‍🌈" * 50])
def test_odd_text_round_trips_or_is_refused(engine: Engine, text: str) -> None:
    if text:
        assert engine.tokenize(text)
    reply = engine.chat_completion(messages=[{"role": "user", "content": text}], max_tokens=2, temperature=0)
    assert reply["usage"]["completion_tokens"] <= 2


def test_a_lone_surrogate_is_refused(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="surrogate"):
        engine.chat_completion(messages=[{"role": "user", "content": "\ud800"}])


# --- prompts of raw completions are their callers' own programs -------------------------------------------------------


def test_a_prompt_written_by_hand_equals_the_chat(engine: Engine) -> None:
    chat = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]}
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"
    )
    greedy = {"temperature": 0, "max_tokens": 12}
    expected = engine.chat_completion(**chat, **greedy)
    written = engine.completion(prompt=prompt, **greedy)
    assert written["choices"][0]["text"] == expected["choices"][0]["message"]["content"]
    assert written["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"] == len(engine.tokenize(**chat))
    as_text = engine.completion(prompt=prompt, parse_special=False, **greedy)
    assert as_text["usage"]["prompt_tokens"] > expected["usage"]["prompt_tokens"] + 20


def test_a_prompt_that_brings_its_own_bos_gets_no_second(llama31: Engine) -> None:
    def n_prompt(prompt: str, **options: Any) -> int:
        return llama31.completion(prompt=prompt, max_tokens=1, **options)["usage"]["prompt_tokens"]

    assert llama31.info()["add_bos"]
    assert n_prompt("<|begin_of_text|>hello") == n_prompt("hello") == 2
    assert n_prompt("<|begin_of_text|>hello", parse_special=False) > 4
    assert n_prompt("<|begin_of_text|><|begin_of_text|>hello") == 3  # the caller wrote two: both count


def test_a_fill_in_the_middle_prompt_keeps_its_tokens(llama_tree: Path, tmp_path: Path) -> None:
    path = tiny_archs.write(
        tmp_path / "m.gguf",
        "llama",
        vocab_file=llama_tree / "models/ggml-vocab-starcoder.gguf",
        metadata={"llama.vocab_size": None},
    )
    with Engine(path, n_ctx=256, max_streams=1) as model:
        prompt = "<fim_prefix>a<fim_suffix>b<fim_middle>"
        assert model.completion(prompt=prompt, max_tokens=1)["usage"]["prompt_tokens"] == 5
        assert model.completion(prompt=prompt, max_tokens=1, parse_special=False)["usage"]["prompt_tokens"] > 9


# --- user-defined tokens are ordinary text, turn markers are not ------------------------------------------------------

_USER_DEFINED = 4


@pytest.mark.parametrize("prefix", [False, True])
def test_user_defined_tokens_in_a_users_text(prefix: bool, tmp_path: Path) -> None:
    """A tag that the vocabulary has stays whole, wherever it stands; a marker that opens a turn is spelled out."""
    own = ["<b>", "</b>", "<think>", "<|user|>", "[x]", "<｜User｜>"]
    words = tiny_model._Vocab("spm", tiny_model.WORDS).metadata()
    first = len(words["tokenizer.ggml.tokens"])
    metadata = {
        "tokenizer.ggml.tokens": [*words["tokenizer.ggml.tokens"], *own],
        "tokenizer.ggml.token_type": [*words["tokenizer.ggml.token_type"], *[_USER_DEFINED] * len(own)],
        "tokenizer.ggml.scores": [*words["tokenizer.ggml.scores"], *[0.0] * len(own)],
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    bold, end_bold, think, user, cross, deepseek = range(first, first + len(own))
    path = tiny_archs.write(
        tmp_path / "m.gguf",
        "gemma-embedding",
        metadata={**metadata, "gemma-embedding.vocab_size": first + len(own)},
        tensors={"token_embd.weight": (first + len(own), tiny_archs.N_EMBD)},
    )
    with Engine(path) as model:

        def of(text: str) -> list[int]:
            return [token for token in model.tokenize(text)[1:] if token >= first]

        assert of("a <b>time</b> of") == [bold, end_bold]
        assert of("<b>") == [bold] and of("x[x]x<think>") == [cross, think]
        assert of("a<|user|>b") == []
        for marker in ("<|user|>", "<｜User｜>"):
            spelled = model.tokenize(marker)[1:]
            assert len(spelled) == len(marker.encode()) and not {user, deepseek} & set(spelled)
            if not prefix:
                assert spelled == [token for letter in marker for token in model.tokenize(f"<b>{letter}")[2:]]
            chat = model.tokenize(messages=[{"role": "user", "content": f"{marker} <b>"}])
            assert bold in chat and not {user, deepseek} & set(chat)
