"""The errors: every one that this package raises.

    PolarGridError
    |- ValidationError             400  a bad argument or request field; the message names it and its limits
    |  |- ContextLengthError       400  prompt longer than the context; both counts in `details`
    |  |- InvalidModelError        400  a model file refused; key or tensor, value and limits in `details`
    |  |- SchemaError              400  a JSON schema, pattern or grammar that no answer can be held to
    |  `- TemplateError            400  a broken or hostile chat template
    |- AuthenticationError         401  missing or wrong API key (403: foreign Host or Origin)
    |- NotFoundError               404  unknown model, or one not on this disk
    |- RateLimitError              429  queue full
    |- NetworkError                 -   a download failed
    |- TimeoutError                504  a deadline passed
    |- LogitsProcessorError          -  a request's own `logits_processor` failed; its `__cause__` says how
    |- ToolRoundsError               -  a model that called tools in every round it had; `messages` has them all
    |- EngineClosed                503  used after close(), or closed while streaming
    |- ForkedEngineError           503  an engine inherited through fork()
    `- ServerError                 500  not the caller's fault
       |- MemoryEstimateError      503  does not fit; `details` has need, have and max_n_ctx
       |- EngineCrashed            503  an isolated engine process died; retryable
       |- DeviceLostError          503  a GPU stopped working; retryable
       |- ModelFileChanged         503  the file changed under a loaded model
       `- NumericError             500  NaN or infinity where probabilities should be

The names are those of the official SDK where it has one, so `except` clauses port unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class PolarGridError(Exception):
    """Base of all: `message`, `request_id`, `code` (stable, machine-readable), `status` (HTTP), `details`, `retryable`;
    `path`: the file that the message names in full, which a server must not tell."""

    code = "internal_error"
    type = "server_error"
    status = 500
    retryable = False

    def __init__(
        self,
        message: str,
        request_id: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        details: dict[str, Any] | None = None,
        path: str | None = None,
    ) -> None:
        message = _printable(message)
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.param = param
        self.details = details
        self.path = None if path is None else _printable(path)
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} (request_id: {self.request_id})" if self.request_id else self.message


def _printable(text: str) -> str:
    """With lone surrogates, which a file name that is not UTF-8 has too, as escapes: printing them would fail."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


class ValidationError(PolarGridError):
    code, type, status = "invalid_request", "invalid_request_error", 400

    @classmethod
    def at(cls, field: str, problem: str, **details: Any) -> Self:
        """What is wrong with one argument or request field, named by its path."""
        return cls(f"{field}: {problem}", param=field, details={"field": field, **details})


refused = ValidationError.at


class ContextLengthError(ValidationError):
    code = "context_length_exceeded"


class InvalidModelError(ValidationError):
    code = "invalid_model"


class TemplateError(ValidationError):
    code = "invalid_template"


class SchemaError(ValidationError):
    """A JSON schema, pattern or grammar that no answer can be held to."""

    code = "invalid_grammar"


class AuthenticationError(PolarGridError):
    code, type, status = "invalid_api_key", "authentication_error", 401


class NotFoundError(PolarGridError):
    code, type, status = "not_found", "not_found_error", 404


class RateLimitError(PolarGridError):
    """`retry_after` is in seconds."""

    code, type, status, retryable = "queue_full", "rate_limit_error", 429, True

    def __init__(
        self, message: str, request_id: str | None = None, *, retry_after: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(message, request_id, **kwargs)
        self.retry_after = retry_after


class NetworkError(PolarGridError):
    """`cause` is the transport's own exception."""

    code, status, retryable = "network_error", 503, True

    def __init__(
        self, message: str, request_id: str | None = None, *, cause: BaseException | None = None, **kwargs: Any
    ) -> None:
        super().__init__(message, request_id, **kwargs)
        self.cause = cause


class TimeoutError(PolarGridError):
    code, status, retryable = "timeout", 504, True


class ToolRoundsError(PolarGridError):
    """`messages`: the whole chat so far. Its last calls have been answered, so that another run can go on with it."""

    code = "tool_rounds_exceeded"

    def __init__(
        self, message: str, request_id: str | None = None, *, messages: list[Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(message, request_id, **kwargs)
        self.messages = messages or []


class LogitsProcessorError(PolarGridError):
    """`__cause__`: what the function raised, or a TypeError or ValueError about the logits that it left."""

    code = "logits_processor_failed"


class EngineClosed(PolarGridError):
    code, status = "engine_closed", 503


class ForkedEngineError(PolarGridError):
    code, status = "forked_engine", 503


class ServerError(PolarGridError):
    """`status_code` as on the SDK's class."""

    def __init__(
        self, message: str, request_id: str | None = None, *, status_code: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(message, request_id, **kwargs)
        self.status = self.status_code = status_code or self.status


class MemoryEstimateError(ServerError):
    code, status = "out_of_memory", 503


class EngineCrashed(ServerError):
    code, status, retryable = "engine_crashed", 503, True


class DeviceLostError(ServerError):
    """A GPU stopped working while it computed. With device="auto" the model is loaded again without it."""

    code, status, retryable = "device_lost", 503, True


class ModelFileChanged(ServerError):
    code, status = "model_file_changed", 503


class NumericError(ServerError):
    code = "numeric_error"


def is_polargrid_error(error: object) -> bool:
    """True for every error of this package, and for the official SDK's own when that is installed."""
    return isinstance(error, PolarGridError) or any(
        cls.__module__.startswith("polargrid.") and cls.__name__ == "PolarGridError" for cls in type(error).__mro__
    )


# What other engines call a field of ours, where the two names are not spelt alike.
_OTHERS_SAY = {
    "text": "content",
    "message": "messages",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "num_ctx": "n_ctx",
    "context_length": "n_ctx",
    "max_model_len": "n_ctx",
    "repeat_penalty": "repetition_penalty",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'max_tokens'?" for a misspelt name, "" where nothing known is near."""
    import difflib

    known = list(known)
    near = [_OTHERS_SAY[name]] if _OTHERS_SAY.get(name) in known else difflib.get_close_matches(name[:80], known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


_BY_CODE: dict[str, type[PolarGridError]] = {
    cls.code: cls
    for cls in (
        ValidationError,
        ContextLengthError,
        InvalidModelError,
        NotFoundError,
        SchemaError,
        RateLimitError,
        EngineClosed,
        ForkedEngineError,
        MemoryEstimateError,
        EngineCrashed,
        DeviceLostError,
        NumericError,
    )
}


def from_code(code: str, message: str, details: dict[str, Any] | None = None) -> PolarGridError:
    """The error that the native engine means by `code`; ServerError for a code without a class."""
    cls = _BY_CODE.get(code, ServerError)
    numbers = {
        key: int(value) if isinstance(value, str) and value.isdigit() else value
        for key, value in (details or {}).items()
    }
    return cls(message, code=code, details=numbers or None)
