"""What people are told to install."""

import importlib
import sys

import pytest

from polargrid_local import extras
from polargrid_local.errors import ValidationError


def test_all_is_there_for_the_tests():
    assert [extras.how_to_install(extra) for extra in extras.PACKAGES] == [None, None]


def test_only_what_is_missing_is_named_and_never_this_package(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "prometheus_client" else object())
    how = extras.how_to_install("server")
    assert how.startswith("needs prometheus_client: pip install prometheus-client ") and "polargrid-local" not in how
    import polargrid_local.server as server

    with pytest.raises(ValidationError, match="the server needs prometheus_client"):
        server.run(server.ServeConfig())


def test_the_sdk_drop_in_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "polargrid_local.sdk", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install polargrid-sdk==0.10.0"):
        importlib.import_module("polargrid_local.sdk")


def test_the_names_are_those_of_the_project(root):
    text = (root / "pyproject.toml").read_text()
    for packages in extras.PACKAGES.values():
        for package in packages.values():
            assert f'"{package}' in text
