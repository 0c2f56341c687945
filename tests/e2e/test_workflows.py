"""The build workflow's own commands, run here for an image that needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fp4forge.core.platform import host_platform
from tests.e2e.conftest import REGISTRY, ROOT

WORKFLOWS = ROOT / ".github" / "workflows"
# What GitHub would put for the expressions in the image job's env, for the hosted row.
ROW = {
    "ARCH": "blackwell",
    "RELEASE": "0.20.2",
    "VARIANT": "awq",
    "FROM": "wheel",
    "BASE": "bootstrap",
    "PLATFORM": "",
    "AOT": "none",
    "GPU": "",
    "REGISTRY": REGISTRY,
    "ACTOR": "nobody",
    "TOKEN": "t0ken",
    "ONLY": "0.20.2",
    "TARGET": "image",
}


def workflow(name: str) -> dict[Any, Any]:
    # YAML 1.1 reads the key "on" as true.
    data: dict[Any, Any] = yaml.safe_load((WORKFLOWS / name).read_text())
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runner")


def step(command: str, folder: Path) -> str:
    """Runs a step as a runner does: bash -e, its environment, its output file."""
    environment = (
        os.environ
        | ROW
        | {
            "GITHUB_OUTPUT": str(folder / "output"),
            "DOCKER_CONFIG": str(folder / "docker"),
            "REPORTS": str(folder / "reports"),
        }
    )
    line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done.stdout + done.stderr


def test_the_matrix_job(folder: Path) -> None:
    for entry in workflow("build.yml")["jobs"]["matrix"]["steps"]:
        if "run" in entry:
            step(entry["run"], folder)
    name, _, text = (folder / "output").read_text().strip().partition("=")
    rows = json.loads(text)["include"]
    assert name == "matrix" and {row["release"] for row in rows} == {"0.20.2"}
    spark = next(row for row in rows if row["arch"] == "sm121")
    assert spark["runs-on"] == ["self-hosted", "linux", "ARM64", "blackwell", "sm121"]
    assert spark["gpu"] and spark["from"] == "source"


def test_the_image_job(published: dict[str, Any], folder: Path) -> None:
    steps = [e for e in workflow("build.yml")["jobs"]["image"]["steps"] if "run" in e]
    (build,) = (e for e in steps if e["run"] == 'make "$TARGET"')
    assert "'quantise' && 'image-quantise' || 'image'" in build["env"]["TARGET"]
    said = "".join(step(entry["run"], folder) for entry in steps)
    assert ROW["TOKEN"] not in said
    reports = folder / "reports" / f"image-{host_platform().partition('/')[2]}"
    checks = json.loads(reports.with_suffix(".json").read_text())
    assert {c["outcome"] for c in checks} <= {"passed", "skipped"} and len(checks) > 20
    assert "testsuite" in reports.with_suffix(".xml").read_text()
    assert "checks passed" in reports.with_suffix(".html").read_text()


def test_pull_requests_never_reach_our_machines() -> None:
    for path in WORKFLOWS.glob("*.yml"):
        data = workflow(path.name)
        events = data.get(True) or {}
        assert "pull_request_target" not in events
        if "pull_request" not in events:
            continue
        for job in data["jobs"].values():
            assert job["runs-on"].startswith("ubuntu-"), f"{path.name} runs on {job['runs-on']}"


def test_every_action_is_pinned_and_nothing_is_permitted_by_default() -> None:
    for path in WORKFLOWS.glob("*.yml"):
        data = workflow(path.name)
        assert data["permissions"] == {}, path.name
        for job in data["jobs"].values():
            assert "permissions" in job and ("uses" in job or "timeout-minutes" in job)
            for entry in job.get("steps", []):
                uses = entry.get("uses", "")
                assert not uses or len(uses.partition("@")[2]) == 40, uses
