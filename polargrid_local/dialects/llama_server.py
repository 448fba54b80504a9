"""llama-server: a request to its own completions, and the answer in its words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.replies import PromptProgress, ServerTimings
from polargrid_local.api.requests import Sampling
from polargrid_local.api.timings import server_timings
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Refusal, Words, account_of, event
from polargrid_local.dialects.fields import Fields
from polargrid_local.dialects.logprobs import token_entries
from polargrid_local.errors import refused

SAME = (
    *Sampling.model_fields,
    "seed",
    "stop",
    "grammar",
    "json_schema",
    "ignore_eos",
    "logit_bias",
    "lora",
    "samplers",
    "return_progress",
)
RENAMED = {"n_predict": "max_tokens", "repeat_penalty": "repetition_penalty", "return_tokens": "return_token_ids"}
OUR_NAMES = {ours: theirs for theirs, ours in RENAMED.items()}
DEFAULTS: Words = {OUR_NAMES.get(name, name): field.get_default() for name, field in Sampling.model_fields.items()}
DEFAULTS["seed"] = -1  # another one for every answer
HARMLESS = ("cache_prompt", "id_slot", "n_discard", "n_keep")
CANNOT: dict[str, tuple[Any, ...]] = {
    "image_data": ([],),
    "min_keep": (0, 1),  # one is always kept
    "n": (1,),
    "n_cmpl": (1,),
    "n_indent": (0,),
    "post_sampling_probs": (False,),
    "response_fields": ([],),
    "t_max_predict_ms": (0, -1),
}


class LlamaCompletionReply(TypedDict):
    """The whole answer, or the last event of a streamed one; in its other events `content`, `tokens` and
    `stop: false`."""

    index: int
    content: str
    tokens: list[int]  # of the content, where `return_tokens` asks for them
    stop: bool
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    stop_type: str  # eos, limit, word, or none: a filter of this server's
    stopping_word: str
    truncated: bool
    has_new_line: bool
    generation_settings: dict[str, Any]  # what the request gave, and how all else was sampled
    timings: ServerTimings  # with `timings_per_token` in every event
    prompt_progress: NotRequired[PromptProgress]
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
        given = {name: body[name] for name in (*SAME, *RENAMED) if body.get(name) is not None}
        self._settings = DEFAULTS | given
        self._new_line = False
        self.body = {**self._prompt(fields), **fields.take("model", *SAME, **RENAMED)}
        if self.body.get("max_tokens") == -2:  # as -1: what the context leaves
            self.body["max_tokens"] = -1
        if n_probs := fields.get("n_probs", int):
            self.body["logprobs"] = n_probs
        self._timings_per_token = fields.get("timings_per_token", bool) is True
        if self.streaming:
            self.body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        fields.skip(*HARMLESS, *(name for name in body if str(name).startswith("speculative.")))
        fields.refuse(CANNOT)
        fields.end()
        self._known: Words = {}  # model, usage and timings, as far as they have been said
        self._choice: Mapping[str, Any] = {}  # with the reason of the end

    def _prompt(self, fields: Fields) -> Words:
        """The fields of our request that say what the answer follows."""
        return {"prompt": _single(fields.any("prompt"))}

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        self._known |= account_of(answer)
        (self._choice,) = answer["choices"]
        self._new_line = "\n" in self._choice["text"]
        return self._last(self._choice["text"]) | _tokens(self._choice) | _probabilities(self._choice)

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        self._known |= account_of(chunk)
        for choice in chunk["choices"]:
            if choice["finish_reason"]:
                self._choice = choice
            self._new_line |= "\n" in choice["text"]
            more = _probabilities(choice) | _tokens(choice) | ({"content": choice["text"]} if choice["text"] else {})
            if "prompt_progress" in chunk:
                more["prompt_progress"] = chunk["prompt_progress"]
            if more and self._timings_per_token:
                more["timings"] = self._timings()
            if more:
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
            "has_new_line": self._new_line,
            "generation_settings": self._settings | self._seed(),
            "timings": self._timings(),
        }

    def _seed(self) -> Words:
        """That of the answer, where it is told."""
        metadata = self._known.get("pg_metadata", {})
        return {"seed": metadata["seed"]} if "seed" in metadata else {}

    def _timings(self) -> ServerTimings:
        """What is known of them."""
        counts = self._counts()
        times = {"cached_tokens": self._known.get("pg_metadata", {}).get("cached_tokens", 0)}
        times |= self._known.get("timings", {})
        return server_timings(counts["tokens_evaluated"], counts["tokens_predicted"], times)


class LlamaInfill(LlamaCompletion):
    """/infill: an answer between two texts. `prompt`, what has been typed at the gap, is the end of the first."""

    def _prompt(self, fields: Fields) -> Words:
        prefix, typed = fields.need("input_prefix", str), fields.get("prompt", str) or ""
        words: Words = {"prompt": prefix + typed, "suffix": fields.need("input_suffix", str), "input_extra": []}
        return {**words, **fields.take("input_extra", "spm_infill")}

    @staticmethod
    def error(refusal: Refusal) -> Words:
        """The suffix is what our request calls `input_suffix`."""
        message = refusal.message
        if refusal.param == "suffix" and message.startswith("suffix"):
            message = f"input_{message}"
        return LlamaCompletion.error(refusal._replace(message=message))


def _single(prompt: Any) -> Any:
    """One text, or the ids of its tokens."""
    if not isinstance(prompt, list) or (prompt and isinstance(prompt[0], (int, float))):
        return prompt
    if len(prompt) != 1:
        raise refused("prompt", f"must be one prompt, a string or a list of token ids; got {len(prompt)} of them")
    return prompt[0]


def _tokens(choice: Mapping[str, Any]) -> Words:
    """Where there are any."""
    return {"tokens": choice["token_ids"]} if choice.get("token_ids") else {}


def _probabilities(choice: Mapping[str, Any]) -> Words:
    logprobs = choice.get("logprobs")
    return {"completion_probabilities": token_entries(logprobs)} if logprobs else {}
