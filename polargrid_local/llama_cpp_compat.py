"""Llama: programs written for llama-cpp-python, on this engine. `from polargrid_local.llama_cpp_compat import Llama`
replaces `from llama_cpp import Llama`.

Constructor, calls, defaults and replies are llama-cpp-python's. An argument that changes no answer (how memory is held,
which GPU has what, logging) is accepted; one that would change answers and cannot be honoured is a ValidationError that
names it, and so are the methods that work on a model's state token by token. What differs:

- Penalties. `repeat_penalty` looks at the prompt too, `last_n_tokens_size` tokens back; `frequency_penalty` and
  `presence_penalty` at the whole answer.
- Embeddings are one vector of length 1 per text. Of a model that says no pooling of its own, llama-cpp-python gives one
  vector per token; here `pooling_type=1` asks for their mean.
- `logprobs` need no `logits_all`, and an answer without a seed is another each time unless Llama() was given one.
- `logits_processor` and `stopping_criteria` need the model in this process: `isolation="thread"`. The functions are
  called by the engine's own thread, and `stopping_criteria` stand beside no grammar.
- A model that may choose among tools answers with calls, whatever `chat_format` is; forced calls are prompted for too.
- Further keywords of Llama() are options of Engine.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from typing_extensions import Never, Self

from polargrid_local.api.parse import parse_request
from polargrid_local.api.plain import shown
from polargrid_local.chat.formats import FORMATS, format_name
from polargrid_local.engine import Engine
from polargrid_local.errors import ValidationError, refused
from polargrid_local.streams import ChatStream

__all__ = ["Llama", "LlamaGrammar", "LogitsProcessorList", "StoppingCriteriaList"]

Words = dict[str, Any]
RANDOM_SEEDS = (None, -1, 0xFFFFFFFF)
NO_POOLING, MEAN_POOLING = (-1, 0), 1
CACHE_TYPES = {None: "f16", 1: "f16", 8: "q8_0"}  # by ggml's numbers
CHAT_FORMATS = {
    "chat_template.default": None,  # the model's own
    "chatml-function-calling": "chatml",
    "mistral-instruct": "mistral-v1",
    "qwen": "chatml",
}
# What would change answers and is not supported, with the value that asks for nothing.
ASKS_NOTHING: dict[str, Any] = {
    "attention_type": -1,
    "chat_handler": None,
    "kv_overrides": None,
    "lora_base": None,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "rope_scaling_type": -1,
    "spm_infill": False,
    "tfs_z": 1.0,
    "tokenizer": None,
    "vocab_only": False,
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_ext_factor": -1.0,
    "yarn_orig_ctx": 0,
}
# What this module asks of the engine, by the name of the argument that it came from.
THEIR_NAMES = {
    "cache_type": "type_k",
    "chat_template": "chat_format",
    "embeddings": "embedding",
    "flash_attention": "flash_attn",
    "lora": "lora_path",
    "lora[0]": "lora_path",
    "mirostat": "mirostat_mode",
    "mmap": "use_mmap",
    "model": "model_path",
    "repeat_last_n": "last_n_tokens_size",
    "repetition_penalty": "repeat_penalty",
}


@contextmanager
def _their_names() -> Iterator[None]:
    """A refusal in here names the argument that the caller knows."""
    try:
        yield
    except ValidationError as error:
        theirs = THEIR_NAMES.get(error.param or "")
        if theirs is None or type(error) is not ValidationError:
            raise
        raise refused(theirs, error.message.removeprefix(f"{error.param}: ")) from None


def _refuse(**given: Any) -> None:
    """Arguments that this engine cannot honour, unless they ask for nothing."""
    for name, value in given.items():
        if value != (nothing := ASKS_NOTHING[name]):
            raise refused(name, f"not supported by this engine; only {nothing!r} is accepted, got {shown(value)}")


def _low_level(name: str, instead: str) -> Callable[..., Never]:
    """A method that this class has not, as one that says what to use."""

    def method(*args: Any, **kwargs: Any) -> Never:
        raise refused(name, f"not supported: {instead}")

    return method


_ONE_CALL = "no state of the model can be driven token by token; use create_completion(prompt=[token ids], ...)"
_CACHED = "no state of the model can be taken out; the beginnings of earlier prompts are kept without it"


class LlamaGrammar:
    """A grammar in GBNF, or a JSON schema, that an answer is held to. It is read when an answer is asked for."""

    def __init__(self, constraint: Mapping[str, Any]) -> None:
        self.constraint = constraint  # the field of a request

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> Self:
        return cls({"grammar": grammar})

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> Self:
        with open(file, encoding="utf-8") as text:
            return cls.from_string(text.read())

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> Self:
        return cls({"json_schema": json_schema})


Function = Callable[[Any, Any], Any]


class LogitsProcessorList(list[Function]):
    """Functions of (token ids so far, logits (n_vocab,)) that return the logits to go on with, called in turn."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[Function]):
    """Functions of (token ids so far, logits (n_vocab,)), any of which ends the answer there by returning True."""

    def __call__(self, input_ids: Any, logits: Any) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class Llama:
    """A model in memory, with llama-cpp-python's methods. Safe from any thread; answers come one after the other unless
    `max_streams` says more."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, Any] | None = None,
        seed: int | None = 0xFFFFFFFF,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = -1,
        pooling_type: int = -1,
        attention_type: int = -1,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | os.PathLike[str] | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: Any = None,
        draft_model: Any = None,
        tokenizer: Any = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        """`model_path`: a .gguf file, or a name of the catalogue. `n_ctx=0`: the model's own context, as far as it fits
        into memory; `n_gpu_layers=-1`: as many as fit. `flash_attn=None`: as the engine does without being told.
        `draft_model`: a path is a model that drafts; anything else asks for what the engine does anyway."""
        _refuse(
            vocab_only=vocab_only,
            kv_overrides=kv_overrides or None,
            rope_scaling_type=-1 if rope_scaling_type is None else rope_scaling_type,
            attention_type=attention_type,
            rope_freq_base=rope_freq_base,
            rope_freq_scale=rope_freq_scale,
            yarn_ext_factor=yarn_ext_factor,
            yarn_attn_factor=yarn_attn_factor,
            yarn_beta_fast=yarn_beta_fast,
            yarn_beta_slow=yarn_beta_slow,
            yarn_orig_ctx=yarn_orig_ctx,
            lora_base=lora_base,
            chat_handler=chat_handler,
            tokenizer=tokenizer,
            spm_infill=spm_infill,
        )
        asked: Words = {
            "n_gpu_layers": min(n_gpu_layers, 10_000),  # programs write huge numbers for "all"
            "n_ctx": n_ctx,
            "n_threads": n_threads or 0,
            "n_batch": min(max(n_batch, 32), 8192),
            "cache_type": _cache_type(type_k, type_v),
            "mmap": use_mmap,
            "embeddings": embedding,
            "max_streams": 1,
        }
        if flash_attn is not None:
            asked["flash_attention"] = flash_attn
        if (template := _chat_template(chat_format)) is not None:
            asked["chat_template"] = template
        if lora_path is not None:
            asked["lora"] = [(lora_path, lora_scale)]
        if isinstance(draft_model, (str, os.PathLike)):
            asked["draft_model"] = draft_model
        with _their_names():
            self._engine = Engine(model_path, **{**asked, **options})
        self._info = self._engine.info()
        self.model_path = os.fspath(model_path)
        self.chat_format, self.verbose = chat_format, verbose
        self.metadata: dict[str, str] = self._info["metadata"]
        self.n_batch = min(n_batch, self._info["n_ctx"])
        self.last_n_tokens_size = last_n_tokens_size
        self._embedding, self._pooling_type = embedding, pooling_type
        self._seed = None if seed in RANDOM_SEEDS else seed

    # --- completions --------------------------------------------------------------------------------------------------

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = (),
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Any = None,
        logits_processor: Any = None,
        grammar: LlamaGrammar | str | None = None,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
    ) -> Any:
        """A dict with the continuation of a prompt; with `stream` an iterator of such dicts. `max_tokens` of None, 0 or
        less: what the context leaves. What is wrong with the arguments is raised here."""
        fields = self._fields(
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            top_k=top_k,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
        )
        fields |= self._limits(max_tokens, stop, seed, grammar, logit_bias)
        fields |= {
            "logits_processor": [*_functions(logits_processor), *self._enders(stopping_criteria, grammar)],
            "prompt": self._empty_prompt() if isinstance(prompt, (str, list)) and not prompt else prompt,
            "suffix": suffix or "",
            "logprobs": logprobs,
            "echo": bool(echo) and not stream,  # llama-cpp-python's streams have no echo
        }
        request = _request("completion", fields)
        form = _CompletionForm(model or self.model_path, 0 if echo else len(prompt))
        if stream:
            return _streamed(self._engine.completion_stream(request), form.chunk)
        return form.reply(self._engine.completion(request))

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Any],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: str | Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = (),
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Any = None,
        grammar: LlamaGrammar | str | None = None,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Any:
        """A dict with the answer to a chat; with `stream` an iterator of its chunks. What is wrong with the arguments
        is raised here."""
        fields = self._fields(
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            top_k=top_k,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
        )
        fields |= self._limits(max_tokens, stop, seed, grammar, logit_bias)
        fields |= _tools(functions, function_call, tools, tool_choice)
        fields |= {
            "messages": messages,
            "logits_processor": _functions(logits_processor),
            "response_format": response_format,
            "logprobs": logprobs,
            "top_logprobs": top_logprobs if logprobs else None,
        }
        request = _request("chat", fields)
        form = _ChatForm(model or self.model_path)
        if stream:
            return _streamed(self._engine.chat_completion_stream(request), form.chunk)
        return form.reply(self._engine.chat_completion(request))

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """As create_chat_completion, in classes of the package `openai`."""
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return ChatCompletion.model_validate(answer)
        return map(ChatCompletionChunk.model_validate, answer)

    def _fields(
        self,
        *,
        temperature: float,
        repeat_penalty: float,
        tfs_z: float,
        mirostat_mode: int,
        **same: float,
    ) -> Words:
        """Those of sampling. A temperature below 0 is, as in llama-cpp-python, a draw from all that the model says."""
        given = {
            "temperature": temperature,
            "repetition_penalty": repeat_penalty,
            "repeat_last_n": self.last_n_tokens_size,
            "mirostat": mirostat_mode,
            **same,
        }
        _refuse(tfs_z=tfs_z)
        for name, value in given.items():
            if value is None:
                raise refused(THEIR_NAMES.get(name, name), "must be a number, got None")
        if isinstance(temperature, (int, float)) and temperature < 0:
            given |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "mirostat": 0}
        return given

    def _limits(
        self,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        seed: int | None,
        grammar: LlamaGrammar | str | None,
        logit_bias: Mapping[Any, float] | None,
    ) -> Words:
        """What ends an answer, and what it is held to."""
        if isinstance(grammar, str):
            grammar = LlamaGrammar.from_string(grammar)
        if not isinstance(grammar, (LlamaGrammar, type(None))):
            raise refused("grammar", f"must be a LlamaGrammar of this module, or its text; got {shown(grammar)}")
        return {
            "max_tokens": -1 if max_tokens is None or (isinstance(max_tokens, int) and max_tokens <= 0) else max_tokens,
            "stop": stop,
            "seed": self._next_seed(seed),
            # Minus infinity is a common word for "never", for which -100 does.
            "logit_bias": {token: max(bias, -100) for token, bias in (logit_bias or {}).items()},
            **(grammar.constraint if grammar else {}),
        }

    def _enders(self, stopping_criteria: Any, grammar: Any) -> list[Function]:
        """As what leaves nothing to say but the end, once one of them says so."""
        criteria, end = _functions(stopping_criteria), self.token_eos()
        for criterion in criteria:
            if not callable(criterion):
                raise refused("stopping_criteria", f"must be functions of (token ids, logits), got {shown(criterion)}")
        if criteria and grammar is not None:
            raise refused("stopping_criteria", "is not supported beside a grammar, which may not let the answer end")
        if criteria and end < 0:
            raise refused("stopping_criteria", "is not supported for this model, which names no token that ends a text")

        def end_if_met(input_ids: Any, logits: Any) -> None:
            if any(criterion(input_ids, logits) for criterion in criteria):
                logits[:] = float("-inf")
                logits[end] = 0

        return [end_if_met] if criteria else []

    def _empty_prompt(self) -> str | list[int]:
        """An empty prompt: the token that begins every text, where the model has one."""
        return [self.token_bos()] if self.token_bos() >= 0 else ""

    def _next_seed(self, seed: int | None) -> int | None:
        """Of one answer. The seed of the object leads to another one each time, always the same ones."""
        if seed is not None:
            self.set_seed(seed)
        elif self._seed is not None:
            self._seed = random.Random(self._seed).randrange(2**32)
        return self._seed

    # --- embeddings ---------------------------------------------------------------------------------------------------

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Words:
        """A vector of length 1 per text."""
        texts = [input] if isinstance(input, str) else input
        vectors, count = self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)],
            "model": model or self.model_path,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def embed(
        self, input: str | Sequence[str], normalize: bool = True, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """The vector of a text, or a list of those of several; with `return_count` beside the number of tokens.
        `truncate`: of a text are read as many tokens as a batch has."""
        if not self._embedding:
            raise refused("embedding", "must be True in Llama(...) for embeddings")
        if not normalize:
            raise refused("normalize", "vectors have length 1 here; False is not supported")
        self._check_pooling()
        texts = [input] if isinstance(input, str) else list(input)
        inputs = [self._beginning(text) if truncate else text for text in texts]
        reply = self._engine.embeddings(_request("embedding", {"input": inputs}))
        vectors = [item["embedding"] for item in reply["data"]]
        answer = vectors[0] if isinstance(input, str) else vectors
        return (answer, reply["usage"]["prompt_tokens"]) if return_count else answer

    def _beginning(self, text: str) -> str | list[int]:
        tokens = self._engine.tokenize(text, unlimited=True)
        return tokens[: self.n_batch] if len(tokens) > self.n_batch else text

    def _check_pooling(self) -> None:
        own, asked = self.pooling_type(), self._pooling_type
        if own in NO_POOLING and asked in NO_POOLING:
            problem = (
                f"this model has no pooling of its own, and one vector per token is not supported; {MEAN_POOLING} "
                f"in Llama(...) asks for their mean"
            )
            raise refused("pooling_type", problem)
        if asked not in (-1, MEAN_POOLING if own in NO_POOLING else own):
            raise refused("pooling_type", f"only -1 or the model's own are supported; got {shown(asked)}")

    # --- tokens and the model -----------------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """`special`: control tokens written in the text are control tokens."""
        if not isinstance(text, bytes):
            raise refused("text", f"must be bytes, got {type(text).__name__}")
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            raise refused("text", f"must be UTF-8; byte {error.start} is not") from None
        return self._engine.tokenize(decoded, unlimited=True, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """`special`: control tokens by their names, else left out. `prev_tokens` come before, and are not told."""
        before = list(prev_tokens or ())
        for token in [*before, *tokens]:
            if not 0 <= token < self.n_vocab():
                raise refused("tokens", f"must be ids in 0..{self.n_vocab() - 1}, got {shown(token)}")
        told = len(self._engine.detokenize_bytes(before, special=special))
        return self._engine.detokenize_bytes([*before, *tokens], special=special)[told:]

    def n_ctx(self) -> int:
        return self._info["n_ctx"]

    def n_vocab(self) -> int:
        return self._info["n_vocab"]

    def n_embd(self) -> int:
        return self._info["n_embd"]

    def token_bos(self) -> int:
        """-1: the model has none."""
        return self._info["control_tokens"].get(self._info["bos_text"], -1)

    def token_eos(self) -> int:
        """-1: the model has none."""
        return self._info["control_tokens"].get(self._info["eos_text"], -1)

    def token_nl(self) -> int:
        return self.tokenize(b"\n", add_bos=False)[-1]

    def pooling_type(self) -> int:
        """What the file says, by llama.cpp's numbers: -1 is nothing, 0 none, 1 mean, 2 first, 3 last token, 4 rank."""
        return int(self.metadata.get(f"{self._info['architecture']}.pooling_type", -1))

    def set_seed(self, seed: int | None) -> None:
        """-1: a new one for each answer."""
        self._seed = None if seed in RANDOM_SEEDS else seed

    def set_cache(self, cache: Any) -> None:
        """The beginnings of earlier prompts are kept without it."""

    def reset(self) -> None:
        """No answer depends on those before it."""

    def close(self) -> None:
        """Frees the model. Idempotent."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Never:
        problem = "downloads nothing; `polargrid-local pull hf:owner/repo/file.gguf` does, and prints the model_path"
        raise refused("from_pretrained", problem)

    eval = _low_level("eval", _ONE_CALL)
    sample = _low_level("sample", _ONE_CALL)
    generate = _low_level("generate", _ONE_CALL)
    save_state = _low_level("save_state", _CACHED)
    load_state = _low_level("load_state", _CACHED)
    tokenizer = _low_level("tokenizer", "use tokenize() and detokenize()")


# --- arguments --------------------------------------------------------------------------------------------------------


def _request(kind: str, fields: Words) -> Any:
    with _their_names():
        return parse_request(kind, None, fields, max_tokens_limit=None)


def _functions(given: Any) -> list[Any]:
    """One function, or a list of them."""
    return list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]


def _cache_type(type_k: int | None, type_v: int | None) -> str:
    for name, value in (("type_k", type_k), ("type_v", type_v)):
        if value not in CACHE_TYPES:
            raise refused(name, f"must be 1 (f16) or 8 (q8_0), got {shown(value)}")
    if CACHE_TYPES[type_k] != CACHE_TYPES[type_v]:
        raise refused("type_v", f"must be what type_k is, {CACHE_TYPES[type_k]}; got {CACHE_TYPES[type_v]}")
    return CACHE_TYPES[type_k]


def _chat_template(chat_format: str | None) -> str | None:
    if chat_format is None or chat_format in CHAT_FORMATS:
        return CHAT_FORMATS.get(chat_format or "")
    if name := format_name(chat_format):
        return name
    known = ", ".join(sorted({*FORMATS, *CHAT_FORMATS}))
    raise refused("chat_format", f"must be one of {known}, or None for the model's own; got {shown(chat_format)}")


def _tools(functions: Any, function_call: Any, tools: Any, tool_choice: Any) -> Words:
    """`functions` and `function_call` are the older names of tools."""
    if functions is not None:
        tools = [{"type": "function", "function": function} for function in functions]
    if isinstance(function_call, Mapping) and "name" in function_call:
        tool_choice = {"type": "function", "function": {"name": function_call["name"]}}
    elif function_call is not None:
        tool_choice = function_call
    return {"tools": tools, "tool_choice": tool_choice}


# --- replies ----------------------------------------------------------------------------------------------------------


def _streamed(stream: ChatStream[Any], form: Callable[[Any], Words]) -> Iterator[Words]:
    with stream:
        for chunk in stream:
            yield form(chunk)


def _usage(answer: Any) -> Words:
    return {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}


class _Form:
    """An answer of ours, or a chunk of one, with llama-cpp-python's keys."""

    def __init__(self, model: str) -> None:
        self.model = model

    def reply(self, answer: Any) -> Words:
        return {**self.chunk(answer), "usage": _usage(answer)}

    def chunk(self, chunk: Any) -> Words:
        return {
            "id": chunk["id"],
            "object": chunk["object"],
            "created": chunk["created"],
            "model": self.model,
            "choices": [self._choice(choice) for choice in chunk["choices"]],
        }

    def _choice(self, choice: Any) -> Words:
        raise NotImplementedError


