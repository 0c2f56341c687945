"""The real image, built and published once per run through the command line users have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import DiskError
from fp4forge.core.platform import host_platform

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = os.environ.get("REGISTRY", "127.0.0.1:5000")
REPO = "fp4forge/e2e"
WHEEL = (
    "--release",
    "0.20.2",
    "--arch",
    "blackwell",
    "--from",
    "wheel",
    "--base",
    "bootstrap",
    "--aot",
    "none",
    "--repo",
    REPO,
)
PASSWORD = "s3cr3t-password-of-this-run"

Completed = subprocess.CompletedProcess[str]


def shell(*command: str, check: bool = True, **environment: str) -> Completed:
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, cwd=ROOT
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def build(*arguments: str, registry: str = REGISTRY, **environment: str) -> Completed:
    """Runs build.py for the wheel image; its exit code is the test's business."""
    return shell(
        sys.executable,
        "build.py",
        *WHEEL,
        "--registry",
        registry,
        *arguments,
        check=False,
        **environment,
    )


def raw(reference: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(
        shell("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}").stdout
    )
    return data


def put(
    content: dict[str, Any], kind: str, media_type: str = "", place: str = f"{REGISTRY}/{REPO}"
) -> dict[str, Any]:
    """Puts a blob or manifest into a repository; its descriptor."""
    import requests

    text = json.dumps(content).encode()
    digest = "sha256:" + hashlib.sha256(text).hexdigest()
    host, _, name = place.partition("/")
    session, where = requests.Session(), f"http://{host}/v2/{name}"
    session.trust_env = False
    if kind == "blobs":
        upload = session.post(f"{where}/blobs/uploads/").headers["Location"]
        answer = session.put(upload, params={"digest": digest}, data=text)
    else:
        headers = {"Content-Type": media_type}
        answer = session.put(f"{where}/manifests/{digest}", data=text, headers=headers)
    assert answer.status_code == 201, answer.text
    return {"digest": digest, "size": len(text)}


def reconfigured(image: str, change: Callable[[dict[str, Any]], None]) -> str:
    """An image of the same layers with another configuration; a reference in its registry.

    Args:
        image: by digest.
        change: changes the configuration's ``config``.
    """
    place = image.partition("@")[0]
    index = raw(image)
    entry = next(e for e in index["manifests"] if e["platform"]["os"] == "linux")
    manifest = raw(f"{place}@{entry['digest']}")
    line = ("skopeo", "inspect", "--config", "--raw", "--tls-verify=false")
    found = json.loads(shell(*line, f"docker://{place}@{entry['digest']}").stdout)
    change(found["config"])
    manifest["config"] |= put(found, "blobs", place=place)
    entry |= put(manifest, "manifests", manifest["mediaType"], place)
    index["manifests"] = [entry]
    return f"{place}@{put(index, 'manifests', index['mediaType'], place)['digest']}"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def tag_digest(tag: str, registry: str = REGISTRY) -> str | None:
    done = shell(
        "skopeo",
        "inspect",
        "--tls-verify=false",
        "--no-tags",
        "--format",
        "{{.Digest}}",
        f"docker://{registry}/{REPO}:{tag}",
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def can_emulate() -> bool:
    """Whether this machine runs linux/arm64, by nature or by qemu."""
    from fp4forge.oci import engine_checks

    return host_platform() == "linux/arm64" or engine_checks.emulated("linux/arm64")


def verify_containers() -> set[str]:
    """The engine's containers that check an image: started for its tests, made for its ledger."""
    line = ("docker", "ps", "-aq", "--filter")
    return {
        name
        for role in ("verify", "ledger")
        for name in shell(*line, f"label=io.fp4forge.role={role}").stdout.split()
    }


def left_over(before: set[str]) -> set[str]:
    """Containers that check an image and were not there before, once those of tests that run
    beside this one have had the time to end."""
    found, deadline = verify_containers() - before, time.monotonic() + 180
    while found and time.monotonic() < deadline:
        time.sleep(2)
        found &= verify_containers()
    return found


@pytest.fixture(scope="session", autouse=True)
def containers_before() -> set[str]:
    """Another build on this engine may be verifying its own image."""
    return verify_containers()


# What a whole run adds to the engine's disk, from nothing.
NEEDED_GB = 50


@pytest.fixture(scope="session")
def may_drop(containers_before: set[str]) -> bool:
    """Whether the engine's images and build cache are this run's to drop: in CI, and alone."""
    return os.environ.get("CI") == "true" and not containers_before


def drop_cache() -> None:
    """Drops the build cache but for its mounts: with them nothing is fetched or compiled twice.

    All of it: after records were dropped by their ids, Docker 26.1 builds the others anew too.
    """
    shell("docker", "buildx", "prune", "--all", "--force", "--filter", "type=regular")


@pytest.fixture(scope="session")
def disk(may_drop: bool) -> None:
    """Makes room if a run might fill the disk: images, build cache, and the packages at last."""
    if not may_drop or roomy():
        return
    images = shell("docker", "images", "-q", "--filter", "label=io.fp4forge.plan").stdout
    for image in sorted(set(images.split())):
        shell("docker", "rmi", "--force", image, check=False)
    drop_cache()
    if not roomy():  # uv's cache grows with each release: 8 to 16 GB
        shell("docker", "buildx", "prune", "--all", "--force")


def roomy() -> bool:
    """Whether the engine's disk has room for a whole run."""
    from fp4forge.oci import engine, engine_checks
    from fp4forge.publish import build_machine

    try:
        engine_checks.check_disk(engine.connect().info(), NEEDED_GB + build_machine.WARM_GB)
    except DiskError:
        return False
    return True


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, disk: None) -> dict[str, Any]:
    """The outcome of the run's first build; every step that fetches had a user's password."""
    netrc = tmp_path_factory.mktemp("login") / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
    netrc.chmod(0o600)
    done = build("--push", "--json", NETRC=str(netrc))
    assert done.returncode == 0, done.stdout + done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    # Published by an earlier run, it was not pulled to be checked. BuildKit takes what is unpacked
    # here for the builds of test_compile, and else unpacks its own 8 GB.
    shell("docker", "pull", "--quiet", outcome["image"])
    return outcome


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Iterator[str]:
    """The published image, or IMAGE of ``make test-image ENGINE=cpu``, for tests that only run it.

    They run beside those that build (``make beside``), one of which publishes an edited image: the
    engine then drops copies of the older one that have no tag. A test that asks for ``published``
    too does not run beside them.
    """
    from fp4forge.oci import engine

    given = os.environ.get("ENGINE_IMAGE")
    if given:
        if not engine.present(given):
            shell("docker", "pull", "--quiet", given)
        yield given
        return
    published: dict[str, Any] = request.getfixturevalue("published")
    tag = f"fp4forge.local/runs:{os.getpid()}"
    shell("docker", "tag", published["image"], tag)
    yield str(published["image"])
    shell("docker", "rmi", tag, check=False)


@pytest.fixture(scope="session")
def edited(published: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a build after a line of a patch was edited, as a developer would.

    The line is new in every run: the registry may remember earlier ones, of this it knows nothing.
    """
    patches = tmp_path_factory.mktemp("edited") / "patches"
    shutil.copytree(ROOT / "patches", patches)
    diff = patches / "vllm" / "0.20.2" / "gemma4-moe-prefix.patch"
    line = "keep it as it is"
    assert line in diff.read_text()
    diff.write_text(diff.read_text().replace(line, f"{line} ({time.time_ns()})"))
    refresh = (sys.executable, "build.py", "patch", "refresh", "--vllm", "0.20.2")
    shell(*refresh, FP4FORGE_PATCHES=str(patches))
    done = build("--push", "--json", FP4FORGE_PATCHES=str(patches))
    assert done.returncode == 0, done.stdout + done.stderr
    # The moving tag followed the edit; put it back for the tests.
    assert build("--push").returncode == 0
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert outcome["digest"] != published["digest"]
    return outcome


@pytest.fixture(scope="session")
def built_upon(published: dict[str, Any], may_drop: bool) -> None:
    """For tests that build upon the published image; their modules come last.

    Where BuildKit still has the layers as it built them it unpacks the image once more, 8 GB, for
    a build upon it. Without them it takes what the engine unpacked.
    """
    if may_drop:
        drop_cache()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the modules that build upon the published image last."""
    last = {i.path for i in items if "built_upon" in getattr(i, "fixturenames", ())}
    items.sort(key=lambda item: item.path in last)


@pytest.fixture(scope="session")
def inside(published: dict[str, Any]) -> Callable[..., Completed]:
    """Runs a command in a fresh container of the published image."""

    def run(*command: str, check: bool = True) -> Completed:
        return shell(
            "docker", "run", "--rm", "--network=none", published["image"], *command, check=check
        )

    return run


@pytest.fixture
def copied_patches(tmp_path: Path) -> Path:
    """A copy of patches/ to change, for FP4FORGE_PATCHES."""
    copy = tmp_path / "patches"
    shutil.copytree(ROOT / "patches", copy)
    return copy


@pytest.fixture
def copied_releases(tmp_path: Path) -> Path:
    """A copy of releases/ to change, for FP4FORGE_RELEASES."""
    copy = tmp_path / "releases"
    shutil.copytree(ROOT / "releases", copy)
    return copy
