"""A registry of these tests' own behind a proxy with faults; neither engine nor image is needed."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fp4forge.core.limits import COPY_SILENCE_SECONDS, REGISTRY_SECONDS
from fp4forge.oci import api, copying
from fp4forge.serve import client
from tests.e2e.faults import commands, images
from tests.e2e.faults.registry import Proxy
from tests.e2e.faults.server import Evil

_numbers = itertools.count()


@pytest.fixture(scope="session")
def containers_before() -> set[str]:
    """None: these tests start no container, so they ask no engine."""
    return set()


@pytest.fixture(scope="session")
def disk() -> None:
    """Needs no room on the engine's disk."""


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits of seconds in place of minutes, and no login of the user's."""
    # beside a build, an answer without a fault may take more than one second
    monkeypatch.setattr(api, "REGISTRY_SECONDS", 2)
    monkeypatch.setattr(api, "REGISTRY_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(copying, "COPY_SILENCE_SECONDS", 2)
    monkeypatch.setattr(client, "SERVER_SECONDS", 1)
    monkeypatch.setattr(client.unreachable, "__defaults__", (1.0, "/health"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    (tmp_path / "auth.json").write_text("{}")


@pytest.fixture
def patient(limits: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Gives back the real limits: a busy machine must not fail what has no fault."""

    def wait() -> None:
        monkeypatch.setattr(api, "REGISTRY_SECONDS", REGISTRY_SECONDS)
        monkeypatch.setattr(copying, "COPY_SILENCE_SECONDS", COPY_SILENCE_SECONDS)

    return wait


@pytest.fixture
def command(
    limits: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> commands.Command:
    """Runs ``build.py`` with arguments."""
    return commands.inside(monkeypatch, capfd)


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real registry with a storage of its own."""
    if shutil.which("docker-registry") is None or shutil.which("skopeo") is None:
        pytest.skip("NOT RUN: needs Debian's docker-registry and skopeo (make setup)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "config.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    host, port = address.split(":")
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    break
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def proxy(upstream: str) -> Iterator[Proxy]:
    """The registry's faulty side."""
    faulty = Proxy(upstream)
    yield faulty
    faulty.close()


@pytest.fixture
def repository(proxy: Proxy) -> Iterator[str]:
    """A new repository's name, as the registry knows it; the proxy has no fault at first."""
    proxy.heal()
    yield f"team/image-{next(_numbers)}"
    proxy.heal()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> images.Image:
    """The image to be published."""
    return images.make(tmp_path_factory.mktemp("image"), 1, **{"io.fp4forge.strategy": "wheel"})


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> images.Image:
    """Another publisher's image."""
    return images.make(tmp_path_factory.mktemp("other"), 2, **{"io.fp4forge.strategy": "wheel"})


@pytest.fixture
def evil() -> Iterator[Evil]:
    """A model server with a fault."""
    server = Evil()
    yield server
    server.close()
