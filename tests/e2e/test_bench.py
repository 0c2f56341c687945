"""``build.py bench`` with the image's own load generator: on servers of known times and faults, and
on a real engine.

Nothing here asserts how long anything takes: a server that sleeps gives bounds that hold under any
load.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import bench_fakes
from tests.bench_fakes import ITL, TTFT, Fake
from tests.e2e.conftest import Completed, shell
from tests.e2e.engine import server as engine
from tests.e2e.engine.conftest import cpu, models, start  # noqa: F401 - fixtures
from tests.e2e.engine.server import Server

SMALL = """
title: Two points
warmup: {prompt: 40, output: 4}
tables:
  - id: stream
    title: One stream
    show: [decode_median, ttft_median, ttft_min, latency]
    points: [{label: a, prompt: 60, output: 20, requests: 4}]
  - id: crowd
    title: Eight
    show: [errors, aggregate]
    points: [{label: "8", prompt: 60, output: 10, concurrency: 8}]
"""


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def url(fake: Fake) -> Iterator[str]:
    with bench_fakes.serving(fake) as found:
        yield found


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def bench(*arguments: object) -> Completed:
    line = [str(each) for each in arguments]
    return shell(sys.executable, "build.py", "bench", *line, check=False)


def test_known_times_are_found(url: str, image: str, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = bench("--url", url, "--image", image, "--suite", small, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    stream = data["tables"]["stream"]["a"]
    assert stream["ttft_min"] >= TTFT * 1000
    assert stream["latency"] >= TTFT + 19 * ITL
    print(f"TTFT {stream['ttft_median']:.1f} ms of {TTFT * 1000:.0f},", end=" ")
    print(f"decode {stream['decode_median']:.1f} tok/s of {1 / ITL:.0f}")
    assert data["tables"]["crowd"]["8"]["errors"] == 0
    assert data["identity"]["client_image"].startswith("sha256:")


FAULTS = {
    "cut": "truncated (1): the stream ended before its last event",
    "empty": "with an empty answer (1)",
    "short": "short (1): ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(
    fault: str,
    url: str,
    fake: Fake,
    image: str,
    tmp_path: Path,
) -> None:
    suite = tmp_path / "one.yaml"
    suite.write_text(SMALL.split("  - id: crowd")[0].replace(", requests: 4", ""))
    real, asked = fake.stream, []

    def stream(body: Any) -> Iterator[bytes]:
        asked.append(body)
        fake.fault = fault if len(asked) > 1 else ""  # the warm-up is well
        return real(body)

    fake.stream = stream  # type: ignore[method-assign]
    done = bench("--url", url, "--image", image, "--suite", suite, "--out", tmp_path / "out")
    assert done.returncode == 24, done.stderr
    assert FAULTS[fault] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_refuses(url: str, fake: Fake, image: str, small: Path) -> None:
    fake.status["/v1/chat/completions"] = 503
    done = bench("--url", url, "--image", image, "--suite", small, "--out", small.parent / "out")
    assert done.returncode == 24
    assert "the warm-up failed: 0 of 1 requests were completed, 1 failed" in done.stderr


@pytest.fixture
def server(start: Any, models: Path) -> Server:  # noqa: F811
    found: Server = start(models / "nvfp4", "--quantization=modelopt", "--moe-backend=emulation")
    return found


def measure(server: Server, image: str, out: Path, *more: object) -> Completed:
    line = ["--url", server.url, "--network", engine.NETWORK, "--image", image]
    return bench(*line, "--container", server.container, "--out", out, *more)


def test_a_real_engine(server: Server, image: str, tmp_path: Path) -> None:
    """The quick suite, its page, a comparison with itself; then the server dies."""
    out = tmp_path / "out"
    done = measure(server, image, out, "--json", "--allow-empty")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["complete"] and not data["problems"]
    assert data["identity"]["plan"] and data["identity"]["flags"]
    assert data["load_seconds"] > 0
    assert data["tables"]["ttft"]["long"]["prompt"] == 512
    assert data["tables"]["concurrency"]["16"]["errors"] == 0
    assert "<svg" in (out / "index.html").read_text()

    again = bench("compare", out, out, "--json")
    assert again.returncode == 0, again.stderr
    too_long = measure(server, image, tmp_path / "card", "--suite", "card", "--only", "long")
    assert too_long.returncode == 24
    assert "context of 2,048 tokens is too short" in too_long.stderr

    _kill_during(server, image, tmp_path / "dead")


def _kill_during(server: Server, image: str, out: Path) -> None:
    result = out / "result.json"

    def kill() -> None:
        while not result.exists():
            time.sleep(0.2)
        shell("docker", "kill", server.container)

    threading.Thread(target=kill, daemon=True).start()
    done = measure(server, image, out, "--allow-empty")
    assert done.returncode == 20, done.stderr
    assert "the server died during" in done.stderr
    kept = json.loads(result.read_text())
    assert not kept["complete"] and kept["tables"]["decode"]
