"""vLLM's words for vectors, chats that are embedded, and what a model that only embeds makes of a ranking."""

from __future__ import annotations

from typing import Any

import pytest

from polargrid_local.api.parse import parse_request
from polargrid_local.api.ranking import ranks_by
from polargrid_local.dialects.cohere import CohereRerank
from polargrid_local.dialects.exchange import Exchange, Moment
from polargrid_local.dialects.pooling import Pooling
from polargrid_local.dialects.score import Rerank, Score
from polargrid_local.errors import ValidationError

NOW = Moment("0123456789abcdef01234567", 1767225600.25)
CHAT = [{"role": "user", "content": "hello"}]


def pool(**body: Any) -> Pooling:
    return Pooling(body, NOW, "embedding")


def parsed(exchange: Exchange) -> Any:
    return parse_request(exchange.kind, exchange.body, max_tokens_limit=None, ignored=exchange.ignored)


def test_what_is_pooled_is_an_embedding() -> None:
    fields: dict[str, Any] = {"model": "m", "dimensions": 4, "truncate_prompt_tokens": 5, "truncation_side": "right"}
    exchange = pool(input=["a", "b"], task="embed", user="u", unheard_of=1, **fields)
    request = parsed(exchange)
    assert request.inputs == ["a", "b"] and {name: getattr(request, name) for name in fields} == fields
    assert exchange.ignored == ["unheard_of"] and not exchange.streaming
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    rows = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(([0.5, 1.0], "AAAA"))]
    assert exchange.reply({"object": "list", "data": rows, "model": "m", "usage": usage}) == {
        "id": f"pool-{NOW.id}",
        "object": "list",
        "created": 1767225600,
        "model": "m",
        "data": [
            {"index": 0, "object": "pooling", "data": [0.5, 1.0]},
            {"index": 1, "object": "pooling", "data": "AAAA"},
        ],
        "usage": usage,
    }


@pytest.mark.parametrize("task", ["classify", "token_embed", "token_classify", "plugin", "embed&token_classify", "x"])
def test_other_tasks_are_refused(task: str) -> None:
    with pytest.raises(ValidationError, match=f"^Unsupported task: '{task}': must be embed") as caught:
        pool(input="a", task=task)
    assert caught.value.param == "task"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": "a", "messages": CHAT}, "messages"),
        ({}, "input"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": CHAT, "add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
        ({"messages": CHAT, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"messages": CHAT, "chat_template": "chatml"}, "chat_template"),
        ({"input": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"input": "a", "continue_final_message": True}, "continue_final_message"),
        ({"input": "a", "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_request("embedding", body)
    assert caught.value.param == field


def test_an_embedded_chat_ends_where_it_ends() -> None:
    request = parsed(pool(messages=CHAT, chat_template_kwargs={"x": 1}))
    assert (request.input, request.inputs, request.add_generation_prompt) == (None, [], False)
    assert [message.content for message in request.messages] == ["hello"]
    assert request.chat_template_kwargs == {"x": 1}
    assert parsed(pool(messages=CHAT, add_generation_prompt=True)).add_generation_prompt


def test_by_what_a_model_ranks() -> None:
    assert ranks_by(["embed"]) == "cosine" and ranks_by(["rank"]) == ranks_by(["embed", "rank"]) == "scores"
    assert ranks_by(["generate", "embed"]) is ranks_by(["generate"]) is ranks_by([]) is None


@pytest.mark.parametrize("name", ["use_activation", "activation", "softmax", "raw_scores"])
def test_an_activation_that_is_ignored_is_told_by_the_name_that_was_sent(name: str) -> None:
    query: dict[str, Any] = {"query": "q", "documents": ["a"]}
    exchanges: list[Exchange] = [Rerank({**query, name: name != "raw_scores"}, NOW, "rerank")]
    if name != "raw_scores":
        exchanges.append(Score({"text_1": "q", "text_2": "a", name: True}, NOW, "rerank"))
    if name == "use_activation":
        exchanges.append(CohereRerank({**query, name: True}, NOW, "rerank"))
    for exchange in exchanges:
        assert parsed(exchange).use_activation
        assert exchange.all_ignored(["use_activation"]) == [name] and exchange.all_ignored([]) == []
    assert CohereRerank(query, NOW, "rerank").all_ignored(["use_activation"]) == []
