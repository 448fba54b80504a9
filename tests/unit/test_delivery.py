"""Readers, the pump, and the ends of processes: forks and exits with live streams."""

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

from polargrid_local.errors import EngineClosed, ForkedEngineError, NotFoundError
from polargrid_local.native.delivery import TaskReader, ThreadReader
from polargrid_local.native.loaded_model import LoadedModel


def silent(request):
    """Never says a word, and does not end either."""
    while True:
        yield 0.01


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    model = LoadedModel(file, {}, factory(silent)).load()
    yield model
    model.close()


def native(model):
    return model.handle.native


def say(model, outbox, *events):
    """As the engine's thread does at the end of a step."""
    rung = [outbox.id for event in events if outbox.push(event) and outbox.id]
    engine = native(model)
    with engine._changed:
        engine._rung += rung
        engine._changed.notify_all()


def soon(awaitable):
    """A reader that is never told waits for ever: then the test fails in a while."""
    return asyncio.wait_for(awaitable, 60)


def kinds(entries):
    return [(index, event.kind) for index, event in entries]


EVENTS = (
    Event(7, "text", "a"),
    Event(9, "finished"),
    Event(9, "text", "late"),
    Event(8, "text", "b"),
    Event(7, "finished"),
)
READ = [(0, "text"), (1, "finished"), (0, "finished")]


def registered(reader):
    reader.register(7, 0)
    reader.register(9, 1)
    return reader


def test_a_reader_tells_its_requests_apart_and_forgets_those_that_ended(model):
    reader = registered(ThreadReader(model.handle))
    say(model, reader.outbox, *EVENTS)
    assert kinds(reader.get() for _ in READ) == READ


async def test_a_task_reads_the_same(model):
    reader = registered(TaskReader(model.handle, asyncio.get_running_loop()))
    say(model, reader.outbox, *EVENTS)
    assert kinds([await reader.get() for _ in READ]) == READ


def test_a_reader_whose_engine_has_ended_is_told_once_what_was_said_is_read(model):
    reader = registered(ThreadReader(model.handle))
    say(model, reader.outbox, Event(7, "text", "a"))
    model.close()
    assert model.handle.failure
    assert reader.get()[1].text == "a"
    for _ in range(2):
        with pytest.raises(EngineClosed):
            reader.get()
    with pytest.raises(EngineClosed):
        ThreadReader(model.handle).get()


async def test_a_task_whose_engine_has_ended_is_told_too(model):
    reader = registered(TaskReader(model.handle, asyncio.get_running_loop()))
    waiting = asyncio.ensure_future(reader.get())
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(asyncio.to_thread(model.close))
    with pytest.raises(EngineClosed):
        await soon(waiting)
    await closing
    with pytest.raises(EngineClosed):
        await TaskReader(model.handle, asyncio.get_running_loop()).get()


def test_waking_a_thread_is_no_event(model):
    reader = registered(ThreadReader(model.handle))
    threading.Thread(target=reader.wake).start()  # before the read or in it: it is woken either way
    assert reader.get() is None
    say(model, reader.outbox, Event(7, "text", "a"))
    assert reader.get()[1].text == "a"


async def test_waking_a_task_is_no_event(model):
    reader = registered(TaskReader(model.handle, asyncio.get_running_loop()))
    threading.Thread(target=reader.wake).start()
    assert await soon(reader.get()) is None
    say(model, reader.outbox, Event(7, "text", "a"))
    assert (await reader.get())[1].text == "a"


