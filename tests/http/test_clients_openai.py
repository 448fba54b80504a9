"""Clients made for OpenAI, unchanged: openai, langchain-openai, httpx-sse and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Annotated, Literal

import httpx
import httpx_sse
import openai
import pydantic
import pytest
from serving import ALIAS, SAID, SMOLLM2, ServerProcess

SAY = [{"role": "user", "content": "\ue001"}]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=SAY, stop="caf")
    assert answer.choices[0].message.content == "".join(SAID[:2]) + " "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 2


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted",
        messages=SAY,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=50,
    )
    chunks = list(stream)
    assert [c.choices[0].delta.content for c in chunks if c.choices][1:-1] == SAID
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(SAID)


def test_a_prediction_changes_no_answer_and_is_counted(client: openai.OpenAI, server: ServerProcess) -> None:
    text = "".join(SAID)
    for content in (
        text,
        "nothing of it",
        "",
        [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}],
    ):
        prediction = {"type": "content", "content": content}
        plain = client.chat.completions.create(model="scripted", messages=SAY, prediction=prediction)
        *chunks, last = client.chat.completions.create(
            model="scripted",
            messages=SAY,
            prediction=prediction,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert plain.choices[0].message.content == text
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        for usage in (plain.usage, last.usage):
            assert usage is not None and usage.completion_tokens_details is not None
            assert usage.completion_tokens == len(SAID)
            accepted = usage.completion_tokens_details.accepted_prediction_tokens
            rejected = usage.completion_tokens_details.rejected_prediction_tokens
            assert isinstance(accepted, int) and isinstance(rejected, int)
            assert 0 <= accepted <= len(SAID) and rejected >= 0
    counted = server.get("/metrics").text
    for name in ("polargrid_accepted_draft_tokens_total", "polargrid_rejected_draft_tokens_total"):
        assert f'{name}{{model="scripted"}}' in counted
    unpredicted = client.chat.completions.create(model="scripted", messages=SAY)
    assert unpredicted.usage is not None and unpredicted.usage.completion_tokens_details is None
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="scripted", messages=SAY, prediction={"type": "content", "content": 5})
    assert bad.value.param == "prediction.content"


def test_the_stream_helper_accumulates(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="scripted", messages=SAY) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        assert stream.get_final_completion().choices[0].message.content == "".join(deltas) == "".join(SAID)


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="scripted", messages=SAY, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert [entry.token for entry in content][: len(SAID)] == SAID
    assert len(content[0].top_logprobs) == 2


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt=["\ue000", "a\ue000"])
    assert [choice.text for choice in answer.choices] == ["".join(SAID)] * 2
    pieces = [
        chunk.choices[0].text for chunk in client.completions.create(model="scripted", prompt="\ue000", stream=True)
    ]
    assert pieces == [*SAID, ""]
    predicted = client.completions.create(
        model="scripted", prompt="\ue000", extra_body={"prediction": {"type": "content", "content": "".join(SAID)}}
    )
    assert predicted.choices[0].text == "".join(SAID)
    assert predicted.usage is not None and predicted.usage.completion_tokens_details is not None
    assert isinstance(predicted.usage.completion_tokens_details.accepted_prediction_tokens, int)


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=SMOLLM2, input=["one", "two", "one"])
    one, two, again = (row.embedding for row in answer.data)
    assert len(one) == 576
    assert one == pytest.approx(again, abs=1e-4)
    assert one != pytest.approx(two, abs=1e-2)
    plain = client.embeddings.create(
        model=SMOLLM2, input=["one", "two", "one"], encoding_format="float"
    )  # this client asks for base64 where it is left out
    assert [row.embedding for row in plain.data] == [pytest.approx(row.embedding, abs=1e-6) for row in answer.data]


def test_langchain_embeddings(server: ServerProcess) -> None:
    from langchain_openai import OpenAIEmbeddings

    model = OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="any", model=SMOLLM2, check_embedding_ctx_length=False, max_retries=0
    )
    one, two = model.embed_documents(["one", "two"])
    assert len(one) == len(two) == 576
    assert model.embed_query("one") == pytest.approx(one, abs=1e-4)
    assert one != pytest.approx(two, abs=1e-2)


def test_without_a_limit_an_answer_ends_where_the_model_or_the_context_does(client: openai.OpenAI) -> None:
    body = {"ignore_eos": True}
    chat = client.chat.completions.create(model="random", messages=SAY, extra_body=body)
    text = client.completions.create(model="random", prompt="the", extra_body=body)
    for answer in (chat, text):
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.total_tokens > 2000  # of 2048


def test_completion_logprobs(client: openai.OpenAI) -> None:
    for n in (0, 3):
        said = client.completions.create(model="scripted", prompt="\ue000", logprobs=n).choices[0].logprobs
        assert said is not None and said.tokens and said.token_logprobs and said.top_logprobs
        assert said.tokens[: len(SAID)] == SAID
        for token, value, top in zip(said.tokens, said.token_logprobs, said.top_logprobs):
            assert top[token] == value
            assert max(1, n) <= len(top) <= n + 1


def test_models(client: openai.OpenAI) -> None:
    assert {SMOLLM2, ALIAS} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("HuggingFaceTB/SmolLM2-135M-Instruct").id == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=SAY)
    assert (missing.value.code, missing.value.param, missing.value.type) == (
        "model_not_loaded",
        "model",
        "not_found_error",
    )
    assert missing.value.message.startswith("Error code: 404")
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="scripted", messages=SAY, n=500)
    assert bad.value.param == "n"
    with pytest.raises(openai.BadRequestError) as unstreamed:
        client.chat.completions.create(model="scripted", messages=SAY, stream_options={"include_usage": True})
    assert unstreamed.value.param == "stream_options"
    with pytest.raises(openai.BadRequestError) as old:
        client.chat.completions.create(model="scripted", messages=SAY, functions=[{"name": "f"}, {"name": "f"}])
    assert old.value.param == "functions[1].name"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=SMOLLM2, prompt="word " * 5000)
    assert long.value.code == "context_length_exceeded"


def test_a_wrong_key(start: Callable[..., ServerProcess]) -> None:
    server = start(api_key="right").wait_ready()
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="right") as client:
        assert client.models.list().data


async def test_async_client_and_early_end(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        stream = await client.chat.completions.create(
            model="random",
            messages=SAY,
            stream=True,
            max_tokens=2000,
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
    server.wait_for(lambda: server.metric("polargrid_running_requests") == 0)


async def test_langchain(server: ServerProcess) -> None:
    from langchain_core.messages import HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    async with httpx.AsyncClient() as http_async_client:
        model = ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key="any",
            model="scripted",
            max_retries=0,
            http_async_client=http_async_client,
        )
        messages = [SystemMessage("Be brief"), HumanMessage("\ue001")]
        answer = model.invoke(messages)
        assert answer.content == "".join(SAID)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == len(SAID)
        assert "".join(str(chunk.content) for chunk in model.stream(messages)) == "".join(SAID)
        assert "".join([str(chunk.content) async for chunk in model.astream(messages)]) == "".join(SAID)


class Person(pydantic.BaseModel):
    """Bounded, so that a small model comes to an end of it."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: Annotated[str, pydantic.Field(max_length=12)]
    age: Annotated[int, pydantic.Field(ge=0, le=120)]
    mood: Literal["glad", "sad"]


