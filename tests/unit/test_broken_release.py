"""A broken release has its own message, and no other release suffers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fp4forge.core.errors import BrokenReleasesError, ReleaseError
from fp4forge.core.paths import RELEASES, ROOT
from fp4forge.inputs.broken_releases import Failures
from fp4forge.inputs.locks import LockName
from fp4forge.maintain import locking

BROKEN, SOUND = "0.19.1", "0.20.2"


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """A copy of the releases, in which one can be spoilt."""
    copy = tmp_path / "releases"
    shutil.copytree(RELEASES, copy)
    return copy


def run(releases: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FP4FORGE_RELEASES": str(releases)},
    )


def spoil_file(releases: Path) -> None:
    path = releases / f"{BROKEN}.yaml"
    path.write_text(path.read_text().replace("torch:", "troch:"))


def spoil_table(releases: Path) -> None:
    (releases / f"archs/{BROKEN}.json").write_text("{}")


def test_render_does_the_others(releases: Path) -> None:
    spoil_file(releases)
    done = run(releases, "render", "--check")
    assert done.returncode == BrokenReleasesError.exit_code, done.stderr
    assert f"release {BROKEN}: " in done.stderr and "troch" in done.stderr
    assert "Traceback" not in done.stderr and SOUND not in done.stderr


@pytest.mark.parametrize("spoil", [spoil_file, spoil_table])
def test_the_others_are_planned_and_listed(spoil: Callable[[Path], None], releases: Path) -> None:
    spoil(releases)
    plan = ("--dry-run", "--json", "--arch", "sm120", "--from", "wheel", "--release")
    assert run(releases, *plan, SOUND).returncode == 0
    assert run(releases, "--dry-run", "--arch", "sm120", "--release", BROKEN).returncode == 6
    done = run(releases, "matrix", "--json")
    assert done.returncode == BrokenReleasesError.exit_code
    listed = {row["release"] for row in json.loads(done.stdout)["include"]}
    assert SOUND in listed and BROKEN not in listed


def test_lock_does_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def resolve(name: LockName) -> str:
        if name.release == BROKEN and name.python == "3.12":
            raise ReleaseError("uv cannot resolve it")
        return f"# {name.file}\n"

    monkeypatch.setattr(locking, "resolve", resolve)
    monkeypatch.setattr(locking, "resolve_build", lambda name: f"# {name}\n")
    monkeypatch.setattr(locking, "resolve_tools", lambda: "# tools\n")
    monkeypatch.setattr(locking, "LOCKS", tmp_path)
    kept, stray = tmp_path / f"{BROKEN}-build.txt", tmp_path / "0.1-build.txt"
    for path in (kept, stray):
        path.write_text("old\n")
    failures = Failures()
    changed = locking.write_all(failures)
    assert kept.read_text() == "old\n" and not stray.exists()
    assert any(name.startswith(f"{SOUND}-wheel") for name in changed)
    assert not any(name.startswith(BROKEN) for name in changed)
    with pytest.raises(BrokenReleasesError, match=f"release {BROKEN}: uv cannot resolve it"):
        failures.check()


def test_a_name_that_begins_like_a_broken_release_is_not_of_it() -> None:
    failures = Failures()
    with failures.of("0.2"):
        raise ReleaseError("broken")
    assert failures.has("0.2-build.txt") and failures.has("0.2/wheel.Dockerfile")
    assert not failures.has("0.20-build.txt") and not failures.has("0.2.1/wheel.Dockerfile")
