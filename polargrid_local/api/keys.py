"""Keys: which keys each mapping of a request may have, and what becomes of all others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from polargrid_local.api.plain import path, shown
from polargrid_local.api.requests import (
    KINDS,
    MAX_LOGPROBS,
    FunctionCall,
    FunctionDefinition,
    ImagePart,
    InfillExtra,
    LoraScale,
    Message,
    Prediction,
    TextPart,
    Tool,
    ToolCall,
)
from polargrid_local.errors import did_you_mean, refused

# Fields that OpenAI's clients send and the request models lack. These never change an answer, and are accepted:
NO_EFFECT = frozenset(
    (
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
    )
)
# So do these, which clients of other engines send:
OTHERS_NO_EFFECT = frozenset(
    (
        "backend_sampling",
        "cache_prompt",
        "cache_salt",
        "id_slot",
        "n_cache_reuse",
        "n_discard",
        "request_id",
        "session_id",
        "spaces_between_special_tokens",
        "sse_ping_interval",
        "stream_interval",
        # How drafts are made, which no answer depends on.
        *(f"speculative.{name}" for name in ("n_max", "n_min", "p_min", "type")),
        *(f"speculative.ngram_{name}" for name in ("size_n", "size_m", "min_hits")),
    )
)
# These ask for another answer than the one given here, or than this kind of request has. Only the values that ask for
# nothing are accepted:
ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"], []),
    "moderation": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# So do these fields of other engines, which their clients send:
OTHERS_ASK: dict[str, tuple[Any, ...]] = {
    "adaptive_target": (-1,),
    "add_special_tokens": (),
    "early_stopping": (False,),
    "ebnf": (),
    "ec_transfer_params": ({},),
    "generation_prompt": ("",),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "image_data": ([],),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora": ([],),
    "lora_request": (),
    "media_io_kwargs": ({},),
    "min_keep": (0, 1),  # one is always kept
    "mm_payload": (),
    "mm_processor_kwargs": ({},),
    "n_indent": (0,),
    "n_keep": (0,),
    "n_probs": (0,),
    "parse_tool_calls": (True,),
    "penalty_alpha": (0,),
    "preserved_tokens": ([],),
    "priority": (0,),
    "prompt_embeds": (),
    "reasoning_budget_message": ("",),
    "reasoning_control": (False,),
    "repetition_detection": (),
    "response_fields": ([],),
    "return_mm_kwargs": (False,),
    "return_token_offsets": (False,),
    "return_weight_versions": (False,),
    "routed_experts_prompt_start": (0,),
    "t_max_predict_ms": (0, -1),
    "t_max_prompt_ms": (0, -1),
    "tfs_z": (1,),
    "top_a": (0,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    # Of vectors and scores.
    "embd_normalize": (2,),  # by the Euclidean length
    "embed_dtype": ("float32",),
    "endianness": ("little", "native"),
    "instruction": (),
    "late_chunking_params": (),
    "max_tokens_per_query": (0,),
    "normalize": (True,),
    "padding": ("do_not_pad",),
    "use_activation": (True,),  # a vector has the length 1
    # Of some kinds alone: elsewhere only what asks for nothing.
    "echo": (False,),
    "max_tokens_per_doc": (0,),
    "truncate_prompt_tokens": (),
    "truncation_side": ("left",),
    # Of answers alone: elsewhere only what asks for nothing.
    "logits_processor": ([],),
    "logprob_token_ids": ([],),
    "post_sampling_probs": (False,),
    "prompt_logprobs": (),
    "return_progress": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "samplers": (),
    "skip_special_tokens": (True,),
    "timings_per_token": (False,),
    # Of chats alone, but for what embeddings have of it.
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "include_reasoning": (True,),
    "reasoning_effort": ("none",),
    "reasoning_format": ("none",),
    "return_prompt_text": (False,),
    "thinking_token_budget": (-1,),
}


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)


class Keys(NamedTuple):
    """The keys of one kind of mapping."""

    fields: frozenset[str]  # those that are read
    aliases: dict[str, str]  # other spelling -> field
    idle: frozenset[str]  # those of other engines' replies, which pass only while they are empty


def keys_of(fields: Iterable[str], idle: Iterable[str] = (), **aliases: str) -> Keys:
    """With the camelCase spelling of each field as an alias."""
    fields = frozenset(fields)
    return Keys(fields, {_camel(name): name for name in fields if "_" in name} | aliases, frozenset(idle))


_EXTRA = ("max_completion_tokens", *NO_EFFECT, *OTHERS_NO_EFFECT, *ASKS_NOTHING, *OTHERS_ASK)
_OTHER_NAMES = {
    "repeat_penalty": "repetition_penalty",
    "typ_p": "typical_p",
    "n_predict": "max_tokens",
    "nPredict": "max_tokens",
    "n_cmpl": "n",
    "nCmpl": "n",
    "return_tokens": "return_token_ids",
    "returnTokens": "return_token_ids",
    "verbose": "return_prompt_text",
    **dict.fromkeys(
        ("reasoning_budget", "reasoning_budget_tokens", "thinking_budget", "thinking_budget_tokens"),
        "thinking_token_budget",
    ),
}
_OTHER_NAMES_OF = {"rerank": dict.fromkeys(("activation", "softmax"), "use_activation")}
REQUEST = {
    kind: keys_of((*cls.model_fields, *_EXTRA), **_OTHER_NAMES, **_OTHER_NAMES_OF.get(kind, {}))
    for kind, cls in KINDS.items()
}
# An answer of this or another server may be sent back as it came.
MESSAGE = keys_of(
    (*Message.model_fields, "function_call"),
    (
        "refusal",
        "annotations",
        "audio",
        "logprobs",
        "parsed",
        "reasoning_details",
        "thinking_blocks",
        "provider_specific_fields",
        "images",
    ),
    reasoning="reasoning_content",
)
SPOKEN = {"refusal", "audio", "images"}  # those of a message's idle keys that are content
# Keys that are no content, and so may be dropped from a message without words.
LABELS = {"id", "type", "object", "status", "model", "created_at", "timestamp", "tool_name"}
PARTS = {"text": keys_of(TextPart.model_fields, ("annotations",)), "image_url": keys_of(ImagePart.model_fields)}
TOOL = keys_of(Tool.model_fields)
FUNCTION_DEFINITION = keys_of(FunctionDefinition.model_fields)
TOOL_CALL = keys_of(ToolCall.model_fields)
FUNCTION = keys_of(FunctionCall.model_fields, ("parsed_arguments",))
DOCUMENT = keys_of(("text",))
LORA = keys_of(LoraScale.model_fields)
INFILL_EXTRA = keys_of(InfillExtra.model_fields)
STREAM_OPTIONS = keys_of(("include_usage", "continuous_usage_stats"))
RESPONSE_FORMAT = keys_of(("type", "json_schema", "schema"))
PREDICTION = keys_of(Prediction.model_fields)


def known(value: Any, keys: Keys, loc: tuple[Any, ...], ignored: list[str] | None = None) -> Any:
    """A mapping's known keys, camelCase renamed (snake_case wins) and nulls dropped; anything else as it is. Other keys
    are refused; with a list `ignored`, they are dropped where nothing is lost with them, and their paths go there."""
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for key, item in value.items():
        name = keys.aliases.get(key, key)
        if item is None:
            continue
        if name in keys.fields:
            kept[name] = kept.get(name, item) if name != key else item
            continue
        given = _key(key)
        where = f"{path(loc)}.{given}" if loc else given or "request"
        if name in keys.idle:
            if (ignored is None or name in SPOKEN) and not (isinstance(item, (str, list, dict)) and not item):
                raise refused(where, "not supported by this engine")
        elif ignored is None:
            raise refused(where, f"unknown key{did_you_mean(given, keys.fields)}")
        else:
            ignored.append(where)
    return kept


def known_fields(kind: str, sources: Iterable[dict[Any, Any]], ignored: list[str] | None) -> dict[str, Any]:
    """The fields of a request of `kind` out of several dicts of plain data, later ones on top; the mappings in them
    have known keys only, as `known` says. Raises ValidationError for a key or a value that would otherwise be lost."""
    data: dict[str, Any] = {}
    for source in sources:
        fields = known(source, REQUEST[kind], (), ignored)
        if "max_completion_tokens" in fields:  # as at OpenAI it wins over max_tokens, its older name
            fields["max_tokens"] = fields.pop("max_completion_tokens")
        data |= fields
    _take_n_probs(kind, data)
    for field, nothing in {**ASKS_NOTHING, **OTHERS_ASK}.items():
        if field in data and field not in KINDS[kind].model_fields and data[field] not in nothing:
            only = f"; only {' or '.join(map(repr, nothing))} is accepted" if nothing else ""
            raise refused(field, f"not supported by this engine{only}")
    if isinstance(data.get("messages"), list):
        data["messages"] = [_message(message, ("messages", i), ignored) for i, message in enumerate(data["messages"])]
    if kind == "rerank" and isinstance(data.get("documents"), list):
        data["documents"] = [
            known(text, DOCUMENT, ("documents", i), ignored) for i, text in enumerate(data["documents"])
        ]
    if isinstance(data.get("tools"), list):
        data["tools"] = [
            _with_function(tool, TOOL, FUNCTION_DEFINITION, ("tools", i), ignored)
            for i, tool in enumerate(data["tools"])
        ]
    if isinstance(data.get("functions"), list):
        data["functions"] = [
            known(item, FUNCTION_DEFINITION, ("functions", i), ignored) for i, item in enumerate(data["functions"])
        ]
    for field, keys in ("lora", LORA), ("input_extra", INFILL_EXTRA):
        if isinstance(data.get(field), list):
            data[field] = [known(item, keys, (field, i), ignored) for i, item in enumerate(data[field])]
    for field, keys in (
        ("stream_options", STREAM_OPTIONS),
        ("response_format", RESPONSE_FORMAT),
        ("prediction", PREDICTION),
    ):
        if field in data:
            data[field] = known(data[field], keys, (field,), ignored)
    prediction = data.get("prediction")
    if isinstance(prediction, dict):
        _known_parts(prediction, ("prediction",), ignored)
    return {field: value for field, value in data.items() if field in KINDS[kind].model_fields}


def _take_n_probs(kind: str, data: dict[str, Any]) -> None:
    """llama-server's name of the alternatives of each token becomes the fields of ours that ask for them."""
    given = data.get("n_probs", 0)
    if kind not in ("chat", "completion") or given == 0:
        return
    if isinstance(given, bool) or given not in range(MAX_LOGPROBS + 1):
        raise refused("n_probs", f"must be a whole number in 0..{MAX_LOGPROBS}, got {shown(given)}", le=MAX_LOGPROBS)
    asked = ("top_logprobs", "logprobs") if kind == "chat" else ("logprobs",)
    for field in asked:
        if field in data:
            raise refused("n_probs", f"must be left out beside {field}, which asks for the same")
    data |= {"logprobs": True, "top_logprobs": int(given)} if kind == "chat" else {"logprobs": int(given)}
    del data["n_probs"]


