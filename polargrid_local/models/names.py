"""File names: what the files of a folder are called, and which file a person's name or path means."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from polargrid_local.errors import ValidationError
from polargrid_local.shards import shard_of


def scan(folder: Path) -> tuple[list[str], list[str]]:
    """The .gguf files of a folder, and the folders in it, both sorted by name, linked folders last.

    A link counts as what it leads to. Raises OSError where the folder cannot be read."""
    files: list[str] = []
    folders: list[tuple[bool, str]] = []
    with os.scandir(folder) as found:
        for item in found:
            with contextlib.suppress(OSError):  # a loop of links cannot be looked into
                if item.name.lower().endswith(".gguf") and item.is_file():
                    files.append(item.name)
                elif not item.name.startswith(".") and item.is_dir():
                    folders.append((item.is_symlink(), item.name))
    return sorted(files), [name for _, name in sorted(folders)]


def names_of(files: Sequence[str]) -> dict[str, str]:
    """Each name that the files of one folder answer to -> the file to open. A whole name wins over a shortened one."""
    names = {file: file for file in files}
    sets: dict[str, list[str]] = {}  # first file of a split model -> its files
    for file in sorted(files, key=lambda file: not file.endswith(".gguf")):
        if len(file) > len(".gguf"):
            names.setdefault(file[: -len(".gguf")], file)
        if shard := shard_of(file):
            sets.setdefault(shard.names()[0], shard.names())
    for first in sorted(sets, key=lambda first: len(set(sets[first]).difference(files))):  # complete sets first
        names.setdefault(short_name(first), first)
        names.setdefault(short_name(first) + ".gguf", first)
    for name, file in list(names.items()):
        names.setdefault(readable(name), file)
    return names


def short_name(file: str) -> str:
    """A file's name without its extension, of a shard without its number."""
    shard = shard_of(file)
    return shard.stem if shard else os.path.splitext(file)[0]


def readable(name: str) -> str:
    """A name on disk as text that can be sent and printed: a byte that is not UTF-8 as backslash, x and two digits."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def absolute(path: str) -> Path:
    """An absolute path, with `~` and `~user` replaced by the home directories they name.

    Raises ValidationError for what no path can be, and for a path that depends on a home or working directory that
    does not exist."""
    if "\0" in path or not _encodes(path):
        raise ValidationError(f"Not a path: {path[:200]!r} holds a NUL or half a surrogate pair", param="model")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise ValidationError(f"Not a path: {path[:200]!r}: this account has no home directory", param="model")
    try:
        return Path(expanded).absolute()
    except OSError as cause:
        raise ValidationError(
            f"Not a path: {path[:200]!r}: not an absolute path, and {cause.strerror}", param="model"
        ) from cause


def local_path(text: str) -> Path:
    """A path or a file: URL as the path it means. Raises ValidationError for another machine's, and as absolute()."""
    if not text.startswith("file:"):
        return absolute(text)
    try:
        url = urlsplit(text)
    except ValueError as error:  # such as a bracket that is never closed
        raise ValidationError(f"Not a file: URL: {text[:200]!r}: {error}", param="model") from None
    if url.netloc not in ("", "localhost"):
        raise ValidationError(f"Not a file on this machine: {text[:200]!r}", param="model")
    return absolute(url_path(text))


def url_path(url: str) -> str:
    """The path of a file: URL in this system's spelling."""
    from urllib.request import url2pathname  # brings an HTTP client, which looking up a name must not cost

    return url2pathname(urlsplit(url).path)


def why_no_file(path: Path) -> str:
    """What keeps a path from being opened as a model, to go behind its name in a sentence."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "is a broken link" if os.path.islink(path) else "does not exist"
    except (OSError, ValueError) as cause:  # ValueError: a name that no file can have
        return f"cannot be opened: {getattr(cause, 'strerror', None) or cause}"
    return "is not a regular file"


def _encodes(text: str) -> bool:
    """Whether a file could have this name. Bytes that are no UTF-8 come as surrogates, which the system takes back."""
    try:
        return text.isascii() or bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False
