"""llama-server: a request to its own completions, and the answer in its words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.plain import shown
from polargrid_local.api.requests import Sampling
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Refusal, Words, account_of, event
from polargrid_local.dialects.fields import Fields
from polargrid_local.dialects.logprobs import token_entries
from polargrid_local.errors import refused

SAME = (*Sampling.model_fields, "seed", "stop", "grammar", "json_schema", "ignore_eos")
RENAMED = {"n_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
HARMLESS = ("cache_prompt", "id_slot", "n_discard", "n_keep", "return_progress", "timings_per_token")
CANNOT: dict[str, tuple[Any, ...]] = {
    "image_data": ([],),
    "lora": ([],),
    "min_keep": (0,),
    "n": (1,),
    "n_cmpl": (1,),
    "n_indent": (0,),
    "post_sampling_probs": (False,),
    "response_fields": ([],),
    "return_tokens": (False,),
    "samplers": (),
    "t_max_predict_ms": (0, -1),
}
LEAST_BIAS = -100.0  # of a token that must not come


class LlamaCompletionReply(TypedDict):
    """The whole answer, or the last event of a streamed one; in its other events `content` and `stop: false`."""

    index: int
    content: str
    tokens: list[int]  # not told
    stop: bool
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    stop_type: str  # eos, limit, word, or none: a filter of this server's
    stopping_word: str
    truncated: bool
    generation_settings: dict[str, Any]  # what the request gave
    timings: dict[str, Any]
    completion_probabilities: NotRequired[list[dict[str, Any]]]


class LlamaExchange(Exchange):
    """What its requests have in common: the form of errors."""

    timed = True

    @staticmethod
    def error(refusal: Refusal) -> Words:
        message, param = refusal.message, refusal.param
        for theirs, ours in {**RENAMED, "n_probs": "logprobs"}.items():
            if param == ours:
                message = theirs + message.removeprefix(ours) if message.startswith(ours) else message
        return {"error": {"code": refusal.status, "message": message, "type": refusal.type}}

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        yield event(self.error(refusal))


class LlamaCompletion(LlamaExchange):
    """/completion"""

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        fields = Fields(body, "", self.ignored)
        self.streaming = fields.get("stream", bool) is True
        self._settings = {name: body[name] for name in (*SAME, *RENAMED) if body.get(name) is not None}
        self.body = {"prompt": _single(fields.any("prompt")), **fields.take("model", *SAME, **RENAMED)}
        if self.body.get("max_tokens") == -2:  # as -1: what the context leaves
            self.body["max_tokens"] = -1
        if n_probs := fields.get("n_probs", int):
            self.body["logprobs"] = n_probs
        self.body["logit_bias"] = _biases(fields.any("logit_bias"))
        if self.streaming:
            self.body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        fields.skip(*HARMLESS, *(name for name in body if str(name).startswith("speculative.")))
        fields.refuse(CANNOT)
        fields.end()
        self._known: Words = {}  # model, usage and timings, as far as they have been said
        self._choice: Mapping[str, Any] = {}  # with the reason of the end

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        self._known |= account_of(answer)
        (self._choice,) = answer["choices"]
        return self._last(self._choice["text"]) | _probabilities(self._choice)

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        self._known |= account_of(chunk)
        for choice in chunk["choices"]:
            if choice["finish_reason"]:
                self._choice = choice
            if more := _probabilities(choice) | ({"content": choice["text"]} if choice["text"] else {}):
                yield event({"index": 0, "content": "", "tokens": [], "stop": False, **self._counts(), **more})

    def end(self) -> Iterable[bytes]:
        yield event(self._last(""))

    def _counts(self) -> Words:
        usage = self._known.get("usage", {})
        predicted, evaluated = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)
        return {"tokens_predicted": predicted, "tokens_evaluated": evaluated}

    def _last(self, content: str) -> Words:
        reason, word = self._choice.get("finish_reason"), self._choice.get("stop_reason")
        stop_type = {"stop": "eos", "length": "limit"}.get(str(reason), "none")
        return {
            "index": 0,
            "content": content,
            "tokens": [],
            "stop": True,
            "model": self._known["model"],
            **self._counts(),
            "stop_type": "word" if isinstance(word, str) else stop_type,
            "stopping_word": word if isinstance(word, str) else "",
            "truncated": False,
            "generation_settings": self._settings,
            "timings": self._timings(),
        }

    def _timings(self) -> Words:
        """What is known of them."""
        counts = self._counts()
        times = self._known.get("timings", {})
        cached = times.get("cached_tokens", self._known.get("pg_metadata", {}).get("cached_tokens", 0))
        prompt_n, predicted_n = counts["tokens_evaluated"] - cached, counts["tokens_predicted"]
        told: Words = {"cache_n": cached, "prompt_n": prompt_n, "predicted_n": predicted_n}
        if times.get("prefill_ms") is None or times.get("total_ms") is None:
            return told
        prompt_ms = times["prefill_ms"] - (times["queue_ms"] or 0)
        return (
            told
            | _rate("prompt", prompt_n, prompt_ms)
            | _rate("predicted", predicted_n, times["total_ms"] - times["prefill_ms"])
        )


def _rate(name: str, n: int, ms: float) -> Words:
    rates = {f"{name}_per_token_ms": ms / n, f"{name}_per_second": n / ms * 1e3} if n and ms > 0 else {}
    return {f"{name}_ms": ms, **rates}


def _single(prompt: Any) -> Any:
    """One text, or the ids of its tokens."""
    if not isinstance(prompt, list) or (prompt and isinstance(prompt[0], (int, float))):
        return prompt
    if len(prompt) != 1:
        raise refused("prompt", f"must be one prompt, a string or a list of token ids; got {len(prompt)} of them")
    return prompt[0]


def _biases(given: Any) -> Words:
    """Of token ids: an object, or a list of pairs in which `false` is a token that must not come."""
    if given is None:
        return {}
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list):
        raise refused("logit_bias", "must be a list of [token id, bias], or an object")
    biases: Words = {}
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise refused(f"logit_bias[{i}]", f"must be a token id and its bias, got {shown(pair)}")
        token, bias = pair
        number = token.isascii() and token.isdigit() if isinstance(token, str) else type(token) is int
        if not number:
            raise refused(f"logit_bias[{i}]", f"only token ids are accepted here, no texts; got {shown(token)}")
        biases[token] = LEAST_BIAS if bias is False else bias
    return biases


def _probabilities(choice: Mapping[str, Any]) -> Words:
    logprobs = choice.get("logprobs")
    return {"completion_probabilities": token_entries(logprobs)} if logprobs else {}
