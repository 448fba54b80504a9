"""What is said of a path that is not served: what to use in its place."""

from __future__ import annotations

from polargrid_local.errors import NotFoundError, did_you_mean
from polargrid_local.service.endpoints import ENDPOINTS

# What clients of other servers ask for: the beginning of a path -> what to use.
INSTEAD = {
    "/api/blobs": "models come by `polargrid-local pull`",
    "/api/copy": "the server's setting `aliases` gives a model another name",
    "/api/create": "models come by `polargrid-local pull`, their settings are the server's",
    "/api/delete": "models are files of the directory that `polargrid-local list` names",
    "/api/pull": "models come by `polargrid-local pull`",
    "/api/push": "models stay on this machine",
    "/embedding": "POST /v1/embeddings",
    "/infill": "POST /v1/completions, with the model's own tokens for a middle in the prompt",
    "/lora-adapters": "adapters are the server's setting `lora`",
    "/v1/assistants": "POST /v1/responses, or /v1/chat/completions",
    "/v1/batches": "requests may come at once: those that find no stream free wait",
    "/v1/complete": "POST /v1/messages",
    "/v1/conversations": "POST /v1/responses with previous_response_id",
    "/v1/edits": "POST /v1/chat/completions",
    "/v1/engines": "POST /v1/completions, with the model in the body",
    "/v1/files": "texts go into the messages themselves",
    "/v1/fine_tuning": "adapters that were trained elsewhere are the server's setting `lora`",
    "/v1/images": "this is a text engine",
    "/v1/moderations": "the field content_filter of a request ends an answer at given phrases",
    "/v1/realtime": "POST /v1/chat/completions with stream: true",
    "/v1/threads": "POST /v1/responses with previous_response_id",
    "/v1/uploads": "texts go into the messages themselves",
    "/v1/vector_stores": "POST /v1/embeddings and /v1/rerank",
}


def unknown_path(path: str) -> NotFoundError:
    for beginning, use in INSTEAD.items():
        if path == beginning or path.startswith(beginning + "/"):
            return NotFoundError(f"{beginning} is not offered here: {use}", code="not_found")
    paths = [endpoint.path for endpoint in ENDPOINTS]
    return NotFoundError(f"no such path on this server: see /docs{did_you_mean(path, paths)}", code="not_found")
