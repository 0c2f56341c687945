"""Several platforms under one tag, and another platform's programs on this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import RegistryError
from fp4forge.oci import registry, registry_tags
from tests.e2e.conftest import REGISTRY, ROOT, build, can_emulate, raw, shell, tag_digest

SMALL = f"{REGISTRY}/fp4forge/two"
PLATFORMS = ("linux/amd64", "linux/arm64")


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An image for each platform, pushed by itself; nothing in them runs."""
    folder = tmp_path_factory.mktemp("two")
    found = {}
    for platform in PLATFORMS:
        (folder / "name").write_text(platform)
        (folder / "Dockerfile").write_text('FROM scratch\nCOPY name /\nCMD ["/name"]\n')
        tag = f"{SMALL}:{platform.replace('/', '-')}"
        shell(
            "docker",
            "buildx",
            "build",
            "-q",
            "--push",
            f"--platform={platform}",
            "-t",
            tag,
            str(folder),
        )
        resolved = registry.resolve(SMALL, tag.rpartition(":")[2])
        assert resolved is not None
        found[platform] = resolved[0]
    return found


@pytest.fixture(scope="module")
def index(digests: dict[str, str]) -> str:
    manifests = set().union(*(registry.images_of(SMALL, d) for d in digests.values()))
    digest = registry_tags.combine(SMALL, list(digests.values()), manifests)
    registry_tags.tag(SMALL, digest, "both")
    return digest


def test_one_index_names_every_platforms_image(digests: dict[str, str], index: str) -> None:
    entries = raw(f"{SMALL}@{index}")["manifests"]
    images = {
        f"{e['platform']['os']}/{e['platform']['architecture']}": e["digest"]
        for e in entries
        if e["platform"]["os"] != "unknown"
    }
    assert set(images) == set(PLATFORMS)
    for platform, digest in digests.items():
        assert registry.images_of(SMALL, digest) == {images[platform]}
    assert sum(e["platform"]["os"] == "unknown" for e in entries) == 2  # both provenances


@pytest.mark.parametrize("platform", PLATFORMS)
def test_docker_and_skopeo_agree(index: str, platform: str) -> None:
    architecture = platform.split("/")[1]
    reference = f"{SMALL}:both"
    config = json.loads(
        shell(
            "skopeo",
            "inspect",
            "--config",
            "--tls-verify=false",
            f"--override-arch={architecture}",
            f"docker://{reference}",
        ).stdout
    )
    assert config["architecture"] == architecture
    shell("docker", "pull", "--quiet", f"--platform={platform}", reference)
    name = shell("docker", "create", f"--platform={platform}", reference).stdout.strip()
    try:
        copied = subprocess.run(
            ["docker", "cp", f"{name}:/name", "-"], capture_output=True, check=True
        ).stdout
        assert platform.encode() in copied
    finally:
        shell("docker", "rm", name)
        shell("docker", "rmi", reference, check=False)


def test_an_index_that_names_another_image_is_refused(digests: dict[str, str]) -> None:
    wanted = registry.images_of(SMALL, digests["linux/amd64"])
    with pytest.raises(RegistryError, match="do not name the images"):
        registry_tags.combine(SMALL, list(digests.values()), wanted)


def test_one_platform_that_fails_leaves_the_tag(published: dict[str, Any]) -> None:
    if can_emulate():
        pytest.skip("this machine runs linux/arm64")
    moving = published["plan"]["tags"][1]
    before = tag_digest(moving)
    done = build("--platform", "linux/amd64,linux/arm64", "--push")
    assert done.returncode == 9, done.stderr
    assert "make setup PLATFORM=linux/arm64" in done.stderr
    assert tag_digest(moving) == before == published["digest"]


def test_an_index_needs_a_registry() -> None:
    done = build("--platform", "linux/amd64,linux/arm64")
    assert done.returncode == 2
    assert "goes with --push" in done.stderr


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    emulation(tmp_path, "off")


def emulation(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return shell(
        "bash",
        str(ROOT / "scripts/emulation.sh"),
        *arguments,
        check=False,
        FP4FORGE_STATE=str(state),
    )


def registered() -> bool:
    return Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists()


def test_emulation_is_undone_when_it_was_changed(state: Path) -> None:
    before = registered()
    done = emulation(state, "on", "linux/arm64")
    if "no binfmt_misc" in done.stderr:
        pytest.skip("NOT RUN: this kernel has no binfmt_misc")
    assert done.returncode == 0, done.stderr
    assert registered() or before
    assert emulation(state, "off").returncode == 0
    assert registered() == before
    assert emulation(state, "on", "linux/riscv64").returncode == 9
