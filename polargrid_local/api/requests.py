"""Requests: the pydantic models of what can be asked for.

Fields, ranges and defaults are those of the official SDK; what the SDK lacks (seed in text completions, logprobs,
logit_bias, ...) follows OpenAI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    WrapValidator,
)
from pydantic import ValidationError as PydanticError
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from polargrid_local.api.samplers import sampler_names
from polargrid_local.chat.compiler import MAX_SOURCE_BYTES
from polargrid_local.chat.tool_formats import NAME_SIGNS

MAX_MESSAGES = 1024
MAX_STOP = 16
MAX_STOP_BYTES = 256
MAX_PROMPTS = 2048
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_LOGPROB_IDS = 128
MAX_FILTER = 64
MAX_TOOLS = 256
MAX_CHOICES = 128
MAX_TOKEN_IDS = 1024  # of a list of tokens to stop at or to choose from
MAX_BAD_WORDS = 256
NEVER = -100.0  # the bias of a token that must not come
MAX_ADAPTERS = 64

# --- field types ------------------------------------------------------------------------------------------------------


def _whole(value: Any) -> Any:
    """Some JSON writers print every number with a fraction: 150.0 is 150, 150.5 is an error, True never a number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _strings(limit: int, what: str) -> Callable[[Any], Any]:
    def check(value: list[str]) -> list[str]:
        if len(value) > limit:
            raise PydanticCustomError("too_long", f"at most {limit} {what}, got {len(value)}")
        for i, text in enumerate(value):
            if not text or len(text.encode()) > MAX_STOP_BYTES:
                raise PydanticCustomError("length", f"item {i} must have 1 to {MAX_STOP_BYTES} bytes")
        return value

    return check


def _bias_pairs(value: dict[int, float] | list[Any]) -> list[Any]:
    """Whatever form it came in."""
    if len(value) > MAX_LOGIT_BIAS:
        raise PydanticCustomError("too_long", f"at most {MAX_LOGIT_BIAS} entries, got {len(value)}")
    pairs = list(value.items()) if isinstance(value, dict) else value
    for token, bias in pairs:
        if not (isinstance(token, str) or 0 <= token < 2**31) or not -100 <= bias <= 100:
            raise PydanticCustomError("bias", "token ids are 0 or more, biases lie in -100..100")
    return pairs


def _bias_pair(value: Any) -> Any:
    """An item of llama-server's lists: [token, bias], or an object of `id` and `bias`. The token by its id or, a text,
    every token of it; a bias of false is a token that must not come."""
    if isinstance(value, Mapping) and value.keys() == {"id", "bias"}:
        value = (value["id"], value["bias"])
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise PydanticCustomError("bias_type", "must be a token and its bias")
    token, bias = _whole(value[0]), NEVER if value[1] is False else value[1]
    if isinstance(token, bool) or not isinstance(token, (int, str)):
        raise PydanticCustomError("bias_type", "the token must be its id or a text")
    if isinstance(token, str) and not 0 < len(token.encode()) <= MAX_STOP_BYTES:
        raise PydanticCustomError("bias", f"a text must have 1 to {MAX_STOP_BYTES} bytes")
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not abs(bias) <= 100:
        raise PydanticCustomError("bias", "the bias must be a number in -100..100, or false")
    return token, float(bias)


def _bias_keys(value: Any) -> Any:
    """JSON has string keys only."""
    if not isinstance(value, Mapping):
        return value
    return {
        int(k) if isinstance(k, str) and k.isascii() and k.isdigit() and len(k) < 11 else k: v for k, v in value.items()
    }


def check_filter(value: Any) -> Any:
    """A content filter: phrases, or a predicate of the text so far. Raises PydanticCustomError."""
    if value is None or callable(value):
        return value
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise PydanticCustomError("filter", "must be a list of phrases or a callable(text) -> bool")
    return _strings(MAX_FILTER, "phrases")(list(value))


def _processors(value: Any) -> Any:
    """One callable, or several that are called in turn, as a list."""
    processors = [value] if callable(value) else _as_list(value)
    if not isinstance(processors, list) or not all(callable(item) for item in processors):
        problem = "must be a callable(token_ids, logits), or a list of them, which only a program in this process has"
        raise PydanticCustomError("type", problem)
    return processors


