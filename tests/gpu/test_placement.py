"""Which layers run where: what was asked for, what fits, what is refused, and what a model says of it."""

from __future__ import annotations

import json
import logging

import pytest
from helpers import stats_of

from polargrid_local import Engine, MemoryEstimateError, ValidationError

N_LAYERS = 7  # of the tiny model, with the output


@pytest.mark.parametrize(
    ("options", "n_gpu_layers", "placement"),
    [
        ({"device": "auto"}, N_LAYERS, "all 7 layers on the GPU"),
        ({"device": "gpu"}, N_LAYERS, "all 7 layers on the GPU"),
        ({"device": "gpu", "n_gpu_layers": 99}, N_LAYERS, "all 7 layers on the GPU"),
        ({"device": "gpu", "n_gpu_layers": 3}, 3, "3 of 7 layers on the GPU: n_gpu_layers says so"),
        ({"n_gpu_layers": 1}, 1, "1 of 7 layers on the GPU: n_gpu_layers says so"),
        ({"n_gpu_layers": 0}, 0, "all layers on the CPU: n_gpu_layers is 0"),
        ({"device": "cpu"}, 0, 'all layers on the CPU: device is "cpu"'),
    ],
)
def test_layers_go_where_the_options_say(tiny, gpu, options, n_gpu_layers, placement):
    with Engine(tiny(weights="q8_0"), n_ctx=512, **options) as engine:
        info, stats = engine.info(), stats_of(engine)
        assert (info["n_gpu_layers"], info["placement"]) == (n_gpu_layers, placement)
        on_gpu = [device["name"] for device in info["devices"] if device["gpu"]]
        assert on_gpu == list(stats["device_bytes"]) == ([gpu] if n_gpu_layers else [])
        assert info["devices"][0]["name"] == "CPU"
        assert info["row_invariant"] is (n_gpu_layers == 0 and info["kernels"] != "off")


def test_more_layers_hold_more_of_the_gpu(tiny, open_on_gpu):
    held = []
    for n in (1, 4, 7):
        engine = open_on_gpu(tiny(weights="f16"), n_gpu_layers=n)
        held.append(sum(stats_of(engine)["device_bytes"].values()))
    assert held == sorted(set(held))


def test_layers_left_to_the_cpu_have_our_kernels(tiny, caplog):
    """Their weights lie in the kernels' own buffers: llama.cpp's log names those that it fills."""
    with caplog.at_level(logging.DEBUG, "polargrid_local.llama"):
        with Engine(tiny(weights="q8_0"), device="gpu", n_gpu_layers=3, n_ctx=512) as engine:
            if engine.info()["kernels"] == "off":
                pytest.skip("no kernels for this CPU")
    buffers = [record.message for record in caplog.records if "model buffer size" in record.message]
    assert any("CPU_POLARGRID" in line for line in buffers), buffers


def test_a_contradiction_is_refused_by_name(tiny):
    for options in ({"device": "cpu", "n_gpu_layers": 2}, {"device": "gpu", "n_gpu_layers": 0}):
        with pytest.raises(ValidationError, match="n_gpu_layers is .* leave one of them out"):
            Engine(tiny(), **options)


@pytest.fixture(scope="session")
def big(tiny):
    """Some 350 MiB in 25 layers: more than a small device holds."""
    return tiny(n_layer=24, n_embd=512, n_head=8, n_ff=4096, weights="f16")


@pytest.mark.vulkan_faults
def test_as_many_layers_as_fit(big, faulty):
    """The plan counts weights, cache and compute buffers against the device's free memory."""
    options = {"n_ctx": 512, "n_batch": 64, "max_streams": 1}
    placed = faulty("placed", big, 500, json.dumps(options))
    assert 0 < placed["n_gpu_layers"] < 25
    assert placed["placement"] == f"{placed['n_gpu_layers']} of 25 layers on the GPU: no more fit its free memory"
    [held] = placed["held"].values()
    assert 0 < held < 500 << 20
    [memory] = placed["memory"]
    assert memory["total_gb"] == 0.49 and memory["used_gb"] == pytest.approx(held / 2**30, abs=0.01)
    assert placed["text"]


@pytest.mark.vulkan_faults
def test_a_longer_context_leaves_fewer_layers(big, faulty):
    short, long = (
        faulty("placed", big, 500, json.dumps({"n_ctx": n_ctx, "n_batch": 64, "max_streams": 4}))["n_gpu_layers"]
        for n_ctx in (512, 4096)
    )
    assert 0 < long < short


@pytest.mark.vulkan_faults
def test_more_than_fits_is_refused_with_numbers(big, faulty):
    error = faulty("placed", big, 500, json.dumps({"n_gpu_layers": 25, "n_ctx": 512, "n_batch": 64}))
    assert error["code"] == "out_of_memory"
    assert error["details"]["need"] > error["details"]["have"] == 500 << 20
    assert 0 < error["details"]["max_n_gpu_layers"] < 25
    assert "25 of the model's 25 layers need" in error["message"] and "layers fit" in error["message"]


@pytest.mark.vulkan_faults
def test_a_device_without_room_leaves_the_model_to_the_cpu(big, faulty):
    placed = faulty("placed", big, 200, json.dumps({"n_ctx": 512}))
    assert (placed["n_gpu_layers"], placed["held"]) == (0, {})
    assert placed["placement"] == "all layers on the CPU: not one layer fits the GPU's free memory"


@pytest.mark.vulkan_faults
def test_a_gpu_that_was_asked_for_and_has_no_room_is_an_error(big, faulty):
    error = faulty("placed", big, 200, json.dumps({"device": "gpu", "n_ctx": 512}))
    assert (error["code"], error["details"]["max_n_gpu_layers"]) == ("out_of_memory", 0)


@pytest.mark.vulkan_faults
def test_two_devices_share_a_model_that_neither_holds(big, tiny, faulty):
    """The software device, named twice, is two devices to ggml."""
    options = {"n_ctx": 512, "n_batch": 64, "max_streams": 1}
    placed = faulty("placed", big, 560, json.dumps(options), GGML_VK_VISIBLE_DEVICES="0,0")
    assert placed["n_gpu_layers"] == 25
    assert len(placed["held"]) == len(placed["memory"]) == 2 and all(placed["held"].values())
    with Engine(big, device="cpu", **options) as engine:
        request = {"prompt": "the of and", "max_tokens": 2, "temperature": 0, "ignore_eos": True}
        assert engine.completion(**request)["choices"][0]["text"] == placed["text"]


def test_too_long_a_context_is_refused_before_anything_is_taken(tiny):
    with pytest.raises(MemoryEstimateError, match="n_ctx=16777216"):
        Engine(tiny(), device="gpu", n_ctx=1 << 24, max_streams=64)
