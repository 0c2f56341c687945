"""What decides an image's identity: exactly what the image gets, and what checks it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fp4forge.core.paths import ROOT

# Edits files of a copied checkout, one at a time; prints which plans' ids and revisions change.
PROGRAM = """
import json, subprocess, sys
from pathlib import Path
from fp4forge.core.paths import ROOT
from fp4forge.image import context
from fp4forge.plan.request import Request
from fp4forge.plan.resolve import resolve

newest = Request("blackwell", strategy="wheel", base="bootstrap", platform="linux/amd64")
from dataclasses import replace
PLANS = {
    "wheel": replace(newest, aot="none"),
    "plain": replace(newest, aot="none", variant="plain"),
    "aot": replace(newest, aot="gemma4"),
    "source": replace(newest, strategy="source", aot="none"),
}
resolved = {name: resolve(request) for name, request in PLANS.items()}

def now():
    found = {}
    for name, plan in resolved.items():
        made = context.assemble(plan).plan
        found[name] = (made.id, made.revision)
    return found

before = now()
out = {}
for name in sys.argv[1:]:
    path = ROOT / name
    content = path.read_bytes()
    path.write_bytes(content + b"# edited\\n")
    after = now()
    path.write_bytes(content)
    out[name] = {
        "ids": sorted(p for p in after if after[p][0] != before[p][0]),
        "revisions": sorted(p for p in after if after[p][1] != before[p][1]),
    }
assert now() == before
print(json.dumps(out))
"""
ALL = {"wheel", "plain", "aot", "source"}
STAGES = {
    "install": ALL,
    "make_ledger": ALL,
    "apply_patches": ALL,
    "compile": {"source"},
    "cross": {"source"},
    "jobs": {"source", "aot"},
    "aot": {"aot"},
}
KERNELS = {
    "__init__",
    "base",
    "gpus",
    "groups",
    "elf",
    "cubins",
    "ledger",
}  # what the stages import


def promised(name: str) -> set[str]:
    """Which of the plans' ids the layout lets a module decide."""
    path = Path(name)
    if path.parts[:2] == ("fp4forge", "kernels"):
        return ALL if path.stem in KERNELS else set()
    if path.parts[:3] == ("fp4forge", "image", "stages"):
        return STAGES.get(path.stem, set())
    if path.parts[:3] == ("fp4forge", "image", "runtime") or path.parts[:2] == ("tests", "image"):
        return ALL
    return set()


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """For each module of the package, an image test and a runtime file: what its edit changes."""
    copy = tmp_path_factory.mktemp("checkout")
    skip = shutil.ignore_patterns("__pycache__", ".build", ".venv", ".git")
    for name in ("fp4forge", "releases", "patches", "templates", "dockerfiles", "tests/image"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    git = ["git", "-C", str(copy), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for line in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *line], check=True)
    names = [p.relative_to(copy).as_posix() for p in sorted(copy.glob("fp4forge/**/*.py"))]
    names += ["tests/image/test_config.py", "fp4forge/image/runtime/opt/fp4forge/bin/vllm"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FP4FORGE_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        cwd=copy,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return found


def test_an_edit_changes_the_ids_that_the_layout_promises(
    changed: dict[str, dict[str, list[str]]],
) -> None:
    wrong = {
        name: found["ids"] for name, found in changed.items() if set(found["ids"]) != promised(name)
    }
    assert wrong == {}
    assert len(changed) > 60


def test_the_revision_covers_exactly_what_the_id_covers(
    changed: dict[str, dict[str, list[str]]],
) -> None:
    wrong = {name: f for name, f in changed.items() if f["ids"] != f["revisions"]}
    assert wrong == {}


def test_inputs_outside_the_checkout_are_dirty(tmp_path: Path) -> None:
    """The patches of FP4FORGE_PATCHES belong to no commit."""
    shutil.copytree(ROOT / "patches", tmp_path / "patches")
    line = [sys.executable, "build.py", "--arch", "sm120", "--from", "wheel", "--dry-run", "--json"]
    environment = os.environ | {"FP4FORGE_PATCHES": str(tmp_path / "patches")}
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout)["revision"].endswith(("-dirty", "unknown")), done.stderr
