"""How many tokens of an answer its thought has, however the events cut it."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import fakes
import pytest

from polargrid_local.api.reasoning_tokens import ReasoningTokens
from polargrid_local.chat.harmony import HarmonySegmenter, harmony_markers
from polargrid_local.chat.segments import Reasoning, Segmenter

THOUGHT = ["<think>", "\n", "H", "m", ".", "\n", "</th", "ink>"]
ANSWER = ["\n\n", "Yes", "! <think>", " ok"]
HARMONY = ["<|channel|>", "analysis", "<|message|>", "Hm", "."]
FINAL = ["<|end|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>"]
CASES = {
    "a thought": (THOUGHT, ANSWER, {}),
    "none": ([], ANSWER, {}),
    "one that the prompt has begun": (["Hm", "</think>"], ANSWER, {"opened": True}),
    "one that is cut": (THOUGHT[:5], [], {}),
    "a thought alone": (THOUGHT, [], {}),
}


def counted(segments: Segmenter | HarmonySegmenter, pieces: Sequence[str], cuts: Sequence[int]) -> int:
    """With events that end behind these numbers of tokens. A token's id is its place in the answer."""

    def detokenize(ids: Sequence[int], special: bool) -> bytes:
        return "".join(pieces[id] for id in ids).encode()

    count = ReasoningTokens(segments, detokenize)
    begin = 0
    for end in cuts:
        event = fakes.Event(1, text="".join(pieces[begin:end]), n_generated=end, tokens=list(range(begin, end)))
        count.coming(event)
        segments.push(event.text)
        count.told(event)
        begin = end
    return count.count


@pytest.mark.parametrize("name", CASES)
def test_the_count_does_not_depend_on_the_events(name: str) -> None:
    thought, answer, more = CASES[name]
    pieces = [*thought, *answer]
    segmenter = Segmenter(None, Reasoning("<think>", "</think>", **more))
    places = range(1, len(pieces))
    rng = random.Random(1)
    for cuts in ([], list(places), *(sorted(rng.sample(places, rng.randrange(len(places) + 1))) for _ in range(50))):
        assert counted(copy.deepcopy(segmenter), pieces, [*cuts, len(pieces)]) == len(thought), cuts


@pytest.mark.parametrize("size", [1, 2, 100])
def test_channels(size: int) -> None:
    pieces = [*HARMONY, *FINAL, "Yes", "!"]
    segmenter = HarmonySegmenter(harmony_markers(()), inline=False)
    cuts = [*range(size, len(pieces), size), len(pieces)]
    assert counted(segmenter, pieces, cuts) == len(HARMONY) + len(FINAL)
    bare = HarmonySegmenter(harmony_markers(()), inline=False)
    assert counted(bare, ["Yes", "!"], [2]) == 0
