"""Asks a server over the OpenAI protocol; every fault becomes a sentence, never a traceback."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any

from msgspec import Struct

from fp4forge.core import http, reading
from fp4forge.core.errors import ServingError
from fp4forge.core.limits import ANSWER_CHARACTERS, SERVER_BYTES, SERVER_SECONDS
from fp4forge.core.text import shown

TIMEOUT = 120.0  # seconds for an answer; the first one may compile kernels
_DONE = "data: [DONE]"
PARIS = "Capital of France? One sentence."


@dataclass(frozen=True)
class ChatAnswer:
    """A chat completion, or what was wrong with it; seconds of wall time."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = ""
    problem: str = ""
    seconds: float = 0.0
    ok: bool = field(default=False)


class CalledFunction(Struct, frozen=True):
    """A function that the model calls, with its arguments as JSON."""

    name: str = ""
    arguments: str = ""


class ToolCall(Struct, frozen=True):
    """One tool call of an answer."""

    function: CalledFunction = CalledFunction()


class _Message(Struct, frozen=True):
    """A message."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class _FunctionPart(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _CallPart(Struct, frozen=True):
    """A part of the tool call with that index."""

    index: int = 0
    function: _FunctionPart | None = None


class _Delta(Struct, frozen=True):
    """The part of a message that an event brings."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallPart] | None = None


class _ChatChoice(Struct, frozen=True):
    message: _Message | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Completion(Struct, frozen=True):
    """A chat completion or one event of its stream (OpenAI API, /v1/chat/completions)."""

    choices: list[_ChatChoice]


class _OpenAiModel(Struct, frozen=True):
    id: str


class _OpenAiModels(Struct, frozen=True):
    data: list[_OpenAiModel]


def key() -> str:
    """The server's key, as vLLM's and OpenAI's own clients take it; empty if there is none."""
    return os.environ.get("OPENAI_API_KEY") or os.environ.get("VLLM_API_KEY") or ""


def unreachable(url: str, timeout: float = 5.0, path: str = "/health") -> str:
    """Why the path, vLLM's own by default, does not answer; empty if it does."""
    try:
        done = _ask_server("GET", url, path, timeout)
    except http.NoHttpAnswer as error:
        return str(error)
    if done.cut:
        return done.cut
    return "" if done.status in (200, 404) else f"HTTP {done.status}"


def ahead(url: str) -> float | None:
    """Seconds that the server's clock is ahead of this one, by its Date; None if it has none."""
    try:
        done = _ask_server("GET", url, "/health", SERVER_SECONDS)
        return parsedate_to_datetime(done.headers.get("date", "")).timestamp() - time.time()
    except (http.NoHttpAnswer, ValueError, TypeError, OverflowError):
        return None


def _ask_server(
    method: str, url: str, path: str, seconds: float, body: Any = None
) -> http.HttpAnswer:
    headers = {"Content-Type": "application/json"} if body else {}
    if given := key():
        headers["Authorization"] = f"Bearer {given}"
    # Not redirected: the question would go to a server that nobody named.
    return http.ask(
        method,
        url.rstrip("/") + path,
        http.HttpLimits(seconds, SERVER_BYTES),
        headers=headers,
        body=json.dumps(body).encode() if body else None,
        until=b"\n" + _DONE.encode(),  # in a JSON string no line begins with it
        proxies="127.0.0.1" not in url and "localhost" not in url,
    )


def models(url: str) -> list[str]:
    """Names of the models that the server lists; empty if it lists none."""
    try:
        done = _ask_server("GET", url, "/v1/models", SERVER_SECONDS)
        found = reading.json(done.content, _OpenAiModels, f"{url}/v1/models", ServingError)
    except (http.NoHttpAnswer, ServingError):
        return []
    return [entry.id for entry in found.data]


