"""What a refused model file looks like, told from its first bytes: for the message that refuses it. Pure."""

from __future__ import annotations

import re

HEAD_BYTES = 512  # what `file_kind` wants to see

_BEGINNINGS = {
    b"lmgg": "a GGML file of 2023 or before, which was not yet GGUF: get the model as GGUF",
    b"fmgg": "a GGMF file of 2023, which was not yet GGUF: get the model as GGUF",
    b"tjgg": "a GGJT file of 2023, which was not yet GGUF: get the model as GGUF",
    b"algg": "a GGLA adapter of 2023, which is no model: get it as GGUF",
    b"nsgg": "a saved session of llama.cpp, not a model",
    b"qsgg": "a saved sequence of llama.cpp, not a model",
    b"PK\x03\x04": "a zip archive (PyTorch checkpoints are some, too): unpack it, or get the model as GGUF",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\xfd7zXZ\x00": "an xz archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!\x1a\x07": "a rar archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    b"\x80\x02": "a PyTorch checkpoint: get the model as GGUF",
    b"\x89HDF\r\n": "an HDF5 file (Keras): get the model as GGUF",
    b"MZqFpD": "a llamafile, which is a program: get the model as GGUF",
    b"\x7fELF": "a program: get the model as GGUF",
    b"%PDF-": "a PDF document",
    b"GGUF\x00\x00\x00": "a big-endian GGUF: get or convert it for little-endian machines",
    b"GGUF\x01\x00\x00\x00": "a GGUF of the first version, of August 2023: get a newer one",
}
_TEXTS = {
    r"version https://git-lfs\.github\.com/spec/": (
        "a Git LFS pointer, a note that stands for the file: git lfs pull fetches that"
    ),
    r"<!doctype html|<html|<head|<body|<script|<!--": (
        "an HTML page (of a login or an error?), not the file behind the link"
    ),
    r"<\?xml": "an XML document (an error message of the server?)",
    r"[{\[]\s*[\"{\[\]}]": "a JSON document (an error message of the server?)",
}


def file_kind(head: bytes, n_bytes: int, name: str = "") -> str | None:
    """What a file of `n_bytes` looks like whose first HEAD_BYTES are `head`, in words that follow "looks like"; None
    for a GGUF and for what nobody knows."""
    if n_bytes == 0:
        return "an empty file: a download that was not begun, or a full disk?"
    if re.search(r"\.(part|partial|crdownload|download|incomplete|aria2|tmp)$", name, re.IGNORECASE):
        return "a partial download: let it end, or begin it anew"
    if not head.strip(b"\0"):
        return "a partial download, zeros where the first bytes should be: let it end, or begin it anew"
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    # Safetensors: the length of a JSON header, then the header.
    if len(head) > 9 and 0 < int.from_bytes(head[:8], "little") < n_bytes and re.match(rb'\{\s*["}]', head[8:]):
        return "a safetensors file: get or convert the model as GGUF"
    if head.startswith(b"GGUF"):
        return None
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "replace").lstrip(
        "\ufeff \t\r\n"
    )
    for pattern, kind in _TEXTS.items():
        if re.match(pattern, text, re.IGNORECASE):
            return kind
    if text.isprintable() or not re.search(r"[\x00-\x08\x0e-\x1f\ufffd]", text.rstrip("\ufffd")):
        return "a text file"
    return None