def _as_stop(value: Any) -> Any:
    return [value] if isinstance(value, str) else _as_list(value)


def _max_tokens(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("max_tokens", "must be 1 or more, or -1 for what the context leaves", {"ge": 1})
    return value


def _encoding(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except PydanticError:
        problem = "must be 'float' or 'base64', in process also 'numpy'"
        raise PydanticCustomError("encoding_format", problem) from None


def _prediction(value: Any) -> Any:
    """A plain text, or OpenAI's mapping with it."""
    if isinstance(value, str):
        return {"type": "content", "content": value}
    if not isinstance(value, Mapping):
        raise PydanticCustomError("type", "must be a string, or a mapping with a string or text parts as its content")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
NonEmptyText = Annotated[str, Field(min_length=1)]
ModelName = Annotated[str, Field(min_length=1, max_length=4096)]  # may be a path: 4096 is Linux's PATH_MAX
Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TopK = Annotated[Whole, Field(ge=-(2**31), lt=2**31)]
MaxTokens = Annotated[Whole, Field(ge=-1, lt=2**31), AfterValidator(_max_tokens)]
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**64)]
Stop = Annotated[list[str], BeforeValidator(_as_stop), AfterValidator(_strings(MAX_STOP, "stop strings"))]
BadWords = Annotated[list[str], BeforeValidator(_as_stop), AfterValidator(_strings(MAX_BAD_WORDS, "words"))]
Breakers = Annotated[list[str], BeforeValidator(_as_stop), AfterValidator(_strings(MAX_STOP, "sequence breakers"))]
TokenId = Annotated[Whole, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], BeforeValidator(_as_list), Field(max_length=MAX_TOKEN_IDS)]
LogprobIds = Annotated[list[TokenId], BeforeValidator(_as_list), Field(max_length=MAX_LOGPROB_IDS)]
PromptIds = Annotated[list[TokenId], BeforeValidator(_as_list), Field(min_length=1)]
Budget = Annotated[Whole, Field(ge=-1, lt=2**30)]  # of tokens; -1 = none
KeptTokens = Annotated[Whole, Field(ge=-1, lt=2**30)]  # of a prompt; -1 = what fits
KeptSide = Literal["left", "right"]  # where a prompt is cut: what is left are its last tokens, or its first
LookBack = Annotated[Whole, Field(ge=-1, lt=2**30)]
Processors = Annotated[list[Any], BeforeValidator(_processors), Field(max_length=MAX_FILTER)]