def chat(
    url: str,
    messages: list[dict[str, Any]],
    *,
    model: str = "",
    stream: bool = False,
    timeout: float = TIMEOUT,
    **options: Any,
) -> ChatAnswer:
    """One chat completion at temperature 0.

    Args:
        url: the server's root, without /v1.
        messages: as the OpenAI protocol has them.
        model: by default the first that the server names.
        stream: read server-sent events, as chat programs do.
        timeout: seconds for the whole answer.
        options: more of the request's body.
    """
    body = {
        "model": model or (models(url) or ["default"])[0],
        "messages": messages,
        "temperature": 0,
        "max_tokens": 512,
        "stream": stream,
        **options,
    }
    start = time.monotonic()
    try:
        done = _ask_server("POST", url, "/v1/chat/completions", timeout, body)
    except http.NoHttpAnswer as error:
        return ChatAnswer(problem=str(error))
    if done.status != 200:
        return ChatAnswer(problem=f"HTTP {done.status}: {shown(_utf8(done.content), 200)}")
    answer = _streamed_completion(done) if stream else _whole_completion(done)
    return replace(
        answer,
        text=answer.text[:ANSWER_CHARACTERS],
        reasoning=answer.reasoning[:ANSWER_CHARACTERS],
        seconds=time.monotonic() - start,
        ok=not answer.problem,
    )


def _whole_completion(done: http.HttpAnswer) -> ChatAnswer:
    if done.cut:
        return ChatAnswer(problem=done.cut)
    try:
        found = reading.json(done.content, _Completion, "the answer", ServingError)
    except ServingError as error:
        text = shown(_utf8(done.content), 200)
        return ChatAnswer(problem=f"not a chat completion: {error.message}: {text!r}")
    message = found.choices[0].message if found.choices else None
    if message is None:
        return ChatAnswer(problem="not a chat completion: no message in it")
    return ChatAnswer(
        message.content or "",
        message.reasoning_content or message.reasoning or "",
        tuple(message.tool_calls or ()),
        found.choices[0].finish_reason or "",
    )


def _streamed_completion(done: http.HttpAnswer) -> ChatAnswer:
    text, reasoning, finish, ended = [], [], "", False
    calls: dict[int, tuple[str, str]] = {}
    problem = done.cut
    for data in _sse_data(_utf8(done.content)):
        if ended := _DONE.endswith(f" {data}"):
            break
        try:
            found = reading.json(data, _Completion, "an event", ServingError)
        except ServingError as error:
            # Of a stream that was cut the last event may be half of one.
            problem = (
                done.cut or f"an event is not a chat chunk: {error.message}: {shown(data, 200)!r}"
            )
            break
        for choice in found.choices[:1]:
            delta = choice.delta or _Delta()
            text.append(delta.content or "")
            reasoning.append(delta.reasoning_content or delta.reasoning or "")
            for part in delta.tool_calls or ():
                more = part.function or _FunctionPart()
                name, arguments = calls.get(part.index, ("", ""))
                calls[part.index] = (name or more.name or "", arguments + (more.arguments or ""))
            finish = choice.finish_reason or finish
    if not problem and not finish:
        problem = "the stream was cut before its end"
    if ended and finish:
        problem = ""
    made = tuple(ToolCall(CalledFunction(*calls[index])) for index in sorted(calls))
    return ChatAnswer("".join(text), "".join(reasoning), made, finish=finish, problem=problem)


def _sse_data(text: str) -> Iterator[str]:
    """The data of server-sent events."""
    for line in text.split("\n"):
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _utf8(content: bytes) -> str:
    return content.decode(errors="replace")


def paris(url: str, off: dict[str, Any] | None = None, model: str = "") -> ChatAnswer:
    """The reference card's probe: France's capital by raw chat.

    A thinking model may end inside its reasoning: it is asked again with more tokens, then with
    thinking off.

    Args:
        url: the server's root, without /v1.
        off: chat_template_kwargs that switch the model's thinking off, if its family is known.
        model: by default the first that the server names.
    """
    question = [{"role": "user", "content": PARIS}]
    known: dict[str, Any] = {"chat_template_kwargs": off} if off else {}
    answer = chat(url, question, model=model, max_tokens=64, timeout=60, **known)
    for more in (
        {"max_tokens": 1024},
        {"max_tokens": 256, "chat_template_kwargs": {"enable_thinking": False}},
    ):
        if answer.problem or answer.finish != "length" or "paris" in answer.text.lower():
            break
        answer = chat(url, question, model=model, timeout=TIMEOUT, **more)
    return replace(answer, ok=answer.ok and "paris" in answer.text.lower())
