"""A model server with a fault: a sentence, exit code 20 and an end in time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.faults.commands import Command
from tests.e2e.faults.server import (
    CHAT,
    END,
    HEALTH,
    MODELS,
    PRIME,
    STREAM,
    TEXT_EVENTS,
    TOOL,
    Evil,
)
from tests.e2e.faults.wire import OK, in_pieces

COMPLETIONS = "/v1/chat/completions"


def test_a_server_without_a_fault(command: Command, evil: Evil) -> None:
    assert command("serve", "smoke", "--url", evil.url, "--timeout", "1").code == 0


@pytest.mark.parametrize("fault", CHAT)
def test_an_answer(command: Command, evil: Evil, fault: str) -> None:
    evil.spoil(COMPLETIONS, CHAT[fault])
    done = command("serve", "smoke", "--url", evil.url, "--timeout", "1")
    assert COMPLETIONS in evil.asked
    assert done.code == 20, done.err
    assert "capital: " in done.err, done.err


@pytest.mark.parametrize("fault", STREAM)
def test_a_stream(command: Command, evil: Evil, fault: str) -> None:
    evil.spoil(COMPLETIONS, STREAM[fault])
    done = command(
        "serve",
        "quality",
        "--only",
        "vision",
        "--stream",
        "--json",
        "--timeout",
        "1",
        "--url",
        evil.url,
    )
    assert done.code == 20, done.err
    (verdict,) = json.loads(done.out)
    assert not verdict["passed"] and verdict["problem"]
    assert done.out.isascii()


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        *(("smoke", fault) for fault in HEALTH),
        *(("doctor", fault) for fault in ("hangs-in-body", "body-without-end", "steers-in-status")),
    ],
)
def test_health(command: Command, evil: Evil, asked: str, fault: str) -> None:
    evil.spoil("/health", HEALTH[fault])
    done = command("serve", asked, "--url", evil.url)
    assert done.code == 20, done.err
    assert COMPLETIONS not in evil.asked


@pytest.mark.parametrize("fault", MODELS)
def test_names_of_models(command: Command, evil: Evil, fault: str) -> None:
    evil.spoil("/v1/models", MODELS[fault])
    done = command("serve", "smoke", "--url", evil.url, "--timeout", "2")
    assert done.code == 0, done.err


@pytest.mark.parametrize("fault", TOOL)
def test_a_tool_call(command: Command, evil: Evil, fault: str) -> None:
    evil.spoil(COMPLETIONS, TOOL[fault])
    done = command("serve", "quality", "--only", "tool", "--url", evil.url)
    assert done.code == 20, done.err
    assert "tool: " in done.err


@pytest.mark.parametrize("fault", PRIME)
def test_code(command: Command, evil: Evil, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fp4forge.serve import quality

    prime = [prompt for prompt in quality.PROMPTS if prompt.name == "prime"]
    monkeypatch.setattr(quality, "PROMPTS", prime)
    evil.spoil(COMPLETIONS, PRIME[fault])
    done = command("serve", "quality", "--only", "text", "--url", evil.url)
    assert done.code == 20 or "1 not judged" in done.err, done.err
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_quotes_the_end_of_a_stream_is_read_whole(
    command: Command, evil: Evil, streamed: bool
) -> None:
    start, kind = (TEXT_EVENTS + b"data: ", "delta") if streamed else (OK, "message")
    first = start + f'{{"choices": [{{"{kind}": {{"content": "a line data: [DONE]'.encode()
    second = b' is red"}, "finish_reason": "stop"}]}\n\n' + (END if streamed else b"")
    evil.spoil(COMPLETIONS, in_pieces(first, second))
    more = ["--stream"] if streamed else []
    done = command("serve", "quality", "--only", "vision", "--url", evil.url, *more)
    assert done.code == 0, done.err


def test_every_prompt_fails_in_time_when_nothing_is_answered(command: Command, evil: Evil) -> None:
    evil.spoil(COMPLETIONS, CHAT["hangs-in-body"])
    done = command(
        "serve",
        "quality",
        "--url",
        evil.url,
        "--timeout",
        "1",
        "--json",
        "--only",
        "tool",
        "--only",
        "vision",
    )
    assert done.code == 20
    assert {v["problem"] for v in json.loads(done.out)} == {"no end within 1 s"}
