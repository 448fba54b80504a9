"""The chat template of a model: messages -> prompt.

A template is a program from a stranger: `sandbox` runs it, within a budget that the size of its input sets. What it can
do with messages is found by trying it (`capabilities`), once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from types import CodeType
from typing import Any

import jinja2

from polargrid_local.chat.budget import PROBE, Budget, printable
from polargrid_local.chat.capabilities import Capabilities, probe, without_traceback
from polargrid_local.chat.compiler import compile_template
from polargrid_local.chat.formats import CHATML, FORMATS, format_name
from polargrid_local.chat.sandbox import Sandbox
from polargrid_local.chat.taint import Span, TaintTable, merge_spans, tainted, to_json
from polargrid_local.chat.tool_formats import BY_NAME, GENERIC, THINK_TAGS, ToolFormat, format_hinted
from polargrid_local.errors import TemplateError, ValidationError

# Special tokens that templates written for Hugging Face tokenizers name; those that a model lacks are empty text.
TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "eot_token",
    "eom_token",
    "image_token",
    "audio_token",
    "video_token",
    "boi_token",
    "eoi_token",
)

# What a template is given for lists that the request has none of. They are tried in this order: some templates need
# lists, if only empty ones; some need `functions`, the tools as JSON text, which for others may mean anything.
ABSENT: tuple[Mapping[str, Any], ...] = (
    {"tools": None, "documents": None},
    {"tools": [], "documents": []},
    {"tools": None, "documents": None, "functions": ""},
)

MAX_OTHERS = 16  # templates of requests that stay compiled beside a model's own

_THINKING = re.compile(r"(\bnot\s+)?\benable_thinking\b(\s*\||\s+is\b)?")
_LACKS_VARIABLE = re.compile(r"'\w+' is undefined")
_MAY_BE_GIVEN = "; chat_template_kwargs may give it"


class ChatTemplate:
    """`source`: Jinja source, or one of the well-known names of `formats`; None = ChatML, which is then `assumed`.
    `tokens`: the names of the model's special tokens -> their text; `additional_special_tokens` is a list of texts.
    `tool_format`: the name of one of `tool_formats`; None = as the template itself writes calls.

    Compiled at the first use: a broken one fails the chat, not the load. `check` fails at once."""

    def __init__(
        self, source: str | None = None, tokens: Mapping[str, Any] | None = None, tool_format: str | None = None
    ) -> None:
        if source is not None and not isinstance(source, str):
            raise ValidationError(f"chat_template: must be text, not {type(source).__name__}", param="chat_template")
        self.assumed = source is None
        self.name = "chatml" if source is None else format_name(source)
        self.source: str = CHATML if source is None else FORMATS[self.name] if self.name else source
        self._tool_format = tool_format
        self._tokens = {**dict.fromkeys(TOKENS, ""), "additional_special_tokens": [], **(tokens or {})}
        self._code: CodeType | TemplateError | None = None
        self._capabilities: Capabilities | TemplateError | None = None
        self._refusal: TemplateError | None = None
        self._absent = ABSENT[0]
        self._unasked = {"enable_thinking": True} if _thinks_unasked(self.source) else {}
        made = partial(ChatTemplate, tokens=self._tokens, tool_format=tool_format)
        self._others = lru_cache(maxsize=MAX_OTHERS)(made)

    def other(self, source: str) -> ChatTemplate:
        """Another template for the same model; those used last stay compiled."""
        return self._others(source)

    @property
    def capabilities(self) -> Capabilities:
        """What the template does with messages. Raises TemplateError for one that shows none."""
        if self._capabilities is None:
            try:
                self._capabilities, self._refusal = self._probed()
            except TemplateError as error:
                self._capabilities = without_traceback(error)
        if isinstance(self._capabilities, TemplateError):
            raise without_traceback(self._capabilities)
        return self._capabilities

    def _probed(self) -> tuple[Capabilities, TemplateError | None]:
        """`probe` with the first of ABSENT that the template does not refuse, which is kept."""
        outcomes = []
        for absent in ABSENT:
            if "functions" in absent and not self.mentions("functions"):
                continue
            self._absent = absent
            outcomes.append(probe(self._attempt))
            if outcomes[-1][1] is None:
                return outcomes[-1]
        self._absent = ABSENT[0]
        return outcomes[0]

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls: as the template does, or as `generic`. Raises as `capabilities` does."""
        if self._tool_format is not None:
            return BY_NAME[self._tool_format]
        return BY_NAME[self.capabilities.tool_format or format_hinted(self.source) or GENERIC.name]

    def mentions(self, variable: str) -> bool:
        """Whether the template reads a variable of this name."""
        return re.search(rf"\b{re.escape(variable)}\b", self.source) is not None

    @property
    def shows_tools(self) -> bool:
        """Whether the template itself tells the model of tools in a notation that is known here."""
        return self.capabilities.tools and self.tool_format.name != GENERIC.name

    @property
    def thinks(self) -> bool:
        """Whether the template knows of reasoning in tags."""
        return any(tags[0] in self.source for tags in THINK_TAGS)

    @property
    def reasoning_tags(self) -> tuple[str, str]:
        """The tags around reasoning; the usual ones for a template that knows of none."""
        return next((tags for tags in THINK_TAGS if tags[0] in self.source), THINK_TAGS[0])

    def check(self) -> None:
        """Raises TemplateError for a template that shows no message, or cannot run. One that asks for a variable that
        is not known here may still run: requests may give it."""
        if self.capabilities and self._refusal is not None and not self._refusal.message.endswith(_MAY_BE_GIVEN):
            raise without_traceback(self._refusal)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        now: datetime,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[Span]:
        """Spans (text, trusted); joined they are what plain Jinja would render. Trusted is what the template wrote, the
        roles, the date and the model's special tokens; every other string, dict keys included, is tainted. `options`:
        variables that the template may know (`tools`, `enable_thinking`). Raises TemplateError.

        Unless `options` have them, it knows `date_string` ("26 Nov 2026") and `datetime` ("Nov 26 2026"), too."""
        return self._render(messages, now, {**options, "add_generation_prompt": add_generation_prompt}, None)

    def _attempt(self, messages: Sequence[Mapping[str, Any]], *, now: datetime, **options: Any) -> list[Span]:
        """`render` for `probe`, which calls it some twenty times: on a small budget, since templates may be hostile."""
        return self._render(messages, now, {**options, "add_generation_prompt": True}, Budget(PROBE))

    def _compiled(self) -> CodeType:
        if self._code is None:
            try:
                self._code = compile_template(self.source, Sandbox(TaintTable(), datetime.min))
            except Exception as error:  # kept: compiling a broken one again may take as long again
                self._code = without_traceback(_template_error(error))
        if isinstance(self._code, TemplateError):
            raise without_traceback(self._code)
        return self._code

    def _render(
        self, messages: Sequence[Mapping[str, Any]], now: datetime, options: dict[str, Any], budget: Budget | None
    ) -> list[Span]:
        code = self._compiled()
        taints = TaintTable()
        try:
            given = [
                {key: item if key == "role" else tainted(item, taints) for key, item in message.items()}
                for message in messages
            ]
            known = {
                **self._absent,
                **self._tokens,
                **self._unasked,
                "date_string": now.strftime("%d %b %Y"),
                "datetime": now.strftime("%b %d %Y"),
                **{name: tainted(value, taints) for name, value in options.items()},
            }
            if "functions" in self._absent and "functions" not in options and known["tools"]:
                known["functions"] = to_json(known["tools"], taints, indent=2)
            taints.budget = budget or Budget.for_input(len(given), taints.n_chars)
            sandbox = Sandbox(taints, now)
            template = jinja2.Template.from_code(sandbox, code, sandbox.globals)
            text = template.render({**known, "messages": given})
            spans = merge_spans(taints.spans("".join((text,))))
        except (Exception, MemoryError) as error:
            raise _template_error(error) from None
        _check_text(spans)
        return spans


