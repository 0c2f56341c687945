"""The gate of a source build: its FP4 object compiled by the build's own stages, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp4forge import builder, components, pipeline, plan
from fp4forge.errors import BuildError, CoverageError
from fp4forge.plan import Request

# Of the published image's release: its installed layers are there already.
REQUEST = Request(
    "sm121", "0.20.2", strategy="source", base="bootstrap", platform="linux/amd64",
    arch_list="12.1a", components="core", sources=("cutlass=pypi",), aot="none",
)  # fmt: skip

# What vLLM 0.20.2's CMake makes of 12.1a for its FP4 kernels (fp4forge/cmake_rules.py).
TARGET = "12.0f"

Change = Callable[[dict[str, Any]], None]


def gate(request: Request, change: Change | None = None) -> list[str]:
    """Builds as far as the gate; what it reported. change edits the stage's instructions."""
    prepared, files = pipeline.prepare(request)
    if change:
        instructions = json.loads(files["compile.json"])
        change(instructions)
        files = files | {"compile.json": json.dumps(instructions).encode()}
    context = plan.stage(prepared, files)
    options = builder.Options(sources=components.local_trees(request.sources))
    line = builder.command(prepared, context, ["type=cacheonly"], options)
    line.remove("--provenance=mode=max")
    reports: list[str] = []
    builder.build([*line, "--target=gate"], reports.append, options)
    return reports


def test_one_fp4_object_is_compiled_and_read_first(published: dict[str, Any]) -> None:
    reports = gate(REQUEST)
    assert any(f"gate: FP4 instructions for {TARGET}" in text for text in reports), reports[-5:]


def test_a_wrong_prediction_stops_the_build_at_the_gate(published: dict[str, Any]) -> None:
    def predict(instructions: dict[str, Any]) -> None:
        instructions["gate"]["targets"] = ["10.0a", TARGET]

    with pytest.raises(CoverageError, match=rf"for {TARGET}, predicted 10\.0a {TARGET}"):
        gate(REQUEST, predict)


def test_a_tree_that_is_not_cutlass_is_told_with_the_compilers_words(
    published: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "include/cutlass").mkdir(parents=True)
    (tmp_path / "include/cutlass/cutlass.h").write_text("#error not CUTLASS\n")
    with pytest.raises(BuildError) as refused:
        gate(replace(REQUEST, sources=(f"cutlass={tmp_path}",)))
    assert "nvfp4_scaled_mm_entry.cu does not compile" in refused.value.message
    assert "command: " in refused.value.message
