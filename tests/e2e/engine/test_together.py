"""Two real servers on this CPU behind one address: LiteLLM with the written configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engine.conftest import Start
from tests.e2e.litellm_proxy import KEY, Proxy

pytestmark = pytest.mark.heavy
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def proxy(start: Start, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("together")
    addresses = {}
    for name in ("qwen3", "knows-paris"):
        more = ("--served-model-name", name, "--api-key", KEY)
        addresses[name] = start(models / name, *more).url.removeprefix("http://")
    found = Proxy(folder, addresses)
    found.start()
    yield found
    found.close()


def chat(name: str, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": name, "messages": said, "max_tokens": 12, "temperature": 0, **more}


@pytest.mark.parametrize("name", ["qwen3", "knows-paris"])
def test_each_model_answers_at_one_address(proxy: Proxy, name: str) -> None:
    status, text = proxy.ask(CHAT, chat(name))
    assert status == 200, text
    said = json.loads(text)
    assert said["usage"]["completion_tokens"] > 0
    assert ("Paris" in said["choices"][0]["message"]["content"]) == (name == "knows-paris")


def test_a_real_stream_comes_through(proxy: Proxy) -> None:
    status, text = proxy.ask(CHAT, chat("knows-paris", stream=True))
    assert status == 200
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    said = "".join(c["delta"].get("content") or "" for p in pieces for c in p["choices"])
    assert "Paris" in said and len(pieces) > 3
    assert "data: [DONE]" in text


def test_the_servers_refusal_comes_through(proxy: Proxy) -> None:
    status, text = proxy.ask(CHAT, chat("qwen3", max_tokens=1_000_000))
    assert status == 400, text
    assert "max_tokens" in text or "context" in text
