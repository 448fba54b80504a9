"""schemathesis: whatever the OpenAPI document allows, and what it does not, no answer is a crash; and no field that it
describes is ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from serving import ServerProcess

# How each API bounds an answer, where it is not by max_tokens.
LIMITS = {"/v1/responses": "max_output_tokens", "/completion": "n_predict", "/infill": "n_predict"}
OPTIONS = ("/api/chat", "/api/generate")  # where that is an option
MOST = 16


def bound(path: str, body: Any) -> None:
    """The test is whether it answers: short answers do."""
    if not isinstance(body, dict):
        return
    if path in OPTIONS:
        body, limit = body.setdefault("options", {}), "num_predict"
        if not isinstance(body, dict):
            return
    else:
        limit = LIMITS.get(path, "max_tokens")
    given = body.get(limit, -1)
    if given in (None, -1) or (isinstance(given, int) and given > MOST):
        body[limit] = MOST


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_answer_is_a_crash(server: ServerProcess, mode: schemathesis.GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schemas = server.get("/openapi.json").json()["components"]["schemas"]
    asked: set[str] = set()
    for found in document.get_all_operations():
        operation = found.ok()
        (content,) = operation.definition.raw.get("requestBody", {}).get("content", {"": {"schema": {}}}).values()
        fields = schemas.get(content["schema"].get("$ref", "").rsplit("/", 1)[-1], {}).get("properties", {})

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        def ask(case: schemathesis.Case) -> None:
            if fields:
                bound(operation.path, case.body)
            reply = case.call(timeout=60)
            asked.add(operation.label)
            assert reply.status_code < 500, reply.text
            if reply.status_code >= 400:
                assert "error" in reply.json()  # in the words of its API
            (told,) = reply.headers.get("x-polargrid-ignored", ["[]"])
            if operation.path != "/tokenize":  # where half of the fields go with messages alone
                assert not fields.keys() & set(json.loads(told)), told

        try:
            ask()
        except Unsatisfiable:
            pass  # a GET without parameters has no invalid variant
        except Exception as error:
            raise AssertionError(operation.label) from error
    assert {"POST /v1/chat/completions", "POST /v1/messages", "POST /api/chat", "POST /infill"} <= asked
