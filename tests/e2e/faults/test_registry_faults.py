"""A registry with a fault: one message, an end in time, and no tag that names what it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.faults.commands import Command, Done
from tests.e2e.faults.images import Image, named, seed
from tests.e2e.faults.registry import LOOK_UP, PULL, PUSH, Proxy

Patient = Callable[[], None]

# Exit codes other than 5 (the registry is unreachable or refuses).
CODES = {"disk-is-full": 13, "look-up-empty": 14}
# These end before the registry keeps anything: running again is no other than the first time.
NOTHING_STORED = ("blob-head-", "upload-post-", "upload-goes-")


def look_up(command: Command, proxy: Proxy, repository: str) -> Done:
    return command(
        "serve",
        "compose",
        "--model",
        "/models/m",
        "--format",
        "run",
        "--image",
        f"{proxy.address}/{repository}:1",
    )


@pytest.mark.parametrize("fault", LOOK_UP)
def test_a_tag_is_looked_up(
    command: Command, proxy: Proxy, repository: str, image: Image, patient: Patient, fault: str
) -> None:
    seed(proxy.upstream, repository, image, "1")
    proxy.spoil(LOOK_UP[fault])
    done = look_up(command, proxy, repository)
    assert done.code == 5, done.err
    assert "sha256:" not in done.out
    assert proxy.hits, done.err
    proxy.heal()
    patient()
    done = look_up(command, proxy, repository)
    assert done.code == 0 and image.digest in done.out, done.err


def test_a_tag_that_is_free(command: Command, proxy: Proxy, repository: str) -> None:
    done = look_up(command, proxy, repository)
    assert done.code == 2 and "has no tag 1" in done.err


@pytest.mark.parametrize("fault", PUSH)
def test_an_image_is_published(
    command: Command,
    proxy: Proxy,
    repository: str,
    image: Image,
    patient: Patient,
    tmp_path: Path,
    fault: str,
) -> None:
    line = (
        "unbundle",
        str(image.bundle),
        "-o",
        str(tmp_path / "site"),
        "--to",
        f"{proxy.address}/{repository}",
    )
    proxy.spoil(PUSH[fault])
    done = command(*line)
    assert done.code == CODES.get(fault, 5), done.err
    assert proxy.hits, done.err
    tagged = named(proxy.upstream, repository, "1")
    assert tagged == (image.digest if fault.startswith("tag-moved") else None)
    if fault.startswith(NOTHING_STORED):
        return
    proxy.heal()
    patient()
    done = command(*line)  # "running again resumes"
    assert done.code == 0, done.err
    assert named(proxy.upstream, repository, "1") == image.digest


@pytest.mark.parametrize("fault", PULL)
def test_an_image_is_read(
    command: Command, proxy: Proxy, repository: str, image: Image, tmp_path: Path, fault: str
) -> None:
    seed(proxy.upstream, repository, image, "1")
    proxy.spoil(PULL[fault])
    done = command("bundle", f"{proxy.address}/{repository}:1", "-o", str(tmp_path / "x.tar"))
    assert done.code == 5, done.err
    assert proxy.hits, done.err
    assert [p.name for p in tmp_path.iterdir() if "bundle" in p.name or "tar" in p.name] == []
