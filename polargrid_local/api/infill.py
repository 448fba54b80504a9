"""Infill: the prompt of an answer that is to stand between two texts, for models trained to fill such a gap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from polargrid_local.api.requests import CompletionRequest
from polargrid_local.errors import ValidationError

# What such models have seen in the places of names that a request does not give.
PROJECT, FILE, EXTRA_FILE = "myproject", "filename", "tmp"
SNIPPET = "\n\n--- snippet ---\n\n"  # before each further text, where the vocabulary has no token for that


def infill_prompt(
    request: CompletionRequest,
    prefix: str | Sequence[int],
    tokens: Mapping[str, int],
    tokenize: Callable[[str], list[int]],
    begin: Sequence[int],
) -> list[int]:
    """The ids of the prompt. `tokens`: those of the vocabulary by what they stand before: prefix, suffix, middle, and
    perhaps repo and separator. `tokenize`: a text that has no control tokens in it. `begin`: of every text.

        begin [repo] name (separator name text)* separator name [prefix] prefix [suffix] suffix [middle]

    What tells of the repository is there only with further texts. `spm_infill`: suffix before prefix."""
    before = [tokens["prefix"], *(tokenize(prefix) if isinstance(prefix, str) else prefix)]
    behind = [tokens["suffix"], *tokenize(request.suffix)]
    gap = [*behind, *before] if request.spm_infill else [*before, *behind]
    return [*begin, *_further(request, tokens, tokenize), *gap, tokens["middle"]]


def _further(request: CompletionRequest, tokens: Mapping[str, int], tokenize: Callable[[str], list[int]]) -> list[int]:
    ids: list[int] = []
    if not request.input_extra:
        return ids
    separator = tokens.get("separator")
    if "repo" in tokens:
        ids += [tokens["repo"], *tokenize(f"{PROJECT}\n")]
    for extra in request.input_extra:
        if separator is None:
            ids += tokenize(SNIPPET)
        else:
            ids += [separator, *tokenize(f"{extra.filename or EXTRA_FILE}\n")]
        ids += tokenize(extra.text)
    if separator is not None:
        ids += [separator, *tokenize(f"{FILE}\n")]
    return ids


def cannot_fill(model: str) -> ValidationError:
    """Of a model whose vocabulary lacks one of the three tokens."""
    return ValidationError(
        f"suffix: model '{model}' cannot fill a gap: its vocabulary has no tokens for what stands before and behind "
        "one; ask a model that was trained for it, or leave the suffix out",
        param="suffix",
        code="not_supported",
        details={"field": "suffix", "model": model},
    )
