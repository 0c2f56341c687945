"""Plans: what decides the id, what is left out for whom, tags and names."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp4forge.core.errors import DriftError, UsageError
from fp4forge.core.paths import DOCKERFILES
from fp4forge.image import context as contexts
from fp4forge.image import render
from fp4forge.inputs import locks as lock
from fp4forge.inputs.broken_releases import Failures
from fp4forge.inputs.release import VARIANTS
from fp4forge.oci import reference
from fp4forge.plan import packages
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve

WHEEL = ImageRequest("blackwell", "0.20.2", "awq", "wheel", "bootstrap", "linux/amd64")


def identity(request: ImageRequest) -> str:
    return contexts.assemble(resolve(request)).plan.id


def test_the_same_request_has_the_same_id() -> None:
    assert identity(WHEEL) == identity(WHEEL)


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "sm120"},
        {"variant": "plain"},
        {"base": "ubuntu:24.04"},
        {"platform": "linux/arm64"},
        {"strategy": "source"},
    ],
)
def test_everything_asked_for_changes_the_id(change: dict[str, Any]) -> None:
    assert identity(replace(WHEEL, **change)) != identity(WHEEL)


def test_flashinfer_cubins_follow_the_gpu() -> None:
    def globs(arch: str) -> set[str]:
        return {rule.glob for rule in resolve(replace(WHEEL, arch=arch)).leave_out}

    assert "flashinfer_cubin/**" in globs("sm120")
    assert "flashinfer_cubin/**" not in globs("blackwell")
    assert "**/*.a" in globs("sm100")


def test_plain_has_no_patches() -> None:
    assert resolve(replace(WHEEL, variant="plain")).patches == ()
    assert resolve(WHEEL).patched_files


def test_all_of_flashinfers_modules_have_a_budget_of_their_own() -> None:
    def budget(aot: str, arch: str) -> float:
        return resolve(replace(WHEEL, aot=aot, arch=arch)).unpacked_gb

    assert budget("gemma4", "sm121") == budget("none", "sm121")
    one, three = (budget("all", arch) - budget("none", arch) for arch in ("sm121", "blackwell"))
    assert one >= 1  # GB, as measured: docs/evidence/aot-all-sm121.json
    assert three == pytest.approx(3 * one)


def test_every_layer_comes_from_the_lock() -> None:
    texts = packages.layers(resolve(WHEEL))
    assert "torch==2.11.0" in texts["torch"]
    assert "nvidia-cuda-nvcc==13.0.88" in texts["cuda"]
    assert "transformers==5.5.4" in texts["python"]
    assert texts["vllm"].count("--hash") == 1
    for text in texts.values():
        assert all("--hash" in block for block in lock.entries(text).values())


def test_committed_dockerfiles_are_what_the_templates_give() -> None:
    assert render.differences(Failures()) == []


def test_the_build_gets_the_committed_dockerfile_and_its_arguments_choose_the_rest() -> None:
    names = set()
    for arch, variant, aot in itertools.product(
        ("sm120", "blackwell"), VARIANTS, ("none", "gemma4")
    ):
        plan = resolve(replace(WHEEL, arch=arch, variant=variant, aot=aot))
        names.add(render.name(plan))
        committed = (DOCKERFILES / render.name(plan)).read_bytes()
        assert contexts.assemble(plan).files["Dockerfile"] == committed
        declared = set(re.findall(r"(?m)^ARG (\w+)", committed.decode()))
        assert set(render.arguments(plan)) <= declared
    assert len(names) == 1
    assert len(list(DOCKERFILES.rglob("*.Dockerfile"))) < 20


def test_sources_choose_their_stages() -> None:
    plan = resolve(
        replace(WHEEL, strategy="source", components="core", sources=("cutlass=pypi",), aot="none")
    )
    found = render.arguments(plan)
    assert (found["CUTLASS"], found["FLASHMLA"], found["AOT"]) == ("pypi", "none", "none")


def test_a_changed_dockerfile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "dockerfiles"
    shutil.copytree(DOCKERFILES, copy)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(render, "DOCKERFILES", copy)
        (copy / render.name(resolve(WHEEL))).write_text("FROM scratch\n")
        with pytest.raises(DriftError, match=r"wheel\.Dockerfile is not what its sources give"):
            render.dockerfile(resolve(WHEEL))
    shutil.copytree(DOCKERFILES, copy, dirs_exist_ok=True)
    monkeypatch.setattr(render, "DOCKERFILES", copy)
    first = sorted(copy.rglob("*.Dockerfile"))[0]
    first.write_text(first.read_text() + "RUN true\n")
    (copy / "stray.Dockerfile").write_text("FROM scratch\n")
    lines = render.differences(Failures())
    assert any(line.startswith("differs: ") for line in lines)
    assert "not rendered from anything: stray.Dockerfile" in lines


def test_a_build_without_flash_attention_needs_the_patch_that_lets_it_start() -> None:
    core = replace(WHEEL, strategy="source", components="core", sources=("cutlass=pypi",))
    assert "flash-attn-optional" in resolve(core).patches
    with pytest.raises(UsageError, match="without FlashAttention"):
        resolve(replace(core, variant="plain"))
    resolve(replace(core, variant="plain", components="core,fa2"))


@pytest.mark.parametrize("registry", ["127.0.0.1:5000", "registry.example/team", None])
def test_repositories(registry: str | None) -> None:
    found = reference.repository(registry, "fp4forge/vllm")
    assert found.endswith("fp4forge/vllm")


@pytest.mark.parametrize("registry", ["a;b", "host:port", "-x", "h/UPPER"])
def test_bad_registries(registry: str) -> None:
    with pytest.raises(UsageError):
        reference.repository(registry, "fp4forge/vllm")


@pytest.mark.parametrize("strategy", ["wheel", "source", "cross"])
def test_the_context_has_every_file_that_the_dockerfile_copies(strategy: str) -> None:
    compiled: dict[str, Any] = {"strategy": "source", "sources": ("cutlass=pypi",)}
    crossing = compiled | {"platform": "linux/arm64", "aot": "none", "cross": True}
    change = {"wheel": {}, "source": compiled, "cross": crossing}[strategy]
    for release in ("0.20.2",) if strategy == "wheel" else ("0.19.1", "0.20.2"):
        request = replace(WHEEL, release=release, extras=("rdma", "ray"), **change)
        files = contexts.assemble(resolve(request)).files
        for line in re.findall(r"(?m)^COPY (?!.*--from)(.*) \S+$", files["Dockerfile"].decode()):
            for source in line.replace("--link ", "").split():
                assert any(name == source or name.startswith(source) for name in files), source


@pytest.mark.parametrize("module", ["ledger", "cubins"])
def test_the_build_stages_carry_every_module_that_they_import(module: str, tmp_path: Path) -> None:
    """A stage has Python's own library and the context's ``kernels`` folder, nothing else."""
    for name, content in contexts.assemble(resolve(WHEEL)).files.items():
        if name.startswith("kernels/"):
            path = tmp_path / "fp4forge" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fp4forge.kernels.{module}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_the_context_is_the_same_under_any_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under 077 the image's folders would be root's alone, and its layers others."""
    monkeypatch.setattr(contexts, "STATE", tmp_path)
    context = contexts.assemble(resolve(WHEEL))
    modes = []
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        folder = contexts.stage(context)
        os.umask(before)
        modes.append({p.relative_to(folder): oct(p.stat().st_mode) for p in folder.rglob("*")})
    assert modes[0] == modes[1]
