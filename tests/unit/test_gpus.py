"""A GPU is one entry of one table: Jetson Thor (sm110) is the proof."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from click.testing import CliRunner

from fp4forge.cli import cli
from fp4forge.core.errors import CoverageError
from fp4forge.core.paths import ROOT
from fp4forge.doctor import smi
from fp4forge.inputs import release
from fp4forge.inputs.broken_releases import Failures
from fp4forge.kernels import archs
from fp4forge.kernels.gpus import GPUS, PRODUCTS, TARGETS, Target
from fp4forge.maintain import matrix
from fp4forge.plan import support
from fp4forge.plan.image_kinds import QUANTISE, SERVE
from fp4forge.plan.prediction import predict
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.plan.support import supported

WHEEL = ImageRequest("sm110", strategy="wheel", base="bootstrap", aot="gemma4")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "build.py", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_thor_is_planned_from_the_arm64_wheel() -> None:
    plan = resolve(WHEEL)
    assert plan.platform == "linux/arm64"
    assert "11.0f" in plan.predicted["nvfp4_gemm"]
    assert plan.predicted["flashinfer_gemm"] == ["11.0a"]
    assert plan.unpacked_gb == resolve(ImageRequest("sm121", strategy="wheel")).unpacked_gb


def test_an_arch_list_for_thor_is_explained() -> None:
    data = json.loads(run("arch", "explain", "11.0", "--json", "--vllm", "0.20.2").stdout)
    assert data["gpus"]["sm110"]["ok"] and data["named"] == ["sm110"]


def test_a_list_without_thor_says_what_would_serve_it() -> None:
    verdict = predict("12.0", "0.20.2", "13.0").gpus["sm110"]
    assert not verdict["ok"] and "names no 11.x" in verdict["reason"]
    assert "use 11.0" in verdict["reason"]


everything = cache(supported)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that no release's CUDA and vLLM know, in the table."""
    new = replace(GPUS["sm120"], name="sm130", capability=(13, 0), arch_list="13.0", nvcc="99.0")
    monkeypatch.setitem(GPUS, "sm130", new)
    monkeypatch.setitem(TARGETS, "sm130", Target("sm130", (new,), "linux/amd64", "13.0"))
    predict.cache_clear()  # predictions have a verdict for each GPU of the table
    yield
    predict.cache_clear()


@pytest.mark.usefixtures("unknown")
def test_the_matrix_leaves_out_a_gpu_that_a_release_cannot_serve() -> None:
    done = CliRunner().invoke(cli, ["matrix", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["include"]
    assert [r for r in rows if r["kind"] == SERVE] == matrix.rows(everything().plans)
    assert {r["runner"] for r in rows if r["kind"] == QUANTISE} == {"hosted"}
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith("left out: release ") for line in lines)
    for said in ("on sm130 from wheel: sm130 would get no FP4", "nvcc 13.0 does not know sm_130"):
        assert said in done.stderr
    assert (
        len(lines)
        == len(set(lines))
        == sum(len(release.load(n).strategies) for n in release.names())
    )


def test_a_release_that_serves_no_gpu_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise CoverageError("no FP4")

    monkeypatch.setattr(support, "resolve", refuse)
    failures = Failures()
    assert supported(failures).plans == []
    assert failures.found.keys() == set(release.names())


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_is_planned_and_has_a_place_everywhere(gpu: str) -> None:
    assert resolve(ImageRequest(gpu, strategy="wheel", platform="linux/arm64")).gpus == (gpu,)
    assert gpu in TARGETS
    assert any(row["arch"] == gpu for row in matrix.rows(everything().plans))
    assert any(plan.arch == gpu for plan in everything().plans)
    assert gpu in run("--help").stdout


def test_products_name_gpus_that_there_are() -> None:
    assert {product.gpu for product in PRODUCTS.values()} <= set(GPUS)


def test_nvcc_and_the_doctor_know_a_new_chip_from_its_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = replace(GPUS["sm120"], name="sm130", capability=(13, 0), products=("R100",), nvcc="13.4")
    monkeypatch.setitem(GPUS, "sm130", new)
    assert "13.0f" in archs.known("13.4")
    assert "13.0" not in archs.known("13.3")
    assert smi.capability("NVIDIA R100") == "13.0"
