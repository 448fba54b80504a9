"""What the Responses API asks beside answers: how many tokens an input has, and the end of an answer under way."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from typing_extensions import TypedDict

from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.exchange import Moment
from polargrid_local.dialects.responses import ResponsesExchange, unknown_response
from polargrid_local.errors import ValidationError
from polargrid_local.service.given import Given
from polargrid_local.service.service import Service

UNUSED = Moment("0" * 24, 0.0)  # no answer will have this id


class InputTokens(TypedDict):
    object: Literal["response.input_tokens"]
    input_tokens: int


async def count_input_tokens(service: Service, given: Given) -> InputTokens:
    """The tokens that the same request's answer would tell as `input_tokens`. Raises what the request would raise."""
    asked = {name: value for name, value in given.items() if value is not None}
    exchange = ResponsesExchange({"input": [], **asked}, UNUSED._replace(kept=service.kept), "chat")
    given.ignored += exchange.ignored
    request = parse_request("chat", exchange.body, max_tokens_limit=None, ignored=given.ignored)
    return {"object": "response.input_tokens", "input_tokens": await service.count_tokens(request)}


async def cancel(service: Service, given: Given) -> NoReturn:
    """Raises NotFoundError for a response that is not kept, ValidationError for one that is: it has ended."""
    id: Any = given["response_id"]
    if id not in service.kept:
        raise unknown_response(id, "response_id")
    problem = "response_id: this response has ended; one under way ends when its connection is closed"
    raise ValidationError(problem, param="response_id")
