"""What decides an image's identity: exactly what the image gets, and what checks it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fp4forge.core.paths import IMAGE_TESTS, PACKAGE, ROOT
from fp4forge.image import context

# Edits files of a copied checkout, group by group; prints which plans' ids and revisions change.
PROGRAM = """
import json, subprocess, sys
from pathlib import Path
from fp4forge.core.paths import IMAGE_TESTS, PACKAGE, ROOT
from fp4forge.image import context
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve

newest = ImageRequest("blackwell", strategy="wheel", base="bootstrap", platform="linux/amd64")
from dataclasses import replace
PLANS = {
    "wheel": replace(newest, aot="none"),
    "plain": replace(newest, aot="none", variant="plain"),
    "aot": replace(newest, aot="gemma4"),
    "source": replace(newest, strategy="source", aot="none"),
    "quantise": ImageRequest("", kind="quantise", base="bootstrap", platform="linux/amd64"),
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
for group in json.loads(sys.argv[1]):
    contents = {ROOT / name: (ROOT / name).read_bytes() for name in group}
    for path, content in contents.items():
        path.write_bytes(content + b"# edited\\n")
    after = now()
    for path, content in contents.items():
        path.write_bytes(content)
    out[" ".join(group)] = {
        "ids": sorted(p for p in after if after[p][0] != before[p][0]),
        "revisions": sorted(p for p in after if after[p][1] != before[p][1]),
    }
assert now() == before
print(json.dumps(out))
"""
ALL = {"wheel", "plain", "aot", "source"}  # that serve
BOTH = ALL | {"quantise"}
STAGES = {
    "install": BOTH,
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


# The rooms whose modules judge an image for its tests.
JUDGING = ("backends", "checks", "sbom")


def imported(path: Path) -> set[Path]:
    """The modules of the judging rooms that a file imports, and their rooms' own files."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            files = (ROOT / f"{name.replace('.', '/')}.py" for name in names)
            found |= {
                f for f in files if f.is_file() and f.relative_to(PACKAGE).parts[0] in JUDGING
            }
    return found | {file.parent / "__init__.py" for file in found}


def judges() -> set[str]:
    """What the image tests import of those rooms, directly or not."""
    found: set[Path] = set()
    new = set().union(*(imported(path) for path in IMAGE_TESTS.rglob("*.py")))
    while new := new - found:
        found |= new
        new = set().union(*(imported(path) for path in new))
    return {path.relative_to(PACKAGE).as_posix() for path in found}


def test_what_judges_an_image_is_in_its_id() -> None:
    inside = {name for name in context.JUDGES if name.startswith("backends/inside/")}
    assert set(context.JUDGES) - inside == judges() | set(
        context.DECIDING
    )  # those run in the image, from their folder
    assert inside == {
        f"backends/inside/{path.name}" for path in (PACKAGE / "backends/inside").glob("*.py")
    }


def promised(name: str) -> set[str]:
    """Which of the plans' ids the layout lets a module decide."""
    path = Path(name)
    if path.parts[:2] == ("fp4forge", "kernels"):
        return ALL if path.stem in KERNELS else set()
    if path.parts[:3] == ("fp4forge", "image", "stages"):
        return STAGES.get(path.stem, set())
    if path.parts[:3] == ("fp4forge", "quantise", "inside"):
        return {"quantise"}  # an image test runs it
    if path.parts[:3] == ("tests", "image", "quantise") and path.name != "conftest.py":
        return {"quantise"}
    if name.removeprefix("fp4forge/") in context.JUDGES or path.parts[:2] == ("tests", "image"):
        return BOTH
    if path.parts[:3] == ("fp4forge", "image", "runtime"):
        return ALL
    return set()


Changed = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Changed:
    """For each module of the package, an image test and a runtime file: what its edit changes.

    Modules that decide nothing are edited together: if nothing changes then, none changes it alone.
    """
    copy = tmp_path_factory.mktemp("checkout")
    skip = shutil.ignore_patterns("__pycache__", ".build", ".venv", ".git")
    for name in (
        "fp4forge",
        "models",
        "releases",
        "patches",
        "templates",
        "dockerfiles",
        "tests/image",
    ):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    git = ["git", "-C", str(copy), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for line in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *line], check=True)
    names = [p.relative_to(copy).as_posix() for p in sorted(copy.glob("fp4forge/**/*.py"))]
    names += [f"tests/image/{name}" for name in ("test_config.py", "quantise/conftest.py")]
    names += ["tests/image/quantise/test_quantiser.py"]
    names += ["fp4forge/image/runtime/opt/fp4forge/bin/vllm"]
    silent = [name for name in names if not promised(name)]
    assert len(silent) > 60
    found = edit(copy, [silent, *([name] for name in names if promised(name))])
    together = found.pop(" ".join(silent))
    if together["ids"] or together["revisions"]:  # which of them?
        return found | edit(copy, [[name] for name in silent])
    return found


def edit(copy: Path, groups: list[list[str]]) -> Changed:
    """What editing each group of files changes, by their names."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FP4FORGE_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(groups)],
        cwd=copy,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: Changed = json.loads(done.stdout)
    return found


def test_an_edit_changes_the_ids_that_the_layout_promises(
    changed: Changed,
) -> None:
    wrong = {
        name: found["ids"] for name, found in changed.items() if set(found["ids"]) != promised(name)
    }
    assert wrong == {}
    assert len(changed) >= 30


def test_the_revision_covers_exactly_what_the_id_covers(
    changed: Changed,
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
