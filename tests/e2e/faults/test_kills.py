"""SIGKILL at any moment, while a user edits patches: the edit stays, and the next run cleans up."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.faults.commands import Done, check, environment
from tests.e2e.faults.images import Image, named
from tests.e2e.faults.registry import Proxy

SEED = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
VERSION = "0.20.2"


@dataclass(frozen=True)
class Checkout:
    """A user's patches with an edit under way, and the folders of the commands."""

    patches: Path
    build: Path
    temporary: Path

    def run(self, *arguments: str, at: int = 0) -> tuple[int, int]:
        """Runs ``build.py``; its exit code (-9 if killed) and how many moments it had."""
        count = self.build / "moments"
        line = [sys.executable, "-m", "tests.e2e.faults.killed", str(at), str(count), *arguments]
        done = subprocess.run(
            line,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(
                FP4FORGE_PATCHES=str(self.patches),
                FP4FORGE_BUILD=str(self.build),
                TMPDIR=str(self.temporary),
            ),
        )
        if done.returncode != -9:
            check(Done(done.returncode, done.stdout, done.stderr, 0))
        return done.returncode, int(count.read_text()) if not at and count.exists() else 0

    def files(self) -> dict[str, bytes]:
        """The patches as they are, but for what a killed process left of a new one."""
        return {
            p.relative_to(self.patches).as_posix(): p.read_bytes()
            for p in self.patches.rglob("*")
            if p.is_file() and not p.name.endswith(".partial")
        }


def patch(name: str, line: int, offset: int) -> str:
    """A diff of one line; an offset makes its hunk count from a wrong one."""
    before, after = (
        "".join(f" line {n}\n" for n in range(line - 3, line)),
        "".join(f" line {n}\n" for n in range(line + 1, line + 4)),
    )
    return (
        f"--- a/vllm/{name}.py\n+++ b/vllm/{name}.py\n"
        f"@@ -{line - 3 + offset},7 +{line - 3 + offset},8 @@\n"
        f"{before}-line {line}\n+patched\n+the user's own line\n{after}"
    )


NAMES = ("first", "second", "third")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Three patches, all edited: their lines moved, and no recorded hash is right any more."""
    folder, tree = tmp_path / "patches/vllm" / VERSION, tmp_path / f"build/sources/vllm-{VERSION}"
    folder.mkdir(parents=True)
    (tree / "vllm").mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    records = ""
    for name in NAMES:
        lines = "".join(f"line {n}\n" for n in range(1, 60))
        (tree / "vllm" / f"{name}.py").write_text(lines)
        (folder / f"{name}.patch").write_text(patch(name, 30, offset=5))
        records += (
            f"  - id: {name}\n    file: {name}.patch\n    title: t\n    why: w\n    upstream: u\n"
            f"    detect:\n      vllm/{name}.py: '^patched$'\n    tier: python\n"
            f"    variants: [awq]\n    files:\n      vllm/{name}.py:\n"
            f"        before: '{'0' * 64}'\n        after: '{'0' * 64}'\n    proof: p\n"
        )
    (folder / "series.yaml").write_text(f"# The user's own comment.\npatches:\n{records}")
    return Checkout(tmp_path / "patches", tmp_path / "build", tmp_path / "temporary")


def points(moments: int, kills: int, name: str) -> list[int]:
    """Random moments, each another one, the same for the same seed."""
    print(f"FAULT_SEED={SEED}")
    return random.Random(f"{SEED} {name}").sample(range(1, moments + 1), kills)


REFRESH = ("patch", "refresh", "--vllm", VERSION)


@pytest.mark.parametrize("chain", range(2))
def test_a_refresh_killed_at_any_moment_loses_no_edit(
    checkout: Checkout, tmp_path: Path, chain: int
) -> None:
    old = checkout.files()
    shutil.copytree(checkout.patches, tmp_path / "kept")
    code, moments = checkout.run(*REFRESH)
    assert code == 0 and moments > 20
    new = checkout.files()
    assert {name for name in new if new[name] != old[name]} == set(new)
    shutil.rmtree(checkout.patches)
    shutil.copytree(tmp_path / "kept", checkout.patches)

    record = f"vllm/{VERSION}/series.yaml"
    for point in points(moments, 10, f"refresh {chain}"):
        shutil.copytree(tmp_path / "kept", checkout.patches, dirs_exist_ok=True)
        assert checkout.run(*REFRESH, at=point)[0] == -9
        now = checkout.files()
        assert set(now) == set(old)
        assert all(content in (old[name], new[name]) for name, content in now.items())
        assert now[record] == old[record] or now == new  # the record is the last one
    assert checkout.run(*REFRESH)[0] == 0
    assert checkout.files() == new
    assert b"+the user's own line" in new[f"vllm/{VERSION}/first.patch"]
    assert b"# The user's own comment." in new[record]
    left = [p for p in checkout.patches.rglob("*") if p.name.endswith(".partial")]
    assert left == [] and list(checkout.temporary.iterdir()) == []


@pytest.mark.parametrize("chain", range(2))
def test_a_publication_killed_at_any_moment_resumes(
    checkout: Checkout, proxy: Proxy, repository: str, image: Image, tmp_path: Path, chain: int
) -> None:
    edit = checkout.files()

    def line(where: str) -> tuple[str, ...]:
        return (
            "unbundle",
            str(image.bundle),
            "-o",
            str(tmp_path / "sites" / where),
            "--to",
            f"{proxy.address}/{repository}-{where}",
        )

    code, moments = checkout.run(*line("whole"))
    assert code == 0 and moments > 10
    killed = [f"killed-{number}" for number in range(5)]
    for where, point in zip(killed, points(moments, 5, f"publication {chain}"), strict=True):
        assert checkout.run(*line(where), at=point)[0] == -9
        assert named(proxy.upstream, f"{repository}-{where}", "1") in (None, image.digest)
        shutil.rmtree(tmp_path / "sites" / where, ignore_errors=True)
    assert checkout.run(*line(killed[-1]))[0] == 0
    assert named(proxy.upstream, f"{repository}-{killed[-1]}", "1") == image.digest
    assert {p.name for p in (tmp_path / "sites").iterdir()} == {killed[-1], "whole"}
    assert list(checkout.temporary.iterdir()) == []
    assert checkout.files() == edit


def test_an_edit_that_is_saved_while_a_refresh_runs_is_not_overwritten(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fp4forge.core import paths
    from fp4forge.core.errors import PatchError
    from fp4forge.maintain import patching

    monkeypatch.setattr(paths, "PATCHES", checkout.patches)
    monkeypatch.setattr(paths, "STATE", checkout.build)
    diff = checkout.patches / "vllm" / VERSION / "second.patch"
    compute = patching._with_hashes

    def save(*arguments: Any) -> str:
        diff.write_text(diff.read_text().replace("patched", "saved"))
        return compute(*arguments)

    monkeypatch.setattr(patching, "_with_hashes", save)
    before = checkout.files()
    with pytest.raises(PatchError, match=r"second\.patch was edited"):
        patching.refresh(VERSION)
    after = checkout.files()
    assert "+saved" in diff.read_text()
    assert {name for name in after if after[name] != before[name]} == {
        diff.relative_to(checkout.patches).as_posix()
    }
