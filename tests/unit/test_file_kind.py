"""What refused files are called, from files as their own programs write them."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polargrid_local.native.file_kind import HEAD_BYTES, file_kind


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data.pkl", b"x" * 99)
    return out.getvalue()


def tarred():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"), io.BytesIO())
    return out.getvalue()


def safetensors():
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(400)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\n<html><head>", "an HTML page"),
        (b"\xef\xbb\xbf \r\n<HTML lang=en>", "an HTML page"),
        ("<!doctype html>".encode("utf-16"), "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4920739232\n", "a Git LFS pointer"),
        (b"GGUF\0\0\0\x03" + bytes(60), "a big-endian GGUF"),
        (b"GGUF\x01\0\0\0" + bytes(60), "a GGUF of the first version"),
        (b"lmgg" + bytes(60), "a GGML file"),
        (b"fmgg\x01\0\0\0", "a GGMF file"),
        (b"tjgg\x03\0\0\0" + bytes(60), "a GGJT file"),
        (safetensors(), "a safetensors file"),
        (zipped(), "a zip archive"),
        (gzip.compress(b"x"), "a gzip archive"),
        (bz2.compress(b"x"), "a bzip2 archive"),
        (lzma.compress(b"x"), "an xz archive"),
        (tarred(), "a tar archive"),
        (b"\x80\x02}q\x00", "a PyTorch checkpoint"),
        (bytes(5000), "a partial download"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML document"),
        (b'{"error": "Invalid credentials in Authorization header"}', "a JSON document"),
        (b"Entry not found", "a text file"),
        ("Zugriff verweigert: später".encode(), "a text file"),
    ],
)
def test_what_it_looks_like(data, says):
    assert file_kind(data[:HEAD_BYTES], len(data)).startswith(says)


@pytest.mark.parametrize(
    "data", [b"GGUF\x03\0\0\0" + bytes(60), b"GGUF\x02\0\0\0" + bytes(60), b"GGUF", random.Random(1).randbytes(600)]
)
def test_a_gguf_and_the_unknown_are_called_nothing(data):
    assert file_kind(data[:HEAD_BYTES], len(data)) is None


@pytest.mark.parametrize("name", ["m.gguf.part", "m.crdownload", "m.gguf.INCOMPLETE", "m.aria2", "m.download"])
def test_an_unfinished_download_is_known_by_its_name(name):
    assert file_kind(b"GGUF\x03\0\0\0", 8, name).startswith("a partial download")


@given(st.binary(max_size=HEAD_BYTES), st.integers(0, 2**40), st.text())
def test_no_bytes_and_no_name_are_an_error(head, more, name):
    assert isinstance(file_kind(head, len(head) + more, name), (str, type(None)))
