"""The doctor and a live server on loopback: what it answers, at once, streamed, long and later."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fp4forge.cli.serve import doctor as command
from fp4forge.core.errors import UnclearError, UsageError
from fp4forge.doctor import live
from tests.e2e.faults import server as faults
from tests.e2e.faults import wire

METRICS = """
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}
vllm:generation_tokens_total{{engine="0",model_name="m"}} {made}
vllm:num_preemptions_total{{engine="0",model_name="m"}} {preempted}
vllm:corrupted_requests_total{{engine="0",model_name="m"}} {corrupted}
vllm:request_success_total{{finished_reason="stop",model_name="m"}} 7
http_requests_total{{handler="/v1/chat/completions",method="POST",status="2xx"}} 9
http_requests_total{{handler="/v1/chat/completions",method="POST",status="5xx"}} {failed}
"""


class Model:
    """A server that answers rightly but for what its fields say; a word is a token."""

    def __init__(self) -> None:
        self.key = ""
        self.context = 40_960
        self.tokenizes = True
        self.thinks = False
        self.never_ends = False
        self.garbage_from = 10**9  # tokens
        self.garbage = "unstable-unstable-unstable-unstable-unstable-"
        self.tools = "right"  # or wrong, broken, refused, unstreamed
        self.wrong_after = 10**9  # answers
        self.numbers = {"running": 0, "waiting": 0, "usage": 0.0, "preempted": 0, "corrupted": 0}
        self.stuck = False
        self.failed = 0
        self.asked: list[dict[str, Any]] = []
        self.date = ""
        self.server = wire.Server(self._answer)
        self.url = f"http://{self.server.address}"

    def _answer(self, handler: wire.Handler) -> None:
        path = handler.path
        if path == "/health":
            wire.say(200, b"", **({"Date": self.date} if self.date else {}))(handler)
        elif self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            wire.say(401, b'{"error": "Unauthorized"}')(handler)
        elif path == "/v1/models":
            listed = {"id": "m", "max_model_len": self.context}
            wire.say(200, json.dumps({"data": [listed]}).encode())(handler)
        elif path == "/metrics":
            made = 100 if self.stuck else len(self.asked)
            text = METRICS.format(**self.numbers, made=made, failed=self.failed)
            wire.say(200, text.encode())(handler)
        elif path == "/tokenize" and self.tokenizes:
            text = json.loads(handler.body)["messages"][0]["content"][0]["text"]
            wire.say(200, json.dumps({"count": 5 + len(text.split())}).encode())(handler)
        elif path == "/v1/chat/completions":
            self.asked.append(json.loads(handler.body))
            self._chat(handler, self.asked[-1])
        else:
            wire.say(404, b"{}")(handler)

    def _chat(self, handler: wire.Handler, body: dict[str, Any]) -> None:
        text = body["messages"][0]["content"]
        if "tools" in body:
            self._call(handler, body["stream"])
        elif len(self.asked) > self.wrong_after or len(text.split()) >= self.garbage_from:
            faults.text(self.garbage)(handler)
        elif self.thinks and (body["max_tokens"] < 200 or self.never_ends):
            message = {"content": None, "reasoning": "The user wants"}
            faults.answer(message, "length")(handler)
        elif hidden := re.search(r"keeper's number is (\d+)", text):
            faults.text(f"It is {hidden[1]}.")(handler)
        else:
            faults.text("Paris.")(handler)

    def _call(self, handler: wire.Handler, stream: bool) -> None:
        city = "Rome" if self.tools == "wrong" else "Paris"
        arguments = '{"city": "' if self.tools == "broken" else f'{{"city": "{city}"}}'
        if self.tools == "refused":
            wire.say(400, b'{"message": "tool choice requires --tool-call-parser"}')(handler)
        elif not stream:
            faults.call("get_weather", arguments)(handler)
        elif self.tools == "unstreamed":
            faults.stream(faults.chunk({"content": "get_weather"}), faults.END)(handler)
        else:
            parts: list[dict[str, Any]] = [{"name": "get_weather", "arguments": ""}]
            parts += [{"arguments": arguments[:5]}, {"name": None, "arguments": arguments[5:]}]
            events = [
                faults.chunk({"tool_calls": [{"index": 0, "id": None, "function": part}]})
                for part in parts
            ]
            faults.stream(*events, faults.END)(handler)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made = Model()
    yield made
    made.server.released.set()
    made.server.shutdown()
    made.server.server_close()


def run(model: Model, *more: str) -> Result:
    return CliRunner().invoke(command, ["--url", model.url, "--json", *more])


def verdict(done: Result) -> tuple[str, set[str]]:
    data = json.loads(done.stdout)
    return data["verdict"]["name"], {f["id"] for f in data["findings"]}


def given(done: Result) -> str:
    (entry,) = json.loads(done.stdout)["examined"]
    return "; ".join(entry["gave"])


def test_a_good_server_is_asked_everything(model: Model) -> None:
    done = run(model)
    assert verdict(done) == ("healthy", set())
    lengths = [len(a["messages"][0]["content"].split()) + 5 for a in model.asked]
    assert [a["stream"] for a in model.asked] == [False, False, True, False, False]
    assert 0.95 * 8192 <= lengths[3] <= 8192
    assert 0.95 * 32768 <= lengths[4] <= 32768
    assert "a needle in 32,768 tokens: right" in given(done)


def test_nothing_answers() -> None:
    done = CliRunner().invoke(command, ["--url", "http://127.0.0.1:9", "--soak", "--json"])
    assert verdict(done) == ("ill", {"port"})
    assert given(done).startswith("/health: ")


def test_quick_asks_for_the_capital_alone(model: Model) -> None:
    model.garbage_from = 1000
    assert verdict(run(model, "--quick")) == ("healthy", set())
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("context", "lengths"), [(4096, [2816]), (8192, [6912]), (16384, [8192, 15104]), (1000, [])]
)
def test_needles_are_as_long_as_the_context_takes(
    model: Model, context: int, lengths: list[int]
) -> None:
    model.context = context
    done = run(model)
    assert verdict(done) == ("healthy", set())
    asked = [len(a["messages"][0]["content"].split()) + 5 for a in model.asked[3:]]
    assert [0.95 * n <= a <= n for a, n in zip(asked, lengths, strict=True)] == [True] * len(asked)
    assert f"the server's context has {context:,} tokens" in given(done) or len(lengths) == 2


def test_without_a_tokenizer_lengths_are_estimated(model: Model) -> None:
    model.tokenizes = False
    assert verdict(run(model)) == ("healthy", set())
    assert 4000 < len(model.asked[3]["messages"][0]["content"].split()) < 8192


def test_garbage_at_length(model: Model) -> None:
    model.garbage_from = 20_000
    assert verdict(run(model)) == ("ill", {"gibberish"})


def test_a_needle_that_is_not_found_is_unclear(model: Model) -> None:
    model.garbage_from, model.garbage = 5_000, "I see no number in it."
    assert verdict(run(model)) == ("unclear", {"needle"})


@pytest.mark.parametrize(
    ("tools", "wanted"),
    [
        ("refused", ("healthy", {"tools"})),
        ("wrong", ("unclear", {"tool-call"})),
        ("broken", ("unclear", {"tool-call"})),
        ("unstreamed", ("ill", {"tool-stream"})),
    ],
)
def test_tool_calls(model: Model, tools: str, wanted: tuple[str, set[str]]) -> None:
    model.tools = tools
    assert verdict(run(model)) == wanted


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ({"waiting": 3, "running": 8}, ("healthy", {"queue"})),
        ({"preempted": 4, "usage": 0.97}, ("healthy", {"preemptions"})),
        ({"preempted": 4, "usage": 0.2}, ("healthy", set())),
        ({"usage": 0.99}, ("healthy", set())),
        ({"corrupted": 1}, ("ill", {"corrupted-requests"})),
    ],
)
def test_metrics(model: Model, numbers: dict[str, float], wanted: tuple[str, set[str]]) -> None:
    model.numbers |= numbers
    assert verdict(run(model)) == wanted


def test_a_queue_that_does_not_move(model: Model) -> None:
    model.numbers["waiting"], model.stuck = 3, True
    assert verdict(run(model)) == ("ill", {"stuck-queue"})


def test_errors_since_the_start(model: Model) -> None:
    model.failed = 2
    assert verdict(run(model)) == ("healthy", {"request-errors"})


def test_a_thinking_model_gets_more_tokens(model: Model) -> None:
    model.thinks = True
    assert verdict(run(model)) == ("healthy", set())


def test_a_thinking_model_that_never_ends(model: Model) -> None:
    model.thinks = model.never_ends = True
    assert verdict(run(model)) == ("unclear", {"thinking"})


def test_thinking_is_switched_off_as_the_family_says(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fp4forge.serve.client.models", lambda _: ["nvidia/Qwen3-32B-NVFP4"])
    run(model)
    switches = [asked.get("chat_template_kwargs") for asked in model.asked]
    assert switches == [{"enable_thinking": False}] * 5


def test_a_server_that_wants_a_key(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.key = "right"
    done = run(model)
    assert verdict(done) == ("unclear", {"api-key"})
    assert done.exit_code == UnclearError.exit_code
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    assert verdict(run(model)) == ("healthy", set())


@pytest.mark.parametrize(
    ("date", "found"),
    [("Thu, 01 Jan 2015 00:00:00 GMT", True), ("yesterday", False), ("", False)],
)
def test_a_clock_that_is_wrong(model: Model, date: str, found: bool) -> None:
    model.date = date
    assert ("clock" in verdict(run(model, "--quick"))[1]) is found


def test_a_soak_shows_what_goes_wrong_later(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAUSE", 0.05)
    model.wrong_after = 8
    done = run(model, "--soak", "1")
    assert verdict(done) == ("ill", {"degraded"})
    assert len(model.asked) < 12  # it ends at the first wrong answer


def test_a_soak_asks_everything_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAUSE", 0.1)
    done = run(model, "--soak", "0.01")
    assert verdict(done) == ("healthy", set())
    assert [a["stream"] for a in model.asked].count(True) == 2
    texts = [a["messages"][0]["content"] for a in model.asked]
    needles = [text for text in texts if "keeper" in text]
    assert len(needles) == len(set(needles)) == 4  # no cache has the second ones
    assert "a needle in 8,192 tokens: 2 times right" in given(done)


def test_an_interrupt_ends_a_soak_with_the_verdict(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        if threading.current_thread() is threading.main_thread():  # servers of other tests sleep
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert verdict(run(model, "--soak")) == ("healthy", set())


def test_a_soak_needs_a_server() -> None:
    done = CliRunner().invoke(command, ["--logs", __file__, "--soak"])
    assert isinstance(done.exception, UsageError)


@pytest.mark.parametrize("fault", ["event-is-no-json", "cut-in-an-event", "delta-is-a-list"])
@pytest.mark.parametrize("path", ["/tokenize", "/metrics", "/v1/models"])
def test_what_else_answers_nonsense(path: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = faults.Evil()
    evil.spoil(path, faults.STREAM[fault])
    try:
        done = CliRunner().invoke(command, ["--url", evil.url, "--json"])
    finally:
        evil.close()
    assert verdict(done)[0] != "healthy"  # it calls no tool
    assert done.stdout.isascii()
