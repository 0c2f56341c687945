"""External sources by git, from a real git server on loopback."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fp4forge.core.errors import ArtefactError
from fp4forge.image import context as contexts
from fp4forge.image import render
from fp4forge.oci import buildkit as builder
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import build as building
from tests.e2e.conftest import free_port, shell

REQUEST = ImageRequest(
    "blackwell",
    "0.20.2",
    strategy="source",
    base="bootstrap",
    platform="linux/amd64",
    components="core",
    sources=("cutlass=git",),
    aot="none",
)
HEADER = Path("include/cutlass/cutlass.h")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL of a repository, and a commit that its branch has left behind."""
    root = tmp_path_factory.mktemp("git")
    tree = root / "cutlass"
    git = ("git", "-C", str(tree), "-c", "user.name=test", "-c", "user.email=test@localhost")
    (tree / HEADER).parent.mkdir(parents=True)
    shell(*git, "init", "-q")
    for content in ("pinned", "later"):
        (tree / HEADER).write_text(content)
        shell(*git, "add", ".")
        shell(*git, "commit", "-q", "-m", content)
    commit = shell(*git, "rev-parse", "HEAD~1").stdout.strip()
    port = free_port()
    line = [
        "git",
        "daemon",
        "--reuseaddr",
        "--export-all",
        f"--base-path={root}",
        "--listen=127.0.0.1",
        f"--port={port}",
        str(root),
    ]
    with subprocess.Popen(line) as server:
        url = f"git://127.0.0.1:{port}/cutlass"
        while shell("git", "ls-remote", url, check=False).returncode:
            assert server.poll() is None, "git daemon ended"
            time.sleep(0.1)
        yield url, commit
        server.terminate()


@pytest.fixture(autouse=True)
def own_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its externals are elsewhere, as those of a release outside the checkout may be."""
    monkeypatch.setattr(render, "RELEASES", tmp_path)


def fetch(url: str, commit: str, folder: Path) -> None:
    """Builds the stage of CUTLASS's sources from there, and nothing else."""
    resolved = resolve(REQUEST)
    release = resolved.inputs.release
    pin = msgspec.structs.replace(release.externals["cutlass"], git=url, commit=commit)
    release = msgspec.structs.replace(release, externals=release.externals | {"cutlass": pin})
    inputs = replace(resolved.inputs, release=release)
    context = contexts.assemble(replace(resolved, inputs=inputs))
    staged, options = contexts.stage(context), builder.BuildOptions()
    outputs = [f"type=local,dest={folder}"]
    line = building.command(context.plan, staged, outputs, options, target="source-cutlass")
    builder.build(line, lambda _: None, options)


def test_the_pinned_commit_is_fetched(repository: tuple[str, str], tmp_path: Path) -> None:
    fetch(*repository, tmp_path / "out")
    assert (tmp_path / "out" / HEADER).read_text() == "pinned"


def test_a_commit_that_is_not_there_is_told(repository: tuple[str, str], tmp_path: Path) -> None:
    url, commit = repository[0], "0123456789" * 4
    with pytest.raises(ArtefactError) as refused:
        fetch(url, commit, tmp_path / "out")
    assert url in refused.value.message and commit in refused.value.message
    assert "--source" in refused.value.remedy


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    url = "git://127.0.0.1:9/cutlass"
    with pytest.raises(ArtefactError) as refused:
        fetch(url, "0" * 40, tmp_path / "out")
    assert url in refused.value.message and "refused" in refused.value.message
