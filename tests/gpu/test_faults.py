"""A GPU that is lost or full: a typed error for whoever was affected, and an engine that goes on."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.vulkan_faults


def test_a_lost_gpu_ends_what_runs_and_the_model_goes_on_without_it(tiny, faulty):
    """Twice seen: the running stream is told, the waiting request is answered by the CPU, and later ones too."""
    seen = faulty("lost", tiny(weights="q8_0"), "auto")
    assert seen["before"] == "all 7 layers on the GPU"
    assert seen["broken"]["code"] == "device_lost"
    assert "stopped working" in seen["broken"]["message"] and "llvmpipe" in seen["broken"]["message"]
    assert "ErrorDeviceLost" in seen["broken"]["message"]
    assert seen["waiting"] == seen["after"] == seen["healthy"]
    assert seen["info"].startswith("all layers on the CPU: Vulkan0 was lost")
    assert seen["row_invariant"] is True
    assert seen["embedding"] == 128
    assert seen["another"].startswith("all layers on the CPU: Vulkan0 was lost")
    assert seen["gpus"] == 0


def test_without_leave_to_use_the_cpu_the_engine_ends_and_says_why(tiny, faulty):
    seen = faulty("lost", tiny(), "gpu")
    for what in ("broken", "waiting", "after", "info", "embedding"):
        assert seen[what]["code"] == "device_lost", what
    assert seen["another"]["code"] == "invalid_request"
    assert "Vulkan0 was lost; it can be used again in a new process" in seen["another"]["message"]


def test_a_gpu_lost_in_an_embedding(tiny, faulty):
    seen = faulty("lost_in_embeddings", tiny())
    assert seen["broken"]["code"] == "device_lost"
    assert seen["before"] == seen["after"] == 128
    assert isinstance(seen["text"], str)


def test_a_full_gpu_refuses_a_model_and_harms_no_other(tiny, faulty):
    seen = faulty("full_while_loading", tiny())
    assert seen["error"]["code"] == "out_of_memory"
    assert seen["then"] == "all 7 layers on the GPU"
    assert isinstance(seen["first"], str)


def test_memory_that_runs_out_in_the_middle(tiny, faulty):
    seen = faulty("full_mid_answer", tiny())
    assert seen["embedding, full"]["code"] == "out_of_memory"  # its buffers are made when it is asked for
    assert seen["answer, full"] == seen["answer"] == seen["healthy"]
    long = seen["long answer, full"]  # a pass over many tokens may want more: then it is told, and the next one works
    assert isinstance(long, str) or long["code"] == "out_of_memory"
    assert seen["embedding"] == 128
