"""Following vLLM: the text of the pull request, the pull request itself, and the policy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fp4forge.inputs import policy, release
from fp4forge.maintain import following, releases
from fp4forge.maintain.adding import AddedRelease
from tests.unit.test_cli import ROOT, run

OLD, NEW = release.names()[-2:]


def test_kernels_that_differ_are_listed() -> None:
    rows = following.kernels(OLD, NEW, "blackwell", "bootstrap")
    assert "kernels nvfp4_mla_cache" in {row[0] for row in rows}  # a group that is new
    assert all(before != now for _, before, now in rows)
    assert following.kernels(NEW, NEW, "blackwell", "bootstrap") == []


def test_a_pull_request_says_what_a_person_needs() -> None:
    report = AddedRelease(
        NEW,
        found={"cuda": "13.0", "wheel_arch_lists": {"linux/amd64": "9.0|10.0"}},
        patches={"moe-prefix": "conflict"},
        person=["patches/x.patch: it does not apply"],
    )
    image = {
        "plan": {"variant": "plain"},
        "unpacked_bytes": 8.6e9,
        "compressed_bytes": 3.5e9,
        "checks": [{"outcome": "passed"}, {"outcome": "skipped"}],
    }
    failed = {"error": "VerifyError", "message": "a check\nfailed", "variant": "awq"}
    rows = releases.differences(OLD, NEW)
    text = following.markdown(report, OLD, rows, [image, failed], ["awq waits"])
    assert "- [ ] patches/x.patch: it does not apply" in text
    assert "| plain | 8.60 GB | 3.50 GB | 1 passed, 1 skipped |" in text
    assert "| awq | was not built: a check" in text
    assert "9.0\\|10.0" in text  # no column of its own
    assert "| torch |" in text and "- awq waits" in text


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A clone with a change, and an environment whose gh writes down what it is asked."""
    origin, clone, programs = tmp_path / "origin", tmp_path / "clone", tmp_path / "bin"
    programs.mkdir()
    gh = programs / "gh"
    gh.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        f'if [ "$2" = view ]; then cat {tmp_path}/state 2>/dev/null; fi\n'
    )
    gh.chmod(0o755)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for line in (
        ["git", "init", "--quiet", "--bare", str(origin)],
        ["git", "clone", "--quiet", str(origin), str(clone)],
        [
            "git",
            "-C",
            str(clone),
            *identity,
            "commit",
            "--quiet",
            "--allow-empty",
            "--message=first",
        ],
    ):
        subprocess.run(line, check=True, capture_output=True)
    return clone, os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}


def propose(clone: Path, environment: dict[str, str]) -> list[str]:
    """Runs the script; what gh was asked."""
    body = clone.parent / "body"
    body.write_text("what is new")
    script = [str(ROOT / "scripts/pull-request.sh"), "follow", "Add the newest vLLM", str(body)]
    subprocess.run(script, cwd=clone, env=environment, check=True, capture_output=True)
    asked = clone.parent / "asked"
    return asked.read_text().splitlines() if asked.exists() else []


def test_a_change_becomes_one_pull_request(checkout: tuple[Path, dict[str, str]]) -> None:
    clone, environment = checkout
    assert propose(clone, environment) == []  # nothing changed
    (clone / "releases.yaml").write_text("new")
    asked = propose(clone, environment)
    assert asked[-1].startswith("pr create --head follow --title Add the newest vLLM --body-file")
    pushed = subprocess.run(
        ["git", "-C", str(clone.parent / "origin"), "show", "--stat", "follow"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "releases.yaml" in pushed and "Add the newest vLLM" in pushed
    (clone.parent / "state").write_text("OPEN\n")
    (clone / "releases.yaml").write_text("newer")
    assert propose(clone, environment)[-1].startswith("pr edit follow")


def test_releases_that_are_not_supported_are_named() -> None:
    newest = policy.supported()
    assert len(newest) == policy.policy().supported and newest[-1] == release.names()[-1]
    assert all(policy.notice(name) == "" for name in newest)
    for name in set(release.names()) - set(newest):
        assert policy.policy().kept[name] in policy.notice(name)
        listed = run("release", "list").stdout
        assert "no longer supported" in " ".join(listed.split())


def test_an_old_release_that_nothing_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "policy", lambda: policy.Policy(supported=1))
    assert "kept until it is removed" in policy.notice(release.names()[0])
