"""The command line as users meet it: a real process, its exit code, its one clear message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fp4forge.cli.options import resolve_registry
from fp4forge.core import paths

ROOT = Path(__file__).resolve().parents[2]
SOURCE_PLAN = ("--arch", "sm121", "--dry-run", "--json")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "build.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--arch", "sm999"], 2, ["sm999", "sm121", "DGX Spark"]),
        (["--arch", "sm121; rm -rf /"], 2, ["sm121; rm -rf /", "one of"]),
        (["--arch", "sm121\nRUN evil"], 2, ["one of"]),
        (["--arch", "$(id)"], 2, ["$(id)", "one of"]),
        ([], 2, ["--arch is missing"]),
        (["--arch", "sm121", "--release", "9.9.9"], 2, ["9.9.9", "0.19.1", "0.20.2"]),
        (["--arch", "sm121", "--release", "../x"], 2, ["does not exist"]),
        (["--arch", "sm121", "--variant", "best"], 2, ["best", "awq", "plain"]),
        (["--arch", "sm121", "--from", "thin-air"], 2, ["thin-air", "source", "wheel"]),
        (["--arch", "sm121", "--base", "alpine"], 2, ["alpine", "bootstrap"]),
        (["--arch", "sm121", "--platform", "linux/riscv64"], 2, ["riscv64", "linux/arm64"]),
        (["--arch", "sm121", "--release", "0.19.1", "--from", "wheel"], 2, ["0.19.1", "wheel"]),
        (["--arch", "sm121", "--tag", "x-0123456789ab"], 2, ["immutable", "plan's id"]),
        (["matrix", "--release", "nope"], 2, ["nope", "does not exist"]),
        (["matrix", "--release", "modelopt-1"], 2, ["no ModelOpt '1'"]),
        (["--release", "0.20.2", "release", "list"], 2, ["--release before 'release'"]),
        (["--json", "bench", "compare", "a", "b"], 2, ["--json before 'bench'"]),
        (["bench", "--url", "x", "compare", "a", "b"], 2, ["--url before 'compare'"]),
        (["--kind", "quantise", "--jobs", "4"], 2, ["--jobs does not go with"]),
        (["--arch", "sm121", "--push", "--load", "--registry", "h:1"], 2, ["exclude each other"]),
        (["--arch", "sm121", "--repo", "Not/OK"], 2, ["Not/OK", "lower-case"]),
        (["--arch", "sm121", "--registry", "a b"], 2, ["a b", "HOST"]),
        (["--arch", "sm121", "--tag", "-x"], 2, ["-x", "128"]),
        (["--arch", "sm121", "--allow-missing", "sm9"], 2, ["--allow-missing 'sm9'", "sm121"]),
        (["--arch", "sm121", "--reports", "README.md/x"], 2, ["README.md/x cannot be created"]),
        (["verify", "x"], 2, ["--arch is missing"]),
        (
            ["verify", "x", "--arch", "sm121", "--platform", "linux/arm64,linux/amd64"],
            2,
            ["2 platforms", "one platform"],
        ),
        (["--frobnicate"], 2, ["frobnicate", "--help"]),
        (["nonsense"], 2, ["nonsense"]),
        (["--arch", "sm121", "--push"], 2, ["registry", "REGISTRY"]),
    ],
)
def test_bad_input_gets_one_message(
    arguments: list[str], code: int, words: list[str], tmp_path: Path
) -> None:
    done = run(*arguments, REGISTRY="", FP4FORGE_BUILD=str(tmp_path))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for word in words:
        assert word in done.stderr


def test_push_goes_to_the_registry_that_setup_started_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "STATE", tmp_path)
    assert resolve_registry("") is None
    (tmp_path / "registry").write_text("127.0.0.1:5000\n")
    assert resolve_registry(None) == "127.0.0.1:5000"
    assert resolve_registry("h:1/team") == "h:1/team"


def test_errors_as_json() -> None:
    done = run("--arch", "sm999", "--json")
    error = json.loads(done.stdout)
    assert error["error"] == "UsageError"
    assert error["exit_code"] == done.returncode == 2


def test_source_is_planned_and_says_what_is_missing() -> None:
    plan = json.loads(run(*SOURCE_PLAN).stdout)
    assert (plan["release"], plan["strategy"], plan["variant"]) == ("0.19.1", "source", "awq")
    assert plan["platform"] == "linux/arm64"
    assert plan["torch"] == "2.12.0"
    assert "gemma4-moe-prefix" in plan["patches"]


@pytest.mark.parametrize(("arch", "platform"), [("sm121", "linux/arm64"), ("sm120", "linux/amd64")])
def test_platform_follows_the_gpu(arch: str, platform: str) -> None:
    assert json.loads(run("--arch", arch, "--dry-run", "--json").stdout)["platform"] == platform


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['build.py','--help']\n"
        "from fp4forge.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'docker','requests','jinja2','yaml','rich','msgspec'}\n"
        "heavy &= sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_unreachable_engine(tmp_path: Path) -> None:
    done = run(
        "--arch",
        "blackwell",
        "--release",
        "0.20.2",
        "--from",
        "wheel",
        DOCKER_HOST="tcp://127.0.0.1:9",
        FP4FORGE_BUILD=str(tmp_path),
    )
    assert done.returncode == 4
    assert "127.0.0.1:9" in done.stderr
    assert "make setup" in done.stderr
    assert "Traceback" not in done.stderr


def test_completion_is_offered() -> None:
    done = run("completion", "bash")
    assert done.returncode == 0
    assert "build.py" in done.stdout
