"""Word wrap for a terminal, of a text that comes in pieces: a word is written when it is whole, where it fits."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from wcwidth import wcswidth, wcwidth

TAB = 8
# Control characters are shown as their Unicode pictures: an answer must not move the cursor or set colours.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(128, 160), 65533)
# Small kana, and the marks that lengthen or repeat: they belong to the character before them.
CLINGING = frozenset("ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶー々〻ゝゞヽヾ")
OPENING, CLOSING = {"Ps", "Pi", "Cf"}, {"Pe", "Pf", "Po", "Mn", "Me", "Cf", "Zs"}
LONGEST_WORD = 1000  # characters held back, also of such as take no room


def columns(text: str) -> int:
    """Columns that `text` takes. Terminals disagree on joined emoji: the larger count wraps early, never late."""
    return max(wcswidth(text), sum(max(wcwidth(char), 0) for char in text))


def may_break(before: str, after: str) -> bool:
    """Whether a line may end between two characters without a space: beside an ideograph or kana, but not before a
    closing mark nor after an opening one."""
    if not (_is_ideographic(before) or _is_ideographic(after)) or after in CLINGING:
        return False
    return unicodedata.category(before) not in OPENING and unicodedata.category(after) not in CLOSING


def _is_ideographic(char: str) -> bool:
    """Letters and marks of the wide scripts without spaces. Korean has spaces; emoji are no script."""
    if char < "\u2e80" or unicodedata.east_asian_width(char) not in "WF":
        return False
    return unicodedata.category(char)[0] in "LNPZ" and not unicodedata.name(char, "").startswith("HANGUL")


class Wrap:
    """`feed` and `finish` return what to write now.

    `width` is asked before every word, so that a resized window counts from the next word on; 0 = unknown, no wrapping.
    Lines inside a code fence are never wrapped. A word longer than a line is left to the terminal, which cuts it at the
    edge without a line break of its own, so that a long address can still be copied whole.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0
        self._blank = ""  # blanks before the word, not written yet
        self._indent: str | None = None  # blanks at the beginning of this line; None until its first word
        self._word = ""  # held back until it is whole
        self._room = 0  # columns of `_word`, counted by character
        self._too_long = False  # this word goes out as it comes
        self._fence = ""  # what closes the code block we are in

    def feed(self, text: str) -> str:
        out = []
        for char in text.translate(PICTURES):
            if char in " \t\n":
                if char == "\n" and self._word.endswith("␍"):
                    self._word = self._word[:-1]  # was part of the line break
                out.append(self._end_word())
                if char == "\n":
                    out.append("\n")  # without the blanks, which could begin a line of their own
                    self._column, self._blank, self._indent = 0, "", None
                else:
                    self._blank += char
                continue
            if self._word and may_break(self._word[-1], char):
                out.append(self._end_word())
            self._word += char
            self._room += max(wcwidth(char), 0)
            if self._too_long:
                out.append(self._overflow(char))
                self._word = char
            elif self._room > self._width() or len(self._word) > LONGEST_WORD:
                out.append(self._start_word(self._room, self._word) + self._overflow(self._word))
                self._too_long = True
        return "".join(out)

    def finish(self) -> str:
        """The word that is still held back."""
        return self._end_word()

    def _end_word(self) -> str:
        word, long = self._word, self._too_long
        self._word, self._room, self._too_long = "", 0, False
        if long or not word:
            return ""
        room = columns(word)
        start = self._start_word(room, word)
        self._column += room
        return start + word

    def _start_word(self, room: int, word: str) -> str:
        """The blanks before a word, or the line break that takes their place."""
        blank, self._blank = self._blank, ""
        first = self._indent is None
        if first:
            self._indent = blank
            self._look_for_fence(word)
        column = self._advanced(blank)
        width = self._width()
        if first or self._fence or not width or column + room <= width:
            self._column = column
            return blank
        self._column = 0
        indent = self._indent or ""
        if self._advanced(indent) + room > width:
            indent = ""
        self._column = self._advanced(indent)
        return "\n" + indent

    def _look_for_fence(self, word: str) -> None:
        """The first word of a line may open or close a code block."""
        run = word[: len(word) - len(word.lstrip(word[0]))]
        if self._fence:
            if word == run and run.startswith(self._fence):
                self._fence = ""
        elif len(run) >= 3 and run[0] in "`~" and "`" not in word[len(run) :]:
            self._fence = run

    def _advanced(self, blank: str) -> int:
        column = self._column
        for char in blank:
            column += TAB - column % TAB if char == "\t" else 1
        return column

    def _overflow(self, text: str) -> str:
        """Text that the terminal cuts at its edge: where the cursor is afterwards."""
        width = self._width()
        for char in text:
            room = max(wcwidth(char), 0)
            self._column = room if width and self._column + room > width else self._column + room
        return text