def _key(key: str | int) -> str:
    return key[:80] if isinstance(key, str) else shown(key)


def _message(given: Any, loc: tuple[Any, ...], ignored: list[str] | None) -> Any:
    message = known(given, MESSAGE, loc, ignored)
    if not isinstance(message, dict):
        return message
    _modernize(message, loc)
    _known_parts(message, loc, ignored)
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [
            _with_function(call, TOOL_CALL, FUNCTION, (*loc, "tool_calls", i), ignored)
            for i, call in enumerate(message["tool_calls"])
        ]
    # A message without content is a mistake, or has it under an unknown key; only an answer may be empty.
    others = [
        key for key, item in given.items() if item is not None and MESSAGE.aliases.get(key, key) not in MESSAGE.fields
    ]
    if message.get("role") in ("assistant", "tool"):
        said = not others or "content" in given or message.get("tool_calls") or message.get("reasoning_content")
    else:
        said = "content" in message
    if not said:
        hint = f"; {shown(others[0])} is no key of a message" if others else ""
        raise refused(path((*loc, "content")), f"required{hint}")
    if not (message.get("content") or message.get("tool_calls") or message.get("reasoning_content")):
        _check_no_words(given, MESSAGE, loc, "content")
    return message


def _modernize(message: dict[str, Any], loc: tuple[Any, ...]) -> None:
    """A call and its result in the older form, `function_call` and the role `function`, become those of tools."""
    call = message.pop("function_call", None)
    if call is not None:
        if not isinstance(call, dict) or message.get("tool_calls"):
            problem = "must be one call, of name and arguments, and not beside tool_calls"
            raise refused(path((*loc, "function_call")), problem)
        message["tool_calls"] = [{"id": f"call_{call.get('name')}", "type": "function", "function": call}]
    if message.get("role") == "function":
        message["role"] = "tool"
        message.setdefault("tool_call_id", f"call_{message.get('name')}")


