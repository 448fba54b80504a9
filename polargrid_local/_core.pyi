# Generated from the built module by tests/native/test_stub.py --write.
"""
The native border: eight verbs (Engine(), submit, cancel, wait_events, tokenize, info, stats, close).
"""
from __future__ import annotations
import collections.abc
import typing
__all__: list[str] = ['Engine', 'Error', 'Event', 'Outbox', 'bare_loop', 'drain_log', 'inspect', 'system']
class Error(Exception):
    """
    A refusal or failure by name: args = (code, message, details).
    """
class Event:
    @property
    def code(self) -> str:
        ...
    @property
    def details(self) -> dict:
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
    def logprobs(self) -> list:
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
    def prefill_ms(self) -> float:
        ...
    @property
    def progress(self) -> float:
        ...
    @property
    def queue_ms(self) -> float:
        ...
    @property
    def reason(self) -> str:
        ...
    @property
    def text(self) -> str:
        ...
    @property
    def total_ms(self) -> float:
        ...
class Outbox:
    def wait(self, timeout_ms: typing.SupportsInt | typing.SupportsIndex) -> list[Event]:
        ...
    def wake(self) -> None:
        ...
class Engine:
    def __init__(self, path: typing.Any, options: dict) -> None:
        ...
    def cancel(self, id: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def close(self) -> None:
        ...
    def drain_log(self) -> list:
        """
        What llama.cpp said while it worked for this engine, since the last call: (level as in logging, text).
        """
    def info(self) -> dict:
        ...
    def outbox(self, quiet: bool = False) -> Outbox:
        ...
    def stats(self) -> dict:
        ...
    def submit(self, request: dict, outbox: Outbox = None) -> int:
        ...
    def tokenize(self, spans: collections.abc.Sequence[tuple[str, bool]], add_bos: bool = True) -> list[int]:
        ...
    def wait_events(self, timeout_ms: typing.SupportsInt | typing.SupportsIndex) -> list[Event]:
        ...
def bare_loop(path: str, n_prompt: typing.SupportsInt | typing.SupportsIndex, n_tokens: typing.SupportsInt | typing.SupportsIndex, n_ctx: typing.SupportsInt | typing.SupportsIndex = 2048, n_threads: typing.SupportsInt | typing.SupportsIndex = 0, kernels: bool = True) -> dict:
    """
    llama.cpp's own greedy loop on this build, for benchmarks: times in milliseconds.
    """
def drain_log() -> list:
    """
    llama.cpp's log lines that belong to no engine, since the last call: (level as in logging, text).
    """
def inspect(path: typing.Any) -> dict:
    """
    What a GGUF file says about itself, validated, without loading it.
    """
def system() -> dict:
    """
    Devices, CPU features, usable threads and memory of this machine, as this process may use them.
    """
