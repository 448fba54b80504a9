"""Answers between two texts, of a model whose vocabulary has the tokens for that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_model

from polargrid_local import Engine, ValidationError

EXTRA = [{"filename": "a.py", "text": "the cat"}, {"text": "it was"}]


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tiny_model.write_filler(tmp_path_factory.mktemp("filler") / "filler.gguf")
    with Engine(path, n_ctx=256, max_streams=1) as engine:
        yield engine


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({}, "<|fim_prefix|>the <|fim_suffix|> and<|fim_middle|>"),
        ({"spm_infill": True}, "<|fim_suffix|> and<|fim_prefix|>the <|fim_middle|>"),
        (
            {"input_extra": EXTRA},
            "<|repo_name|>myproject\n<|file_sep|>a.py\nthe cat<|file_sep|>tmp\nit was<|file_sep|>filename\n"
            "<|fim_prefix|>the <|fim_suffix|> and<|fim_middle|>",
        ),
    ],
)
def test_the_prompt_is_what_such_models_read(filler: Engine, fields: dict[str, object], written: str) -> None:
    asked = {"prompt": "the ", "suffix": " and", "max_tokens": 4, "temperature": 0, **fields}
    (choice,) = filler.completion(asked, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == filler.tokenize(written, parse_special=True)
    assert choice["text"] == filler.completion(prompt=written, max_tokens=4, temperature=0)["choices"][0]["text"]


def test_texts_have_no_tokens_of_their_own(filler: Engine) -> None:
    said = filler.completion(prompt="<|fim_suffix|>", suffix="<|fim_middle|>", max_tokens=1, return_token_ids=True)
    ids = said["choices"][0]["prompt_token_ids"]
    control = {filler.tokenize(text, add_special=False, parse_special=True)[0] for text in tiny_model.FILLS}
    assert sum(id in control for id in ids) == 3


def test_too_long_is_an_error(filler: Engine) -> None:
    with pytest.raises(ValidationError) as caught:
        filler.completion(prompt="the " * 200, suffix=" and" * 200, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"


def test_a_model_without_such_tokens_says_so(tmp_path: Path) -> None:
    with Engine(tiny_model.write_random(tmp_path / "random.gguf"), n_ctx=64, max_streams=1) as engine:
        with pytest.raises(ValidationError, match="cannot fill a gap") as caught:
            engine.completion(prompt="the", suffix="and")
        assert caught.value.param == "suffix"
