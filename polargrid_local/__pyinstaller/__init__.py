"""What a frozen application needs of this package. PyInstaller finds this folder by the entry point `pyinstaller40`."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Where PyInstaller looks for hooks."""
    return [str(Path(__file__).parent)]
