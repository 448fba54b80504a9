"""Ollama: requests for chats, completions and embeddings in the words of its API, and answers in lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Refusal, Words, account_of, dump
from polargrid_local.dialects.fields import Fields
from polargrid_local.dialects.logprobs import token_entries
from polargrid_local.dialects.ollama_request import (
    HARMLESS,
    OUR_NAMES,
    format_fields,
    keep_alive_seconds,
    logprobs_fields,
    message_fields,
    option_fields,
    thinking_fields,
)


class OllamaExchange(Exchange):
    """What all its requests have in common."""

    media_type = "application/x-ndjson"
    form_bodies = True
    comments = False
    timed = True
    field_names = OUR_NAMES
    streams = False

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        self.created_at = time_text(moment.created)
        self.fields = Fields(body, "", self.ignored)
        self.body = self.fields.take("model")
        self.fields.skip(*HARMLESS)
        self.keep_alive_s = keep_alive_seconds(self.fields.any("keep_alive"))

    @staticmethod
    def error(refusal: Refusal) -> Words:
        return {"error": refusal.named(OUR_NAMES).message}

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        yield _line(self.error(refusal))


class Generation(OllamaExchange):
    """An answer of text, in lines unless `stream` is false. A request that says nothing has its model loaded."""

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__(body, moment, kind)
        fields = self.fields
        self.streaming = fields.get("stream", bool) is not False
        self.body |= option_fields(fields.inner("options"))
        self._loads = not self._ask(fields)
        fields.end()
        if self._loads:
            # The shortest request that needs the model; nothing is told of what comes of it.
            self.kind = "completion"
            self.body = {"model": self.body.get("model"), "prompt": " ", "max_tokens": 1}
        if self.streaming:
            self.body["stream_options"] = {"include_usage": True}
        else:
            self.body["timings_per_token"] = True  # for the durations of the whole answer
        self._call: Words | None = None  # begun, and not yet told: there, calls come whole
        self._n_calls = 0
        self._reason = "stop"
        self._known: Words = {}  # model, usage and timings, as far as they have been said

    def _ask(self, fields: Fields) -> bool:
        """Puts into the body what is to be answered. False: there is nothing."""
        raise NotImplementedError

    def _said(self, content: str, thinking: str = "", calls: list[Words] | None = None) -> Words:
        """What a line says of the answer."""
        raise NotImplementedError

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        self._known |= account_of(answer)
        if self._loads:
            return self._last(self._said(""))
        choice = answer["choices"][0]
        self._reason = choice["finish_reason"]
        message = choice.get("message") or {"content": choice["text"]}
        calls = []
        for call in message.get("tool_calls") or ():
            self._call = {"id": call["id"], **call["function"]}
            calls += self._finished_call()
        said = self._said(message["content"] or "", message.get("reasoning_content", ""), calls)
        return self._last({**said, **_logprobs(choice)})

    def chunk(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        self._known |= account_of(chunk)
        for choice in () if self._loads else chunk["choices"]:
            self._reason = choice["finish_reason"] or self._reason
            delta = choice.get("delta") or {"content": choice.get("text", "")}
            parts = delta.get("tool_calls", ())
            if (not parts or "id" in parts[0]) and (calls := self._finished_call()):  # the one before is complete
                yield self._next(self._said("", "", calls))
            for part in parts:
                call = self._call = self._call or {"id": part["id"], "name": "", "arguments": ""}
                for key, piece in part["function"].items():
                    call[key] += piece
            content, thinking, more = delta.get("content", ""), delta.get("reasoning_content", ""), _logprobs(choice)
            if content or thinking or more:
                yield self._next({**self._said(content, thinking), **more})

    def end(self) -> Iterable[bytes]:
        yield _line(self._last(self._said("")))

    def _finished_call(self) -> list[Words]:
        """The one that was begun. None of one that was cut: its arguments are no object."""
        call, self._call = self._call, None
        if call is None:
            return []
        try:
            arguments = json.loads(call["arguments"])
        except (ValueError, RecursionError):
            return []
        function = {"index": self._n_calls, "name": call["name"], "arguments": arguments}
        self._n_calls += 1
        return [{"id": call["id"], "function": function}]

    def _head(self) -> Words:
        return {"model": self._known["model"], "created_at": self.created_at}

    def _next(self, said: Words) -> bytes:
        return _line({**self._head(), **said, "done": False})

    def _last(self, said: Words) -> Words:
        loads = "unload" if self.keep_alive_s == 0 else "load"
        reason = loads if self._loads else "stop" if self._reason == "tool_calls" else self._reason
        words = {**self._head(), **said, "done": True, "done_reason": reason}
        if self._loads:
            return {**words, "total_duration": nanoseconds(self.load_ms), "load_duration": nanoseconds(self.load_ms)}
        usage = self._known["usage"]
        return {
            **words,
            "prompt_eval_count": usage["prompt_tokens"],
            "eval_count": usage["completion_tokens"],
            **self._durations(),
        }

    def _durations(self) -> Words:
        """In nanoseconds. A stream tells our own timings, a whole answer those that it was asked for."""
        times = self._known.get("timings", {})
        if "queue_ms" in times:
            queued, read, total = (times[name] or 0 for name in ("queue_ms", "prefill_ms", "total_ms"))
            prompt_ms, answer_ms, total_ms = read - queued, total - read, self.load_ms + total
        else:
            prompt_ms, answer_ms, total_ms = times.get("prompt_ms", 0), times.get("predicted_ms", 0), self.total_ms
        spans = {
            "total_duration": total_ms,
            "load_duration": self.load_ms,
            "prompt_eval_duration": prompt_ms,
            "eval_duration": answer_ms,
        }
        return {name: nanoseconds(span) for name, span in spans.items()}


class OllamaChat(Generation):
    """/api/chat"""

    def _ask(self, fields: Fields) -> bool:
        messages = message_fields(fields.objects("messages"))
        self.body |= {"messages": messages, **fields.take("tools"), **format_fields(fields), **thinking_fields(fields)}
        self.body |= logprobs_fields(fields)
        return bool(messages)

    def _said(self, content: str, thinking: str = "", calls: list[Words] | None = None) -> Words:
        message: Words = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class OllamaGenerate(Generation):
    """/api/generate: a chat of one message, by the model's template; or with `raw` the prompt as it is."""

    def _ask(self, fields: Fields) -> bool:
        fields.refuse({"template": ("",), "context": ([],), "images": ([],)})
        prompt = fields.get("prompt", str) or ""
        self.body |= format_fields(fields)
        logprobs = logprobs_fields(fields)
        suffix = fields.get("suffix", str)
        if fields.get("raw", bool) or suffix:
            fields.refuse({"system": ("",), "think": (False,)})
            self.kind = "completion"
            self.body["prompt"] = prompt
            if suffix:  # the answer stands between the two
                self.body["suffix"] = suffix
            if logprobs.get("logprobs"):
                self.body["logprobs"] = logprobs.get("top_logprobs", 0)
            return bool(prompt or suffix)
        system = fields.get("system", str)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        self.body |= {"messages": messages, **thinking_fields(fields), **logprobs}
        return bool(prompt)

    def _said(self, content: str, thinking: str = "", calls: list[Words] | None = None) -> Words:
        return {"response": content, **({"thinking": thinking} if thinking else {})}


class OllamaEmbed(OllamaExchange):
    """/api/embed: a vector for each input."""

    input_name = "input"

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__(body, moment, kind)
        fields = self.fields
        self.body |= fields.take("dimensions", **{self.input_name: "input"})
        fields.inner("options")  # none of them changes a vector
        fields.end()

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        vectors = [row["embedding"] for row in answer["data"]]
        counts = {"prompt_eval_count": answer["usage"]["prompt_tokens"]}
        durations = {"total_duration": nanoseconds(self.total_ms), "load_duration": nanoseconds(self.load_ms)}
        return {"model": answer["model"], "embeddings": vectors, **durations, **counts}


class OllamaEmbeddings(OllamaEmbed):
    """/api/embeddings, its older form: the vector of one prompt."""

    input_name = "prompt"

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"embedding": answer["data"][0]["embedding"]}


def time_text(seconds: float) -> str:
    """`seconds` since 1970 in ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def _line(words: Mapping[str, Any]) -> bytes:
    return dump(words).encode("ascii") + b"\n"


def _logprobs(choice: Mapping[str, Any]) -> Words:
    given = choice.get("logprobs")
    if given is None:
        return {}
    return {"logprobs": given["content"] if "content" in given else token_entries(given)}
