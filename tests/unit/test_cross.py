"""Compiling for another platform: what the plan says, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import PlatformError, UsageError
from fp4forge.core.platform import AMD64
from fp4forge.image import context as contexts
from fp4forge.image import render
from fp4forge.image.stages import cross as building
from fp4forge.inputs import locks as lock
from fp4forge.plan import packages
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import build_machine

CROSS = ImageRequest(
    "sm121",
    base="bootstrap",
    platform="linux/arm64",
    components="core",
    sources=("cutlass=pypi",),
    aot="none",
    cross=True,
)


def test_the_build_platforms_packages_compile_and_the_targets_are_only_mounted() -> None:
    plan = resolve(CROSS)
    text = render.dockerfile(plan)
    assert render.arguments(plan)["TRIPLET"] == "aarch64-linux-gnu"
    assert render.arguments(plan)["DEBIAN"] == "arm64"
    compilers = text[text.index("FROM tools AS compilers") : text.index("FROM tools AS vllm")]
    assert "g++-${TRIPLET}" in compilers and "libpython3-dev:${DEBIAN}" in compilers
    assert "COPY --link --from=host-torch /out /" in compilers
    assert "COPY --link --from=torch " not in compilers
    assert compilers.count("--mount=type=bind,from=torch,source=/out,target=/target/torch") == 2
    image = text[text.index(" AS packages-none") :]
    assert "COPY --link --from=torch /out /" in image and "host-" not in image


def test_both_platforms_locks_are_in_the_context() -> None:
    texts = packages.layers(resolve(CROSS))
    native = packages.layers(resolve(replace(CROSS, platform="linux/amd64", cross=False)))
    for group in lock.LAYERS:
        assert texts[f"host/{group}"] == native[group]
    assert "nvidia-cuda-runtime" in texts["runtime"]


def test_a_native_compile_keeps_its_cache_key() -> None:
    """compile.json is part of the key under which objects are kept."""
    files = contexts.assemble(resolve(replace(CROSS, cross=False))).files
    assert b'"cross"' not in files["compile.json"]
    assert b'"cross"' in contexts.assemble(resolve(CROSS)).files["compile.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"release": "0.20.2", "strategy": "wheel", "components": "all", "sources": ()}, "wheel"),
        ({"platform": "linux/amd64"}, "linux/amd64"),
        ({"base": "ubuntu:24.04"}, "--base bootstrap"),
        ({"aot": "gemma4"}, "--aot gemma4"),
    ],
)
def test_what_cannot_be_crossed(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        resolve(replace(CROSS, **change))
    assert says in str(refused.value) + str(refused.value.rule)


@pytest.mark.parametrize(
    ("here", "cross", "remedy"),
    [("linux/amd64", False, "--cross"), ("linux/arm64", True, "leave --cross out")],
)
def test_compilers_never_run_under_emulation(
    here: str, cross: bool, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_machine, "host_platform", lambda: here)
    with pytest.raises(PlatformError) as refused:
        build_machine._check_compilers(resolve(replace(CROSS, cross=cross)))
    assert remedy in (refused.value.remedy or "")


def test_cmake_is_told_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "TARGET", tmp_path)
    torch = tmp_path / "torch/usr/local/lib/python3.13/dist-packages/torch"
    torch.mkdir(parents=True)
    toolchain = resolve(CROSS).cross
    assert toolchain is not None and toolchain.build == AMD64
    flags = building.flags(asdict(toolchain), tmp_path / "cross.cmake")
    assert f"-DTorch_DIR={torch}/share/cmake/Torch" in flags
    assert f"-DTORCH_LIBRARY={torch}/lib/libtorch.so" in flags
    text = (tmp_path / "cross.cmake").read_text()
    assert "set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)" in text
    assert "--target-directory=sbsa-linux" in text
