"""Where backends' kernels come from: each origin, what turns one into another, and who shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fp4forge.checks import backend_content, ledgers, recorded_kernels
from fp4forge.cli import backends as backends_command
from fp4forge.cli import kernels_page, origins, planned
from fp4forge.cli import ledger as ledger_command
from fp4forge.core.errors import BrokenReleasesError, CoverageError, ReleaseError
from fp4forge.core.paths import ROOT
from fp4forge.image import context
from fp4forge.inputs.broken_releases import Failures
from fp4forge.kernels.gpus import GPUS, listed
from fp4forge.maintain import read_backends
from fp4forge.models import backend_answers, backend_kernels
from fp4forge.models.backend_kernels import (
    AHEAD,
    DOWNLOADED,
    IMPOSSIBLE,
    JIT,
    ImageContent,
    KernelOrigin,
)
from fp4forge.oci.acquire import RecordedKernels, RecordedOrigin, RecordedPlan
from fp4forge.plan import backend_origins, packages
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from tests.image.programs import backend_files

VLLM = "0.33.0"


@cache
def locked(
    arch: str = "sm121", release: str = VLLM, aot: str = "none", strategy: str = "wheel"
) -> Plan:
    request = ImageRequest(arch, release, "plain", strategy, "bootstrap", "linux/arm64", aot=aot)
    plan = resolve(request)
    return replace(plan, packages=packages.versions(plan))


def without(plan: Plan, *names: str) -> Plan:
    return replace(plan, packages={n: v for n, v in plan.packages.items() if n not in names})


def origin(plan: Plan, kind: str, name: str, gpu: str = "sm121", cache: str = "") -> KernelOrigin:
    return backend_kernels.origin(kind, name, GPUS[gpu], backend_origins.content(plan), cache)


def test_a_compiler_that_leaves_the_lock_makes_its_backends_impossible() -> None:
    plan = locked()
    for kind, name, package, compiler in (
        ("experts", "FLASHINFER_CUTLASS", "ninja", "nvcc"),
        ("attention", "TRITON_ATTN", "triton", "triton"),
        ("linear", "FlashInferB12xNvFp4LinearKernel", "nvidia-cutlass-dsl", "cute-dsl"),
        ("experts", "HUMMING", "nvidia-cuda-nvrtc", "nvrtc"),
    ):
        there = origin(plan, kind, name)
        assert (there.origin, there.by) == (JIT, (compiler,)), name
        gone = origin(without(plan, package), kind, name)
        assert (gone.origin, gone.why) == (IMPOSSIBLE, f"{compiler} lacks {package}"), name


def test_an_extension_without_the_cubin_makes_its_backends_impossible() -> None:
    plan = locked()
    there = origin(plan, "experts", "VLLM_CUTLASS")
    assert there.origin == AHEAD and "nvfp4_grouped_gemm 12.0f" in there.why
    exact = replace(plan, predicted=plan.predicted | {"nvfp4_grouped_gemm": ["10.0f", "12.0a"]})
    gone = origin(exact, "experts", "VLLM_CUTLASS")
    assert gone.origin == IMPOSSIBLE and gone.lacks == ("nvfp4_grouped_gemm",)
    assert gone.why == "no nvfp4_grouped_gemm for 12.1, only 10.0f 12.0a"
    none = replace(plan, predicted=plan.predicted | {"nvfp4_grouped_gemm": []})
    assert origin(none, "experts", "VLLM_CUTLASS").why == "no nvfp4_grouped_gemm for 12.1"


def test_ptx_is_ahead_of_time_and_says_who_compiles_it() -> None:
    found = origin(locked(release="0.20.2"), "experts", "MARLIN")
    assert str(found) == f"{AHEAD}: moe_marlin 8.0+PTX, which the driver compiles"


def test_a_file_that_is_left_out_is_not_there_though_its_package_is_locked() -> None:
    plan = locked()
    assert "tilelang" in plan.packages
    lacks = backend_kernels.compilers(backend_origins.content(plan))
    assert lacks["tilelang"] == "tilelang, z3-solver" and lacks["nvcc"] == ""
    kept = replace(plan, leave_out=())
    assert backend_kernels.compilers(backend_origins.content(kept))["tilelang"] == ""


def test_flashinfers_module_is_ahead_of_time_if_the_build_compiles_it() -> None:
    name = "FlashInferCutlassNvFp4LinearKernel"
    assert origin(locked(), "linear", name).by == ("nvcc",)
    ahead = origin(locked(aot="gemma4"), "linear", name)
    assert ahead.origin == AHEAD and "fp4_gemm_cutlass_sm120" in ahead.why
    # Without nvcc the module still loads, and what has none cannot be compiled.
    bare = without(locked(aot="gemma4"), "nvidia-cuda-nvcc")
    assert origin(bare, "linear", name).origin == AHEAD
    assert origin(bare, "experts", "FLASHINFER_CUTLASS").origin == IMPOSSIBLE
    assert origin(locked(aot="all"), "experts", "FLASHINFER_CUTLASS").origin == AHEAD


def test_cubins_that_no_package_has_are_downloaded() -> None:
    there = origin(locked("sm100", "0.20.2"), "experts", "FLASHINFER_TRTLLM", "sm100")
    assert there.origin == JIT
    gone = origin(locked("sm100"), "experts", "FLASHINFER_TRTLLM", "sm100")
    assert str(gone) == f"{DOWNLOADED}: no flashinfer-cubin: FlashInfer downloads its cubins"


def test_a_backend_of_other_gpus_is_impossible_whatever_is_installed() -> None:
    found = origin(locked(), "experts", "FLASHINFER_CUTEDSL")
    assert found.why == "it has no kernels for 12.1, only for 10.x"
    assert origin(locked(), "linear", "FbgemmNvFp4LinearKernel").why == "no fbgemm-gpu"


def test_an_nvfp4_cache_needs_vllms_own_kernel_too() -> None:
    plan = replace(locked(), predicted=locked().predicted | {"nvfp4_kv_cache": []})
    assert origin(plan, "attention", "FLASHINFER").origin == JIT
    assert origin(plan, "attention", "FLASHINFER", cache="nvfp4").lacks == ("nvfp4_kv_cache",)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (lambda: without(locked(), "ninja"), "FLASHINFER_CUTLASS, impossible in this image: nvcc"),
        (
            lambda: replace(locked(), predicted=locked().predicted | {"nvfp4_quantise": []}),
            "FlashInferCutlassNvFp4LinearKernel, impossible in this image: no nvfp4_quantise",
        ),
    ],
)
def test_a_selected_backend_that_cannot_run_refuses_the_plan(
    plan: Callable[[], Plan], said: str
) -> None:
    with pytest.raises(CoverageError, match=said) as caught:
        backend_origins.predicted(plan())
    assert backend_kernels.WHERE in caught.value.remedy
    assert backend_origins.predicted(replace(plan(), allow_missing=("sm121",)))


def test_a_component_that_was_left_out_on_request_refuses_no_plan() -> None:
    plan = locked(release="0.20.2")
    content = backend_origins.content(plan)
    bare = replace(content, targets=content.targets | {"flash_attn_2": ()})
    made = backend_origins.origins("0.20.2", ("sm121",), bare)
    assert "FLASH_ATTN" in "".join(backend_origins.impossible("0.20.2", made))
    assert backend_origins.impossible("0.20.2", made, {"flash_attn_2"}) == []


def test_every_supported_image_has_what_vllm_selects() -> None:
    for arch in ("blackwell", *GPUS):
        for release in ("0.20.2", VLLM):
            assert backend_origins.predicted(locked(arch, release))["gpus"].keys() == set(
                resolve(ImageRequest(arch, release, "plain", "wheel", "bootstrap")).gpus
            )


def test_a_release_without_answers_has_no_table() -> None:
    assert backend_origins.predicted(locked(release="0.19.1", strategy="source")) == {}


def an_answer(name: str) -> backend_answers.BackendAnswer:
    option = backend_answers.BackendOption(name=name)
    decision = backend_answers.BackendDecision(
        kind="experts", layer="8 experts", selected=name, options=(option,)
    )
    return backend_answers.BackendAnswer(
        vllm=VLLM, gpu="sm121", capability=(12, 1), model="m", family="f", decisions=(decision,)
    )


def test_a_backend_that_the_table_lacks_is_an_error_that_names_it_and_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_answers, "load", lambda _: (an_answer("NEWCOMER"),))
    for work in (
        lambda: backend_origins.predicted(locked()),
        lambda: context.assemble(
            resolve(ImageRequest("sm121", VLLM, "plain", "wheel", "bootstrap"))
        ),
        lambda: backend_kernels.find("experts", "NEWCOMER"),
    ):
        with pytest.raises(ReleaseError, match=r"NEWCOMER \(experts\)") as caught:
            work()
        assert backend_kernels.WHERE in caught.value.remedy
    failures = Failures()
    kernels_page.text(failures)
    with pytest.raises(BrokenReleasesError, match="NEWCOMER"):
        failures.check()


def test_answers_with_an_unknown_backend_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr(backend_answers, "write", written.append)
    monkeypatch.setattr(
        backends_command, "_ask_image", lambda o: ((an_answer("NEWCOMER"),), RecordedKernels())
    )
    line = ["--gpu", "sm121", "--family", "qwen3", "--image", "x", "--write"]
    result = CliRunner().invoke(backends_command.backends, line)
    assert isinstance(result.exception, ReleaseError) and not written


SOURCES = {
    "vllm/model_executor/kernels/linear/__init__.py": (
        "_POSSIBLE_NVFP4_KERNELS: dict = {P.ROCM: [Rocm],"
        " PlatformEnum.CUDA: [MarlinNvFp4LinearKernel]}\n"
    ),
    "vllm/model_executor/layers/fused_moe/oracle/nvfp4.py": (
        "class NvFp4MoeBackend(Enum):\n    'x'\n    MARLIN = 'MARLIN'\n"
    ),
    "vllm/platforms/cuda.py": (
        "def _get_backend_priorities(a):\n    return [AttentionBackendEnum.TRITON_ATTN, a.b]\n"
    ),
}


def sources(folder: Path, **changed: str) -> Path:
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for old, new in changed.items():
            text = text.replace(old, new)
        path.write_text(text)
    return folder


def test_a_new_release_is_held_to_the_table_before_anything_is_written(tmp_path: Path) -> None:
    assert read_backends.extract(sources(tmp_path)) == [
        ("linear", "MarlinNvFp4LinearKernel"),
        ("experts", "MARLIN"),
        ("attention", "TRITON_ATTN"),
    ]
    read_backends.check(tmp_path)
    with pytest.raises(ReleaseError, match=r"NEW_ATTN \(attention\)") as caught:
        read_backends.check(sources(tmp_path, TRITON_ATTN="NEW_ATTN"))
    assert backend_kernels.WHERE in caught.value.remedy


@pytest.mark.parametrize("file", SOURCES)
def test_sources_without_names_of_backends_are_an_error(tmp_path: Path, file: str) -> None:
    sources(tmp_path)
    for text in ("x = 1\n", "def broken(:\n", None):
        (tmp_path / file).unlink(missing_ok=True)
        if text is not None:
            (tmp_path / file).write_text(text)
        with pytest.raises(ReleaseError, match=file):
            read_backends.extract(tmp_path)


LEDGER = {
    "groups": {"nvfp4_gemm": ["12.0f"], "marlin": []},
    "files": [
        {
            "path": "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
            "cubins": [
                {"arch": "sm_80", "kind": "bare", "kernels": 3},
                {"arch": "sm_120f", "kind": "family", "kernels": 0},
            ],
            "ptx": [{"arch": "sm_80", "kernels": 3}],
        }
    ],
}


def test_an_images_content_is_read_from_its_files_and_its_ledger() -> None:
    found = backend_content.content(LEDGER, ["a"], ["moe_utils"])
    assert found.targets["nvfp4_gemm"] == ("12.0f",)
    # Ledgers lack this group, so its file decides.
    assert found.targets["flash_attn_2"] == ("8.0", "8.0+PTX")
    assert found.targets["flashmla"] == ()
    assert (found.files, found.libraries) == (frozenset({"a"}), frozenset({"moe_utils"}))


def test_files_are_looked_for_where_they_are(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("nvidia/cu13/bin/nvcc", "dsl/a/b/lib.so", "flashinfer/data/aot/m/m.so"):
        (site / name).parent.mkdir(parents=True)
        (site / name).touch()
    absolute = tmp_path / "usr-bin-g++"
    wanted = ["nvidia/cu*/bin/nvcc", "nvidia/cu*/bin/ptxas", "dsl/**/lib.so", str(absolute)]
    assert backend_files.run(str(site), wanted) == ([wanted[0], wanted[2]], ["m"])
    absolute.touch()
    assert str(absolute) in backend_files.run(str(site), wanted)[0]
    assert {"ninja", "g++"} <= {Path(one).name for one in backend_content.questions()}


def test_an_image_that_differs_from_its_plan_is_found() -> None:
    plan = locked()
    content = backend_origins.content(plan)
    predicted = backend_origins.predicted(plan)

    def differences(real: ImageContent) -> str:
        made = backend_origins.origins(VLLM, plan.gpus, real)
        return "\n".join(
            backend_origins.differences(predicted, backend_origins.as_json(real, made))
        )

    assert differences(content) == ""
    no_ninja = replace(content, files=content.files - {"/usr/local/bin/ninja"})
    said = differences(no_ninja)
    assert "nvcc lacks ninja, predicted nothing" in said
    assert "experts FLASHINFER_CUTLASS: impossible in this image: nvcc lacks ninja" in said
    assert "predicted compiled at run time by nvcc" in said
    more = replace(content, libraries=frozenset({"fused_moe_120"}))
    assert "FLASHINFER_CUTLASS: ahead of time" in differences(more)
    assert backend_origins.differences(predicted, {"compilers": {}, "gpus": {}})


def test_the_template_installs_what_needs_no_lock() -> None:
    text = (ROOT / "templates" / "system.j2").read_text()
    named = {need.package for need in backend_kernels.table().files() if need.distribution}
    assert named and all(f'"{name}"' in text for name in named)


def test_the_table_names_compilers_and_backends_once() -> None:
    text = backend_kernels.PATH.read_text()
    for broken, said in (
        (text.replace("{compiler: nvrtc}", "{compiler: nvrtx}", 1), "the compiler nvrtx"),
        (text.replace("names: [HUMMING]", "names: [MARLIN]"), "have MARLIN twice"),
        (text.replace("{group: moe_marlin}", "{group: moe_marlin, compiler: nvcc}"), "only way"),
        (
            text.replace("{package: flashinfer-python, file: b12x/__init__.py}", "{package: x}"),
            "is missing",
        ),
    ):
        with pytest.raises(ReleaseError, match=said):
            backend_kernels.FORMAT.parse(broken, backend_kernels.WHERE)


def test_every_module_is_one_that_flashinfer_has_a_name_for() -> None:
    for part in backend_kernels.table().parts():
        assert not part.generator or (part.library and part.compiler == "nvcc")
        if part.generator.startswith("gemm."):
            # The build compiles it for the same GPUs (kernels/gpus.py).
            own = {g.label for g in GPUS.values() if part.generator == f"gemm.{g.flashinfer_gemm}"}
            on = {g.label for g in GPUS.values() if listed(g.label, part.on)}
            assert own == on


RECORDED = RecordedKernels(
    {"nvcc": "", "tilelang": "tilelang"},
    {
        "sm120": {"experts": {"A": RecordedOrigin(JIT, ("nvcc",))}},
        "sm121": {"experts": {"A": RecordedOrigin(IMPOSSIBLE, why="no a")}},
    },
)


def test_plans_and_pages_show_how_kernels_come() -> None:
    plan = context.assemble(locked()).plan
    lines = "\n".join(planned.lines(plan))
    assert "nvcc: FlashInferCutlassNvFp4LinearKernel, FLASHINFER_CUTLASS" in " ".join(lines.split())
    again = msgspec.json.decode(json.dumps(plan.as_json()).encode(), type=RecordedPlan)
    assert again.backend_kernels == origins.of_plan(plan)
    assert origins.rows(RECORDED) == [("experts", "A", "nvcc", "impossible")]
    assert origins.compilers(RECORDED) == "nvcc: there; tilelang: impossible, no tilelang"
    assert kernels_page.PATH.read_text() == kernels_page.text(Failures())


def test_kept_answers_show_where_the_kernels_come_from() -> None:
    line = ["--gpu", "sm121", "--family", "qwen3", "--kept", "--release", VLLM]
    said = " ".join(CliRunner().invoke(backends_command.backends, line).output.split())
    assert "FLASHINFER_B12X kernels compiled at run time by nvcc" in said
    assert "FlashInferTrtllmNvFp4LinearKernel is impossible in this image: it has no" in said
    verbose = CliRunner().invoke(backends_command.backends, [*line, "--verbose"]).output
    assert "nvrtc" in verbose and "impossible" in verbose
    (answer,) = json.loads(CliRunner().invoke(backends_command.backends, [*line, "--json"]).output)
    assert answer["kernels"]["experts"]["HUMMING"]["by"] == ["nvrtc"]
    assert answer["compilers"]["tilelang"] == "tilelang, z3-solver"


def test_the_ledger_of_an_image_shows_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = SimpleNamespace(
        files=(), gpus={gpu: {} for gpu in GPUS}, as_json=lambda: {"groups": {}}
    )
    monkeypatch.setattr(ledgers, "read", lambda target, report: empty)
    monkeypatch.setattr(ledger_command, "_show_ledger", lambda found: None)
    monkeypatch.setattr(recorded_kernels, "of", lambda target: RECORDED)
    run = CliRunner().invoke(ledger_command.ledger, ["image"])
    assert "impossible" in run.output and "tilelang: impossible, no tilelang" in run.output
    run = CliRunner().invoke(ledger_command.ledger, ["image", "--json"])
    assert (
        json.loads(run.stdout)["backend_kernels"]["gpus"]["sm121"]["experts"]["A"]["why"] == "no a"
    )


def test_a_file_records_no_origins(tmp_path: Path) -> None:
    assert recorded_kernels.of(str(tmp_path)) == RecordedKernels()
