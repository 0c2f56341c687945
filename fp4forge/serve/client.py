"""Asks a server over the OpenAI protocol; every fault becomes a sentence, never a traceback."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

TIMEOUT = 120.0  # seconds for an answer; the first one may compile kernels
PARIS = "Capital of France? One sentence."


@dataclass(frozen=True)
class Answer:
    """A chat completion, or what was wrong with it; seconds of wall time."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish: str = ""
    problem: str = ""
    seconds: float = 0.0
    ok: bool = field(default=False)


def unreachable(url: str, timeout: float = 5.0) -> str:
    """Why /health does not answer; empty where it does."""
    import requests

    try:
        done = _session(url).get(url.rstrip("/") + "/health", timeout=timeout)
    except requests.ConnectionError:
        return "connection refused"
    except requests.RequestException as error:
        return type(error).__name__
    return "" if done.status_code in (200, 404) else f"HTTP {done.status_code}"


def _session(url: str) -> Any:
    import requests

    session = requests.Session()
    session.trust_env = "127.0.0.1" not in url and "localhost" not in url
    return session


def models(url: str) -> list[str]:
    """Names of the models that the server has; none where it does not tell."""
    import requests

    try:
        done = _session(url).get(url.rstrip("/") + "/v1/models", timeout=10)
        return [entry["id"] for entry in done.json()["data"]]
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return []


def chat(
    url: str, messages: list[dict[str, Any]], *, model: str = "", stream: bool = False,
    timeout: float = TIMEOUT, **options: Any,
) -> Answer:  # fmt: skip
    """One chat completion at temperature 0.

    Args:
        url: the server's root, without /v1.
        messages: as the OpenAI protocol has them.
        model: by default the first that the server names.
        stream: read server-sent events, as chat programs do.
        timeout: seconds without a byte, and for the whole answer.
        options: more of the request's body.
    """
    import requests

    body = {
        "model": model or (models(url) or ["default"])[0], "messages": messages,
        "temperature": 0, "max_tokens": 512, "stream": stream, **options,
    }  # fmt: skip
    start = time.monotonic()
    try:
        with _session(url).post(
            url.rstrip("/") + "/v1/chat/completions", json=body, timeout=timeout, stream=stream
        ) as done:
            if done.status_code != 200:
                return Answer(problem=f"HTTP {done.status_code}: {done.text[:200]}")
            if stream:
                return _stream(done, start, timeout)
            return _whole(done.text, start)
    except requests.Timeout:
        return Answer(problem=f"no answer within {timeout:.0f} s")
    except requests.RequestException as error:
        return Answer(problem=f"the connection broke: {type(error).__name__}")


def _whole(text: str, start: float) -> Answer:
    try:
        choice = json.loads(text)["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        if not isinstance(content, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Answer(problem=f"not a chat completion: {text[:200]!r}")
    return Answer(
        content, message.get("reasoning_content") or message.get("reasoning") or "",
        tuple(message.get("tool_calls") or ()), choice.get("finish_reason") or "",
        seconds=time.monotonic() - start, ok=True,
    )  # fmt: skip


def _stream(done: Any, start: float, timeout: float) -> Answer:
    text, reasoning, finish = "", "", ""
    done.encoding = "utf-8"  # server-sent events are, whatever the header says
    for line in done.iter_lines(decode_unicode=True):
        if time.monotonic() - start > timeout:
            return Answer(text, problem=f"no end within {timeout:.0f} s")
        if not line or not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            break
        try:
            choices = json.loads(data)["choices"]
            delta = choices[0].get("delta") or {} if choices else {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return Answer(text, problem=f"an event is not a chat chunk: {data[:200]!r}")
        text += delta.get("content") or ""
        reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
        finish = (choices[0].get("finish_reason") if choices else None) or finish
    seconds = time.monotonic() - start
    if not finish:
        return Answer(text, reasoning, problem="the stream was cut before its end", seconds=seconds)
    return Answer(text, reasoning, finish=finish, seconds=seconds, ok=True)


def paris(url: str) -> Answer:
    """The reference card's probe: France's capital by raw chat."""
    answer = chat(url, [{"role": "user", "content": PARIS}], max_tokens=64, timeout=60)
    good = answer.ok and "paris" in answer.text.lower()
    return Answer(
        answer.text, answer.reasoning, answer.tool_calls, answer.finish, answer.problem,
        answer.seconds, good,
    )  # fmt: skip
