"""How many places know one option of the engine, or one field of sampling: what a new one costs."""

import re

import pytest

# What uses a value may name it as often as it likes. What only passes values on names none of them.
OPTION = {
    "polargrid_local/options.py": 2,  # its entry, and its type for editors
    "csrc/request.h": 2,  # the member, and its line in the list of fields (which names it twice)
    "README.md": 1,  # generated
}
SAMPLING = {
    "polargrid_local/api/requests.py": 1,
    "polargrid_local/api/params.py": 1,  # for type checkers
    "csrc/request.h": 2,
    "README.md": 1,
}


def places(root, name):
    """{file: lines that name it} over the sources and pages of the product; comments count as well."""
    found = {}
    folders = [(root / "csrc", "*.h"), (root / "csrc", "*.cpp"), (root / "polargrid_local", "*.py"),
               (root / "polargrid_local", "*.js"), (root / "docs", "*.md")]  # fmt: skip
    for path in [root / "README.md", *(path for folder, kind in folders for path in sorted(folder.rglob(kind)))]:
        lines = [line for line in path.read_text().splitlines() if re.search(rf"\b{name}\b", line)]
        if lines:
            found[path.relative_to(root).as_posix()] = len(lines)
    return found


# Options whose names mean nothing else. `uses`: where the native engine acts on them. One that info() shows too has two
# more lines: a member of ModelInfo and its field, both in csrc/request.h.
@pytest.mark.parametrize(
    ("name", "uses", "shown"),
    [
        (
            "n_batch",
            {
                "llama/model",
                "llama/memory_plan",
                "llama/pooler",
                "engine/loop",
                "engine/scheduler",
                "engine/draft_model",
            },
            True,
        ),
        ("max_queue", {"engine/engine"}, False),
        ("check_tensors", {"llama/weights"}, False),
        ("n_gpu_layers", {"llama/model", "llama/memory_plan", "llama/memory_estimate", "llama/weights"}, True),
    ],
)
def test_an_option_is_one_entry_and_one_member(root, name, uses, shown):
    found = places(root, name)
    uses = {f"csrc/{unit}.{ending}" for unit in uses for ending in ("h", "cpp")}
    uses |= {"docs/gpu.md", "polargrid_local/registry.py"}  # a page of its own; what a server's memory budget counts
    uses |= {"polargrid_local/llama_cpp_compat.py"}  # another package's names
    uses |= {"polargrid_local/ready_model.py"}  # what fixes the bits of an answer
    expected = {**OPTION, "csrc/request.h": 4 if shown else 2} | (
        {"polargrid_local/api/replies.py": 1} if shown else {}
    )  # info()'s type
    assert set(found) - set(expected) <= uses
    assert {file: n for file, n in found.items() if file not in uses} == expected


@pytest.mark.parametrize("name", ["typical_p", "min_p", "repetition_penalty"])
def test_a_field_of_sampling_is_a_field_of_the_request_and_a_member(root, name):
    found = places(root, name)
    uses = {"csrc/engine/sampler.cpp", "csrc/engine/sampler.h"}
    assert "csrc/engine/sampler.cpp" in found
    # Misspelt or other engines' names, and the one that was meant.
    words = {"polargrid_local/errors.py", "polargrid_local/api/keys.py", "docs/wire.md"}
    words |= {"polargrid_local/llama_cpp_compat.py", "polargrid_local/api/samplers.py"}
    words |= {file for file in found if file.startswith("polargrid_local/dialects/")}  # other APIs' names, too
    assert {file: n for file, n in found.items() if file not in uses | words} == SAMPLING


def test_what_the_native_sampler_takes_is_what_requests_give(root):
    from polargrid_local.api.requests import Sampling

    native = re.findall(r'field\("(\w+)", &SamplingParams::', (root / "csrc" / "request.h").read_text())
    given = [*Sampling.model_fields, "seed", "n_logprobs", "logprob_token_ids", "post_sampling_probs", "logit_bias"]
    assert sorted(native) == sorted(given)
