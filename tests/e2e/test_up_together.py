"""``serve up`` of two models with a real Docker; a small program stands in for vLLM and LiteLLM."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Completed, free_port, shell
from tests.unit.test_serving import model

PROGRAM = "/opt/fp4forge/bin/vllm"
SERVERS = ("vllm-one", "vllm-two")
GROUP = "fp4forge_one_two"


class Pair:
    """The command, with a state of its own."""

    def __init__(self, image: str, folder: Path) -> None:
        self.folder = folder
        program = folder / "stand-in"
        shutil.copy(ROOT / "tests/e2e/programs/together-stand-in.py", program)
        program.chmod(0o755)
        mount = {"type": "bind", "source": str(program), "target": PROGRAM, "read_only": True}
        servers = "".join(
            f"  {name}: {{deploy: !reset null, volumes: [{json.dumps(mount)}]}}\n"
            for name in SERVERS
        )
        gateway = {"image": image, "entrypoint": [PROGRAM], "volumes": [mount]}
        override = folder / "override.yaml"
        override.write_text(f"services:\n{servers}  gateway: {json.dumps(gateway)}\n")
        self.line = [str(model(folder, name.removeprefix("vllm-"))) for name in SERVERS]
        self.line += ["--gpu", "rtx5090", "--image", image, "--workload", "balanced"]
        self.line += ["--port", str(free_port()), "--override", str(override), "--timeout", "2"]

    def __call__(self, *words: str) -> Completed:
        line = (sys.executable, "build.py", "serve", *words)
        return shell(*line, check=False, FP4FORGE_BUILD=str(self.folder / "state"))

    def status(self) -> dict[str, Any]:
        (row,) = json.loads(self("status", "--json").stdout)
        return dict(row)

    def moments(self, service: str) -> tuple[float, float]:
        """When a server last began its start, and when that was over."""
        said = shell("docker", "logs", f"{GROUP}-{service}").stdout
        begins, over = (
            re.findall(rf"{word} at ([0-9.]+)", said)[-1] for word in ("begins", "ready")
        )
        return float(begins), float(over)


@pytest.fixture(scope="module")
def pair(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    found = Pair(image, tmp_path_factory.mktemp("pair"))
    yield found
    found("stop", GROUP, "--forget")


@pytest.fixture(scope="module")
def up(pair: Pair) -> dict[str, Any]:
    done = pair("up", *pair.line, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    return dict(json.loads(done.stdout)) | {"said": done.stderr}


def test_both_models_answer_at_one_address(up: dict[str, Any]) -> None:
    assert up["name"] == GROUP and up["url"].count(":") == 2
    for name in ("one", "two"):
        assert f"Paris, says {name}." in up["said"]


def test_the_second_begins_when_the_first_is_ready(pair: Pair, up: dict[str, Any]) -> None:
    assert pair.moments("vllm-two")[0] >= pair.moments("vllm-one")[1]


def test_the_pair_is_listed_and_logged(pair: Pair, up: dict[str, Any]) -> None:
    row = pair.status()
    assert (row["state"], row["health"], row["model"]) == ("running", "ready", "one, two")
    said = pair("logs", GROUP).stdout
    assert all(re.search(rf"{name}.*ready at", said) for name in SERVERS)


def test_after_a_reboot_they_start_one_after_the_other(pair: Pair, up: dict[str, Any]) -> None:
    """Docker then starts every container at once, and here the second one first."""
    names = [f"{GROUP}-{name}" for name in reversed(SERVERS)]
    before = pair.moments("vllm-two")[1]
    shell("docker", "stop", "--time", "1", *names)
    for name in names:
        shell("docker", "start", name)
    deadline = time.monotonic() + 60
    while pair.moments("vllm-two")[1] == before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert pair.moments("vllm-two")[0] >= pair.moments("vllm-one")[1]


def test_the_pair_restarts_and_stops(pair: Pair, up: dict[str, Any]) -> None:
    again = pair("restart", GROUP)
    assert again.returncode == 0, again.stderr
    test_the_second_begins_when_the_first_is_ready(pair, up)
    assert pair("stop", GROUP).returncode == 0
    assert pair.status()["state"] == "gone"


def test_a_server_that_ends_leaves_nothing_running(pair: Pair, up: dict[str, Any]) -> None:
    override = pair.folder / "override.yaml"
    text = override.read_text()
    override.write_text(text.replace("vllm-two: {", "vllm-two: {entrypoint: [/bin/false], "))
    done = pair("up", *pair.line)
    override.write_text(text)
    assert done.returncode in (20, 26), done.stderr
    assert f"{GROUP}-vllm-two did not come up: it ended with exit code 1" in done.stderr
    running = shell("docker", "ps", "--format", "{{.Names}}").stdout
    assert GROUP not in running
