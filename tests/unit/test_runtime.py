"""Mailboxes, the pump, and the ends of processes: forks and exits with live streams."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading

import pytest
from fakes import Event, factory
from hypothesis import given, settings
from hypothesis import strategies as st

from polargrid_local.errors import ForkedEngineError, NotFoundError
from polargrid_local.native.runtime import MAX_PENDING, Inbox, LoadedModel, Mailbox


class Deaf:
    """A loop for boxes that nobody waits for."""

    def call_soon_threadsafe(self, callback, boxes):
        pass


DEAF = Deaf()


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    model = LoadedModel(file, {}, factory()).load()
    yield model
    model.close()


def read_one(box):
    """What a task would get that finds the box filled: no loop is needed."""
    with pytest.raises(StopIteration) as stop:
        box.get().send(None)
    return stop.value.value


def drain(box):
    while box._events:
        yield read_one(box)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=60), st.integers(0, MAX_PENDING + 3))
def test_gathered_text_stays_whole_and_in_order(script, ahead):
    """Steps are (request, read so many); `ahead` fills the box first, so that gathering begins at any point."""
    box, sent, got, n = Mailbox(DEAF), {}, {}, 0

    def read(count):
        for _ in range(min(count, len(box._events))):
            index, event = read_one(box)
            got[index] = got.get(index, "") + event.text

    for index, count in [(0, 0)] * ahead + script:
        n += 1
        box.push(index, Event(1, "text", f"{n} "))
        sent[index] = sent.get(index, "") + f"{n} "
        read(count)
        assert len(box._events) <= MAX_PENDING + 3
    read(10**6)
    assert got == sent


def test_gathered_text_keeps_logprobs_and_the_latest_counts():
    box = Mailbox(DEAF)
    for n in range(MAX_PENDING + 10):
        box.push(0, Event(1, "text", "x", logprobs=[{"token": n}], n_generated=n + 1))
    box.push(0, Event(1, "finished", reason="stop"))
    events = [event for _, event in drain(box)]
    assert len(events) == MAX_PENDING + 2 and events[-1].kind == "finished" and events[-2].kind == "text"
    assert [entry["token"] for event in events for entry in event.logprobs] == list(range(MAX_PENDING + 10))
    assert events[-2].n_generated == MAX_PENDING + 10 and events[-2].text == "x" * 10


async def test_a_reader_and_a_pump_at_full_speed():
    loop = asyncio.get_running_loop()
    box, n = Mailbox(loop), 20_000

    def pump():
        for i in range(n):
            if box.push(0, Event(1, "text", f"{i},")):
                loop.call_soon_threadsafe(box.rouse)

    thread = threading.Thread(target=pump)
    thread.start()
    text = ""
    while text.count(",") < n:
        text += (await box.get())[1].text
    thread.join()
    assert text == "".join(f"{i}," for i in range(n))


def test_an_inbox_tells_its_requests_apart_and_forgets_those_that_ended(model):
    box = Inbox(model)
    box.register(7, 0)
    box.register(9, 1)
    for event in (
        Event(7, "text", "a"),
        Event(9, "finished"),
        Event(9, "text", "late"),
        Event(8, "text", "b"),
        Event(7, "finished"),
    ):
        box.outbox.push(event)
    assert [(index, event.kind) for index, event in (box.get() for _ in range(3))] == [
        (0, "text"),
        (1, "finished"),
        (0, "finished"),
    ]


def test_an_inbox_whose_engine_has_ended_hears_of_it_once_what_was_said_is_read(model):
    box = Inbox(model)
    box.register(7, 0)
    box.outbox.push(Event(7, "text", "a"))
    model.close()
    assert model._hub.failure
    assert [(event.kind, event.code) for _, event in (box.get(), box.get())] == [
        ("text", ""),
        ("error", "engine_closed"),
    ]


def test_waking_an_inbox_is_no_event(model):
    box = Inbox(model)
    box.register(7, 0)
    threading.Thread(target=box.wake).start()  # before the read or in it: it is woken either way
    assert box.get()[1].__class__ is object
    box.outbox.push(Event(7, "text", "a"))
    assert box.get()[1].text == "a"


async def test_one_wake_up_per_loop_and_step(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    make = factory(lambda request: iter([threading.Event().wait]))  # never says a word
    model = LoadedModel(file, {"max_queue": 99}, make).load()
    loop = asyncio.get_running_loop()
    calls = []
    plain = loop.call_soon_threadsafe

    def counted(callback, *args, **kwargs):
        calls.append(callback)
        return plain(callback, *args, **kwargs)

    loop.call_soon_threadsafe = counted
    boxes = [Mailbox(loop) for _ in range(8)]
    for number, box in enumerate(boxes, 1000):
        model._hub.register(number, box, 0)
    waiting = [asyncio.ensure_future(box.get()) for box in boxes]
    await asyncio.sleep(0)
    model._hub.file([Event(number, "text", str(number)) for number in range(1000, 1008)])
    assert [event.text for _, event in await asyncio.gather(*waiting)] == [str(number) for number in range(1000, 1008)]
    assert len(calls) == 1
    model._hub.routes.clear()
    make.made[0].script = None
    del loop.call_soon_threadsafe
    model.close()


async def test_a_quiet_reader_is_woken_at_the_end_only():
    loop = asyncio.get_running_loop()
    box = Mailbox(loop, quiet=True)
    assert not box.push(0, Event(1, "text", "x"))
    assert box.push(0, Event(1, "finished"))


def test_events_that_come_before_their_id_is_known_are_kept(model):
    box = Mailbox(DEAF)
    model._hub.file([Event(77, "text", "early"), Event(77, "finished")])
    model._hub.register(77, box, 3)
    assert [(index, event.kind) for index, event in drain(box)] == [(3, "text"), (3, "finished")]
    assert 77 not in model._hub.routes and not model._hub.early
    model.close()
    late = Mailbox(DEAF)
    model._hub.register(78, late, 0)
    assert read_one(late)[1].code == "engine_closed"


def test_abandoned_requests_leave_no_trace(model):
    hub = model._hub
    hub.register(5, Mailbox(DEAF), 0)
    hub.drop([5, 6])
    hub.file([Event(5, "text", "x"), Event(5, "text", "y")])
    assert hub.routes == {5: None}
    hub.file([Event(5, "error", "cancelled", code="cancelled")])
    assert hub.routes == {} and hub.early == {}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere.gguf"):
        LoadedModel(tmp_path / "nowhere.gguf", {}, factory())


def test_the_native_log_goes_to_logging(caplog, tmp_path):
    from polargrid_local.native.runtime import _Hub

    lines = [(logging.WARNING, "beware"), (logging.ERROR, "broken"), (logging.INFO, "100 %s fine")]
    hub = _Hub(None, lambda: [lines.pop(0) for _ in range(len(lines))])
    with caplog.at_level(logging.INFO, "polargrid_local.llama"):
        hub.log()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "beware"),
        ("ERROR", "broken"),
        ("INFO", "100 %s fine"),
    ]


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_at_once_and_touches_nothing(tmp_path):
    from fakes import endless

    from polargrid_local import Engine

    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    engine = Engine(file, models_dir=tmp_path, engine_factory=factory(endless))
    stream = engine.completion_stream(prompt="x")
    next(stream)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(120)
            calls = [
                lambda: engine.completion(prompt="x"),
                lambda: [*stream],
                engine.stats,
                engine.list_models,
                engine.close,
                lambda: engine.tokenize("x"),
                lambda: engine.load_model("m"),
                engine.unload_all_models,
            ]
            refused = 0
            for call in calls:
                try:
                    call()
                except ForkedEngineError:
                    refused += 1
            stream.cancel()
            del stream, calls
            engine._models._ready.clear()
            status = 0 if refused == 8 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert next(stream)
    engine.close()


# One interpreter imports everything; every way to exit gets a fork of it, made before there are threads.
EXITS = """
import atexit, builtins, gc, itertools, os, signal, sys, threading
sys.path.insert(0, {tests!r})
import numpy
from fakes import endless, factory
from polargrid_local import Engine
for how in {hows!r}:
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        engine = Engine({file!r}, models_dir={folder!r}, engine_factory=factory(endless))
        stream = engine.chat_completion_stream(messages=[dict(role="user", content="x")])
        assert len(list(itertools.islice(stream, 3))) == 3
        exec(how)
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), how, flush=True)
"""
HOWS = [
    "pass",
    "raise SystemExit",
    "del engine",
    "del stream",
    "circle = [stream]; circle.append(circle); del stream",
    "gc.disable(); circle = [stream, engine]; circle.append(circle); del stream, engine",
    "threading.Thread(target=lambda s=stream: [*itertools.islice(s, 50)]).start()",
    "threading.Thread(target=lambda s=stream: list(s), daemon=True).start()",
    "threading.Thread(target=lambda: [engine.completion_stream(prompt='x').cancel() for _ in iter(int, 1)], daemon=True).start()",
    "atexit.register(lambda s=stream: next(s, None))",
    "builtins.kept = stream",
    "engine.close()",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_an_exit_with_a_live_stream_is_an_ordinary_exit(tmp_path, root):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    code = EXITS.format(tests=str(root / "tests"), file=str(file), folder=str(tmp_path), hows=HOWS)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=1200, cwd=root
    )
    assert done.stdout.splitlines() == [f"0 {how}" for how in HOWS], done.stderr
    assert done.stderr == ""


def test_text_that_comes_after_a_gathered_event_stays_after_it():
    """A slow reader catches up by two, one event goes in as it is, and the next is gathered again: not with the first."""
    box, sent = Mailbox(DEAF), []

    def push(text):
        sent.append(text)
        box.push(0, Event(1, "text", text))

    for i in range(MAX_PENDING + 1):
        push(f"{i} ")
    read = [read_one(box)[1].text, read_one(box)[1].text]
    push("plain ")
    push("gathered ")
    while len("".join(read)) < len("".join(sent)):
        read.append(read_one(box)[1].text)
    assert "".join(read) == "".join(sent)
