"""What an edited patch costs a source build, against compiling everything.

The core of the reference's vLLM for the Spark, `12.1a` for linux/arm64, crossed if the machine is
another: an hour and more if it was never done. The whole's figures are those of its own record,
which the compile stage writes; its seconds are right if it was never interrupted. After an edit
they are the clock's, from the first step of the build to the record.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fp4forge.core import paths
from fp4forge.core.platform import AMD64, ARM64, host_platform
from fp4forge.image import context as contexts
from fp4forge.inputs import bases, defaults
from fp4forge.oci import buildkit as builder
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import base_images as publishing
from fp4forge.publish import build as building

RELEASE = defaults.table().reference.release
REQUEST = ImageRequest(
    "sm121",
    RELEASE,
    base="bootstrap",
    platform=ARM64,
    cross=host_platform() == AMD64,
    arch_list="12.1a",
    components="core",
    sources=("cutlass=pypi",),
    aot="none",
)
# A patch of each tier, words that it adds, and what they become: a comment; code of one file.
EDITS = {
    "python": ("gemma4-moe-prefix.patch", "keep it as it is", "keep it as it is ({})"),
    "csrc": ("fp4-support-guards.patch", "capability < 130", "capability < 130 + {}"),
}


def edited_patches(folder: Path, release: str, file: str, old: str, new: str, mark: object) -> Path:
    """A copy of patches/ in which a patch adds other words; mark is put into the new ones."""
    copy = folder / f"patches-{file}-{mark}"
    shutil.copytree(paths.ROOT / "patches", copy)
    diff = copy / "vllm" / release / file
    text = diff.read_text()
    assert old in text, f"{file} does not say {old!r}"
    diff.write_text(text.replace(old, new.format(mark)))
    refresh = [sys.executable, str(paths.ROOT / "build.py"), "patch", "refresh", "--vllm", release]
    subprocess.run(
        refresh, check=True, capture_output=True, env=os.environ | {"FP4FORGE_PATCHES": str(copy)}
    )
    return copy


def compiled(mark: float = 0.0) -> tuple[float, dict[str, Any]]:
    """Builds as far as the wheel; wall seconds, and the compile stage's record.

    With a mark the instructions are others, and the build folder a new one.
    """
    context = contexts.assemble(resolve(REQUEST))
    prepared = context.plan
    if mark:
        instructions = json.loads(context.files["compile.json"]) | {"mark": mark}
        context.files["compile.json"] = json.dumps(instructions).encode()
    staged = contexts.stage(context)
    start = time.monotonic()
    record = building.compile_record(prepared, staged, builder.BuildOptions(), lambda _: None)
    return time.monotonic() - start, record


def recompile() -> dict[str, Any]:
    """After an edited Python patch, and after an edited csrc patch of one file."""
    publishing.ensure(bases.load("bootstrap"), host_platform(), lambda _: None)
    _, whole = compiled()
    seconds = sum(whole["objects"].values())
    first = [whole["instructions"]["gate"][kind] for kind in ("source", "entry")]
    gate = sum(t for name, t in whole["objects"].items() if name.rsplit("/", 1)[-1] in first)
    original, mark = paths.PATCHES, int(time.time())
    walls, records = {}, {}
    with tempfile.TemporaryDirectory() as name:
        try:
            for tier, edit in EDITS.items():
                paths.PATCHES = edited_patches(Path(name), RELEASE, *edit, mark)
                walls[tier], records[tier] = compiled()
        finally:
            paths.PATCHES = original
    return {
        "objects": len(whole["objects"]),
        "object_seconds": seconds,
        "whole_s": whole["seconds"],
        "gate_object_s": gate,
        "gate_ratio": gate / seconds,
        "python_s": walls["python"],
        "python_ratio": walls["python"] / whole["seconds"],
        "csrc_s": walls["csrc"],
        "csrc_ratio": walls["csrc"] / whole["seconds"],
        "csrc_made": records["csrc"]["since_patched"],
    }


def warm_cache() -> dict[str, Any]:
    """Everything anew where all was compiled before, as on a runner that shares the cache."""
    _, whole = compiled()
    _, again = compiled(time.time())
    counts = {kind: sum(again["compiler_cache"][kind].values()) for kind in ("hits", "misses")}
    return {
        "whole_s": whole["seconds"],
        "again_s": again["seconds"],
        "ratio": again["seconds"] / whole["seconds"],
        **counts,
    }
