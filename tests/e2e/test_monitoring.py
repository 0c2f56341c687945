"""Monitoring, by Debian's Prometheus: the files are valid, alerts fire, a server is scraped."""

from __future__ import annotations

import http.server
import math
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp4forge.inputs import release, switches
from fp4forge.serve import monitoring
from tests.e2e.conftest import Completed, shell
from tests.e2e.prometheus import Prometheus, expressions

CASES = Path(__file__).parent / "monitoring/alerts.test.yml"
ALERTS = monitoring.SOURCE / "prometheus/alerts.yml"
BUCKETS = ("0.1", "1", "+Inf")


def rules(folder: Path, text: str) -> Completed:
    """``promtool test rules`` with these alerts."""
    (folder / "alerts.yml").write_text(text)
    shutil.copy(CASES, folder)
    return shell("promtool", "test", "rules", str(folder / CASES.name), check=False)


def test_prometheus_takes_the_written_configuration(tmp_path: Path) -> None:
    written = monitoring.write(tmp_path, "m") / "prometheus"
    said = shell("promtool", "check", "config", str(written / "prometheus.yml")).stdout
    assert "9 rules found" in said
    broken = ALERTS.read_text().replace("histogram_quantile(0.95,", "histogram_quantile(")
    (written / "alerts.yml").write_text(broken)
    assert shell("promtool", "check", "rules", str(written / "alerts.yml"), check=False).returncode


def test_each_alert_fires_and_stays_quiet(tmp_path: Path) -> None:
    done = rules(tmp_path, ALERTS.read_text())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('up{job="vllm"} == 0', 'up{job="vllm"} == 2'),
        ("vllm:prompt_tokens_total[5m]) == 0", "vllm:prompt_tokens_total[5m]) == 1"),
        ("deriv(vllm:num_requests_waiting[10m]) > 0", "vllm:num_requests_waiting > 0"),
        (">= 0.95", ">= 0.4"),
        ("increase(vllm:num_preemptions_total[5m]) > 0", "vllm:num_preemptions_total > 0"),
        ("[5m]))) > 10", "[5m]))) > 1"),
        ('finished_reason="error"', 'finished_reason=~"error|abort"'),
        ('status="5xx"', 'status=~"[45]xx"'),
        ("increase(vllm:corrupted_requests_total[5m]) > 0", "vllm:corrupted_requests_total >= 0"),
    ],
)
def test_an_alert_that_was_spoilt_fails_its_cases(old: str, new: str, tmp_path: Path) -> None:
    text = ALERTS.read_text()
    assert text.count(old) == 1
    done = rules(tmp_path, text.replace(old, new))
    assert done.returncode and "FAILED" in done.stdout + done.stderr


def exposition(names: list[str], seconds: float) -> str:
    """What a server that has these time series could say after some seconds."""
    lines = ['http_requests_total{status="2xx",handler="/v1/x",method="POST"} ' + str(seconds)]
    for name in names:
        labels, value = 'model_name="m",engine="0"', 0.5
        if name == "vllm:request_success_total":
            labels += ',finished_reason="stop"'
        if name.endswith(("_total", "_sum", "_count")):
            value = 10 * seconds
        if name.endswith("_bucket"):
            lines += [
                f'{name}{{{labels},le="{edge}"}} {place * 5 * seconds}'
                for place, edge in enumerate(BUCKETS)
            ]
        else:
            lines.append(f"{name}{{{labels}}} {value}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def metrics() -> Iterator[tuple[list[str], http.server.ThreadingHTTPServer]]:
    """A server with /metrics, and the names that it has there."""
    names: list[str] = []
    begin = time.monotonic()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = exposition(names, time.monotonic() - begin).encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield names, server
        server.shutdown()


@pytest.mark.parametrize("name", release.names())
def test_every_panel_shows_something_of_a_server_of_a_release(
    name: str, metrics: tuple[list[str], http.server.ThreadingHTTPServer], tmp_path: Path
) -> None:
    names, server = metrics
    known = switches.load(release.load(name).vllm_version)
    assert known
    names += known.metrics
    names.remove("vllm:num_preemptions_total")
    prometheus = Prometheus(tmp_path, f"127.0.0.1:{server.server_port}")
    try:
        prometheus.wait("rate(vllm:generation_tokens_total[4s])")
        empty = []
        for title, expression in expressions().items():
            values = prometheus.values(expression)
            if not values or any(math.isnan(value) for value in values):
                empty.append(title)
        assert empty == ["Preemptions A"]  # the one that this server does not have
        prometheus.wait('ALERTS{alertname="CorruptedRequests", alertstate="firing"}')
        states = prometheus.alerts()
        assert [name for name, state in states.items() if state != "inactive"] == [
            "CorruptedRequests"  # whose counter grows here
        ]
        server.shutdown()
        server.server_close()
        prometheus.wait('ALERTS{alertname="ServerGone", alertstate="pending"}')
    finally:
        prometheus.close()