class StrictModel(BaseModel):
    """Of the exact types it names, finite and unchangeable: the base of every model here."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, arbitrary_types_allowed=True)


def _one_of(tags: dict[type, str], message: str) -> Discriminator:
    def tag(value: Any) -> str | None:
        return next((name for cls, name in tags.items() if isinstance(value, cls)), None)

    return Discriminator(tag, custom_error_type="type", custom_error_message=message)


# An object of token ids, as at OpenAI, or llama-server's lists; pairs of a token (its id, or a text) and its bias.
LogitBias = Annotated[
    Union[
        Annotated[dict[int, float], BeforeValidator(_bias_keys), Tag("<dict>")],
        Annotated[
            list[Annotated[tuple[Union[int, str], float], BeforeValidator(_bias_pair)]],
            BeforeValidator(_as_list),
            Tag("<list>"),
        ],
    ],
    _one_of(
        {dict: "<dict>", list: "<list>", tuple: "<list>"}, "must be an object, or a list of pairs of token and bias"
    ),
    AfterValidator(_bias_pairs),
]

# --- messages ---------------------------------------------------------------------------------------------------------


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


class ImagePart(StrictModel):
    type: Literal["image_url"]
    image_url: dict[str, Any]


class Prediction(StrictModel):
    """Text that the answer may repeat. It changes how fast the answer comes, never the answer."""

    type: Literal["content"]
    content: Annotated[
        Union[
            Annotated[str, Tag("<str>")],
            Annotated[list[TextPart], BeforeValidator(_as_list), Tag("<parts>")],
        ],
        _one_of(
            {str: "<str>", list: "<parts>", tuple: "<parts>"},
            "must be a string or a list of text parts",
        ),
    ]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class FunctionCall(StrictModel):
    name: str
    arguments: str


class ToolCall(StrictModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # streams number their calls; not read, the list is in order


class FunctionDefinition(StrictModel):
    name: Annotated[str, Field(pattern=f"^{NAME_SIGNS}{{1,128}}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema of an object; None = no parameters
    strict: bool = False  # whether a keyword that arguments cannot be held to is refused, or else dropped


class Tool(StrictModel):
    type: Literal["function"] = "function"
    function: FunctionDefinition


Functions = Annotated[list[FunctionDefinition], BeforeValidator(_as_list), Field(max_length=MAX_TOOLS)]
ToolList = Annotated[list[Tool], BeforeValidator(_as_list), Field(max_length=MAX_TOOLS)]


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image_url") else None


# Pydantic puts these tags into its paths; `plain.path` takes out what is in angle brackets.
_Part = Annotated[
    Union[Annotated[TextPart, Tag("<text>")], Annotated[ImagePart, Tag("<image_url>")]],
    Discriminator(_part_tag, custom_error_type="type", custom_error_message="type must be 'text' or 'image_url'"),
]
Content = Annotated[
    Union[
        Annotated[str, Tag("<str>")],
        Annotated[list[_Part], BeforeValidator(_as_list), Tag("<parts>")],
        Annotated[None, Tag("<null>")],
    ],
    _one_of(
        {str: "<str>", list: "<parts>", tuple: "<parts>", type(None): "<null>"},
        "must be a string, null or a list of content parts",
    ),
]
_NO_PROMPT = "must be a string, a list of token ids, or a list of those"


def _prompt_tag(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        has_ids = any(isinstance(item, (int, float)) for item in value)
        if has_ids and any(isinstance(item, str) for item in value):
            return "<mixed>"
        return "<ids>" if has_ids and isinstance(value[0], (int, float)) else "<list>"
    return "<str>" if isinstance(value, str) else None


# One prompt of texts and tokens in turn, as llama-server takes it.
_Mixed = Annotated[
    list[
        Annotated[
            Union[Annotated[str, Field(min_length=1), Tag("<str>")], Annotated[TokenId, Tag("<id>")]],
            _one_of({str: "<str>", int: "<id>", float: "<id>"}, "must be a text or a token id"),
        ]
    ],
    BeforeValidator(_as_list),
    Tag("<mixed>"),
]
_Prompt = Annotated[
    Union[Annotated[str, Field(min_length=1), Tag("<str>")], Annotated[PromptIds, Tag("<ids>")], _Mixed],
    Discriminator(_prompt_tag, custom_error_type="type", custom_error_message=_NO_PROMPT),
]
Prompt: TypeAlias = "str | list[int] | list[int | str]"
# A text, or its tokens as the caller's own tokenizer made them, or both in turn; or several of these.
Prompts = Annotated[
    Union[
        Annotated[str, Field(min_length=1), Tag("<str>")],
        Annotated[PromptIds, Tag("<ids>")],
        _Mixed,
        Annotated[list[_Prompt], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_PROMPTS), Tag("<list>")],
    ],
    Discriminator(_prompt_tag, custom_error_type="type", custom_error_message=_NO_PROMPT),
]

# An empty text too, before a gap that is to be filled.
CompletionPrompts = Annotated[
    Union[
        Annotated[str, Tag("<str>")],
        Annotated[PromptIds, Tag("<ids>")],
        _Mixed,
        Annotated[list[_Prompt], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_PROMPTS), Tag("<list>")],
    ],
    Discriminator(_prompt_tag, custom_error_type="type", custom_error_message=_NO_PROMPT),
]


def _each(prompts: Any) -> list[Prompt]:
    single = isinstance(prompts, str) or any(isinstance(part, int) for part in prompts)
    return [prompts] if single else prompts


# A JSON schema, or its text.
Schema = Annotated[
    Union[
        Annotated[dict[str, Any], Tag("<dict>")],
        Annotated[str, Tag("<str>")],
        Annotated[None, Tag("<null>")],
    ],
    _one_of({dict: "<dict>", str: "<str>", type(None): "<null>"}, "must be a JSON schema or its text"),
]
Choices = Annotated[list[str], BeforeValidator(_as_list)]
# api/tools.py reads what a dict says. "any" is Mistral's word for "required".
ToolChoice = Annotated[
    Union[
        Annotated[Literal["none", "auto", "required", "any"], Tag("<str>")],
        Annotated[dict[str, Any], Tag("<dict>")],
        Annotated[None, Tag("<null>")],
    ],
    _one_of({str: "<str>", dict: "<dict>", type(None): "<null>"}, "must be a word or the tool that is to be called"),
]
FunctionChoice = Annotated[
    Union[
        Annotated[Literal["none", "auto"], Tag("<str>")],
        Annotated[dict[str, Any], Tag("<dict>")],
        Annotated[None, Tag("<null>")],
    ],
    _one_of(
        {str: "<str>", dict: "<dict>", type(None): "<null>"}, "must be a word or the function that is to be called"
    ),
]


class Message(StrictModel):
    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: Content = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], BeforeValidator(_as_list)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def texts(self) -> list[str]:
        """Of its content; of an image there is none."""
        if isinstance(self.content, list):
            return [part.text for part in self.content if isinstance(part, TextPart)]
        return [] if self.content is None else [self.content]


Messages = Annotated[list[Message], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_MESSAGES)]


# --- requests ---------------------------------------------------------------------------------------------------------


class LoraScale(StrictModel):
    """How strongly one of the adapters that a model was loaded with acts on an answer."""

    id: Annotated[Whole, Field(ge=0, lt=MAX_ADAPTERS)]  # its place among them
    scale: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0


def _each_once(adapters: list[LoraScale]) -> list[LoraScale]:
    if len({adapter.id for adapter in adapters}) < len(adapters):
        raise PydanticCustomError("lora", "an adapter may be named once only")
    return adapters


class Sampling(StrictModel):
    """What the native sampler takes as it is, by the same names."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Unit = 0.9
    top_k: TopK = 0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    min_p: Unit = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repeat_last_n: LookBack = -1  # tokens that the repetition penalty looks back at; -1 = prompt and answer
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] = 0.0
    dry_base: Annotated[float, Field(ge=1, le=100)] = 1.75
    dry_allowed_length: Annotated[Whole, Field(ge=1, lt=2**30)] = 2
    dry_penalty_last_n: LookBack = -1
    dry_sequence_breakers: Breakers = ["\n", ":", '"', "*"]
    dynatemp_range: Annotated[float, Field(ge=0, le=2)] = 0.0
    dynatemp_exponent: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_n_sigma: Annotated[float, Field(ge=-1, le=100)] = -1.0
    xtc_probability: Unit = 0.0
    xtc_threshold: Unit = 0.1
    mirostat: Annotated[Whole, Field(ge=0, le=2)] = 0
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] = 5.0
    mirostat_eta: Unit = 0.1
    allowed_token_ids: Annotated[list[TokenId], BeforeValidator(_as_list)] = []  # nothing else is said
    bad_words: BadWords = []


