"""``bench images`` with a real Docker and the image's own load generator; a small program stands in
for the server, in two images that differ in their configuration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.launch import alternation
from tests.e2e.conftest import ROOT, Completed, free_port, reconfigured, shell
from tests.unit.test_serving import model

PROGRAM = "/opt/fp4forge/bin/vllm"
SUITE = """
title: One stream
warmup: {prompt: 20, output: 2}
tables:
  - id: stream
    title: One stream
    show: [decode_median]
    trials: 3
    points: [{label: a, prompt: 40, output: 20}]
"""


class Images:
    """The command, with a state of its own."""

    def __init__(self, image: str, folder: Path) -> None:
        self.image, self.folder, self.out = image, folder, folder / "out"
        mounts = {
            ROOT / "tests/e2e/programs/bench-stand-in.py": PROGRAM,
            ROOT / "tests/bench_fakes.py": "/opt/stand-in/tests/bench_fakes.py",
        }
        volumes = [
            {"type": "bind", "source": str(source), "target": target, "read_only": True}
            for source, target in mounts.items()
        ]
        override = folder / "override.yaml"
        service = f"{{deploy: !reset null, volumes: {json.dumps(volumes)}}}"
        override.write_text(f"services: {{vllm: {service}}}\n")
        (folder / "suite.yaml").write_text(SUITE)
        self.line = ["--model", str(model(folder, "m")), "--suite", str(folder / "suite.yaml")]
        self.line += ["--gpu", "rtx5090", "--workload", "balanced", "--port", str(free_port())]
        self.line += ["--override", str(override), "--out", str(self.out), "--timeout", "2"]

    def command(self, new: str, *words: str) -> list[str]:
        """The command's line."""
        line = [sys.executable, "build.py", "bench", "images", self.image, new]
        return [*line, *self.line, *words]

    @property
    def environment(self) -> dict[str, str]:
        return {"FP4FORGE_BUILD": str(self.folder / "state")}

    def __call__(self, new: str, *words: str) -> Completed:
        return shell(*self.command(new, *words), check=False, **self.environment)

    def trials(self, side: str) -> int:
        """Trials that a result has; none before the first is kept."""
        file = self.out / side / "result.json"
        tables = json.loads(file.read_text())["tables"] if file.exists() else {}
        return len(tables.get("stream", {}).get("a", []))

    def running(self) -> list[str]:
        """Servers of this comparison that run."""
        names = shell("docker", "ps", "--format", "{{.Names}}").stdout.split()
        return [s for s in alternation.SIDES if alternation.server_name(self.out, s) in names]


@pytest.fixture
def images(image: str, tmp_path: Path) -> Iterator[Images]:
    found = Images(image, tmp_path)
    yield found
    for side in alternation.SIDES:
        name = alternation.server_name(found.out, side)
        shell("docker", "rm", "--force", "--volumes", name, check=False)
        shell("docker", "volume", "rm", "--force", f"{name}-cache", check=False)
        shell("docker", "network", "rm", f"{name}_default", check=False)


@pytest.fixture(scope="module")
def slow(image: str) -> str:
    """The same image, whose server takes twenty times as long for a token."""

    def slower(config: dict[str, Any]) -> None:
        config["Env"] = [*(config.get("Env") or ()), "STAND_IN_ITL=0.1"]

    return reconfigured(image, slower)


def test_a_slower_image_is_found(images: Images, slow: str) -> None:
    done = images(slow, "--rounds", "2", "--json")
    assert done.returncode == 23, done.stderr
    said = json.loads(done.stdout)
    (change,) = said["changes"]
    assert change["verdict"] == "worse" and change["high"] < 0.5
    assert images.trials("old") == images.trials("new") == 6
    turns = [line.split(", ")[0] for line in done.stderr.splitlines() if line.startswith("  turn")]
    assert [turn.rpartition(" ")[2] for turn in turns] == ["old", "new", "new", "old"]
    assert not images.running()
    again = images(slow, "--rounds", "2", "--threshold", "0.9")
    assert "measured already" in again.stderr and "turn" not in again.stderr


def test_an_interrupted_or_killed_command_goes_on(images: Images, slow: str) -> None:
    for number, wanted, left in ((signal.SIGKILL, ("old", 1), 1), (signal.SIGINT, ("new", 1), 0)):
        running = subprocess.Popen(
            images.command(slow),
            cwd=ROOT,
            env=os.environ | images.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 300
        while images.trials(wanted[0]) < wanted[1]:
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        running.send_signal(number)
        _, said = running.communicate(timeout=120)
        assert len(images.running()) == left, said
    assert running.returncode == 130 and "what was measured is in" in said
    kept = images.trials("new")
    done = images(slow, "--json")
    assert done.returncode == 23, done.stderr
    assert kept >= 1 and images.trials("old") == images.trials("new") == 3
    assert "turn  1 of 1: new" in done.stderr


def test_an_image_that_does_not_start(images: Images) -> None:
    broken = reconfigured(images.image, lambda config: config.update(Entrypoint=["/bin/false"]))
    done = images(broken)
    name = alternation.server_name(images.out, "new")
    assert done.returncode in (20, 26), done.stderr
    assert f"{name} did not come up: it ended with exit code 1" in done.stderr
    assert not images.running() and images.trials("old") == 3
    assert "Traceback" not in done.stderr