class _CompletionForm(_Form):
    """`offset`: where the text of the answer begins, behind a prompt that is not in it."""

    def __init__(self, model: str, offset: int) -> None:
        super().__init__(model)
        self.offset = offset

    def _choice(self, choice: Any) -> Words:
        logprobs = choice.get("logprobs")
        if logprobs:
            logprobs = {**logprobs, "text_offset": [self.offset + offset for offset in logprobs["text_offset"]]}
        return {
            "text": choice["text"],
            "index": choice["index"],
            "logprobs": logprobs or None,
            "finish_reason": choice["finish_reason"],
        }


class _ChatForm(_Form):
    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._calls: dict[int, Words] = {}  # of a stream, as far as they have been told

    def _choice(self, choice: Any) -> Words:
        said = "message" if "message" in choice else "delta"
        logprobs = choice.get("logprobs")
        return {
            "index": choice["index"],
            said: self._message(choice["message"]) if said == "message" else self._delta(choice["delta"]),
            "logprobs": {**logprobs, "refusal": None} if logprobs else None,
            "finish_reason": choice["finish_reason"],
        }

    def _message(self, message: Any) -> Words:
        """With the first call under its older name, too."""
        calls = message.get("tool_calls")
        return {**message, "function_call": calls[0]["function"]} if calls else message

    def _delta(self, delta: Any) -> Words:
        """Every piece of a call says which it is, as readers of llama-cpp-python's streams expect."""
        pieces = []
        for piece in delta.get("tool_calls", ()):
            call = self._calls.setdefault(piece["index"], piece)
            function = {"name": call["function"]["name"], "arguments": piece["function"]["arguments"]}
            pieces.append({"index": piece["index"], "id": call["id"], "type": "function", "function": function})
        if not pieces:
            return dict(delta)
        first = {"function_call": pieces[0]["function"]} if pieces[0]["index"] == 0 else {}
        return {**delta, "tool_calls": pieces, **first}
