"""What type checkers are told of requests and replies is what the code takes and gives."""

from __future__ import annotations

import base64
from typing import Any

import fakes
import pytest
from pydantic import ConfigDict, TypeAdapter
from pydantic import ValidationError as PydanticError
from typing_extensions import get_type_hints, is_typeddict

from polargrid_local import Engine, system_info, types
from polargrid_local.api import keys, params, plain, replies, requests

REQUESTS = {
    "chat": (params.ChatParams, {"messages": [{"role": "user", "content": "x"}]}),
    "completion": (params.CompletionParams, {"prompt": "x"}),
    "embedding": (params.EmbeddingParams, {"input": "x"}),
    "rerank": (params.RerankParams, {"query": "x", "documents": ["x"]}),
    "generate": (params.GenerateParams, {"prompt": "x"}),
}
PARTS = [
    (params.MessageParam, requests.Message),
    (params.TextPartParam, requests.TextPart),
    (params.ImagePartParam, requests.ImagePart),
    (params.PredictionParam, requests.Prediction),
    (params.ToolCallParam, requests.ToolCall),
    (params.FunctionCallParam, requests.FunctionCall),
    (params.ToolParam, requests.Tool),
    (params.FunctionParam, requests.FunctionDefinition),
]
ALIAS = "max_completion_tokens"
SAMPLES = (
    True, 1, 0.5, "x", "float", ["x"], ("x",), [{"text": "x"}], [1], {"7": 0.5}, {7: 0.5}, {"include_usage": True}, len,
)  # fmt: skip
OF_TYPE = ("type", "filter", "encoding_format", "literal_error")  # pydantic's, and ours


@pytest.mark.parametrize("kind", REQUESTS)
def test_keywords_are_the_fields_of_the_model(kind):
    keywords, model = REQUESTS[kind][0], requests.KINDS[kind]
    alias = {ALIAS} & set(keywords.__annotations__)
    assert set(get_type_hints(keywords)) == {*model.model_fields, *alias}
    assert bool(alias) == ("max_tokens" in model.model_fields)
    assert keywords.__required_keys__ == {name for name, field in model.model_fields.items() if field.is_required()}


@pytest.mark.parametrize("keywords, model", PARTS, ids=lambda cls: cls.__name__)
def test_keys_of_messages_are_the_fields_of_the_models(keywords, model):
    assert set(get_type_hints(keywords)) == set(model.model_fields)
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    assert keywords.__required_keys__ == required


def test_keys_of_small_mappings_are_those_that_are_read():
    assert set(get_type_hints(params.StreamOptions)) == keys.STREAM_OPTIONS.fields
    assert set(get_type_hints(params.DocumentParam)) == keys.DOCUMENT.fields
    assert set(get_type_hints(params.LoraScaleParam)) == keys.LORA.fields
    roles = get_type_hints(params.MessageParam)["role"]
    assert roles == requests.Message.model_fields["role"].annotation