ASK = [{"role": "user", "content": "Describe a person."}]


def test_parse_gives_an_object_of_the_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=SMOLLM2, messages=ASK, response_format=Person, max_tokens=900, seed=1)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Person) and answer.choices[0].finish_reason == "stop"
    assert Person.model_validate_json(answer.choices[0].message.content or "") == parsed


def test_the_stream_helper_parses_too(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=SMOLLM2, messages=ASK, response_format=Person, max_tokens=900, seed=1
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_an_answer_that_was_cut_is_an_error_of_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=SMOLLM2, messages=ASK, response_format=Person, max_tokens=3)


def test_json_mode_and_what_cannot_be_held(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=SMOLLM2, messages=ASK, extra_body={"guided_json": Person.model_json_schema()}, max_tokens=900
    )
    Person.model_validate_json(answer.choices[0].message.content or "")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}, "strict": True}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=SMOLLM2, messages=ASK, response_format=schema)
    assert caught.value.param == "response_format.json_schema.schema.not"
    assert caught.value.code == "invalid_grammar"


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bonn", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ASK = [{"role": "user", "content": "What is the weather in Bonn for the next 3 days?"}]


def test_tools_and_back(client: openai.OpenAI) -> None:
    asked = {"model": SMOLLM2, "tools": [WEATHER], "max_tokens": 200, "temperature": 0}
    answer = client.chat.completions.create(**asked, messages=ASK, tool_choice="required", parallel_tool_calls=False)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Bonn", "Oslo") and isinstance(arguments["days"], int) and len(arguments) == 2
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    after = client.chat.completions.create(**asked, messages=[*ASK, message, result], tool_choice="none")
    assert after.choices[0].message.content and after.choices[0].message.tool_calls is None


