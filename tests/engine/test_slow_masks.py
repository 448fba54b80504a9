"""Grammars whose masks take long, or much memory: nobody else waits for them, and no answer depends on it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from helpers import Native

# So ambiguous that a mask takes hundreds of milliseconds after a dozen letters, hundreds of times what a step takes.
SLOW = {"kind": "lark", "text": "start: e\ne: e e | e e e | C\nC: /[a-z ]/"}
SCHEMA = {
    "kind": "json_schema",
    "text": json.dumps(
        {
            "type": "object",
            "properties": {
                "a": {"type": "string", "maxLength": 12},
                "b": {"type": "boolean"},
                "c": {"enum": ["x", "y"]},
            },
            "required": ["a", "b", "c"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
    ),
}
FREE: dict[str, str] = {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_random(tmp_path_factory.mktemp("slow") / "model.gguf", n_ctx_train=4096)


@pytest.fixture
def native(model: Path) -> Iterator[Native]:
    native = Native(model, n_ctx=4096, max_streams=8)
    yield native
    native.engine.close()


def begin(native: Native, constraint: dict[str, str], n_tokens: int = 4000, seed: int = 0, **fields: Any) -> int:
    sampling = {"temperature": 1.0, "seed": seed}
    return native.submit("the", max_tokens=n_tokens, sampling=sampling, constraint=constraint, **fields)


def texts(events: list[Any]) -> dict[int, tuple[str, str, int]]:
    """By request: its text, why it ended, and its tokens."""
    found: dict[int, tuple[str, str, int]] = {}
    for event in events:
        before = found.get(event.id, ("", "", 0))[0]
        assert event.kind in ("text", "finished", "progress"), event.text
        found[event.id] = (before + event.text, event.reason, event.n_generated)
    return found


def letters_of(native: Native, id: int, n: int) -> list[Any]:
    """What comes until a request has n tokens."""
    events: list[Any] = []
    while not any(event.id == id and event.n_generated >= n for event in events):
        events += native.outbox.wait(1000)
    return events


def test_no_stream_waits_for_a_slow_mask(native: Native) -> None:
    """Between two tokens of the slow one, the other says many: were a mask computed in a step, it would say one."""
    slow = begin(native, SLOW, 32)
    free = begin(native, FREE, ignore_eos=True)
    order: list[int] = []
    while order.count(slow) < 32:
        order += [event.id for event in native.outbox.wait(1000) if event.kind in ("text", "finished")]
    native.engine.cancel(free)
    between = [len(run) for run in "".join("s" if id == slow else "f" for id in order).split("s")[1:-1]]
    assert max(between) >= 4, between


def test_what_an_answer_says_depends_on_no_mask_beside_it(native: Native) -> None:
    asked = [(SCHEMA, 200), (SLOW, 16), (FREE, 40), (SCHEMA, 200), (SLOW, 16), (SCHEMA, 7), (SCHEMA, 200), (FREE, 40)]
    alone = [texts(native.events(begin(native, form, n, seed)))[seed + 1] for seed, (form, n) in enumerate(asked)]
    assert {reason for _, reason, _ in alone} == {"stop", "length"}
    ids = [begin(native, form, n, seed) for seed, (form, n) in enumerate(asked)]
    together = texts(native.events(*ids))
    assert [together[id] for id in ids] == alone


def test_how_an_answer_ends_does_not_depend_on_how_slow_its_masks_are(native: Native) -> None:
    """It is complete with its last token and ends then, also where only a slow mask's successor can tell."""
    slow = {"kind": "lark", "text": 'start: e "!"\ne: e e | e e e | C\nC: /[a-z ]/'}
    only = [(native.engine.tokenize([(letter, False)], False)[0], 100.0) for letter in "ab"]
    shout = [(native.engine.tokenize([("!", False)], False)[0], 1000.0)]
    for bias, n_tokens, reason in ((only, 14, "length"), (only + shout, 14, "stop"), (only + shout, 2, "stop")):
        sampling = {"temperature": 1.0, "logit_bias": bias}
        [(text, why, n)] = texts(native.ask("x", max_tokens=n_tokens, sampling=sampling, constraint=slow)).values()
        assert (why, n) == (reason, 2 if reason == "stop" else n_tokens)
        assert text.endswith("!") == (reason == "stop")


def test_cancelling_while_a_mask_is_computed(native: Native) -> None:
    for seed in range(30):
        slow, beside = begin(native, SLOW, seed=seed), begin(native, SCHEMA, 200, seed=seed)
        events = letters_of(native, slow, 12)
        native.engine.cancel(slow)
        events += native.events(*{slow, beside} - {event.id for event in events if event.kind == "finished"})
        [failed] = [event for event in events if event.kind == "error"]
        assert (failed.id, failed.code) == (slow, "cancelled")
    stats = native.engine.stats()
    assert (stats["n_cancelled"], stats["n_finished"], stats["n_running"]) == (30, 30, 0)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "deleted"])
def test_an_engine_ends_while_masks_are_computed(model: Path, close: bool) -> None:
    for seed in range(30):
        native = Native(model, n_ctx=256, max_streams=2)
        ids = [begin(native, SLOW, seed=seed + i) for i in range(3)]  # one of them waits in the queue
        events = letters_of(native, ids[0], 10)
        outbox = native.outbox
        if close:
            native.engine.close()
        del native
        while True:
            try:
                events += outbox.wait(1000)
            except Exception as error:
                assert error.args[0] == "engine_closed"
                break
        assert sorted(event.id for event in events if event.code == "engine_closed") == ids


HOSTILE = {
    "states": {"kind": "regex", "text": r"(.|\n)*[ae](.|\n){100}z"},
    "lexemes": {
        "kind": "lark",
        "text": "start: (" + "|".join(f"T{i}" for i in range(1500)) + ")+\n"
        + "\n".join(f"T{i}: /(.|\\n){{3,60}}x{i}/" for i in range(1500)),
    },
    "rows": {"kind": "lark", "text": 'start: "(" start ")" | C start | C\nC: /[a-z]/'},
    "derivatives": {"kind": "regex", "text": r"(.*a.{0,12}b.*|.*c.{0,12}d.*){1,5}"},
}  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are kept on Linux")
@pytest.mark.parametrize("name", HOSTILE)
def test_no_grammar_takes_much_memory(smollm2: Path, name: str) -> None:
    """Eight answers at once, in a process that may take 300 MB more for them and is ended by what takes more."""
    program = f"""
        import resource, sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        from helpers import Native
        from polargrid_local.native.core import core

        native = Native({str(smollm2)!r}, n_ctx=512, max_streams=8)
        sampling = {{"temperature": 1.0}}
        ready = [native.submit("x", max_tokens=3, sampling=sampling, constraint={SCHEMA!r}) for _ in range(8)]
        native.events(*ready)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
        outcomes = []
        for seed in range(8):
            sampling = {{"temperature": 1.0, "seed": seed}}
            try:
                native.submit("The", max_tokens=200, sampling=sampling, constraint={HOSTILE[name]!r})
            except core().Error as error:
                outcomes.append(error.args[0])
        begun = set(range(9, 9 + 8 - len(outcomes)))
        outcomes += [e.code or e.reason for e in native.events(*begun) if e.kind != "text" and e.kind != "progress"]
        native.engine.close()
        print(sorted(set(outcomes)), len(outcomes))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes, n = done.stdout.rsplit(" ", 1)
    assert int(n) == 8
    assert set(json.loads(outcomes.replace("'", '"'))) <= {"invalid_grammar", "constraint_failed", "length", "stop"}
