"""Verdicts: what is remembered of files that were tried, and what is not. And where a model's engine runs."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from polargrid_local.models.verdicts import Verdicts
from polargrid_local.native.isolation import TESTED, choose


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "model.gguf", tmp_path / "adapter.gguf"]
    for path in paths:
        path.write_bytes(b"x" * 100)
    return paths


def test_files_that_stood_a_trial_are_known_to_later_processes(tmp_path, files):
    Verdicts("build 1", tmp_path / "cache").note(files)
    later = Verdicts("build 1", tmp_path / "cache")
    assert later.stood(files)
    assert not later.stood(files[:1])  # nor is one of them, without the other
    assert not later.stood(files[::-1])
    assert not Verdicts("build 2", tmp_path / "cache").stood(files)


@pytest.mark.parametrize("change", ["append", "overwrite", "touch", "replace", "remove"])
def test_a_file_that_may_have_changed_is_not_known(tmp_path, files, change):
    verdicts = Verdicts("build", tmp_path / "cache")
    verdicts.note(files)
    path, times = files[0], files[0].stat()
    if change == "append":
        path.write_bytes(b"x" * 101)
    elif change == "overwrite":  # with the times of before, as far as a program can set them
        while path.stat().st_ctime_ns == times.st_ctime_ns:  # a file system's clock may tick every few milliseconds
            path.write_bytes(b"y" * 100)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "touch":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    elif change == "replace":
        fresh = tmp_path / "fresh"
        fresh.write_bytes(b"x" * 100)
        os.replace(fresh, path)
    else:
        path.unlink()
    assert not verdicts.stood(files)


def test_a_header_changed_in_place_is_noticed_where_no_time_of_changes_is_kept(tmp_path, files, monkeypatch):
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*real(fd)[:9], 0], {"st_ctime_ns": 0}))
    verdicts = Verdicts("build", tmp_path / "cache")
    verdicts.note(files)
    assert verdicts.stood(files)
    times = files[0].stat()
    files[0].write_bytes(b"x" * 50 + b"y" + b"x" * 49)
    os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not verdicts.stood(files)


def test_a_copy_is_tried_again(tmp_path, files):
    """Its header is no other, but nobody has looked at its weights."""
    verdicts = Verdicts("build", tmp_path / "cache")
    verdicts.note(files[:1])
    assert not verdicts.stood([shutil.copy2(files[0], tmp_path / "copy.gguf")])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": "b"}', b"\xff"])
def test_a_broken_note_knows_nothing_and_is_replaced(tmp_path, files, content):
    place = tmp_path / "cache" / "verdicts.json"
    place.parent.mkdir()
    place.write_bytes(content)
    verdicts = Verdicts("build", place.parent)
    assert not verdicts.stood(files)
    verdicts.note(files)
    assert verdicts.stood(files)
    assert len(json.loads(place.read_bytes())) == 1


def test_where_nothing_can_be_written_nothing_is_known(tmp_path, files):
    in_the_way = tmp_path / "cache"
    in_the_way.write_bytes(b"a file")
    verdicts = Verdicts("build", in_the_way)
    verdicts.note(files)
    assert not verdicts.stood(files)
    verdicts.note([tmp_path / "none"])


def test_only_so_many_are_remembered(tmp_path, files, monkeypatch):
    monkeypatch.setattr("polargrid_local.models.verdicts._MOST", 3)
    for build in "abcde":
        Verdicts(build, tmp_path / "cache").note(files)
    assert [build for build in "abcde" if Verdicts(build, tmp_path / "cache").stood(files)] == ["c", "d", "e"]


@pytest.mark.parametrize(
    ("wanted", "verified", "architecture", "where"),
    [
        ("auto", True, "llama", "thread"),
        ("auto", False, "llama", "process"),
        ("auto", True, "mamba", "process"),
        ("thread", False, "mamba", "thread"),
        ("process", True, "llama", "process"),
    ],
)
def test_where_an_engine_runs(wanted, verified, architecture, where):
    assert choose(wanted, verified, architecture) == where
    assert ("llama" in TESTED) and ("mamba" not in TESTED)
