"""PyInstaller hook: what no import statement shows, which is modules imported by name, GPU backends, the catalogue, the
web page and the metadata of the package."""

import contextlib
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

from PyInstaller.compat import is_win
from PyInstaller.utils.hooks import collect_data_files, copy_metadata

from polargrid_local.models.catalog import shipped_catalog

hiddenimports = ["polargrid_local.engine", "polargrid_local.errors"]
native = find_spec("polargrid_local._core")
if native is None or native.origin is None:
    raise ImportError("polargrid_local is not built: its native module is missing")
binaries = [(native.origin, "polargrid_local")]  # in an editable install it lies elsewhere than the package
worker = Path(native.origin).with_name("polargrid-worker.exe" if is_win else "polargrid-worker")
binaries += [(str(worker), "polargrid_local")]
backends = Path(native.origin).parent / "backends"
binaries += [(str(part), "polargrid_local/backends") for part in backends.glob("*")]
datas = [(str(shipped_catalog()), "polargrid_local"), *collect_data_files("polargrid_local", includes=["web/**"])]
with contextlib.suppress(PackageNotFoundError):  # a source tree that is on the path without being installed
    datas += copy_metadata("polargrid-local")