class _GeneratingRequest(Sampling):
    """What every generating request has in common."""

    model: ModelName | None = None
    logit_bias: LogitBias = []
    samplers: Annotated[list[str] | None, BeforeValidator(sampler_names)] = None  # the others are off
    seed: Seed | None = None
    stop: Stop = []
    stop_token_ids: TokenIds = []
    include_stop_str_in_output: bool = False
    min_tokens: Annotated[Whole, Field(ge=0, lt=2**30)] = 0  # before so many nothing but a filter ends the answer
    truncate_prompt_tokens: KeptTokens | None = None
    truncation_side: KeptSide = "left"
    prediction: Annotated[Prediction, BeforeValidator(_prediction)] | None = None
    stream: bool = False
    stream_options: dict[str, bool] = {}
    user: str | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True  # False: control tokens of the answer are told by their names
    return_token_ids: bool = False  # of the prompt, and of the answer
    return_tokens_as_token_ids: bool = False  # logprobs name every token `token_id:` and its number
    logprob_token_ids: LogprobIds = []  # logprobs tell these and the chosen one, in place of the likeliest
    post_sampling_probs: bool = False  # logprobs are those that a token was drawn by, not the model's own
    prompt_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None  # alternatives of the prompt's tokens
    timings_per_token: bool = False  # every chunk tells how long it took so far, and the whole answer too
    return_progress: bool = False  # streams tell how much of the prompt has been read
    # In this process alone: functions that change what the model says of the next token before one is chosen.
    logits_processor: SkipJsonSchema[Processors] = []
    content_filter: Annotated[Any, BeforeValidator(check_filter)] = None
    # The adapters of this answer, all others left out; None = as the model was loaded.
    lora: Annotated[list[LoraScale], BeforeValidator(_as_list), AfterValidator(_each_once)] | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] = 1
    # At most one of these: api/constraints.py reads them.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    json_schema: Schema = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    guided_json: Schema = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    _answer_type: Any = PrivateAttr(default=None)  # the class whose schema response_format is

    @property
    def answer_type(self) -> Any:
        return self._answer_type

    @property
    def include_usage(self) -> bool:
        return self.stream_options.get("include_usage") is True

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk tells the usage so far; `include_usage: false` says that none is told at all."""
        asked = self.stream_options.get("continuous_usage_stats") is True
        return asked and self.stream_options.get("include_usage") is not False


class ChatCompletionRequest(_GeneratingRequest):
    messages: Messages
    max_tokens: MaxTokens = 150
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] = 0
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None  # for templates that know it; "none" = without thinking
    chat_template_kwargs: dict[str, Any] = {}  # variables for the template
    add_generation_prompt: bool = True
    continue_final_message: bool = False  # the answer goes on where the last message ends
    echo: bool = False  # what the model has said last comes before the answer, as a part of it
    chat_template: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_BYTES)] | None = None  # for this chat alone
    documents: Annotated[list[dict[str, Any]], BeforeValidator(_as_list)] = []  # for templates that show them
    return_prompt_text: bool = False  # what the template has made of the chat
    thinking_token_budget: Budget | None = None  # a thought is ended after so many tokens; -1 = it ends by itself
    include_reasoning: bool = True  # False: a thought is told apart, and not told
    reasoning_format: Literal["none", "deepseek"] = "none"  # inline as `<think>...</think>`, or in a field of its own
    tools: ToolList | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool = True
    functions: Functions | None = None  # tools and tool_choice by their older names
    function_call: FunctionChoice = None

    @property
    def inline_reasoning(self) -> bool:
        """Whether a thought is content, tags and all."""
        return self.reasoning_format == "none" and self.include_reasoning

    @property
    def n_logprobs(self) -> int:
        """Alternatives per token; -1 = no logprobs at all."""
        return self.top_logprobs if self.logprobs else -1


class InfillExtra(StrictModel):
    """A further text of the repository in which a gap is to be filled."""

    text: str
    filename: str | None = None


class CompletionRequest(_GeneratingRequest):
    prompt: CompletionPrompts
    max_tokens: Annotated[Whole, Field(ge=-1, lt=2**31)] = 100  # 0 = the prompt alone, where it is told of
    top_k: TopK = 50
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False  # the prompt comes before the answer, and in logprobs too
    best_of: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: str = ""  # what comes behind the answer, for models that fill gaps
    input_extra: Annotated[list[InfillExtra], BeforeValidator(_as_list)] | None = None  # what else the repository has
    spm_infill: bool = False  # the suffix comes before the prompt
    parse_special: bool = True  # control tokens written in the prompt are honoured; False = they are text

    @property
    def fills_gap(self) -> bool:
        """Whether the answer stands between two texts, either of which may be empty."""
        return bool(self.suffix) or self.input_extra is not None

    @property
    def prompts(self) -> list[Prompt]:
        return _each(self.prompt)

    @property
    def n_logprobs(self) -> int:
        return -1 if self.logprobs is None else self.logprobs


def _input(value: Any) -> Any:
    """An input, or each of several, with llama-server's objects as the texts that they hold."""
    return [_input_text(item) for item in value] if isinstance(value, (list, tuple)) else _input_text(value)