def _check_no_words(given: dict[Any, Any], keys: Keys, loc: tuple[Any, ...], field: str) -> None:
    """Of a mapping whose `field` is empty: what stands under an unknown key was meant to be said, and would be lost."""
    for key, item in given.items():
        name = keys.aliases.get(key, key)
        if name not in (*keys.fields, *keys.idle, *LABELS) and isinstance(item, (str, list)) and item:
            raise refused(f"{path(loc)}.{_key(key)}", f"unknown key, and {field} is empty; did you mean '{field}'?")


def _known_parts(holder: dict[str, Any], loc: tuple[Any, ...], ignored: list[str] | None) -> None:
    """The parts of a `content` that comes in parts."""
    if isinstance(holder.get("content"), list):
        holder["content"] = [_part(part, (*loc, "content", i), ignored) for i, part in enumerate(holder["content"])]


def _part(part: Any, loc: tuple[Any, ...], ignored: list[str] | None) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    keys = PARTS.get(kind) if isinstance(kind, str) else None
    if keys is None:
        return part
    if kind == "text" and part.get("text") == "":
        _check_no_words(part, keys, loc, "text")
    return known(part, keys, loc, ignored)


def _with_function(value: Any, keys: Keys, of_function: Keys, loc: tuple[Any, ...], ignored: list[str] | None) -> Any:
    """A tool, or a call of one: a mapping around that of a function."""
    value = known(value, keys, loc, ignored)
    if isinstance(value, dict) and "function" in value:
        value["function"] = known(value["function"], of_function, (*loc, "function"), ignored)
    return value
