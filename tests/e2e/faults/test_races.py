"""Two checkouts publish to one registry at the same time: a tag names one image, for ever."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.faults.commands import Done, check, environment
from tests.e2e.faults.images import Image, make, named, seed
from tests.e2e.faults.registry import Exchange, Fault, Proxy

# What a build does after its checks; the engine and the checks themselves are not needed for it.
PUBLISH = """
import json, sys
from pathlib import Path
from fp4forge.oci import registry, registry_tags
from fp4forge.oci.layout import OciLayout
from fp4forge.publish import tagging

repository, digest, folder, moving = sys.argv[1:]
index = OciLayout(Path(folder)).document(digest)
sys.stdin.readline()
with tagging.turn(repository):
    immutable, now = registry_tags.immutable(repository, "plan", index, digest)
    tagging.give(repository, digest, (immutable, moving), lambda _: None, fixed=immutable)
print(json.dumps([immutable, digest]))
"""
ROUNDS = 2


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two copies of the repository."""
    folders = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for folder in folders:
        shutil.copytree(ROOT / "fp4forge", folder / "fp4forge")
        shutil.copy(ROOT / "build.py", folder)
        (folder / "releases").mkdir()  # by which a checkout is known
    return folders


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Image]:
    """Two images of one plan: packages of the distribution moved on between them."""
    return make(tmp_path_factory.mktemp("x"), 11), make(tmp_path_factory.mktemp("y"), 12)


def start(folder: Path, *line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *line],
        cwd=folder,
        text=True,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def both(started: list[subprocess.Popen[str]]) -> list[Done]:
    """Lets them go, waits, and checks what every command must have."""
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    found = []
    for process in started:
        out, err = process.communicate(timeout=60)
        found.append(Done(process.returncode, out, err, 0))
        check(found[-1])
    return found


@pytest.fixture
def slow(proxy: Proxy) -> Iterator[Proxy]:
    """A registry that takes its time to move a tag: who looks meanwhile still finds it free."""

    def wait(x: Exchange) -> None:
        time.sleep(0.3)
        x.reply(x.forward())

    proxy.spoil(Fault("PUT tag", wait))
    yield proxy
    proxy.heal()


def test_builds_of_one_plan(
    slow: Proxy, upstream: str, checkouts: tuple[Path, Path], pair: tuple[Image, Image]
) -> None:
    for number in range(ROUNDS):
        name = f"race/plan-{number}"
        for image in pair:
            seed(upstream, name, image)
        line = ("-c", PUBLISH, f"{slow.address}/{name}")
        done = both(
            [
                start(folder, *line, image.digest, str(image.layout.folder), "moving")
                for folder, image in zip(checkouts, pair, strict=True)
            ]
        )
        assert [d.code for d in done] == [0, 0], [d.err for d in done]
        given = dict(json.loads(d.out) for d in done)
        assert len(given) == 2 and "plan" in given
        assert {tag: named(upstream, name, tag) for tag in given} == given
        assert named(upstream, name, "moving") in {image.digest for image in pair}


def test_bundles_of_one_tag(
    slow: Proxy,
    upstream: str,
    checkouts: tuple[Path, Path],
    pair: tuple[Image, Image],
    tmp_path: Path,
) -> None:
    for number in range(ROUNDS):
        name, site = f"race/bundle-{number}", str(tmp_path / str(number))
        done = both(
            [
                start(
                    folder,
                    "build.py",
                    "unbundle",
                    str(image.bundle),
                    "-o",
                    f"{site}-{image.digest[7:]}",
                    "--to",
                    f"{slow.address}/{name}",
                )
                for folder, image in zip(checkouts, pair, strict=True)
            ]
        )
        assert sorted(d.code for d in done) == [0, 14], done
        (won,) = (image for d, image in zip(done, pair, strict=True) if d.code == 0)
        assert named(upstream, name, "1") == won.digest


def test_the_same_image_twice(
    upstream: str, checkouts: tuple[Path, Path], pair: tuple[Image, Image], tmp_path: Path
) -> None:
    """docker-registry may answer 500 while two clients write one manifest: then run it again."""
    image = pair[0]

    def run(*folders: Path) -> list[Done]:
        return both(
            [
                start(
                    folder,
                    "build.py",
                    "unbundle",
                    str(image.bundle),
                    "-o",
                    str(tmp_path / folder.name),
                    "--to",
                    f"{upstream}/race/same",
                )
                for folder in folders
            ]
        )

    done = run(*checkouts)
    assert {d.code for d in done} <= {0, 5}, done
    for folder, first in zip(checkouts, done, strict=True):
        if first.code:
            assert [d.code for d in run(folder)] == [0]
    assert named(upstream, "race/same", "1") == image.digest


def test_a_publisher_that_is_killed_gives_its_turn_back(upstream: str) -> None:
    code = (
        "import sys, time\nfrom fp4forge.publish import tagging\n"
        "with tagging.turn(sys.argv[1]):\n  print('mine', flush=True)\n  time.sleep(60)\n"
    )
    first = start(ROOT, "-c", code, f"{upstream}/race/killed")
    assert first.stdout and first.stdout.readline() == "mine\n"
    second = start(ROOT, "-c", code, f"{upstream}/race/killed")
    assert second.stdout
    first.kill()
    first.communicate()
    assert second.stdout.readline() == "mine\n"
    second.kill()
    second.communicate()
