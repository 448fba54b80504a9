"""Tool formats: how the models of each family write the calls of tools."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

# --- patterns ---------------------------------------------------------------------------------------------------------
# A pattern is the text of some notation, with $NAME for a tool's name and $ID for an id. Where it has blanks, and where
# it has a tilde, which means none, there may be any blanks or none.

BLANKS = " \t\r\n"  # and no others: the grammar of an answer and the reader of it must agree
_ELEMENT = re.compile(r"[\s~]+|\$NAME|\$ID|(?:(?!\$NAME|\$ID)[^\s~])+")
NAME_SIGNS = "[A-Za-z0-9_./-]"  # what names of tools and ids are made of
_WORD = re.compile(f"{NAME_SIGNS}*")

# Texts that are control tokens in some vocabularies, and plain text in the others.
_MARKER = re.compile(r"<[^<>\s$]+>|\[[A-Z_]+\]")
_FIRST_MARK = 0xD800


class Found(NamedTuple):
    """A pattern that was found: where it ends, and which tool it names."""

    end: int
    name: str


@lru_cache(256)
def elements_of(pattern: str) -> tuple[str, ...]:
    """Blanks, `$NAME`, `$ID` and literal texts, in order."""
    return tuple(_ELEMENT.findall(pattern))


def match(pattern: str, text: str, at: int, names: Collection[str]) -> Found | bool:
    """What `pattern` finds in `text` from `at` on; True while that may still come with more text, else False."""
    name = ""
    for element in elements_of(pattern):
        if is_blank(element):
            while at < len(text) and text[at] in BLANKS:
                at += 1
            continue
        if element in ("$NAME", "$ID"):
            word = _WORD.match(text, at)[0]  # type: ignore[index]  # it matches nothing, too
            at += len(word)
            if element == "$ID":
                if at == len(text):
                    return True
                continue
            if at == len(text):
                return any(known.startswith(word) for known in names)
            if word not in names:
                return False
            name = word
            continue
        part = text[at : at + len(element)]
        if part != element:
            return at + len(part) == len(text) and element.startswith(part)
        at += len(element)
    return Found(at, name)


def is_blank(element: str) -> bool:
    return element[0] == "~" or element[0].isspace()


def match_any(patterns: Collection[str], text: str, at: int, names: Collection[str]) -> Found | bool:
    """The first of `patterns` that is found; True while one may still come."""
    waiting = False
    for pattern in patterns:
        found = match(pattern, text, at, names)
        if isinstance(found, Found):
            return found
        waiting = waiting or found
    return waiting


# --- formats ----------------------------------------------------------------------------------------------------------


class ToolFormat(NamedTuple):
    """One notation: `opening (head arguments tail) [separator (head arguments tail)]... closing`, all of them patterns.

    Where there are several openings, heads or tails, each of them is used."""

    name: str
    heads: tuple[str, ...]
    tails: tuple[str, ...]
    openings: tuple[str, ...] = ("",)
    separator: str = "~"
    closing: str = ""
    anywhere: bool = True  # calls may follow other text; otherwise the answer begins with them or has none
    channels: bool = False  # the whole answer is written in channels, of which calls are one: see harmony.py
    parameters: bool = False  # the arguments are not one JSON object, but a tag for each, as Qwen3-Coder writes them
    short_ids: bool = False  # ids in the history must be nine letters and digits
    hint: str = ""  # what the source of a template says that means this format, though it writes no calls

    @property
    def firsts(self) -> tuple[str, ...]:
        """What the first call of several begins with."""
        return tuple(opening + head for opening in self.openings for head in self.heads)

    @property
    def nexts(self) -> tuple[str, ...]:
        """What each further call begins with."""
        return tuple(self.separator + head for head in self.heads)

    @property
    def markers(self) -> list[str]:
        """Its parts that may be control tokens."""
        parts = (*self.firsts, *self.tails, self.separator, self.closing)
        return list(dict.fromkeys(found for part in parts for found in _MARKER.findall(part)))

    def with_marks(self, control_tokens: Collection[str]) -> ToolFormat:
        """The same for a vocabulary: what is a control token there is a mark, which no text can spell."""

        def marked(pattern: str) -> str:
            return _MARKER.sub(lambda found: as_told(found[0], control_tokens), pattern)

        return self._replace(
            heads=tuple(map(marked, self.heads)),
            tails=tuple(map(marked, self.tails)),
            openings=tuple(map(marked, self.openings)),
            separator=marked(self.separator),
            closing=marked(self.closing),
        )


def _json_call(arguments: str = "arguments") -> str:
    return f'{{~"name"~: "$NAME"~, "{arguments}"~: '


_JSON_CALL = _json_call()
HERMES = ToolFormat("hermes", ("<tool_call>\n" + _JSON_CALL,), ("~}\n</tool_call>",), separator="\n")
LLAMA3 = ToolFormat(
    "llama3",
    (
        "~" + _json_call("parameters"),
        '~{~"type"~: "function"~, "name"~: "$NAME"~, "parameters"~: ',
        "~" + _JSON_CALL,
    ),
    ("~}",),
    openings=("", "<|python_tag|>"),
    separator="~; ",
    anywhere=False,
)
QWEN3_CODER = ToolFormat(
    "qwen3-coder",
    ("<tool_call>\n<function=$NAME>",),
    ("\n</function>\n</tool_call>",),
    separator="\n",
    parameters=True,
)
MISTRAL_NEMO = ToolFormat(
    "mistral-nemo",
    ("~" + _JSON_CALL,),
    ("~}", '~, "id"~: "$ID"~}'),
    openings=("[TOOL_CALLS]~[",),
    separator="~, ",
    closing="~]",
    short_ids=True,
)
MISTRAL_SMALL = ToolFormat(
    "mistral-small", ("[TOOL_CALLS]~$NAME~[CALL_ID]~$ID~[ARGS]",), ("",), separator="", short_ids=True
)
DEVSTRAL = ToolFormat("devstral", ("[TOOL_CALLS]~$NAME~[ARGS]",), ("",), separator="", short_ids=True)
GRANITE3 = ToolFormat(
    "granite3",
    ("~" + _JSON_CALL,),
    ("~}",),
    openings=("<|tool_call|>~[",),
    separator="~, ",
    closing="~]",
    hint="<|tool_call|>",
)
PHI4_MINI = GRANITE3._replace(name="phi4-mini", closing="~]~<|/tool_call|>", hint="<|/tool_call|>")
NEMOTRON2 = GRANITE3._replace(name="nemotron2", openings=("<TOOLCALL>~[",), closing="~]~</TOOLCALL>", hint="<TOOLCALL>")
FIREFUNCTION2 = GRANITE3._replace(name="firefunction2", openings=("functools~[",), hint="functools[")
DEEPSEEK3 = ToolFormat(
    "deepseek3",
    ("<｜tool▁call▁begin｜>~function~<｜tool▁sep｜>~$NAME\n```json\n",),
    ("\n```~<｜tool▁call▁end｜>",),
    openings=("<｜tool▁calls▁begin｜>~",),
    separator="\n",
    closing="~<｜tool▁calls▁end｜>",
)
DEEPSEEK31 = DEEPSEEK3._replace(
    name="deepseek3.1",
    heads=("<｜tool▁call▁begin｜>~$NAME~<｜tool▁sep｜>",),
    tails=("~<｜tool▁call▁end｜>",),
    separator="~",
)
FUNCTIONARY31 = ToolFormat("functionary3.1", ("<function=$NAME>",), ("~</function>",), separator="~")
COMMAND_R7B = ToolFormat(
    "command-r7b",
    ('~{~"tool_call_id"~: "$ID"~, "tool_name"~: "$NAME"~, "parameters"~: ',),
    ("~}",),
    openings=("<|START_ACTION|>~[",),
    separator="~, ",
    closing="~]~<|END_ACTION|>",
)
HARMONY = ToolFormat(
    "harmony",
    (
        "<|channel|>commentary to=functions.$NAME <|constrain|>json<|message|>",
        " to=functions.$NAME<|channel|>commentary <|constrain|>json<|message|>",
        " to=functions.$NAME<|channel|>commentary json<|message|>",
    ),
    ("",),
    separator="<|call|><|start|>assistant",
    channels=True,
)
GENERIC = HERMES._replace(name="generic")

# In this order they are tried on what a template writes, so that those that say more come first.
FORMATS = (
    HARMONY,
    QWEN3_CODER,
    HERMES,
    MISTRAL_NEMO,
    MISTRAL_SMALL,
    DEVSTRAL,
    PHI4_MINI,
    GRANITE3,
    NEMOTRON2,
    FIREFUNCTION2,
    DEEPSEEK3,
    DEEPSEEK31,
    COMMAND_R7B,
    FUNCTIONARY31,
    LLAMA3,
)
BY_NAME = {format.name: format for format in (*FORMATS, GENERIC)}


def format_hinted(source: str) -> str:
    """The name of the format that a template's source speaks of; "" if it is none."""
    return next((format.name for format in FORMATS if format.hint and format.hint in source), "")


