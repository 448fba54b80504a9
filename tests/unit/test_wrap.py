"""Word wrap of streamed text: what a terminal shows, told by pyte, a terminal in memory."""

import itertools

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polargrid_local.cli.wrap import Wrap, columns


def wrapped(pieces, width):
    wrap = Wrap(lambda: width)
    return "".join([wrap.feed(piece) for piece in pieces]) + wrap.finish()


def shown(text, width, height=400):
    """The lines of a terminal that was sent `text`."""
    screen = pyte.Screen(width, height)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    lines = [line.rstrip() for line in screen.display]
    return lines[: max((i + 1 for i, line in enumerate(lines) if line), default=0)]


WORDS = st.text("abcdeÄß", min_size=1, max_size=12)


@given(st.lists(WORDS, max_size=60), st.integers(12, 80), st.integers(1, 9))
def test_no_word_is_split_and_no_line_could_have_held_more(words, width, size):
    text = " ".join(words)
    lines = shown(wrapped([text[i : i + size] for i in range(0, len(text), size)], width), width)
    assert " ".join(lines).split() == words
    for line, following in itertools.pairwise(lines):
        assert len(line) <= width < len(line) + 1 + len(following.split()[0])


@given(st.text("ab 。、日本語「」かっー한국👩‍🚀👍🏽❤️é\n\t-`", max_size=200), st.integers(4, 40), st.integers(1, 7))
def test_pieces_do_not_matter_and_nothing_but_blanks_changes(text, width, size):
    whole = wrapped([text], width)
    assert wrapped([text[i : i + size] for i in range(0, len(text), size)], width) == whole
    assert "".join(whole.split()) == "".join(text.split())
    assert [line.strip() for line in wrapped([text], 0).split("\n")] == [line.strip() for line in text.split("\n")]


@pytest.mark.parametrize(
    "text, width, lines",
    [
        ("ate 日本語の文章です。はい", 12, ["ate 日本語の", "文章です。は", "い"]),
        (
            "日本語です。はい",
            10,
            ["日本語で", "す。はい"],
        ),  # a full stop never begins a line: the character before it moves too
        ("あ「いう」えお", 8, ["あ「い", "う」えお"]),
        ("ロケットー", 8, ["ロケッ", "トー"]),
        ("하나 둘셋넷다섯", 10, ["하나", "둘셋넷다섯"]),  # Korean has spaces between words
        ("go 👍👍 on", 6, ["go", "👍👍", "on"]),
        ("a " + "x" * 25 + " b", 10, ["a", "x" * 10, "x" * 10, "xxxxx b"]),
        ("  - one two three", 11, ["  - one two", "  three"]),
        ("ab cd\n\n   ef", 20, ["ab cd", "", "   ef"]),
        ("12345 67890", 5, ["12345", "67890"]),
        ("12345 \n67890", 5, ["12345", "67890"]),
        ("a\tb cd", 10, ["a\tb".expandtabs(), "cd"]),
    ],
)
def test_lines_of_a_terminal(text, width, lines):
    got = shown(wrapped(text, width), width)
    assert [line.replace(" ", "") for line in got] == [line.replace(" ", "") for line in lines]
    assert [len(line) - len(line.lstrip()) for line in got] == [len(line) - len(line.lstrip()) for line in lines]


def test_code_is_left_as_it_is():
    code = "```python\n    a = 'one two three four five'\n\tb\n```"
    text = f"some words here\n{code}\nsome words here"
    assert wrapped(text, 10) == f"some words\nhere\n{code}\nsome words\nhere"
    assert wrapped("````\n```\na b c d e f\n````\na b c", 4) == "````\n```\na b c d e f\n````\na b\nc"


def test_a_resized_window_counts_from_the_next_word_on():
    width = 40
    wrap = Wrap(lambda: width)
    out = wrap.feed("one two three four ")
    width = 10
    out += wrap.feed("five six seven ") + wrap.finish()
    assert out == "one two three\nfour five\nsix seven" or out == "one two three four\nfive six\nseven"
    assert all(columns(line) <= 10 for line in out.split("\n")[1:])


def test_a_terminal_is_not_steered():
    assert wrapped(["a\x1b[31mb\r", "\nc\rd\x07\x9bm"], 40) == "a␛[31mb\nc␍d␇�m"


def test_characters_without_width_are_not_held_for_ever():
    wrap = Wrap(lambda: 40)
    assert len(wrap.feed("a" + "\u0301" * 5000)) > 4000