async def test_one_wake_up_per_loop_and_step(model):
    loop = asyncio.get_running_loop()
    calls = []
    plain = loop.call_soon_threadsafe

    def counted(callback, *args, **kwargs):
        calls.append(callback)
        return plain(callback, *args, **kwargs)

    readers = [TaskReader(model.handle, loop) for _ in range(8)]
    for number, reader in enumerate(readers, 1000):
        reader.register(number, 0)
    waiting = [asyncio.ensure_future(reader.get()) for reader in readers]
    await asyncio.sleep(0.01)
    loop.call_soon_threadsafe = counted
    engine = native(model)
    with engine._changed:  # the pump looks when all of them have their mail, as after a step of the engine
        for number, reader in enumerate(readers, 1000):
            say(model, reader.outbox, Event(number, "text", str(number)))
    assert [event.text for _, event in await soon(asyncio.gather(*waiting))] == [
        str(number) for number in range(1000, 1008)
    ]
    assert len(calls) == 1
    del loop.call_soon_threadsafe


async def test_a_quiet_reader_is_woken_at_the_end_only(model):
    reader = registered(TaskReader(model.handle, asyncio.get_running_loop(), quiet=True))
    waiting = asyncio.ensure_future(reader.get())
    say(model, reader.outbox, Event(7, "text", "x"))
    assert not native(model)._rung and not waiting.done()
    say(model, reader.outbox, Event(7, "finished"))
    assert (await soon(waiting))[1].text == "x" and (await reader.get())[1].kind == "finished"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["say", "read", "rest"]), max_size=60))
def test_no_order_of_saying_and_reading_loses_an_event(script):
    """Whatever rings while the task reads, waits or does something else: every event arrives, once and in order."""

    async def both(model):
        reader = registered(TaskReader(model.handle, asyncio.get_running_loop()))
        sent, got = 0, []
        for step in script:
            if step == "say":
                say(model, reader.outbox, Event(7, "text", str(sent)))
                sent += 1
            elif step == "read" and len(got) < sent:
                got.append((await soon(reader.get()))[1].text)
            else:
                await asyncio.sleep(0.001)
        while len(got) < sent:
            got.append((await soon(reader.get()))[1].text)
        assert got == [str(number) for number in range(sent)]

    asyncio.run(both(SHARED[0]))


SHARED = []


@pytest.fixture(autouse=True)
def shared(model):
    SHARED[:] = [model]
    yield
    SHARED.clear()


async def test_a_reader_and_an_engine_at_full_speed(model):
    reader, n = TaskReader(model.handle, asyncio.get_running_loop()), 20_000
    reader.register(7, 0)

    def engine_thread():
        for number in range(n):
            say(model, reader.outbox, Event(7, "text", f"{number},"))

    thread = threading.Thread(target=engine_thread)
    thread.start()
    text = []
    while len(text) < n:
        text.append((await reader.get())[1].text)
    thread.join()
    assert "".join(text) == "".join(f"{number}," for number in range(n))


async def test_a_reader_that_is_gone_leaves_no_trace(model):
    reader = TaskReader(model.handle, asyncio.get_running_loop())
    id = native(model).submit({"task": "generate", "prompt": [("x", False)], "max_tokens": 5}, reader.outbox)
    reader.register(id, 0)
    reader.abandon()
    assert native(model).cancelled == [id]
    outbox = reader.outbox
    del reader
    assert not model.handle.loop_readers
    say(model, outbox, Event(id, "text", "nobody reads this"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere.gguf"):
        LoadedModel(tmp_path / "nowhere.gguf", {}, factory())


def test_the_native_log_goes_to_logging(caplog, tmp_path):
    from polargrid_local.native.handle import Handle

    lines = [(logging.WARNING, "beware"), (logging.ERROR, "broken"), (logging.INFO, "100 %s fine")]
    handle = Handle(None, lambda: [lines.pop(0) for _ in range(len(lines))])
    with caplog.at_level(logging.INFO, "polargrid_local.llama"):
        handle.pass_log_on()
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
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), repr(how), flush=True)
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
    "for_ever = lambda: [engine.completion_stream(prompt='x').cancel() for _ in iter(int, 1)]\n"
    "threading.Thread(target=for_ever, daemon=True).start()",
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
    assert done.stdout.splitlines() == [f"0 {how!r}" for how in HOWS], done.stderr
    assert done.stderr == ""
