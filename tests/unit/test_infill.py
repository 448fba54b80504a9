"""The prompt of an answer that is to stand between two texts: which tokens come, in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest

from polargrid_local import Engine
from polargrid_local.api.infill import infill_prompt
from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.exchange import Moment, Refusal
from polargrid_local.dialects.llama_server import LlamaInfill
from polargrid_local.errors import ValidationError

NOW = Moment("0123456789abcdef01234567", 1767225600.25)
THREE = {"prefix": "<PRE>", "suffix": "<SUF>", "middle": "<MID>"}
ALL = {**THREE, "repo": "<REP>", "separator": "<SEP>"}
EXTRA = [{"filename": "a.py", "text": "A"}, {"text": "B"}]
NAMED = ["<REP>", "myproject\n", "<SEP>", "a.py\n", "A", "<SEP>", "tmp\n", "B", "<SEP>", "filename\n"]
UNNAMED = ["\n\n--- snippet ---\n\n", "A", "\n\n--- snippet ---\n\n", "B"]


def prompt(tokens: dict[str, Any], **fields: Any) -> list[Any]:
    """With each text as one token, which is the text itself."""
    asked = parse_request("completion", {"prompt": "p", "suffix": "s", **fields})
    return infill_prompt(asked, asked.prompts[0], tokens, lambda text: [text] if text else [], ["<BOS>"])


@pytest.mark.parametrize(
    ("tokens", "fields", "ids"),
    [
        (THREE, {}, ["<PRE>", "p", "<SUF>", "s", "<MID>"]),
        (ALL, {}, ["<PRE>", "p", "<SUF>", "s", "<MID>"]),
        (THREE, {"spm_infill": True}, ["<SUF>", "s", "<PRE>", "p", "<MID>"]),
        (ALL, {"prompt": [5, 6]}, ["<PRE>", 5, 6, "<SUF>", "s", "<MID>"]),
        (ALL, {"prompt": "", "suffix": "", "input_extra": []}, ["<PRE>", "<SUF>", "<MID>"]),
        (ALL, {"input_extra": EXTRA}, [*NAMED, "<PRE>", "p", "<SUF>", "s", "<MID>"]),
        (THREE, {"input_extra": EXTRA}, [*UNNAMED, "<PRE>", "p", "<SUF>", "s", "<MID>"]),
    ],
)
def test_the_tokens_of_the_prompt(tokens: dict[str, Any], fields: dict[str, Any], ids: list[Any]) -> None:
    assert prompt(tokens, **fields) == ["<BOS>", *ids]


def test_the_engine_is_given_tokens(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    ids = {"prefix": 101, "suffix": 102, "middle": 103}
    factory = fakes.factory(info={"infill_tokens": ids})
    with Engine("m", models_dir=tmp_path, engine_factory=factory) as engine:
        engine.completion(prompt="abc", suffix="de")
        assert factory.made[0].requests[-1]["prompt_tokens"] == [0, 101, 3, 102, 2, 103]  # a fake's token: its length
        for fields in ({"echo": True}, {"truncate_prompt_tokens": 5}):
            with pytest.raises(ValidationError) as caught:
                engine.completion(prompt="abc", suffix="de", **fields)
            assert caught.value.param == next(iter(fields))
    with Engine("m", models_dir=tmp_path, engine_factory=fakes.factory()) as engine:
        with pytest.raises(ValidationError, match="cannot fill a gap") as refused:
            engine.completion(prompt="abc", suffix="de")
        assert (refused.value.param, refused.value.code) == ("suffix", "not_supported")


def test_what_editors_send() -> None:
    body = {
        "input_prefix": "def f():\n    ",
        "prompt": "ret",
        "input_suffix": "",
        "input_extra": [{"filename": "a.py", "text": "A", "time": 5}],
        "n_predict": 7,
        "t_max_predict_ms": 0,
        "cache_prompt": True,
    }
    exchange = LlamaInfill(body, NOW, "completion")
    asked = parse_request("completion", exchange.body, max_tokens_limit=None, ignored=exchange.ignored)
    assert (asked.prompt, asked.suffix, asked.fills_gap, asked.max_tokens) == ("def f():\n    ret", "", True, 7)
    assert [extra.text for extra in asked.input_extra] == ["A"]
    assert exchange.ignored == ["input_extra[0].time"]
    for missing in ("input_prefix", "input_suffix"):
        with pytest.raises(ValidationError) as caught:
            LlamaInfill({name: value for name, value in body.items() if name != missing}, NOW, "completion")
        assert caught.value.param == missing
    told = LlamaInfill.error(Refusal("suffix: x", "", "", "suffix", 400))
    assert told["error"]["message"] == "input_suffix: x"
