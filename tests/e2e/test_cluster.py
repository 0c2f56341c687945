"""``serve cluster`` over two machines: real sshd, engines and a cable between them.

What runs in the containers stands in for vLLM: it takes the same flags, meets at the master's
address, and ends when another machine is gone. Everything around it is real.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.platform import host_platform
from fp4forge.inputs import bases
from fp4forge.publish import base_images as publishing
from tests.checkpoints import TINY, gemma4, write
from tests.e2e.conftest import REGISTRY, ROOT, Completed, free_port, shell
from tests.e2e.nodes import Node, make_key, write_ssh_config

REPO = f"{REGISTRY}/fp4forge/stand-in"
NAME = "vllm-model"
CABLE = "cable0"


class Machines:
    """Two machines on a cable, and the command that serves over them."""

    def __init__(self, nodes: list[Node], config: Path, folder: Path) -> None:
        self.nodes, self.config, self.folder = nodes, config, folder
        self.model = write(folder / "model", gemma4(TINY), TINY)
        self.port = free_port()

    def __call__(self, *words: str) -> Completed:
        line = (sys.executable, "build.py", "serve", "cluster", *words)
        return shell(*line, check=False, FP4FORGE_BUILD=str(self.folder / "state"))

    def start(self, *more: str, tag: str = "1") -> Completed:
        """Serves, or only looks."""
        line = ["--hosts", "node1,node2", "--model", str(self.model), "--image", f"{REPO}:{tag}"]
        line += ["--ssh-config", str(self.config), "--workload", "balanced", "--any-gpu"]
        line += ["--gpu", "rtx5090", "--arch", "sm120", "--override", str(self.folder / "o.yaml")]
        line += ["--timeout", "1"]
        return self(*line, "--port", str(self.port), *(more or ("--interface", CABLE)))

    def states(self) -> dict[str, str]:
        (row,) = json.loads(self("status", "--json").stdout)
        return dict(row["machines"])


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("cluster")
    base = publishing.ensure(bases.load("bootstrap"), host_platform(), lambda _: None)
    context = folder / "image"
    context.mkdir()
    shutil.copy(ROOT / "tests/e2e/programs/vllm-stand-in.pl", context / "vllm")
    (context / "Dockerfile").write_text(f'FROM {base}\nCOPY vllm /vllm\nENTRYPOINT ["/vllm"]\n')
    for tag in ("1", "2"):
        with (context / "Dockerfile").open("a") as file:
            file.write(f"LABEL number={tag}\n")
        shell("docker", "buildx", "build", "-q", "--push", "-t", f"{REPO}:{tag}", str(context))
    key = make_key(folder / "id")
    nodes = [Node(f"node{n}", n, folder / f"node{n}") for n in (6, 7)]
    for number, node in enumerate(nodes, 1):
        node.name = f"node{number}"
        node.folder.mkdir()
    try:
        for node in nodes:
            node.start(key)
        first, second = (node.namespace for node in nodes)
        shell("ip", "link", "add", CABLE, "netns", first, "type", "veth", "peer", "name", CABLE,
              "netns", second)  # fmt: skip
        for number, name in enumerate((first, second), 1):
            address = f"10.214.0.{number}/24"
            shell("ip", "-n", name, "addr", "add", address, "dev", CABLE)
            shell("ip", "-n", name, "link", "set", CABLE, "up")
        # This machine asks the server by that address.
        shell("ip", "route", "add", "10.214.0.1", "via", nodes[0].address)
        found = Machines(nodes, write_ssh_config(nodes, key), folder)
        # No GPU here, and the stand-in needs none.
        (folder / "o.yaml").write_text("services: {vllm: {deploy: !reset null}}\n")
        yield found
    finally:
        shell("ip", "route", "del", "10.214.0.1", check=False)
        for node in nodes:
            node.stop()


@pytest.fixture(scope="module")
def served(machines: Machines) -> dict[str, Any]:
    done = machines.start("--interface", CABLE, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    return dict(json.loads(done.stdout)) | {"said": done.stderr}


def failed(done: Completed) -> set[str]:
    """The checks that failed; nothing was started then."""
    assert done.returncode == 21, done.stderr
    return {item["name"] for item in json.loads(done.stdout) if not item["ok"]}


def test_machines_without_the_image_are_found_before_anything_starts(machines: Machines) -> None:
    done = machines.start("--interface", CABLE, "--check", "--json")
    assert failed(done) == {"image"}


def test_a_model_is_served_over_both(machines: Machines, served: dict[str, Any]) -> None:
    assert served["url"] == f"http://10.214.0.1:{machines.port}"
    assert "Paris" in served["said"]
    assert machines.states() == {"node1": "running", "node2": "running"}
    said = machines("logs").stdout
    assert "node2  (EngineCore pid=1) INFO 11-28 10:00:01 [core.py:1] joined 10.214.0.1" in said
    assert f"from 10.214.0.2 on {CABLE}" in said
    for node in machines.nodes:
        host = json.loads(node.docker("inspect", NAME))[0]["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"]
        assert host["NetworkMode"] == "host"


def test_a_second_start_is_refused(machines: Machines, served: dict[str, Any]) -> None:
    assert failed(machines.start("--interface", CABLE, "--json")) == {"ports"}
    assert machines.states() == {"node1": "running", "node2": "running"}


def test_another_image_on_one_machine_is_found(machines: Machines, served: dict[str, Any]) -> None:
    other = machines.start("--interface", CABLE, "--check", "--json", tag="2")
    assert failed(other) == {"image", "ports"}


def test_one_machine_gone_is_seen_and_named(machines: Machines, served: dict[str, Any]) -> None:
    machines.nodes[1].docker("kill", NAME)
    deadline = time.monotonic() + 30
    while "restarted" not in machines.states()["node1"]:
        assert time.monotonic() < deadline, machines.states()
        time.sleep(1)
    assert machines.states()["node2"] == "exited"
    examined = json.loads(machines("doctor", "--json").stdout)
    assert "a machine is gone" in json.dumps(examined["machines"][0])
    machines("stop")
    again = machines.start()
    assert again.returncode == 0, again.stderr
    assert machines("stop").returncode == 0
    assert machines.states() == {"node1": "gone", "node2": "gone"}


def test_a_link_that_is_down_or_not_there(machines: Machines, served: dict[str, Any]) -> None:
    machines("stop")
    assert "interface" in failed(machines.start("--interface", "nothing", "--check", "--json"))
    second = machines.nodes[1].namespace
    shell("ip", "-n", second, "link", "set", CABLE, "down")
    try:
        wrong = failed(machines.start("--interface", CABLE, "--check", "--json"))
    finally:
        shell("ip", "-n", second, "link", "set", CABLE, "up")
    assert any(name.startswith("port ") for name in wrong), wrong


def test_a_machine_that_ssh_does_not_reach(machines: Machines) -> None:
    line = ["--hosts", "node1,10.213.6.77", "--model", str(machines.model), "--check"]
    line += ["--image", f"{REPO}:1", "--ssh-config", str(machines.config), "--gpu", "rtx5090"]
    done = machines(*line, "--arch", "sm120", "--workload", "balanced")
    assert done.returncode == 21 and "10.213.6.77 cannot be reached" in done.stderr
