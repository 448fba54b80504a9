"""The native border refuses what it does not know, and what is of a wrong type, by name."""

import pytest

_core = pytest.importorskip("polargrid_local._core")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_bach": 5}, "n_bach: unknown key"),
        ({"n_batch": "many"}, "n_batch: wrong type or out of range: 'many'"),
        ({"n_ctx": 2**31}, "n_ctx: wrong type or out of range: 2147483648"),
        ({"mmap": "yes"}, "mmap: wrong type or out of range: 'yes'"),
        ({"device": "tpu"}, "device: must be one of auto, cpu, gpu, got tpu"),
        ({"cache_type": 8}, "cache_type: wrong type or out of range: 8"),
        ({"lora": "a"}, "lora: wrong type or out of range: 'a'"),
    ],
)
def test_options_are_refused_by_name(options, message):
    with pytest.raises(_core.Error) as caught:
        _core.Engine("/nowhere.gguf", options)
    assert caught.value.args == ("invalid_request", message, {"field": next(iter(options))})
