"""The build context: every file that the build gets, and the id that stands for them.

What goes into a context, and so decides the id: the Dockerfile, the locks, the patches of the
variant, the stages that this plan runs, the kernels modules that they import, and the files that
the image gets as they are. The image tests count too, with the modules that judge for them: other
checks are another verification. No other module of fp4forge does; a test edits them and compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from fp4forge.core.paths import (
    DOCKERFILES,
    IMAGE_FILES,
    IMAGE_TESTS,
    KERNELS,
    LOCKS,
    PACKAGE,
    RELEASES,
    ROOT,
    STATE,
)
from fp4forge.image import render
from fp4forge.inputs import sbom
from fp4forge.inputs.patches import PatchSeries
from fp4forge.models import backend_answers, backend_kernels
from fp4forge.plan import backend_origins, packages, vllm_components
from fp4forge.plan.plan import Plan

# Where the plan lies in the build context: the tree that the image gets as it is.
PLAN_FILE = "image/runtime/opt/fp4forge/plan.json"
# What vLLM selects on each of the plan's GPUs, and why not others; none if it was never asked.
BACKENDS_FILE = "image/runtime/opt/fp4forge/backends.json"
TERMS_FILE = "image/runtime/opt/fp4forge/licences/README.md"
# What the ledger's stage and the compile's gate import; they have Python's own library beside it.
KERNELS_MODULES = ("__init__", "base", "gpus", "groups", "elf", "cubins", "ledger")
QUANTISE_TESTS = IMAGE_TESTS / "quantise"
# What runs the image tests, and what says what they compare with.
DECIDING = (
    "checks/check.py",
    "checks/runner.py",
    "inputs/sbom.py",
    "models/backend_kernels.py",
    "plan/aot.py",
    "plan/backend_origins.py",
)
# What the image tests import of the rooms that judge an image; a test compares it with the imports.
JUDGES = (
    "backends/__init__.py",
    "backends/ask.py",
    "backends/model.py",
    "backends/inside/__init__.py",
    "backends/inside/ask.py",
    "backends/inside/layers.py",
    "backends/inside/stand_in.py",
    "checks/__init__.py",
    "checks/backend_content.py",
    "checks/credentials.py",
    "checks/ledgers.py",
    "sbom/__init__.py",
    "sbom/components.py",
    "sbom/contents.py",
    "sbom/inventory.py",
    *DECIDING,
)


@dataclass(frozen=True)
class Context:
    """An identified plan, the files of its build context, and the files that they came from."""

    plan: Plan
    files: dict[str, bytes]
    sources: tuple[Path, ...]


def stages(plan: Plan) -> tuple[str, ...]:
    """Modules of ``image/stages`` that a plan's build runs."""
    names = {"install"}
    if plan.serves:
        names |= {"make_ledger", "apply_patches"}
    if plan.strategy == "source":
        names |= {"compile", "jobs", "cross"}
    if plan.aot.name != "none":
        names |= {"aot", "jobs"}
    return tuple(sorted(names))


