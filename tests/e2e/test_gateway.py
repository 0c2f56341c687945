"""The gateway of several models: LiteLLM's own proxy with the written configuration and command.

The servers behind it are small ones of this test, which speak OpenAI's protocol.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from fp4forge.core.paths import RELEASES
from tests.e2e.litellm_proxy import KEY, PINS, Proxy

pytestmark = pytest.mark.heavy
PAUSE = 0.5  # seconds between two pieces of a stream
CHAT = "/v1/chat/completions"


class Handler(http.server.BaseHTTPRequestHandler):
    """A model that says its name; its server keeps the requests."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.server.name  # type: ignore[attr-defined]
        self.server.asked.append((self.headers["Authorization"], body))  # type: ignore[attr-defined]
        if body["messages"][-1]["content"] == "fail":
            self.answer(500, {"error": {"message": "engine died", "code": 500}})
        elif body.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for delta in ({"role": "assistant"}, {"reasoning": "hm"}, {"content": name}):
                self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                time.sleep(PAUSE)
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            message = {"role": "assistant", "content": name, "reasoning": "hm"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self.answer(200, self.whole("chat.completion", choices=[choice], usage=usage))

    def whole(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": "x", "object": kind, "created": 1, "model": "m", **more}

    def event(self, value: dict[str, Any]) -> None:
        text = json.dumps(self.whole("chat.completion.chunk", **value))
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Model(http.server.ThreadingHTTPServer):
    """A server of one model."""

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.asked: list[tuple[str, dict[str, Any]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def servers() -> dict[str, Model]:
    return {name: Model(name) for name in ("alpha", "beta")}


@pytest.fixture(scope="module")
def proxy(servers: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    addresses = {name: f"127.0.0.1:{model.server_port}" for name, model in servers.items()}
    found = Proxy(tmp_path_factory.mktemp("gateway"), addresses)
    found.start()
    yield found
    found.close()


def chat(name: str, text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": text}], **more}


def test_the_pinned_image_has_the_tested_version() -> None:
    version = PINS.read_text().split("litellm==")[1].split()[0]
    assert f"litellm:v{version}\n" in (RELEASES / "services.yaml").read_text()


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_each_model_is_answered_by_its_own_server(
    proxy: Proxy, servers: dict[str, Model], name: str
) -> None:
    more: dict[str, Any] = {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}
    status, text = proxy.ask(CHAT, chat(name, **more))
    assert status == 200, text
    message = json.loads(text)["choices"][0]["message"]
    assert message["content"] == name
    assert "hm" in (message.get("reasoning"), message.get("reasoning_content"))
    authorization, body = servers[name].asked[-1]
    assert authorization == f"Bearer {KEY}"
    assert body["model"] == name and body["chat_template_kwargs"] == {"enable_thinking": False}


def test_both_models_are_listed(proxy: Proxy) -> None:
    listed = json.loads(proxy.ask("/v1/models")[1])["data"]
    assert sorted(entry["id"] for entry in listed) == ["alpha", "beta"]


def test_a_stream_stays_one(proxy: Proxy) -> None:
    """Its pieces arrive as they are made, not all at the end."""
    request = proxy.request(CHAT, chat("beta", stream=True), KEY)
    times, said = [], ""
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
                for choice in json.loads(line[6:])["choices"]:
                    said += choice["delta"].get("content") or ""
    assert said == "beta"
    assert times[-1] - times[0] > PAUSE


@pytest.mark.parametrize("key", ["", "another", "sk-another"])
def test_nobody_is_answered_without_the_key(
    proxy: Proxy, servers: dict[str, Model], key: str
) -> None:
    asked = len(servers["alpha"].asked)
    status, text = proxy.ask(CHAT, chat("alpha"), key)
    assert status in (400, 401, 403), text
    assert len(servers["alpha"].asked) == asked


def test_an_unknown_model_is_refused(proxy: Proxy) -> None:
    assert proxy.ask(CHAT, chat("gamma"))[0] in (400, 404)


def test_a_servers_error_is_an_error_and_is_not_asked_again(
    proxy: Proxy, servers: dict[str, Model]
) -> None:
    before = len(servers["alpha"].asked)
    status, text = proxy.ask(CHAT, chat("alpha", "fail"))
    assert status >= 500, text
    assert len(servers["alpha"].asked) == before + 1


def test_a_server_that_is_gone_takes_no_other_with_it(
    proxy: Proxy, servers: dict[str, Model]
) -> None:
    servers["alpha"].shutdown()
    servers["alpha"].server_close()
    assert proxy.ask(CHAT, chat("alpha"))[0] >= 500
    assert proxy.ask(CHAT, chat("beta"))[0] == 200
