"""An image made to serve on this machine's CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import shell
from tests.e2e.engine import server as engine
from tests.e2e.engine.server import Cpu, Server

Start = Callable[..., Server]


@pytest.fixture(scope="session")
def cpu(image: str, tmp_path_factory: pytest.TempPathFactory) -> Cpu:
    """What makes the image serve here; a version without a CPU build is skipped, never passed."""
    labels = json.loads(
        shell("docker", "image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout
    )
    version = labels["org.opencontainers.image.version"]
    if version not in engine.PINS:
        pytest.skip(f"NOT RUN: engine/pins.yaml has no CPU build of vLLM {version}")
    shell("docker", "network", "create", "--internal", engine.NETWORK, check=False)
    return Cpu.of(image, version, tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="session")
def models(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of generated checkpoints, made with the image's own packages."""
    folder = tmp_path_factory.mktemp("models")
    folder.chmod(0o777)
    mounts = {engine.HERE: "/e", engine.PROOFS: "/proofs"}
    line = ["docker", "run", "--rm", "--network=none", "--user=0", "--entrypoint=python3"]
    line += [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
    line += [f"--volume={folder}:/out", "--env=PYTHONPATH=/proofs"]
    shell(*line, "--env=PYTHONDONTWRITEBYTECODE=1", image, "/e/models.py", "/out")
    return folder


@pytest.fixture(scope="module")
def start(cpu: Cpu) -> Iterator[Start]:
    """Starts servers; they are gone afterwards."""
    servers: list[Server] = []

    def run(model: Path, *options: str, wait: bool = True, **more: Any) -> Server:
        found = Server(cpu, model, options, **more)
        servers.append(found)
        found.start()
        if wait:
            found.wait()
        return found

    yield run
    for server in servers:
        server.close()
