"""``serve up`` on the real engine: from a model's folder to an answer, and what goes wrong."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Completed, free_port, reconfigured, shell
from tests.e2e.engine.server import Cpu

NAME = "vllm-tells-paris"


class Here:
    """The command, with a state of its own."""

    def __init__(self, cpu: Cpu, folder: Path) -> None:
        self.cpu, self.folder, self.port = cpu, folder, free_port()
        form = "{{index .RepoDigests 0}}"
        self.image = shell("docker", "image", "inspect", "--format", form, cpu.image).stdout.strip()

    def __call__(self, *words: str) -> Completed:
        line = (sys.executable, "build.py", "serve", *words)
        return shell(*line, check=False, FP4FORGE_BUILD=str(self.folder))

    def options(self, model: Path, **more: str) -> list[str]:
        """Words of ``serve up`` for a model on this CPU."""
        named = {"gpu": "rtx5090", "image": self.image, "port": str(self.port), **more}
        named = {"name": "tells-paris", "workload": "throughput"} | named
        line = [str(model)] + [word for key, value in named.items() for word in (f"--{key}", value)]
        written = self("up", *line, "--dry-run")
        assert written.returncode == 0, written.stderr
        override = self.folder / "override.yaml"
        override.write_text(self.cpu.override(written.stdout))
        return [*line, "--override", str(override)]


@pytest.fixture(scope="module")
def here(cpu: Cpu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    found = Here(cpu, tmp_path_factory.mktemp("state"))
    yield found
    found("stop", NAME, "--forget")


@pytest.fixture(scope="module")
def up(here: Here, models: Path) -> dict[str, Any]:
    """A server that answers."""
    done = here("up", *here.options(models / "knows-paris"), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout) | {"said": done.stderr}
    return found


def test_a_model_is_served_and_asked(up: dict[str, Any]) -> None:
    assert "Paris" in up["said"].split("smoke")[-1]
    phases = list(up["seconds"])
    assert phases[:2] == ["container", "imports"] and "weights" in phases


def test_what_is_up_is_listed(here: Here, up: dict[str, Any]) -> None:
    (row,) = json.loads(here("status", "--json").stdout)
    assert (row["name"], row["state"], row["health"]) == (NAME, "running", "ready")
    assert "Application startup complete" in here("logs", "--tail", "1000").stdout


def test_a_server_that_runs_is_not_replaced(here: Here, up: dict[str, Any], models: Path) -> None:
    again = here("up", *here.options(models / "knows-paris"))
    assert again.returncode == 2 and f"{NAME} is running" in again.stderr
    other = here("up", *here.options(models / "qwen3", name="another"))
    assert other.returncode == 2 and f"port {here.port}" in other.stderr


@pytest.mark.heavy
def test_an_upgrade_serves_with_the_other_image(here: Here, up: dict[str, Any]) -> None:
    image = reconfigured(here.image, lambda config: config["Labels"].update(another="one"))
    done = here("upgrade", NAME, "--image", image)
    assert done.returncode == 0, done.stderr
    assert "no request is in flight" in done.stderr
    assert listed(here) == ("running", "ready", image)
    assert "last time" not in done.stderr  # another image's times say nothing


CLIENTS, CHOICES = 24, 8  # as many sequences at once as make a tiny model slow


def streamed(port: int, model: str, tokens: int) -> dict[str, Any]:
    """Streams answers of so many tokens each; the last event but [DONE]."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Count."}],
        "n": CHOICES,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    *_, last, done, nothing = connection.getresponse().read().split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b""), done[-200:]
    found: dict[str, Any] = json.loads(last.removeprefix(b"data: "))
    return found


@pytest.mark.heavy
def test_an_upgrade_cuts_no_answer_off(here: Here, up: dict[str, Any]) -> None:
    """Answers that take longer than the 10 s that Docker gives a container to stop by default."""
    image = reconfigured(here.image, lambda config: config["Labels"].update(another="two"))
    ask = partial(streamed, here.port, up["served_name"])
    with ThreadPoolExecutor(CLIENTS) as pool:
        begin = time.monotonic()
        list(pool.map(ask, [100] * CLIENTS))
        tokens = min(1900, int(100 * 35 / (time.monotonic() - begin)))  # 35 s of answers
        begin = time.monotonic()
        asked = [pool.submit(ask, tokens) for _ in range(CLIENTS)]
        time.sleep(5)
        ended: list[float] = []
        for one in asked:
            one.add_done_callback(lambda _: ended.append(time.monotonic() - begin))
        done = here("upgrade", NAME, "--image", image, "--drain", "0")
        answers = [one.result(timeout=1) for one in asked]
    assert done.returncode == 0, done.stderr
    assert "requests are still in flight after 0 s" in done.stderr
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {CHOICES * tokens}
    assert min(ended) > 18, ended
    assert listed(here) == ("running", "ready", image)


@pytest.mark.heavy
def test_an_upgrade_that_fails_goes_back(here: Here, up: dict[str, Any]) -> None:
    before = listed(here)
    image = reconfigured(here.image, lambda config: config.update(Entrypoint=["/bin/false"]))
    done = here("upgrade", NAME, "--image", image)
    assert done.returncode in (20, 26), done.stderr
    assert "exit code 1" in done.stderr and f"returns to {before[2]}" in done.stderr
    assert listed(here) == before


def listed(here: Here) -> tuple[str, str, str]:
    (row,) = json.loads(here("status", "--json").stdout)
    return row["state"], row["health"], row["image"]


@pytest.mark.heavy
def test_a_damaged_checkpoint_ends_in_the_doctors_verdict(
    here: Here, up: dict[str, Any], models: Path
) -> None:
    here("stop", NAME)
    options = here.options(models / "uncalibrated", name="bad")
    done = here("up", *options, "--json")
    here("stop", "vllm-bad", "--forget")
    assert done.returncode in (20, 26), done.stderr
    said = json.loads(done.stdout)
    assert said["verdict"]["name"] in ("ill", "unclear") and "input_scale" in done.stdout


def test_an_interrupted_start_goes_on_and_can_be_stopped(here: Here, up: dict[str, Any]) -> None:
    here("stop", NAME)  # else it would be the old container that runs
    line = [sys.executable, "build.py", "serve", "restart", NAME]
    environment = os.environ | {"FP4FORGE_BUILD": str(here.folder)}
    running = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while listed(here)[0] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    assert running.stderr and f"{NAME} is still starting" in running.stderr.read()
    assert here("stop", NAME).returncode == 0
    assert listed(here)[0] == "gone"