def _thinks_unasked(source: str) -> bool:
    """Whether a template that does not say what an undefined `enable_thinking` means takes thinking for granted: all it
    asks is whether it is off. There undefined has to be true, or nobody's chats would think."""
    asked = _THINKING.findall(source)
    return bool(asked) and all(negated and not qualified for negated, qualified in asked)


def _template_error(error: BaseException) -> TemplateError:
    if isinstance(error, TemplateError):
        return error
    if isinstance(error, RecursionError):
        return TemplateError("chat template: nested or recursive beyond the interpreter's limit")
    if isinstance(error, jinja2.TemplateSyntaxError):
        return TemplateError(f"chat template, line {error.lineno}: {printable(error.message or '')}")
    message = printable(str(error)) or type(error).__name__
    if isinstance(error, jinja2.UndefinedError) and _LACKS_VARIABLE.fullmatch(message):
        message += _MAY_BE_GIVEN
    return TemplateError(f"chat template: {message}")


def _check_text(spans: list[Span]) -> None:
    for text, trusted in spans:
        if trusted and "\0" in text:
            raise TemplateError("chat template: writes a NUL character")
        try:
            text.encode()
        except UnicodeEncodeError:
            who = "the template writes" if trusted else "messages hold"
            raise TemplateError(f"chat template: {who} half a character (a lone surrogate)", param="messages") from None
