"""The chat templates of some seventy models, which llama.cpp carries: a build from source leaves them in the cache."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDERS = [
    os.environ.get("PGL_LLAMA_CPP_DIR"),
    *Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "polargrid_local").glob(
        "llama-cpp-python-*/*/vendor/llama.cpp"
    ),
]
ZOO = sorted(path for folder in _FOLDERS if folder for path in Path(folder, "models", "templates").glob("*.jinja"))
NO_ZOO = "no llama.cpp source tree: build from source, or set PGL_LLAMA_CPP_DIR"