def assemble(plan: Plan) -> Context:
    """The plan with its id, and the files that the id stands for.

    The id is the first 12 hex digits of a SHA-256 over what the plan decides and the hashes of
    its context, its checks, and the revision, which is in the image's configuration.

    Raises:
        DriftError: there is no lock for the plan.
        CoverageError: vLLM would select a backend whose kernels the image cannot have.
        ReleaseError: nothing says where a backend's kernels come from.
    """
    files, sources = _context_files(plan)
    checks = _checks(plan)
    sources = [*sources, *checks.values()]
    locked = replace(plan, packages=packages.versions(plan))
    plain = replace(
        locked,
        backend_kernels=backend_origins.predicted(locked) if plan.serves else {},
        context={name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
        checks=_files_digest(checks),
        revision=revision(sources),
    )
    identity = hashlib.sha256(_json_bytes(plain.values())).hexdigest()[:12]
    complete = replace(plain, id=identity)
    return Context(
        complete, files | {PLAN_FILE: _json_bytes(complete.as_json())}, tuple(sorted(set(sources)))
    )


def _context_files(plan: Plan) -> tuple[dict[str, bytes], list[Path]]:
    """Every file of the context but the plan, and what they were made from."""
    series = plan.inputs.series
    files = {
        "Dockerfile": render.dockerfile(plan).encode(),
        "leave-out.json": _json_bytes(
            {"cuda": plan.cuda.split(".")[0], "rules": msgspec.to_builtins(plan.leave_out)}
        ),
        TERMS_FILE: sbom.terms(sbom.table()).encode(),
    }
    copied: dict[str, Path] = {}
    arch_rules: list[Path] = []
    if plan.serves:
        files |= _series_files(series, plan.variant, "python", "patches")
        copied = _vllm_files()
        arch_rules = [
            RELEASES / "archs" / f"{plan.vllm_version}{end}" for end in (".json", ".cmake")
        ]
    answers = [a for a in backend_answers.load(plan.vllm_version) if a.gpu in plan.gpus]
    if answers:
        files[BACKENDS_FILE] = _json_bytes(msgspec.to_builtins(answers))
    sources = [
        DOCKERFILES / render.name(plan),
        RELEASES / plan.inputs.release.source_file,
        RELEASES / "bases.yaml",
        RELEASES / "sbom.yaml",
        *arch_rules,
        *(LOCKS / name for name in packages.files(plan)),
        *series.files(plan.variant),
        *([backend_answers.path(plan.vllm_version), backend_kernels.PATH] if answers else []),
        *([RELEASES / "extras.yaml"] if plan.extras else []),
    ]
    if plan.strategy == "source":
        choice = vllm_components.ComponentChoice(
            plan.components, plan.components_left_out, plan.sources
        )
        source = plan.inputs.release.strategies[plan.strategy]
        crossing = {"cross": asdict(plan.cross)} if plan.cross else {}
        files["compile.json"] = _json_bytes(
            choice.instructions(source, plan.arch_list, plan.predicted) | crossing
        )
        files |= _series_files(series, plan.variant, "csrc", "csrc")
    if plan.aot.name != "none":
        files["aot.json"] = _json_bytes(plan.aot.instructions())
    files |= {f"locks/{name}.txt": text.encode() for name, text in packages.layers(plan).items()}
    for name in stages(plan):
        copied[f"image/stages/{name}.py"] = IMAGE_FILES / "stages" / f"{name}.py"
    files |= {name: path.read_bytes() for name, path in copied.items()}
    return files, [*sources, *copied.values()]


def _vllm_files() -> dict[str, Path]:
    """What only images with vLLM get: what reads their ledger, the entrypoint, the health check."""
    copied = {f"kernels/{name}.py": KERNELS / f"{name}.py" for name in KERNELS_MODULES}
    for path in sorted((IMAGE_FILES / "runtime").rglob("*")):
        if _is_source(path):
            copied["image/" + path.relative_to(IMAGE_FILES).as_posix()] = path
    return copied


def _checks(plan: Plan) -> dict[str, Path]:
    """What checks a plan's image, by name: image tests, what they import, programs that they run.

    ``tests/image/quantise`` checks images that quantise; they are held to the other tests too.
    """
    tests = [path for path in sorted(IMAGE_TESTS.rglob("*")) if _is_source(path)]
    own = [
        path
        for path in tests
        # What chooses between the two kinds' tests runs for both.
        if not path.is_relative_to(QUANTISE_TESTS) or path.name == "conftest.py"
    ]
    checks = {path.relative_to(IMAGE_TESTS).as_posix(): path for path in own}
    checks |= {f"fp4forge/{name}": PACKAGE / name for name in JUDGES}
    if not plan.serves:
        inside = sorted((PACKAGE / "quantise" / "inside").glob("*.py"))
        checks |= {p.relative_to(IMAGE_TESTS).as_posix(): p for p in tests if p not in own}
        checks |= {f"fp4forge/{p.relative_to(PACKAGE).as_posix()}": p for p in inside}
    return checks


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _series_files(series: PatchSeries, variant: str, tier: str, folder: str) -> dict[str, bytes]:
    """A tier's patches in the build context: series.json and the diffs."""
    chosen = series.for_variant(variant, tier)
    record = {
        "package": series.package,
        "version": series.version,
        "patches": [series.instructions(patch) for patch in chosen],
    }
    diffs = {f"{folder}/{p.file}": (series.folder / p.file).read_bytes() for p in chosen}
    return {f"{folder}/series.json": _json_bytes(record)} | diffs


def _files_digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()


def revision(sources: list[Path]) -> str:
    """The last commit that changed one of the files; ``-dirty`` if one differs from its commit.

    A file outside the checkout (``FP4FORGE_PATCHES``) belongs to no commit: that is dirty too.
    """
    inside = [path for path in sources if path.is_relative_to(ROOT)]
    names = [path.relative_to(ROOT).as_posix() for path in inside]
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "log", "-1", "--format=%H", "--", *names], capture_output=True, text=True
    )
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", *names], capture_output=True, text=True
    )
    if not commit.stdout.strip():
        return "unknown"
    dirty = bool(changed.stdout.strip()) or len(inside) < len(sources)
    return commit.stdout.strip() + ("-dirty" if dirty else "")


def stage(context: Context) -> Path:
    """Writes the build context under this checkout's state, in place of an earlier one."""
    folder = STATE / "context" / context.plan.id
    if folder.exists():
        shutil.rmtree(folder)
    write(context, folder)
    return folder


def write(context: Context, folder: Path) -> None:
    """Writes a build context; times are the release's and modes fixed, so that layers repeat."""
    for name, content in context.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if "/bin/" in name else 0o644)
    for entry in [*folder.rglob("*"), folder]:
        if entry.is_dir():
            entry.chmod(0o755)  # the image gets them as they are here, whatever the umask
        os.utime(entry, (context.plan.epoch, context.plan.epoch))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
