"""How a command ends: what its errors print on stderr, and its exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from polargrid_local.errors import PolarGridError


class Commands(TyperGroup):
    """Runs a command. An error is one line on stderr and exit code 1; after --debug it is a traceback. Ctrl-C is 130;
    a reader of stdout that left (`| head`) is 141, in silence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:  # a windowed application has none
                sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The interpreter flushes stdout once more at its end, which must find an open file.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (PolarGridError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except Exception as error:
            # What has an exit code is typer's own: usage errors and Exit, which it handles itself.
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort) or ctx.params.get("debug"):
                raise
            problem = f"{type(error).__name__}: {error}"
            typer.echo(f"internal error: {problem} (more with polargrid-local --debug ...)", err=True)
            raise typer.Exit(1) from None
