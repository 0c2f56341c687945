"""fp4forge as an installed tool: it brings its releases, patches, templates and image tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import ROOT

ARGUMENTS = ("--arch", "sm121", "--from", "wheel", "--base", "bootstrap", "--dry-run", "--json")


def test_the_installed_tool_makes_the_same_plan(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    environment = os.environ | {
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
        "FP4FORGE_BUILD": str(tmp_path / "state"),
    }
    line = [str(uv), "tool", "install", "--quiet", "--python", sys.executable, str(ROOT)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plans = []
    for program in ([str(tmp_path / "bin/fp4forge")], [sys.executable, str(ROOT / "build.py")]):
        said = subprocess.run(
            [*program, *ARGUMENTS], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert said.returncode == 0, said.stderr
        plans.append(json.loads(said.stdout))
    same = ("context", "checks", "patched_files", "packages")
    assert [plans[0][name] for name in same] == [plans[1][name] for name in same]