def written(pattern: str, name: str = "") -> str:
    """The text that a pattern stands for, as models are used to it."""
    return pattern.replace("~", "").replace("$NAME", name).replace("$ID", "000000000")


# --- marks ------------------------------------------------------------------------------------------------------------
# A control token has no text. Where the engine tells of one, a lone surrogate takes its place in the text: the engine's
# own text is valid Unicode and has none.

THINK_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
HARMONY_MARKERS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
HARMONY_ENDS = ("<|end|>", "<|start|>", "<|channel|>", "<|call|>", "<|return|>")  # what ends the body of a message


def _all_markers() -> Iterator[str]:
    for format in FORMATS:
        yield from format.markers
    for tags in THINK_TAGS:
        yield from tags
    yield from HARMONY_MARKERS


_MARKS: Mapping[str, str] = {text: chr(_FIRST_MARK + i) for i, text in enumerate(dict.fromkeys(_all_markers()))}
_TEXTS = {char: text for text, char in _MARKS.items()}
_MARKED = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_FIRST_MARK + len(_MARKS) - 1)}]")


def mark_of(text: str) -> str:
    """The mark of a control token, by its text."""
    return _MARKS[text]


def as_told(text: str, control_tokens: Collection[str]) -> str:
    """A marker as an answer has it: its mark where it is a control token of the vocabulary, else the text itself."""
    return mark_of(text) if text in control_tokens else text


def marked_text(text: str) -> str:
    """The text in which every mark is the text of its control token again."""
    return _MARKED.sub(lambda found: _TEXTS[found[0]], text)


def without_marks(text: str) -> str:
    return text if text.isascii() else _MARKED.sub("", text)


def split_at_marks(pattern: str) -> list[str]:
    """Texts and marks in turn, as they stand in a pattern; no empty texts."""
    return [part for part in re.split(f"({_MARKED.pattern})", pattern) if part]
