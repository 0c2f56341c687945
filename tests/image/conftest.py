"""Fixtures of the image tests: the running container, the plan it is held to, the report."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import testinfra

from fp4forge.oci import engine

PROOFS = "/tmp/fp4forge-proofs"
# Read without a patch by every other proof: it has its own run.
EMULATION = "vllm/model_executor/layers/quantization/utils/nvfp4_emulation_utils.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What ``checks/runner.py`` passes."""
    group = parser.getgroup("image")
    group.addoption("--image", help="Reference of the image under test.")
    group.addoption("--container", help="A running container of it.")
    group.addoption("--plan", help="The plan as JSON.")
    group.addoption("--gpu", action="store_true", help="The container has a GPU: test on it too.")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logstart() -> None:
    """Ends the line with the test's name, so that what reads it knows what runs."""
    print(flush=True)


@pytest.fixture
def progress(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says what a long check is doing, past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"{request.node.nodeid}: {text}", flush=True)

    return say


@pytest.fixture(scope="session")
def container(request: pytest.FixtureRequest) -> Any:
    """The container as docker's SDK has it: its process, and files put into it."""
    return engine.connect().containers.get(request.config.getoption("--container"))


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Any:
    """The container as testinfra has it."""
    return testinfra.get_host(f"docker://{request.config.getoption('--container')}")


@pytest.fixture(scope="session")
def plan(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The plan that the image is held to."""
    data: dict[str, Any] = json.loads(Path(request.config.getoption("--plan")).read_text())
    return data


@pytest.fixture(scope="session")
def site(plan: dict[str, Any]) -> str:
    """The folder of installed packages."""
    return f"/usr/local/lib/python{plan['python']}/dist-packages"


PROGRAMS = Path(__file__).parent / "programs"
# What the programs may import; nothing of the image itself is imported, or run.
_OVER = """
import base64, concurrent.futures.thread, csv, glob, hashlib, json, os, sys
os.chroot({root!r})
os.chdir("/")
sys.path.clear()
"""


def _run(line: list[str], before: str, name: str, arguments: tuple[object, ...]) -> Any:
    """What ``run`` of a program returns, as JSON.

    The program is not an argument: it may get hundreds of paths, and Linux takes 128 KiB of one.
    """
    program = (PROGRAMS / f"{name}.py").read_text()
    call = f"import json\nprint(json.dumps(run(*json.loads({json.dumps(arguments)!r}))))\n"
    done = subprocess.run(line, input=before + program + call, capture_output=True, text=True)
    assert done.returncode == 0, f"{name}: {done.stderr.strip()[-300:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def in_image(container: Any) -> Callable[..., Any]:
    """Runs one of PROGRAMS with the image's own Python and packages; returns what it returns."""
    line = ["docker", "exec", "--interactive", "--env=LD_LIBRARY_PATH=/tmp/aot", container.id]
    return lambda name, *arguments: _run([*line, "python3", "-"], "", name, arguments)


@pytest.fixture(scope="session")
def over_files(
    container: Any, plan: dict[str, Any], in_image: Callable[..., Any]
) -> Callable[..., Any]:
    """Runs one of PROGRAMS, which reads the container's files; returns what it returns.

    Emulated, reading every file takes minutes. So for a foreign platform this machine's own Python
    does, with the container's root as its own, if that can be had: as root, beside the engine.
    """
    from fp4forge.core.platform import host_platform
    from fp4forge.oci import engine

    root = f"/proc/{container.attrs['State']['Pid']}/root"
    local = engine.is_here() and os.geteuid() == 0
    if plan["platform"] == host_platform() or not local or not Path(root, "opt/fp4forge").is_dir():
        return in_image
    before = _OVER.format(root=root)
    return lambda name, *arguments: _run([sys.executable, "-"], before, name, arguments)


@pytest.fixture(scope="session")
def sha256(over_files: Callable[..., Any]) -> Callable[..., dict[str, str]]:
    """SHA-256, in hex, of those of the named files that there are."""
    return lambda paths: over_files("hashes", paths)


@pytest.fixture(scope="session")
def stored(request: pytest.FixtureRequest) -> Any:
    """The image as docker's SDK has it."""
    return engine.connect().images.get(request.config.getoption("--image"))


@pytest.fixture(scope="session")
def image(stored: Any) -> dict[str, Any]:
    """The engine's record of the image (``docker image inspect``)."""
    attributes: dict[str, Any] = stored.attrs
    return attributes


@pytest.fixture(scope="session")
def config(image: dict[str, Any]) -> dict[str, Any]:
    """The image's configuration (OCI image specification)."""
    found: dict[str, Any] = image["Config"]
    return found


@pytest.fixture(scope="session")
def history(stored: Any) -> list[tuple[int, str]]:
    """Unpacked bytes and command of every step, the latest first."""
    return [(entry["Size"], " ".join(entry["CreatedBy"].split())) for entry in stored.history()]


@pytest.fixture(scope="session")
def put_files(container: Any) -> Callable[[dict[str, Path]], None]:
    """Copies files into the container, by path there; whoever runs in it can read them."""

    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mode = 0o644
        return entry

    def put(files: dict[str, Path]) -> None:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, path in files.items():
                archive.add(path, name, filter=readable)
        container.put_archive("/", stream.getvalue())

    return put


@pytest.fixture(scope="session")
def proofs(put_files: Callable[[dict[str, Path]], None]) -> str:
    """The folder in the container that holds the proofs' programs."""
    programs = (Path(__file__).parent / "proofs").glob("*.py")
    put_files({f"{PROOFS}/{path.name}": path for path in programs})
    return PROOFS


@pytest.fixture(scope="session", autouse=True)
def proof_runs(request: pytest.FixtureRequest) -> Iterator[Future[Any] | None]:
    """The proofs' runs: as it is, with all originals, with one original.

    They take longest by far, emulated above all, and so run beside the other checks. None when no
    test that was selected needs them, or when there are no patches to prove.
    """
    wanted = any("test_proofs" in item.nodeid for item in request.session.items)
    plan = json.loads(Path(request.config.getoption("--plan")).read_text())
    if not wanted or plan["variant"] != "awq":
        yield None
        return
    from fp4forge.maintain import sources

    host, folder = request.getfixturevalue("host"), request.getfixturevalue("proofs")
    tree, kinds = sources.source_tree(plan["vllm_version"]), {EMULATION: "emulation"}
    originals = {
        f"{folder}/{kinds.get(name, 'originals')}/{name}": tree / name
        for name in plan["patched_files"]
    }
    request.getfixturevalue("put_files")(originals)
    runs = f"patched original:{folder}/originals"
    if EMULATION in plan["patched_files"]:
        runs += f" emulation:{folder}/emulation:native"
    with ThreadPoolExecutor() as pool:
        yield pool.submit(host.run, f"python3 {folder}/run.py {runs}")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Gives each test's report what the test says of an image that passes: its docstring."""
    text = getattr(item, "obj", None).__doc__ or item.name
    item.user_properties.append(("name", text.strip().splitlines()[0]))
