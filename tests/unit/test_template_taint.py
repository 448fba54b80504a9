"""Marked strings answer as plain ones would, and nothing done to them turns user text into template text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polargrid_local.chat.taint import TaintedText, TaintTable, join_tainted, merge_spans, tainted, to_json
from polargrid_local.errors import TemplateError

USER, OURS = "aé \n<>", "XY.\t{}"  # disjoint, so that every character of a result tells where it came from
SPANS = st.lists(
    st.tuples(st.text(USER, max_size=5), st.just(False)) | st.tuples(st.text(OURS, max_size=5), st.just(True)),
    max_size=6,
)
PLAIN = st.text(USER + OURS, max_size=2)


def whole(taints, value):
    """Plain value of what an operation gave; checks that every character still knows its writer."""
    if isinstance(value, (list, tuple)):
        return type(value)(whole(taints, item) for item in value)
    if not isinstance(value, str):
        return value
    for text, trusted in taints.spans(value):
        assert not trusted or not set(text) & set(USER + USER.upper()), (text, trusted)
    return taints.plain(value)


OPERATIONS = [
    ("strip", []),
    ("lstrip", []),
    ("rstrip", []),
    ("strip", [PLAIN]),
    ("split", []),
    ("split", [PLAIN.filter(bool)]),
    ("split", [PLAIN.filter(bool), st.integers(-1, 3)]),
    ("rsplit", []),
    ("rsplit", [PLAIN.filter(bool), st.integers(0, 2)]),
    ("splitlines", []),
    ("splitlines", [st.booleans()]),
    ("partition", [PLAIN.filter(bool)]),
    ("rpartition", [PLAIN.filter(bool)]),
    ("removeprefix", [PLAIN]),
    ("removesuffix", [PLAIN]),
    ("replace", [PLAIN, st.text(OURS, max_size=2)]),
    ("replace", [PLAIN.filter(bool), st.text(OURS, max_size=2), st.integers(0, 2)]),
    ("upper", []),
    ("lower", []),
    ("title", []),
    ("capitalize", []),
    ("startswith", [PLAIN]),
    ("endswith", [PLAIN]),
    ("find", [PLAIN]),
    ("count", [PLAIN]),
    ("isspace", []),
    ("isdigit", []),
    ("center", [st.integers(0, 12)]),
    ("zfill", [st.integers(0, 12)]),
    ("__len__", []),
    ("__contains__", [PLAIN]),
    ("__add__", [st.text(OURS, max_size=3)]),
    ("__radd__", [st.text(OURS, max_size=3)]),
    ("__mul__", [st.integers(0, 3)]),
    ("__getitem__", [st.slices(8)]),
    ("__iter__", []),
    ("__eq__", [PLAIN]),
    ("__lt__", [PLAIN]),
    ("__hash__", []),
    ("__repr__", []),
    ("__format__", [st.sampled_from(["", ">9"])]),
    ("join", [st.lists(st.text(OURS, max_size=2), max_size=3)]),
]


@pytest.mark.parametrize(("name", "arguments"), OPERATIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_operation_does_what_it_does_to_plain_text(name, arguments):
    @settings(deadline=None, max_examples=25)
    @given(SPANS, st.tuples(*arguments))
    def check(spans, args):
        taints = TaintTable()
        text = taints.build(spans)
        plain = "".join(part for part, _ in spans)
        if not isinstance(text, TaintedText):  # nothing of the user's in it
            text = TaintedText(text, taints)
        if name == "__radd__":
            expected = args[0] + plain
        else:
            expected = getattr(plain, name)(*args)
        got = getattr(text, name)(*args)
        if name == "__iter__":
            expected, got = list(expected), list(got)
        assert whole(taints, got) == expected

    check()


def test_every_method_of_str_is_our_own():
    """What is inherited would see placeholders, or format with what a stranger wrote."""
    assert [
        name for name in dir(str) if not name.startswith("_") and name != "maketrans" and name not in vars(TaintedText)
    ] == []
    text = tainted("{0.__class__} %s", TaintTable())
    for use in (lambda: text.format(1), lambda: text.format_map({"0": 1}), lambda: text % 1):
        with pytest.raises(TypeError, match="not a format"):
            use()


@settings(deadline=None)
@given(SPANS)
def test_marks_are_exact_and_survive_joining(spans):
    taints = TaintTable()
    built = taints.build(spans)
    exact = merge_spans((text, trusted) for text, trusted in spans if text)
    assert merge_spans(taints.spans(built)) == exact
    assert merge_spans(taints.spans("".join([built]))) == exact  # as a plain str, in C
    assert merge_spans(taints.spans("%s" % built)) == exact
    assert merge_spans(taints.spans(f"{built}")) == exact
    assert merge_spans(taints.spans(join_tainted([built, ""]))) == exact


JSON = st.recursive(
    st.text(USER + '"\\\u2028', max_size=4) | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(USER, max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(JSON, st.sampled_from([None, 1, 4]), st.booleans())
def test_json_is_json(value, indent, ascii_only):
    taints = TaintTable()
    text = to_json(tainted(value, taints), taints, indent=indent, ensure_ascii=ascii_only)
    assert taints.plain(text) == json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert not any(
        set(part) & set("aé<>")
        for part, trusted in taints.spans(text)
        if trusted and part not in ("false", "true")
        for part in part.replace("false", "").replace("true", "").split()
    )


def test_user_text_cannot_bring_a_placeholder():
    taints = TaintTable()
    first = taints.taint("secret")
    copy = taints.taint(str.__str__(first))  # the placeholder's own character, as user text
    assert taints.plain(copy) == str.__str__(first) != "secret"
    assert list(taints.spans(chr(0x40000 + 500))) == [(chr(0x40000 + 500), True)]  # the template's own character


def test_the_number_of_pieces_is_bounded(monkeypatch):
    monkeypatch.setattr("polargrid_local.chat.taint._LAST", 0x40000 + 9)
    taints = TaintTable()
    with pytest.raises(TemplateError, match="too many pieces"):
        list(taints.taint("x" * 30))


def test_cutting_takes_one_pass():
    taints = TaintTable()
    text = taints.build([("a", False), ("X", True)] * 20_000)
    assert len(text.split("X")) == 20_001
    assert taints.plain(text.replace("a", "Y")) == "YX" * 20_000
