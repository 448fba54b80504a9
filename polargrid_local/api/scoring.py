"""Scoring: how likely a model finds a text that it did not write, out of a completion that echoes it."""

from __future__ import annotations

from polargrid_local.api.params import CompletionParams
from polargrid_local.api.replies import CompletionResponse, Score


def score_fields(prompt: str, continuation: str) -> CompletionParams:
    """Those of the completion that scored() reads."""
    return {"prompt": prompt + continuation, "max_tokens": 0, "echo": True, "logprobs": 1, "parse_special": False}


def scored(reply: CompletionResponse, prompt: str) -> Score:
    """Of the tokens that reach beyond the end of `prompt`. A first token is passed over: nothing foretold it."""
    told = reply["choices"][0]["logprobs"]
    assert told is not None
    ends = [*told["text_offset"][1:], len(reply["choices"][0]["text"])]
    score: Score = {"logprob": 0.0, "tokens": [], "token_logprobs": [], "greedy": True}
    for token, logprob, top, end in zip(
        told["tokens"], told["token_logprobs"], told["top_logprobs"], ends, strict=True
    ):
        if end > len(prompt) and logprob is not None and top is not None:
            score["tokens"].append(token)
            score["token_logprobs"].append(logprob)
            score["greedy"] = score["greedy"] and logprob >= max(top.values())
    score["logprob"] = sum(score["token_logprobs"])
    return score
