"""Objects of a source build, compiled for a benchmark in a stage that stands in the gate's place.

It has the gate's toolchain, sources, flags and cache mounts. The objects are made anew in the
build folder of the plan, and the compiler's cache gives nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fp4forge.core.platform import AMD64
from fp4forge.image import context as contexts
from fp4forge.kernels.base import Progress
from fp4forge.oci import buildkit as builder
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import base_images
from fp4forge.publish import build as building

PROGRAM = Path(__file__).with_name("stage_program.py")


def compile_objects(
    request: ImageRequest,
    timed: Sequence[str],
    folder: Path,
    *,
    linked: Sequence[str] = (),
    edit: Callable[[str], str] = str,
    jobs: int | None = None,
    report: Progress = print,
) -> dict[str, Any]:
    """Compiles objects of a request's build; with none it only configures.

    Args:
        timed: outputs as ninja names them.
        folder: where the build folder's extensions go, if any were to be linked.
        linked: CMake targets to link afterwards, once the gate is passed.
        edit: changes the Dockerfile's text.
        jobs: parallel compilers; by default as many as a build has.

    Returns:
        ``cpu_s``: CPU seconds of the compile; ``seconds``: on the clock by source, as ninja's log
        has them; ``objects``: outputs of all of the plan's extensions.
    """
    context = contexts.assemble(resolve(request))
    prepared = context.plan
    arguments = [str(time.time_ns()), "--timed", *timed, "--linked", *linked]
    text = in_gates_place(edit(context.files["Dockerfile"].decode()), arguments)
    context.files.update({"Dockerfile": text.encode(), PROGRAM.name: PROGRAM.read_bytes()})
    # Crossed, no stage is arm64's.
    needed = AMD64 if prepared.cross else prepared.platform
    for platform in dict.fromkeys((AMD64, needed)):
        base_images.ensure(prepared.inputs.base, platform, report)
    staged, options = contexts.stage(context), builder.BuildOptions(jobs=jobs)
    output = f"type=local,dest={folder}"
    line = building.command(prepared, staged, [output], options, target="proof-files")
    os.environ["SCCACHE_RECACHE"] = "1"
    try:
        builder.build(line, report, options)
    finally:
        del os.environ["SCCACHE_RECACHE"]  # other benchmarks of this process live on the cache
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def in_gates_place(dockerfile: str, arguments: list[str]) -> str:
    """A Dockerfile with a stage that runs the program as the gate would run."""
    start, end = (
        dockerfile.index("FROM toolchain AS gate"),
        dockerfile.index("FROM gate AS compile"),
    )
    copies, _, run = dockerfile[start:end].partition("\nRUN ")
    mounts, name = run.partition("PYTHONPATH")[0], PROGRAM.name
    return dockerfile + (
        f"{copies.replace(' AS gate', ' AS proof')}\nCOPY {name} /\n"
        f"RUN {mounts} PYTHONPATH=/fp4forge python3 /{name} {shlex.join(arguments)}\n"
        "FROM scratch AS proof-files\nCOPY --from=proof /proof /\n"
    )