@pytest.mark.parametrize("less, more, without", [
    (params.ChatChanges, params.ChatParams, set()),
    (params.ToolRunOptions, params.ChatParams, {"messages", "tools", "stream", "functions", "function_call"}),
    (params.CompletionChanges, params.CompletionParams, set()),
    (params.EmbeddingOptions, params.EmbeddingParams, {"input", "encoding_format"}),
    (params.RerankOptions, params.RerankParams, {"query", "documents"}),
    (params.GenerateOptions, params.GenerateParams, {"prompt"}),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_changes_on_top_are_the_same_fields_and_none_of_them_is_required(less, more, without):
    assert set(get_type_hints(less)) == set(get_type_hints(more)) - without
    assert not less.__required_keys__


@pytest.mark.parametrize("kind, field", [
    (kind, field) for kind, (keywords, _) in REQUESTS.items() for field in get_type_hints(keywords)
    # The keys of these are compared above.
    if field not in ("messages", "stream_options", "tools", "functions", "prediction", "lora")
])  # fmt: skip
def test_keywords_have_the_types_that_the_model_takes(kind, field):
    keywords, least = REQUESTS[kind]
    hint = TypeAdapter(get_type_hints(keywords)[field], config=ConfigDict(arbitrary_types_allowed=True))
    model, name = requests.KINDS[kind], "max_tokens" if field == ALIAS else field
    for sample in SAMPLES:
        try:
            model.model_validate({**least, name: plain.plain(sample) if not isinstance(sample, tuple) else sample})
            taken = True
        except PydanticError as error:
            taken = not error.errors()[0]["type"].endswith(OF_TYPE)
        try:
            hint.validate_python(sample, strict=True)
            told = True
        except PydanticError:
            told = False
        assert told == taken, sample
    if field not in least:
        assert hint.validate_python(None, strict=True) is None  # a field that is left out


# --- replies ----------------------------------------------------------------------------------------------------------


def exactly(kind: Any, value: Any) -> None:
    """Every key is declared, and has its type."""
    assert TypeAdapter(kind).validate_python(value, strict=True) == value


def test_replies_are_what_is_declared(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    asked = {"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": True}}
    with Engine(path, models_dir=tmp_path, engine_factory=fakes.factory()) as engine:
        for logprobs in (False, True):
            with engine.chat_completion_stream(asked, logprobs=logprobs, top_logprobs=2 if logprobs else 0) as chat:
                for chunk in chat:
                    exactly(replies.ChatCompletionChunk, chunk)
            exactly(replies.Usage, chat.usage)
            exactly(replies.Timings, chat.timings)
            exactly(replies.ChatCompletionResponse, engine.chat_completion(asked, logprobs=logprobs))
            count = 2 if logprobs else None
            for piece in engine.completion_stream(
                prompt=["a", "b"], logprobs=count, stream_options={"include_usage": True}
            ):
                exactly(replies.CompletionChunk, piece)
            exactly(replies.CompletionResponse, engine.completion(prompt=["a", "b"], logprobs=count))
        predicted = engine.chat_completion(asked, prediction="x")
        exactly(replies.ChatCompletionResponse, predicted)
        exactly(replies.CompletionTokensDetails, predicted["usage"]["completion_tokens_details"])
        exactly(replies.GenerateResponse, engine.generate("x"))
        exactly(replies.EmbeddingResponse[list[float]], engine.embeddings(input=["a", "b"]))
        coded = engine.embeddings(input="a", encoding_format="base64")
        exactly(replies.EmbeddingResponse[str], coded)
        assert len(base64.b64decode(coded["data"][0]["embedding"])) == 4 * fakes.INFO["n_embd"]
        exactly(replies.ListModelsResponse, engine.list_models())
        exactly(replies.ModelInfo, engine.get_model("m"))
        exactly(replies.ModelStatusResponse, engine.get_model_status())
        exactly(replies.HealthResponse, engine.health())
        exactly(replies.GPUStatusResponse, engine.get_gpu_status())
        exactly(replies.GPUMemoryResponse, engine.get_gpu_memory())
        exactly(replies.GPUPurgeResponse, engine.purge_gpu())
        exactly(replies.LoadModelResponse, engine.load_model(path))
        exactly(replies.UnloadModelResponse, engine.unload_model("m"))
        exactly(replies.UnloadAllModelsResponse, engine.unload_all_models())


def test_the_machine_is_described_as_declared():
    pytest.importorskip("polargrid_local._core")
    exactly(replies.SystemInfo, system_info())


# --- how engines and streams show themselves --------------------------------------------------------------------------


def test_an_engine_says_what_is_loaded(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    engine = Engine(models_dir=tmp_path, engine_factory=fakes.factory())
    assert repr(engine) == "<Engine: no model loaded>"
    engine.load_model(path)
    assert repr(engine) == "<Engine: m (n_ctx 4096, max_streams 4)>"
    engine.close()
    assert repr(engine) == "<Engine: closed>"
    shown = []
    loading = Engine(
        path, models_dir=tmp_path, engine_factory=fakes.factory(), on_load_progress=lambda share: shown.append(share)
    )
    loading.load_model(path, force_reload=True, on_progress=lambda share: shown.append(repr(loading)))
    loading.close()
    assert set(shown[2:]) == {"<Engine: m (loading)>"}
    assert repr(Engine.__new__(Engine)) == "<Engine: not made>"


def test_a_stream_says_how_far_it_is(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    with Engine(path, models_dir=tmp_path, engine_factory=fakes.factory()) as engine:
        stream = engine.chat_completion_stream(messages=[{"role": "user", "content": "x"}])
        next(stream)
        assert repr(stream) == f"<ChatStream {stream.id} running, 0 tokens: ''>"
        next(stream)
        assert repr(stream) == f"<ChatStream {stream.id} running, 1 tokens: 'Hello'>"
        list(stream)
        assert repr(stream).startswith(f"<ChatStream {stream.id} finished: stop, 8 tokens: 'Hello, w")
        stopped = engine.completion_stream(prompt="x")
        stopped.close()
        assert repr(stopped) == f"<ChatStream {stopped.id} cancelled, 0 tokens: ''>"
        with engine.completion_stream(prompt="x") as long:
            long.assembler.choices[0].parts.append("a" * 100)
            assert len(repr(long)) < 130


# --- the public face --------------------------------------------------------------------------------------------------


def test_the_types_for_annotations_are_those_of_params_and_replies_and_nothing_else():
    aliases = {
        "ParsedReply",
        "FinishReason",
        "LoadStatus",
        "Messages",
        "PromptLogprobs",
        "Task",
        "ToolEvent",
    }  # what keys of the TypedDicts are annotated with
    typed = {name for module in (params, replies) for name, value in vars(module).items() if is_typeddict(value)}
    assert set(types.__all__) == {name for name in typed if not name.startswith("_")} | aliases
    assert types.__all__ == sorted(types.__all__)
    public = {name for name, value in vars(types).items() if not name.startswith("_")}
    assert public == set(types.__all__)