def test_the_stream_helper_gathers_calls(client: openai.OpenAI) -> None:
    asked = {"model": SMOLLM2, "tools": [WEATHER], "max_tokens": 200, "temperature": 0, "messages": ASK}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    plain = client.chat.completions.create(**asked, tool_choice=choice).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(**asked, tool_choice=choice) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.arguments == plain.function.arguments
    assert streamed.message.tool_calls[0].function.parsed_arguments == json.loads(plain.function.arguments)


def test_functions_in_the_older_form(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=SMOLLM2, messages=ASK, functions=[WEATHER["function"]], function_call={"name": "get_weather"}
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "function_call" and message.tool_calls is None
    assert json.loads(message.function_call.arguments)["city"] in ("Bonn", "Oslo")
    result = {"role": "function", "name": "get_weather", "content": "sunny"}
    after = client.chat.completions.create(model=SMOLLM2, messages=[*ASK, message, result], max_tokens=4)
    assert after.choices[0].message.content


def test_a_tool_that_cannot_be_held_is_named(client: openai.OpenAI) -> None:
    tool = json.loads(json.dumps(WEATHER))
    tool["function"]["parameters"]["properties"]["days"]["unevaluatedItems"] = False
    with pytest.raises(openai.BadRequestError, match="unevaluatedItems") as caught:
        client.chat.completions.create(model=SMOLLM2, messages=ASK, tools=[tool])
    assert caught.value.param == "tools[0].function.parameters.properties.days.unevaluatedItems"


def test_langchain_structured_output(server: ServerProcess) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key="any", model=SMOLLM2, max_retries=0, max_tokens=900)
    answer = model.with_structured_output(Person, method="json_schema").invoke("Describe a person.")
    assert isinstance(answer, Person)
    answer = model.with_structured_output(Person.model_json_schema(), method="json_schema").invoke("Describe a person.")
    assert Person.model_validate(answer)


def test_httpx_sse(server: ServerProcess) -> None:
    body = {"model": "scripted", "messages": SAY, "stream": True}
    with httpx.Client(trust_env=False) as client:
        with httpx_sse.connect_sse(client, "POST", f"{server.url}/v1/chat/completions", json=body) as source:
            events = list(source.iter_sse())
    assert events[-1].data == "[DONE]"
    assert {event.event for event in events} == {"message"}
    assert [json.loads(event.data)["choices"][0]["delta"].get("content") for event in events[1:-2]] == SAID


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: ServerProcess) -> None:
    run = subprocess.run(
        ["curl", "-sSN", "--noproxy", "*", "--max-time", "60", f"{server.url}/v1/chat/completions",
         "-H", "Content-Type: application/json",
         "-d", json.dumps({"model": "scripted", "messages": SAY, "stream": True})],
        capture_output=True, check=True, timeout=90,
    )  # fmt: skip
    lines = run.stdout.split(b"\n\n")
    assert lines[-2:] == [b"data: [DONE]", b""]
    assert b'"delta":{"content":"Hi"}' in lines[1]
