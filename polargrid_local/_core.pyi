# Generated from the built module by tests/native/test_stub.py --write.
"""
The native border: one engine, the outboxes of its calls, and what can be said of files and this machine.
"""
from __future__ import annotations
import collections.abc
import typing
__all__: list[str] = ['Engine', 'Error', 'Event', 'Outbox', 'RemoteEngine', 'build', 'drain_log', 'inspect', 'system']
class Error(Exception):
    """
    A refusal or failure by name: args = (code, message, details).
    """
class Event:
    @property
    def code(self) -> str:
        ...
    @property
    def details(self) -> dict[str, typing.Any]:
        ...
    @property
    def embedding(self) -> typing.Any:
        ...
    @property
    def first_token_ms(self) -> float:
        ...
    @property
    def id(self) -> int:
        ...
    @property
    def kind(self) -> str:
        ...
    @property
    def logprobs(self) -> list[typing.Any]:
        ...
    @property
    def mark(self) -> str:
        ...
    @property
    def n_accepted(self) -> int:
        ...
    @property
    def n_cached(self) -> int:
        ...
    @property
    def n_generated(self) -> int:
        ...
    @property
    def n_prompt(self) -> int:
        ...
    @property
    def n_rejected(self) -> int:
        ...
    @property
    def prefill_ms(self) -> float:
        ...
    @property
    def progress(self) -> float:
        ...
    @property
    def prompt_logprobs(self) -> list[typing.Any]:
        ...
    @property
    def prompt_tokens(self) -> list[int]:
        ...
    @property
    def queue_ms(self) -> float:
        ...
    @property
    def reason(self) -> str:
        ...
    @property
    def stop(self) -> str:
        ...
    @property
    def stop_token(self) -> int:
        ...
    @property
    def text(self) -> str:
        ...
    @property
    def tokens(self) -> list[int]:
        ...
    @property
    def total_ms(self) -> float:
        ...
class Outbox:
    def drain(self) -> list[Event]:
        ...
    def wait(self, timeout_ms: typing.SupportsInt | typing.SupportsIndex) -> list[Event]:
        ...
    def wake(self) -> None:
        ...
    @property
    def id(self) -> int:
        ...
class Engine:
    def __init__(self, path: typing.Any, options: dict[str, typing.Any]) -> None:
        ...
    def cancel(self, id: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def close(self) -> None:
        ...
    def compile(self, constraint: dict[str, typing.Any]) -> None:
        ...
    def detokenize(self, tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], special: bool = True) -> bytes:
        """
        The bytes that tokens stand for; control tokens by their names, or left out.
        """
    def drain_log(self) -> list[typing.Any]:
        """
        What llama.cpp said while it worked for this engine, since the last call: (level as in logging, text).
        """
    def info(self) -> dict[str, typing.Any]:
        ...
    def listen(self, timeout_ms: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
        ...
    def outbox(self, quiet: bool = False, rings: bool = False) -> Outbox:
        ...
    def stats(self) -> dict[str, typing.Any]:
        ...
    def submit(self, request: dict[str, typing.Any], outbox: Outbox) -> int:
        ...
    def tokenize(self, spans: collections.abc.Sequence[tuple[str, bool]], add_bos: bool = True) -> list[int]:
        ...
    @property
    def loading(self) -> Outbox:
        ...
class RemoteEngine:
    @staticmethod
    def estimate(path: typing.Any, options: dict[str, typing.Any], worker: dict[str, typing.Any]) -> dict[str, typing.Any]:
        """
        What a model would take of memory, by a dry run.
        """
    def __init__(self, path: typing.Any, options: dict[str, typing.Any], worker: dict[str, typing.Any]) -> None:
        """
        An engine in a process of its own, which was started: `worker` has its id, our ends of its pipes, and how long it may take.
        """
    def cancel(self, id: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def close(self) -> None:
        ...
    def compile(self, constraint: dict[str, typing.Any]) -> None:
        ...
    def detokenize(self, tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], special: bool = True) -> bytes:
        """
        The bytes that tokens stand for; control tokens by their names, or left out.
        """
    def drain_log(self) -> list[typing.Any]:
        """
        What llama.cpp said while it worked for this engine, since the last call: (level as in logging, text).
        """
    def info(self) -> dict[str, typing.Any]:
        ...
    def listen(self, timeout_ms: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
        ...
    def outbox(self, quiet: bool = False, rings: bool = False) -> Outbox:
        ...
    def stats(self) -> dict[str, typing.Any]:
        ...
    def submit(self, request: dict[str, typing.Any], outbox: Outbox) -> int:
        ...
    def tokenize(self, spans: collections.abc.Sequence[tuple[str, bool]], add_bos: bool = True) -> list[int]:
        ...
    @property
    def crashed(self) -> bool:
        """
        It has ended, and nobody asked it to.
        """
    @property
    def loading(self) -> Outbox:
        ...
def drain_log() -> list[typing.Any]:
    """
    llama.cpp's log lines that belong to no engine, since the last call: (level as in logging, text).
    """
def inspect(path: typing.Any) -> dict[str, typing.Any]:
    """
    What a GGUF file says about itself, validated, without loading it.
    """
def system() -> dict[str, typing.Any]:
    """
    Devices, CPU features, usable threads and memory of this machine, as this process may use them.
    """
build: str = 'llama.cpp 0.5.0-dev'
