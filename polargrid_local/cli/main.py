"""The console script: the streams and the signals of its process, then the command."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from polargrid_local.cli.commands import app


def main() -> None:
    """Run the command that the arguments of this process name."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            # An answer may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # absent in a replaced stream: suppressed
    with _signals_end_it() if sys.argv[1:2] == ["serve"] else contextlib.nullcontext():
        app()


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """For `serve`: SIGINT and SIGTERM end the process with exit code 0 also while it starts, before the server handles
    them itself; once it ends, further ones are ignored."""

    def leave(sig: int, frame: Any) -> None:
        raise SystemExit(0)

    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, leave)
    try:
        yield
    finally:
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, signal.SIG_IGN)
