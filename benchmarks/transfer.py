"""``build.py distribute`` against ``docker save | ssh docker load``, to machines in namespaces.

Needs root: each machine is a network namespace of this one with an sshd and an engine of its own
(tests/e2e/nodes.py). The image is Debian and 512 MiB that do not compress; its second version
differs in one small file of the last layer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.conftest import REGISTRY, ROOT, shell
from tests.e2e.nodes import Node, make_key, push_two_versions, write_ssh_config

REPO = f"{REGISTRY}/fp4forge/bench-transfer"
THICK_MIB = 512


def distribute() -> dict[str, Any]:
    """Bytes on the wire and seconds: a first copy, and a version with one thin layer changed."""
    with tempfile.TemporaryDirectory(prefix="fp4forge-bench-") as name:
        folder = Path(name)
        images = push_two_versions(REPO, THICK_MIB, folder)
        for image in images:  # the engine has them too, as after a build
            shell("docker", "pull", "--quiet", image)
        key = make_key(folder / "key")
        nodes = [Node(who, number, folder / who) for number, who in ((11, "ours"), (12, "theirs"))]
        config = write_ssh_config(nodes, key)
        try:
            for node in nodes:
                node.folder.mkdir()
                node.start(key)
            ours, theirs = nodes
            results: dict[str, Any] = {"thick_mib": THICK_MIB}
            for image, what in zip(images, ("first", "patched"), strict=True):
                mine = measured(ours, partial(send, image, config))
                save = measured(theirs, partial(pipe, image, config))
                for unit, a, b in zip(("bytes", "seconds"), mine, save, strict=True):
                    results[f"{what}_{unit}"], results[f"{what}_{unit}_save_load"] = a, b
                    results[f"{what}_{unit}_ratio"] = a / b
            return results
        finally:
            for node in nodes:
                node.stop()
            shell("docker", "rmi", "--force", *images, check=False)


def send(image: str, config: Path) -> None:
    """Our way."""
    line = [
        sys.executable,
        str(ROOT / "build.py"),
        "distribute",
        image,
        "--to",
        "ours",
        "--ssh-config",
        str(config),
        "--json",
    ]
    found = json.loads(shell(*line).stdout)
    assert found[0]["address"] == "ours" and not found[0]["error"], found


def pipe(image: str, config: Path) -> None:
    """What people do."""
    save = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
    load = ["ssh", "-F", str(config), "theirs", "docker", "load"]
    subprocess.run(load, stdin=save.stdout, check=True, capture_output=True)
    assert save.wait() == 0


def measured(node: Node, action: Callable[[], None]) -> tuple[int, float]:
    """Bytes sent to a machine, and seconds."""
    before, start = node.received(), time.monotonic()
    action()
    return node.received() - before, time.monotonic() - start
