"""Tables on stdout: aligned columns that a person and `awk` can both read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer

from polargrid_local.cli.wrap import columns


def show(rows: Iterable[Sequence[object]]) -> None:
    """Print rows of equal length, each cell as wide as its column's widest."""
    cells = [[_printable(str(cell)) for cell in row] for row in rows]
    widths = [max(columns(cell) for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(padded).rstrip())


def size(n_bytes: int | None) -> str:
    """A number of bytes for people: "98 MB"; "-" for None."""
    if n_bytes is None:
        return "-"
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _printable(text: str) -> str:
    """Files may have any name: a character that cannot be seen is written as its escape, a line break as \\n."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