def _input_text(value: Any) -> Any:
    """That of `{"prompt_string": text}`, and of `{"content": [...]}` as a message has it; all else as it is."""
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1 and isinstance(value.get("prompt_string"), str):
        return value["prompt_string"]
    parts = value.get("content") if len(value) == 1 else None
    if not parts or not isinstance(parts, (list, tuple)) or not all(_is_text_part(part) for part in parts):
        raise PydanticCustomError("input_type", 'an object must be {"prompt_string": text} or {"content": text parts}')
    return "".join(part["text"] for part in parts)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


EmbeddingInput = Annotated[Prompts, BeforeValidator(_input)]


class EmbeddingRequest(StrictModel):
    """Of an input, or of a chat: that of the prompt which the model's template makes of it."""

    input: EmbeddingInput | None = None
    messages: Messages | None = None
    add_generation_prompt: bool = False  # the chat ends with what comes before an answer
    continue_final_message: bool = False  # the chat ends where its last message does
    chat_template_kwargs: dict[str, Any] = {}  # variables for the template
    model: ModelName | None = None
    user: str | None = None
    encoding_format: Annotated[Literal["float", "base64", "numpy"], WrapValidator(_encoding)] = "float"
    dimensions: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None  # the first so many, of length 1 again
    truncate_prompt_tokens: KeptTokens | None = None
    truncation_side: KeptSide = "left"

    @property
    def inputs(self) -> list[Prompt]:
        return [] if self.input is None else _each(self.input)


