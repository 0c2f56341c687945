"""Failures leave no tag moved, no container, one message and the right exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import (
    REGISTRY,
    ROOT,
    WHEEL,
    build,
    can_emulate,
    left_over,
    shell,
    tag_digest,
    verify_containers,
)

MOVING = "0.20.2-blackwell-awq-wheel-bootstrap-amd64"


@pytest.fixture(autouse=True)
def nothing_moved(published: dict[str, Any], containers_before: set[str]) -> Iterator[None]:
    """Every failure here leaves the tags and the containers as they were."""
    before = tag_digest(MOVING)
    yield
    assert tag_digest(MOVING) == before
    assert not left_over(containers_before)


def change(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_failed_check_moves_no_tag_and_is_reported(copied_releases: Path, tmp_path: Path) -> None:
    change(copied_releases, "0.20.2.yaml", "unpacked_gb: 7.8", "unpacked_gb: 1.0")
    reports = tmp_path / "new" / "reports"
    done = build("--push", "--reports", str(reports), FP4FORGE_RELEASES=str(copied_releases))
    assert done.returncode == 12, done.stderr
    assert "the budget is 2.2 GB" in done.stderr
    assert "no tag was moved" in done.stderr
    (report,) = reports.glob("*.json")
    failed = [check for check in json.loads(report.read_text()) if check["outcome"] == "failed"]
    assert [check["test"] for check in failed] == ["test_unpacked_size"]
    assert "the budget is 2.2 GB" in report.with_suffix(".html").read_text()
    assert "<failure" in report.with_suffix(".xml").read_text()


def test_a_wrong_artefact_hash(copied_releases: Path) -> None:
    sha = "22a7dd06eb03371298e13d6100f3dedbf307352342aaf08e87c929c60aae9b4d"
    name = "locks/0.20.2-wheel-linux-amd64-py313.txt"
    change(copied_releases, name, f"sha256:{sha}", "sha256:" + "0" * 64)
    done = build("--push", FP4FORGE_RELEASES=str(copied_releases))
    assert done.returncode == 8, done.stderr
    assert "vllm" in done.stderr


def test_a_tampered_patch(copied_patches: Path) -> None:
    diff = "vllm/0.20.2/gemma4-moe-prefix.patch"
    change(copied_patches, diff, "+                # Names", "+                # Evil")
    done = build("--push", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 7, done.stderr
    assert "gemma4.py" in done.stderr


def test_a_patch_that_does_not_apply(copied_patches: Path) -> None:
    diff = "vllm/0.20.2/gemma4-moe-prefix.patch"
    change(copied_patches, diff, " # Remap individual 2D", " # Remap single 2D")
    done = build("--push", FP4FORGE_PATCHES=str(copied_patches))
    assert done.returncode == 7, done.stderr
    assert "gemma4.py hunk 1" in done.stderr


def test_an_unreachable_registry() -> None:
    done = build("--push", registry="127.0.0.1:9")
    assert done.returncode == 5
    assert "127.0.0.1:9" in done.stderr


def test_too_little_disk_is_told_before_building() -> None:
    done = build("--push", FP4FORGE_MIN_FREE_GB="1000000")
    assert done.returncode == 13
    assert "GB free" in done.stderr


def test_a_platform_that_this_builder_lacks() -> None:
    if can_emulate():
        pytest.skip("this machine runs linux/arm64")
    done = build("--platform", "linux/arm64", "--push")
    assert done.returncode == 9
    assert "--builder" in done.stderr and "make setup PLATFORM=linux/arm64" in done.stderr


def test_a_base_that_cannot_be_had() -> None:
    # Without its base a build counts as cold, and this disk may be too full for one.
    done = build("--base", "ubuntu:24.04", "--push", FP4FORGE_MIN_FREE_GB="1")
    if done.returncode == 0:
        pytest.skip("a hub answers here")
    assert done.returncode == 10
    assert "--base bootstrap" in done.stderr


@pytest.fixture
def second_registry(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """A registry of its own, on a small disk."""
    storage = tmp_path / "registry"
    storage.mkdir()
    shell("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(storage))
    address = "127.0.0.1:5077"
    config = tmp_path / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(40):
            if shell("curl", "-fsS", f"http://{address}/v2/", check=False).returncode == 0:
                break
            time.sleep(0.25)
        yield address, process, storage
    finally:
        process.kill()
        process.wait()
        shell("umount", str(storage))


@pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs Debian's docker-registry"
)
def test_a_registry_whose_disk_is_full(
    second_registry: tuple[str, subprocess.Popen[bytes], Path],
) -> None:
    address, _, _ = second_registry
    done = build("--push", registry=address)
    assert done.returncode in (5, 13), done.stderr
    assert "Traceback" not in done.stderr
    assert tag_digest(MOVING, address) is None


def start(registry: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "build.py", *WHEEL, "--registry", registry, "--push"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"never said {pattern}: {said}")


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        ("build", signal.SIGINT),
        ("push", signal.SIGINT),
        ("verify .*test_", signal.SIGINT),
        ("verify .*test_", signal.SIGTERM),
    ],
)
def test_interrupts(moment: str, kind: signal.Signals, copied_releases: Path) -> None:
    # A plan of its own: an image that is published already is not verified again.
    budget = f"7.7{len(moment)}{kind.value}"
    change(copied_releases, "0.20.2.yaml", "unpacked_gb: 7.8", f"unpacked_gb: {budget}")
    process = start(REGISTRY, FP4FORGE_RELEASES=str(copied_releases))
    wait_for(process, rf"(ok|\.\.\.)\s+{moment}" if moment != "build" else r"ok\s+base")
    process.send_signal(kind)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said


def test_a_killed_build_leaves_no_container(
    copied_releases: Path, containers_before: set[str]
) -> None:
    change(copied_releases, "0.20.2.yaml", "unpacked_gb: 7.8", "unpacked_gb: 7.75")
    process = start(REGISTRY, FP4FORGE_RELEASES=str(copied_releases))
    wait_for(process, "verify .*test_")
    assert verify_containers() - containers_before
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while verify_containers() - containers_before and time.monotonic() < until:
        time.sleep(0.2)


def test_a_registry_that_goes_away(
    second_registry: tuple[str, subprocess.Popen[bytes], Path],
) -> None:
    address, registry, _ = second_registry
    process = start(address)
    wait_for(process, r"ok\s+build")
    registry.kill()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 5, said
    assert "no tag was moved" in said
    assert "Traceback" not in said


def test_after_all_that_building_goes_on(published: dict[str, Any]) -> None:
    assert build("--push").returncode == 0


def test_kernels_other_than_predicted_fail_the_build(copied_releases: Path) -> None:
    old, new = "7.5;8.0;8.6;8.9;9.0;10.0;12.0", "8.0;8.6;8.9;9.0;10.0;11.0;12.0"
    change(copied_releases, "0.20.2.yaml", old, new)
    done = build("--push", FP4FORGE_RELEASES=str(copied_releases))
    assert done.returncode == 3, done.stderr
    assert "nvfp4_gemm: predicted 10.0f 11.0f 12.0f, found 10.0f 12.0f" in done.stderr


def test_gpu_checks_without_a_gpu_are_refused(published: dict[str, Any]) -> None:
    line = [sys.executable, "build.py", "verify", published["image"], *WHEEL[:-2], "--gpu"]
    done = shell(*line, check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "the engine has no GPU for a container" in done.stderr
    assert "Traceback" not in done.stderr
