"""What the list of architectures costs: vLLM's core for `12.1a` against the default list.

Both whole compiles were recorded, hours each and on days of unlike speed. Here every third of
their objects is compiled again for the one list and the other by turns, nothing from the compiler's
cache, as many jobs as a build has: what a list's objects take now against what they took in its
record brings the record to this run's speed. Objects are counted in CMake's own build files.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import stage
from benchmarks.recompile import REQUEST
from fp4forge.core import paths
from fp4forge.core.platform import AMD64
from fp4forge.image.stages.jobs import short
from fp4forge.plan.request import ImageRequest

ONE = replace(REQUEST, platform=AMD64, cross=False)
LISTS = {"12.1a": ONE, "default": replace(ONE, arch="blackwell", arch_list=None)}
RECORDS = {"12.1a": "source-sm121", "default": "source-blackwell"}
STEP = 3  # of the objects by name, so that each kind is there by its share
TURN = 8  # objects of the default list between one turn and the next


def archs() -> dict[str, Any]:
    """Objects, CPU seconds and seconds of both lists, and their ratios."""
    outputs = {name: compile_turn(request, ())["objects"] for name, request in LISTS.items()}
    sample = sorted(outputs["default"], key=short)[1::STEP]
    took: dict[str, dict[str, float]] = {name: {} for name in LISTS}
    cpu = dict.fromkeys(LISTS, 0.0)
    for start in range(0, len(sample), TURN):
        for name, request in LISTS.items():
            turn = [o for o in sample[start : start + TURN] if o in set(outputs[name])]
            found = compile_turn(request, turn)
            cpu[name] += found["cpu_s"]
            done = min(start + TURN, len(sample))
            print(f"{done}/{len(sample)} {name}: {found['cpu_s']:.0f} s of CPU", flush=True)
            took[name] |= {source: found["seconds"][source] for source in map(short, turn)}
    recorded = {name: record(name) for name in LISTS}
    sums = {name: sum(seconds.values()) for name, seconds in took.items()}
    ratio, error = jackknife(took, recorded)
    return {
        "objects": {name: len(objects) for name, objects in outputs.items()},
        "objects_ratio": len(outputs["default"]) / len(outputs["12.1a"]),
        "sample": {
            s: {f"{name}_s": took[name].get(s) for name in LISTS} for s in map(short, sample)
        },
        "sample_s": sums,
        "sample_cpu_s": cpu,
        "sample_ratio": sums["default"] / sums["12.1a"],
        "sample_cpu_ratio": cpu["default"] / cpu["12.1a"],
        "recorded_s": {name: sum(seconds.values()) for name, seconds in recorded.items()},
        "speed": {name: speed(took[name], recorded[name]) for name in LISTS},
        "ratio": ratio,
        "ratio_error": error,
    }


def compile_turn(request: ImageRequest, objects: Sequence[str]) -> dict[str, Any]:
    """Compiles objects for one list."""
    with tempfile.TemporaryDirectory() as folder:
        return stage.compile_objects(request, objects, Path(folder))


def record(name: str) -> dict[str, float]:
    """Seconds by source of a list's whole compile, as its evidence has them; links left out."""
    text = (paths.ROOT / "docs/evidence" / RECORDS[name] / "compile.json").read_text()
    objects: dict[str, float] = json.loads(text)["objects"]
    return {source: took for source, took in objects.items() if not source.endswith(".so")}


def speed(took: dict[str, float], recorded: dict[str, float]) -> float:
    """Seconds of this run for one of the record, of the objects compiled again."""
    return sum(took.values()) / sum(recorded[source] for source in took)


def jackknife(
    took: dict[str, dict[str, float]], recorded: dict[str, dict[str, float]]
) -> tuple[float, float]:
    """The default list's seconds for one of `12.1a`, and its standard error.

    The error is of leaving out each object of the sample once.
    """

    def ratio(left_out: str = "") -> float:
        whole = {
            name: sum(recorded[name].values())
            * speed({s: t for s, t in seconds.items() if s != left_out}, recorded[name])
            for name, seconds in took.items()
        }
        return whole["default"] / whole["12.1a"]

    without = [ratio(source) for source in took["default"]]
    n = len(without)
    return ratio(), math.sqrt(statistics.pvariance(without) * (n - 1))
