"""Extras: packages that only some of this program needs, and how to get them where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

PACKAGES = {
    "server": {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"},
    "sdk": {"polargrid": "polargrid-sdk==0.10.0"},
}
"""By extra: module -> what pip calls it."""


def how_to_install(extra: str) -> str | None:
    """What to do about the missing packages of an extra; None when all are there.

    The advice names those packages, not `polargrid-local[extra]`: this package is installed from its repository, and
    whatever an index may have under its name is not ours.
    """
    missing = {module: package for module, package in PACKAGES[extra].items() if find_spec(module) is None}
    if not missing:
        return None
    install = f"pip install {' '.join(missing.values())}"
    return f"needs {', '.join(missing)}: {install}   (in a clone of the repository: pip install '.[{extra}]')"
