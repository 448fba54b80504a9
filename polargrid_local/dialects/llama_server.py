"""llama-server: a request to its own completions, and the answer in its words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, cast

from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.plain import shown
from polargrid_local.api.replies import PromptProgress, ServerTimings
from polargrid_local.api.requests import Sampling
from polargrid_local.api.timings import prompt_timings, server_timings
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Refusal, Words, account_of, event
from polargrid_local.dialects.fields import Fields
from polargrid_local.dialects.logprobs import token_entries, token_probs
from polargrid_local.errors import refused

SAME = (
    *Sampling.model_fields,
    "seed",
    "stop",
    "grammar",
    "json_schema",
    "ignore_eos",
    "lora",
    "post_sampling_probs",
    "samplers",
    "return_progress",
)
RENAMED = {"n_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
OUR_NAMES = {ours: theirs for theirs, ours in RENAMED.items()}
DEFAULTS: Words = {OUR_NAMES.get(name, name): field.get_default() for name, field in Sampling.model_fields.items()}
DEFAULTS["seed"] = -1  # another one for every answer
DEFAULTS["logit_bias"] = []
DEFAULTS |= {"adaptive_target": -1.0, "adaptive_decay": 0.9}  # a sampler that is not here: off
HARMLESS = ("cache_prompt", "id_slot", "n_discard", "n_keep")
CANNOT: dict[str, tuple[Any, ...]] = {
    "image_data": ([],),
    "min_keep": (0, 1),  # one is always kept
    "n": (1,),
    "n_cmpl": (1,),
    "n_indent": (0,),
    "t_max_predict_ms": (0, -1),
}


class LlamaCompletionReply(TypedDict):
    """The whole answer to a prompt, or the last event of a streamed one; in its other events `content`, `tokens` and
    `stop: false`. With `response_fields` its parts by their paths, and no others."""

    index: int  # of the prompt
    content: str
    tokens: list[int]  # of the content: in events, and where `return_tokens` asks for them
    stop: bool
    model: str
    prompt: NotRequired[str]  # of text, as it was sent
    tokens_predicted: int
    tokens_evaluated: int
    stop_type: str  # eos, limit, word, or none: a filter of this server's
    stopping_word: str
    truncated: bool
    has_new_line: bool
    generation_settings: dict[str, Any]  # what the request gave, and how all else was sampled
    timings: ServerTimings  # of all prompts together; with `timings_per_token` in every event
    prompt_progress: NotRequired[PromptProgress]
    completion_probabilities: NotRequired[list[dict[str, Any]]]


class LlamaEmbeddingReply(TypedDict):
    """Of one prompt. `embedding` has one row."""

    index: int
    embedding: list[list[float]]


class LlamaExchange(Exchange):
    """What its requests have in common: the form of errors."""

    timed = True

    @staticmethod
    def error(refusal: Refusal) -> Words:
        message = refusal.named({**OUR_NAMES, "logprobs": "n_probs"}).message
        return {"error": {"code": refusal.status, "message": message, "type": refusal.type, **refusal.counts}}

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        yield event(self.error(refusal))


class LlamaCompletion(LlamaExchange):
    """/completion: the answer to one prompt, or a list of those to several."""

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        fields = Fields(body, "", self.ignored)
        self.streaming = fields.get("stream", bool) is True
        given = {name: body[name] for name in (*SAME, *RENAMED, "logit_bias") if body.get(name) is not None}
        self._settings = DEFAULTS | given
        self.body = {**self._prompt(fields), **fields.take("model", *SAME, **RENAMED)}
        self.body["return_token_ids"] = True  # which are counted, too, where there are several prompts
        self._tells_tokens = fields.get("return_tokens", bool) is True
        self._paths = _paths(fields)
        if (bias := fields.any("logit_bias")) is not None:
            self.body["logit_bias"] = _pairs(bias)
        if self.body.get("max_tokens") == -2:  # as -1: what the context leaves
            self.body["max_tokens"] = -1
        if n_probs := fields.get("n_probs", int):
            self.body["logprobs"] = n_probs
        self._n_probs = n_probs or 0
        self._after_sampling = self.body.get("post_sampling_probs") is True
        self._timings_per_token = fields.get("timings_per_token", bool) is True
        if self.streaming:
            self.body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        else:
            self.body["timings_per_token"] = True  # of which a whole answer has the last
        fields.skip(*HARMLESS, *(name for name in body if str(name).startswith("speculative.")))
        fields.refuse(CANNOT)
        fields.end()
        self._known: Words = {}  # model, usage and timings, as far as they have been said
        self._answers: dict[int, _Answer] = defaultdict(_Answer)  # by the index of the prompt

    def _prompt(self, fields: Fields) -> Words:
        """The fields of our request that say what the answer follows."""
        prompts = _prompts(fields, "prompt")
        self._several = not _is_single(prompts)
        return {"prompt": prompts}

    def reply(self, answer: Mapping[str, Any]) -> Any:
        self._known |= account_of(answer)
        replies = []
        for choice in answer["choices"]:
            self._answers[choice["index"]].add(choice)
            more = _tokens(choice) if self._tells_tokens else {}
            replies.append(self._last(choice, choice["text"], **more, **self._probabilities(choice)))
        return replies if self._several else replies[0]

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        self._known |= account_of(chunk)
        for choice in chunk["choices"]:
            self._answers[choice["index"]].add(choice)
            more = self._probabilities(choice) | _tokens(choice)
            if choice["text"]:
                more["content"] = choice["text"]
            if "prompt_progress" in chunk:
                more["prompt_progress"] = chunk["prompt_progress"]
            if more and self._timings_per_token:
                more["timings"] = self._timings_of(chunk, choice["index"])
            if more:
                index = choice["index"]
                counts = self._counts(index)
                yield event({"index": index, "content": "", "tokens": [], "stop": False, **counts, **more})
            if choice["finish_reason"]:
                yield event(self._last(choice, ""))

    def end(self) -> Iterable[bytes]:
        return ()

    def _counts(self, index: int) -> Words:
        """Our usage is that of all prompts; of each one among several its own tokens are counted."""
        usage, answer = self._known.get("usage", {}), self._answers[index]
        predicted, evaluated = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)
        if self._several:
            predicted, evaluated = answer.n_tokens, answer.n_prompt
        return {"tokens_predicted": predicted, "tokens_evaluated": evaluated}

    def _last(self, choice: Mapping[str, Any], content: str, **more: Any) -> Words:
        """What is told of an answer that has ended, as far as it is asked for."""
        reason, word = choice["finish_reason"], choice.get("stop_reason")
        stop_type = {"stop": "eos", "length": "limit"}.get(reason, "none")
        told: Words = {
            "index": choice["index"],
            "content": content,
            "tokens": [],
            "stop": True,
            "model": self._known["model"],
            **self._counts(choice["index"]),
            "stop_type": "word" if isinstance(word, str) else stop_type,
            "stopping_word": word if isinstance(word, str) else "",
            "truncated": self._is_cut_by_context(choice),
            "has_new_line": self._answers[choice["index"]].has_new_line,
            "generation_settings": self._settings | self._seed(),
            **self._asked(choice["index"]),
            "timings": self._timings(),
            **more,
        }
        return told if not self._paths else _parts(told, self._paths)

    def _probabilities(self, choice: Mapping[str, Any]) -> Words:
        """Of the tokens told, where they are asked for."""
        if not choice.get("logprobs"):
            return {}
        told = token_probs if self._after_sampling else token_entries
        return {"completion_probabilities": told(choice["logprobs"], self._n_probs)}

    def _is_cut_by_context(self, choice: Mapping[str, Any]) -> bool:
        """Whether the context was full before the answer had as many tokens as it may have."""
        most = self.body.get("max_tokens")
        n_said = self._counts(choice["index"])["tokens_predicted"]
        return choice["finish_reason"] == "length" and most is not None and (most < 0 or n_said < most)

    def _asked(self, index: int) -> Words:
        prompt = self.body["prompt"][index] if self._several else self.body["prompt"]
        return {"prompt": prompt} if isinstance(prompt, str) else {}

    def _seed(self) -> Words:
        """That of the answer, where it is told."""
        metadata = self._known.get("pg_metadata", {})
        return {"seed": metadata["seed"]} if "seed" in metadata else {}

    def _timings_of(self, chunk: Mapping[str, Any], index: int) -> ServerTimings:
        if "prompt_progress" not in chunk:
            return self._timings()
        return prompt_timings(chunk["prompt_progress"], self._answers[index].began(chunk["prompt_progress"]))

    def _timings(self) -> ServerTimings:
        """What is known of them."""
        usage = self._known.get("usage", {})
        times = {"cached_tokens": self._known.get("pg_metadata", {}).get("cached_tokens", 0)}
        times |= self._known.get("timings", {})
        if "predicted_n" in times:  # a whole answer tells them as they are to be told here
            return cast(ServerTimings, self._known["timings"])
        return server_timings(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), times)


class LlamaEmbedding(LlamaExchange):
    """/embedding: of each prompt one vector, in a list of its own. `input` is another name of `content`."""

    streams = False

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        fields = Fields(body, "", self.ignored)
        name = "content" if fields.has("content") or not fields.has("input") else "input"
        self.body = {"input": _prompts(fields, name), **fields.take("model", "dimensions")}
        fields.skip("user")
        fields.refuse({"embd_normalize": (2,), "encoding_format": ("float",)})
        fields.end()

    def reply(self, answer: Mapping[str, Any]) -> Any:
        return [{"index": row["index"], "embedding": [row["embedding"]]} for row in answer["data"]]

    @staticmethod
    def error(refusal: Refusal) -> Words:
        """Our parser knows the prompts as `input`."""
        return LlamaExchange.error(refusal.named({"input": "content"}))


class LlamaInfill(LlamaCompletion):
    """/infill: an answer between two texts. `prompt`, what has been typed at the gap, is the end of the first."""

    def _prompt(self, fields: Fields) -> Words:
        self._several = False
        prefix, typed = fields.need("input_prefix", str), fields.get("prompt", str) or ""
        words: Words = {"prompt": prefix + typed, "suffix": fields.need("input_suffix", str), "input_extra": []}
        return {**words, **fields.take("input_extra", "spm_infill")}

    def _asked(self, index: int) -> Words:
        return {}  # what the model reads is more than any one text of the request

    @staticmethod
    def error(refusal: Refusal) -> Words:
        """The suffix is what our request calls `input_suffix`."""
        return LlamaCompletion.error(refusal.named({"suffix": "input_suffix"}))


class _Answer:
    """What is kept of one while it is told."""

    def __init__(self) -> None:
        self.has_new_line = False
        self._began_ms: float | None = None  # to be read
        self.n_prompt = self.n_tokens = 0

    def began(self, progress: PromptProgress) -> float:
        """When its prompt began to be read, since submit: at its first progress."""
        if self._began_ms is None:
            self._began_ms = progress.get("time_ms", 0.0)
        return self._began_ms

    def add(self, choice: Mapping[str, Any]) -> None:
        self.has_new_line |= "\n" in choice["text"]
        self.n_tokens += len(choice.get("token_ids", ()))
        self.n_prompt += len(choice.get("prompt_token_ids", ()))


def _is_single(prompt: Any) -> bool:
    """Whether it is one prompt: a text, an object with one, or a list that has token ids in it."""
    return not isinstance(prompt, list) or any(isinstance(part, (int, float)) for part in prompt)


def _prompts(fields: Fields, field: str) -> Any:
    """One prompt as it is, also out of a list of one; several as a list."""
    given = fields.any(field)
    if _is_single(given):
        return _text_of(given, fields, field)
    prompts = [_text_of(prompt, fields, f"{field}[{i}]") for i, prompt in enumerate(given)]
    return prompts[0] if len(prompts) == 1 else prompts


def _text_of(prompt: Any, fields: Fields, place: str) -> Any:
    """That of `{"prompt_string": ...}`; all else as it is."""
    if not isinstance(prompt, dict):
        return prompt
    own = fields.inside(place, prompt)
    text = own.need("prompt_string", str)
    own.refuse({"multimodal_data": ([],)})
    own.end()
    return text


def _paths(fields: Fields) -> list[str]:
    """What of the reply is asked for; nothing: all of it."""
    paths = fields.get("response_fields", list) or []
    for i, path in enumerate(paths):
        if not isinstance(path, str):
            raise refused(
                f"response_fields[{i}]", f"must be a string, as content or timings/predicted_n; got {shown(path)}"
            )
    return paths


def _parts(told: Words, paths: Iterable[str]) -> Words:
    """What stands in it at each path, by that path; what is not there is left out."""
    parts: Words = {}
    for path in paths:
        found: Any = told
        for key in path.split("/"):
            found = found.get(key, _NOTHING) if isinstance(found, dict) else _NOTHING
        if found is not _NOTHING:
            parts[path] = found
    return parts


_NOTHING = object()


def _pairs(bias: Any) -> Any:
    """An object of texts, beside token ids or alone, as the pairs that our request has; all else as it is."""
    if not isinstance(bias, dict) or all(_TOKEN_ID.fullmatch(key) for key in bias):
        return bias
    return [[int(key) if _TOKEN_ID.fullmatch(key) else key, value] for key, value in bias.items()]


_TOKEN_ID = re.compile(r"-?[0-9]{1,20}")


def _tokens(choice: Mapping[str, Any]) -> Words:
    """Where there are any."""
    return {"tokens": choice["token_ids"]} if choice.get("token_ids") else {}
