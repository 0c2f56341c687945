"""A real server's metrics, scraped by Prometheus: each panel shows something, no alert fires."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fp4forge.inputs import switches
from tests.e2e.engine.conftest import Start
from tests.e2e.engine.server import Server
from tests.e2e.prometheus import Prometheus, expressions

pytestmark = pytest.mark.heavy  # CI scrapes a server of the test (test_monitoring.py)

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "What is the capital of France? " * 8}],
    "max_tokens": 64,
    "temperature": 0,
    "ignore_eos": True,
}
# What a CPU's server of this kind does not have: it drafts nothing.
EMPTY = {"Speculative decoding A", "Speculative decoding B"}
# Registered only where a setting or a file of the server asks for it.
OPTIONAL = (
    "spec_decode",
    "kv_block_",
    "corrupted_requests",
    "lora_",
    "diffusion_",
    "watermark_",
    "kv_fetch_by_stage",
)


@pytest.fixture(scope="module")
def server(start: Start, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("key-of-this-test")
    key.chmod(0o644)
    key.parent.chmod(0o755)
    return start(
        models / "qwen3",
        "--enable-prefix-caching",
        mounts={key: "/run/secrets/api_key"},
        settings={"VLLM_API_KEY_FILE": "/run/secrets/api_key"},
    )


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    found = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://"))
    yield found
    found.close()


def test_metrics_need_no_key_where_questions_do(server: Server) -> None:
    assert server.ask("/v1/models")[0] == 401
    assert server.ask("/metrics")[0] == 200


def test_a_server_has_the_metrics_that_its_sources_name(server: Server) -> None:
    text = server.ask("/metrics")[1]
    known = switches.load(server.cpu.version)
    assert known
    missing = [name for name in known.metrics if f"\n{name}" not in text]
    assert [name for name in missing if not any(part in name for part in OPTIONAL)] == []


def test_each_panel_shows_a_real_server(server: Server, prometheus: Prometheus) -> None:
    prometheus.wait("vllm:num_requests_running")
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            answers = pool.map(
                lambda _: server.ask("/v1/chat/completions", BODY, "key-of-this-test")[0], range(8)
            )
            assert set(answers) == {200}
    prometheus.wait("rate(vllm:generation_tokens_total[4s]) > 0")
    shown = {title: prometheus.values(text) for title, text in expressions().items()}
    empty = {title for title, values in shown.items() if not values or math.isnan(values[0])}
    assert empty == EMPTY
    assert shown["Server A"] == [1.0]
    assert set(prometheus.alerts().values()) == {"inactive"}


def test_a_server_that_goes_is_noticed(server: Server, prometheus: Prometheus) -> None:
    server.close()
    prometheus.wait('ALERTS{alertname="ServerGone", alertstate="pending"}')
