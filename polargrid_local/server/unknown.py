"""What is said of a path that is not served: what to use in its place."""

from __future__ import annotations

from polargrid_local.errors import NotFoundError, PolarGridError, did_you_mean
from polargrid_local.service.endpoints import ENDPOINTS

_MODELS_COME = "models come by `polargrid-local pull`"
_TEXT_ENGINE = "this is a text engine"
_IN_MESSAGES = "texts go into the messages themselves"
_ADAPTERS = "adapters that were trained elsewhere are the server's setting `adapters`"
_AT_ONCE = "requests may come at once: those that find no stream free wait"
_KEPT = "POST /v1/responses keeps its answers, and previous_response_id continues them"
_IN_PROGRAM = "such a program runs at the client: send its tools as tools"
_NO_ACCOUNTS = "there are no accounts here: the server's settings are those of its machine"

# What clients of other servers ask for: the beginning of a path -> what to use.
INSTEAD = {
    "/api/blobs": _MODELS_COME,
    "/api/copy": "the server's setting `aliases` gives a model another name",
    "/api/create": "models come by `polargrid-local pull`, their settings are the server's",
    "/api/delete": "models are files of the directory that `polargrid-local list` names",
    "/api/me": _NO_ACCOUNTS,
    "/api/pull": _MODELS_COME,
    "/api/push": "models stay on this machine",
    "/lora-adapters": "each request has its own `lora`, or an adapter as its model: MODEL:NAME",
    "/v1/agents": _IN_PROGRAM,
    "/v1/assistants": "POST /v1/responses, or /v1/chat/completions",
    "/v1/batches": _AT_ONCE,
    "/v1/chat/completions": f"chat completions are not kept: {_KEPT}",
    "/v1/chatkit": "POST /v1/responses, with a page of your own",
    "/v1/complete": "POST /v1/messages",
    "/v1/containers": _IN_PROGRAM,
    "/v1/content_provenance_checks": _TEXT_ENGINE,
    "/v1/conversations": "POST /v1/responses with previous_response_id",
    "/v1/edits": "POST /v1/chat/completions",
    "/v1/embed": "POST /v2/embed, or /v1/embeddings",
    "/v1/engines": "POST /v1/completions, with the model in the body",
    "/v1/evals": "programs that evaluate models ask POST /v1/chat/completions, and /v1/completions for logprobs",
    "/v1/files": _IN_MESSAGES,
    "/v1/fine_tuning": _ADAPTERS,
    "/v1/images": _TEXT_ENGINE,
    "/v1/memory_stores": _IN_PROGRAM,
    "/v1/messages/batches": f"POST /v1/messages; {_AT_ONCE}",
    "/v1/models": "models are files of the directory that `polargrid-local list` names",
    "/v1/moderations": "the field content_filter of a request ends an answer at given phrases",
    "/v1/organization": _NO_ACCOUNTS,
    "/v1/organizations": _NO_ACCOUNTS,
    "/v1/projects": _NO_ACCOUNTS,
    "/v1/realtime": "POST /v1/chat/completions with stream: true",
    "/v1/responses/compact": "POST /v1/responses with the items that the model is still to see",
    "/v1/sessions": _IN_PROGRAM,
    "/v1/skills": _IN_PROGRAM,
    "/v1/threads": "POST /v1/responses with previous_response_id",
    "/v1/uploads": _IN_MESSAGES,
    "/v1/vector_stores": "POST /v1/embeddings and /v1/rerank",
    "/v1/videos": _TEXT_ENGINE,
    "/v2/chat": "POST /v1/chat/completions",
}


def unknown_path(path: str) -> NotFoundError:
    """The error of a path that is not served. The /v1 may be left out of it."""
    for given in (path, f"/v1{path}"):
        if beginning := _beginning(given):
            return NotFoundError(f"{beginning} is not offered here: {INSTEAD[beginning]}", code="not_found")
    paths = [endpoint.path for endpoint in ENDPOINTS]
    return NotFoundError(f"no such path on this server: see /docs{did_you_mean(path, paths)}", code="not_found")


def unknown_method(method: str, path: str) -> PolarGridError:
    """The error of a path that is served, but not with this method; a name that only looks like that of something kept
    is not served either."""
    beginning = _beginning(path)
    if beginning and beginning not in {endpoint.path for endpoint in ENDPOINTS}:
        return unknown_path(path)
    use = f": {INSTEAD[beginning]}" if beginning else ""
    error = PolarGridError(f"{method} is not allowed here{use}", code="method_not_allowed")
    error.status, error.type = 405, "invalid_request_error"
    return error


def _beginning(path: str) -> str:
    """The most that INSTEAD knows of a path; "" for nothing."""
    known = [beginning for beginning in INSTEAD if path == beginning or path.startswith(f"{beginning}/")]
    return max(known, key=len, default="")
