"""An installed package reads its copy of the project's files, and never changes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fp4forge.cli import cli
from fp4forge.core.paths import PACKAGE, ROOT

COMMANDS = (
    ("render",),
    ("render", "--check"),
    ("lock",),
    ("lock", "--check"),
    ("lock", "--packages-of", "a/b:c"),
    ("release", "add", "0.20.2"),
    ("release", "follow"),
    ("release", "switches", "0.20.2"),
    ("release", "remove", "0.20.2"),
    ("arch", "extract", "--vllm", "0.20.2"),
    ("patch", "refresh"),
    ("backends", "--all", "--write"),
    ("--arch", "sm121", "--moved-packages", "record"),
)
READS = ("release", "list", "--json"), ("render", "--help")
PROGRAM = """
import json, sys
from click.testing import CliRunner
from fp4forge.cli import cli
out = []
for words in json.load(sys.stdin):
    done = CliRunner().invoke(cli, words)
    error = done.exception
    error = error.as_json() if hasattr(error, "as_json") else repr(error)
    out.append([done.exit_code, getattr(done.exception, "exit_code", 0), error])
json.dump(out, sys.stdout)
"""


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.suffix != ".pyc" and path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Any]:
    """What each command says in a package that is laid out as pyproject.toml lays it out."""
    site = tmp_path_factory.mktemp("site")
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, site / "fp4forge", ignore=without)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    for source, target in build["targets"]["wheel"]["force-include"].items():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        (site / target).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / source, site / target)
    before, words = files(site), [*COMMANDS, *READS]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        cwd=site,
        env=os.environ | {"FP4FORGE_BUILD": str(site / "state"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert files(site) == before
    return dict(zip(words, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_that_writes_the_project_s_files_asks_for_a_clone(
    words: tuple[str, ...], answers: dict[tuple[str, ...], Any]
) -> None:
    _, code, error = answers[words]
    assert code == 2, error
    assert "needs a clone of the fp4forge repository" in error["message"]
    assert "never in the package's copy" in error["rule"]
    assert "clone the repository" in error["remedy"]


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_what_only_reads_works(words: tuple[str, ...], answers: dict[tuple[str, ...], Any]) -> None:
    assert answers[words][0] == 0, answers[words]


def test_a_clone_runs_them() -> None:
    done = CliRunner().invoke(cli, ["patch", "refresh", "--vllm", "nope"])
    assert "has no series" in str(done.exception)
