"""The PolarGrid inference API on your own machine: offline, in-process, streaming."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each name lives. Nothing is imported before it is asked for: `import polargrid_local` costs next to nothing.
_HOME = {
    "engine": (
        "AsyncChatStream",
        "AsyncEngine",
        "AsyncToolRun",
        "ChatStream",
        "Engine",
        "Tool",
        "ToolRun",
        "inspect_model",
        "sentences",
        "system_info",
        "text_of",
    ),
    "errors": (
        "AuthenticationError",
        "ContextLengthError",
        "EngineClosed",
        "DeviceLostError",
        "EngineCrashed",
        "ForkedEngineError",
        "InvalidModelError",
        "LogitsProcessorError",
        "MemoryEstimateError",
        "ModelFileChanged",
        "NetworkError",
        "NotFoundError",
        "NumericError",
        "PolarGridError",
        "RateLimitError",
        "SchemaError",
        "ServerError",
        "TemplateError",
        "TimeoutError",
        "ToolRoundsError",
        "ValidationError",
        "is_polargrid_error",
    ),
}

__all__ = sorted(name for names in _HOME.values() for name in names)

if TYPE_CHECKING:
    from polargrid_local.engine import *  # noqa: F403  # for type checkers alone
    from polargrid_local.errors import *  # noqa: F403  # likewise


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