def _document(value: Any) -> Any:
    """A text, or {"text": ...} as some clients wrap it."""
    return value["text"] if isinstance(value, Mapping) and isinstance(value.get("text"), str) else value


class RerankRequest(StrictModel):
    """How well each document answers the query, or its own one of several; the best first."""

    query: Annotated[
        Union[
            Annotated[NonEmptyText, Tag("<str>")],
            Annotated[
                list[NonEmptyText],
                BeforeValidator(_as_list),
                Field(min_length=1, max_length=MAX_PROMPTS),
                Tag("<list>"),
            ],
        ],
        _one_of({str: "<str>", list: "<list>", tuple: "<list>"}, "must be a text, or a list of one for each document"),
    ]
    documents: Annotated[
        list[Annotated[NonEmptyText, BeforeValidator(_document)]],
        BeforeValidator(_as_list),
        Field(min_length=1, max_length=MAX_PROMPTS),
    ]
    model: ModelName | None = None
    top_n: Annotated[Whole, Field(ge=1, lt=2**31)] | None = None  # results, None = all
    return_documents: bool = False
    max_tokens_per_doc: Annotated[Whole, Field(ge=0, lt=2**30)] = 0  # the first so many of each; 0 = all
    truncate_prompt_tokens: KeptTokens | None = None  # of query and document together
    truncation_side: KeptSide = "left"
    use_activation: bool = False  # scores are made numbers of 0 to 1, in the same order
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        return self.documents

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Query and document."""
        queries = [self.query] * len(self.documents) if isinstance(self.query, str) else self.query
        return list(zip(queries, self.documents))


class GenerateRequest(StrictModel):
    prompt: NonEmptyText
    model: ModelName | None = None
    max_tokens: MaxTokens = 150
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Unit = 0.9
    stop: Stop = []
    prediction: Annotated[Prediction, BeforeValidator(_prediction)] | None = None
    request_id: str | None = None  # the SDK's class has it; neither it nor this package reads it


Request = Union[ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest, GenerateRequest]
KINDS: dict[str, type[Any]] = {
    "chat": ChatCompletionRequest,
    "completion": CompletionRequest,
    "embedding": EmbeddingRequest,
    "rerank": RerankRequest,
    "generate": GenerateRequest,
}
