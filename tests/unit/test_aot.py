"""Which of FlashInfer's modules an image gets, and what its ledger must then show."""

from __future__ import annotations

import pytest

from fp4forge.core.errors import UsageError
from fp4forge.image.stages.aot import key
from fp4forge.kernels import ledger
from fp4forge.kernels.cubins import Cubin, DeviceCode, Kernel
from fp4forge.plan import aot
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve

WHEEL = {"release": "0.20.2", "strategy": "wheel", "base": "bootstrap"}


def test_modules_follow_the_gpus() -> None:
    spark = aot.choose("gemma4", ("sm121",))
    assert spark.archs == "12.1a"
    assert "gemm.gen_gemm_sm120_module_cutlass_fp4" in spark.generators
    both = aot.choose("gemma4", ("sm100", "sm120", "sm121"))
    assert both.archs == "10.0a 12.0f 12.1a"
    assert len(both.generators) == 4  # SM12x's two are shared
    assert aot.choose("none", ("sm121",)) == aot.AotModules()


def test_the_ledger_is_held_to_the_modules() -> None:
    wanted = aot.expected(aot.choose("gemma4", ("sm121",)), ("sm121",))
    assert wanted == {"flashinfer_gemm": ["12.1a"], "flashinfer_quantise": ["12.0f"]}
    assert ledger.differences(wanted, {"flashinfer_gemm": ["12.1a"]}) == [
        "flashinfer_quantise: predicted 12.0f, found nothing"
    ]
    assert aot.expected(aot.AotModules(), ("sm121",)) == {}
    whole = aot.expected(aot.choose("all", ("sm121",)), ("sm121",))
    assert whole == {"flashinfer_gemm": ["12.1a"], "flashinfer_quantise": ["12.0f", "12.1a"]}


def test_modules_are_compiled_anew_for_what_decides_their_objects_alone() -> None:
    versions = {"flashinfer-python": "0.6", "nvidia-cuda-nvcc": "13.0", "transformers": "5.5.4"}
    before = key("12.1a", versions)
    assert key("12.1a", versions | {"transformers": "5.5.5", "vllm": "0.20.2"}) == before
    other = [versions | {name: "1"} for name in ("flashinfer-python", "nvidia-cuda-nvcc", "torch")]
    assert len({before, key("12.0f", versions), *(key("12.1a", each) for each in other)}) == 5


@pytest.mark.parametrize(
    ("path", "groups"),
    [
        ("flashinfer/data/aot/fp4_gemm_cutlass_sm120/fp4_gemm_cutlass_sm120.so", "flashinfer_gemm"),
        ("flashinfer/data/aot/fused_moe_120/fused_moe_120.so", ""),
        ("flashinfer_jit_cache/jit_cache/fused_moe_120/fused_moe_120.so", ""),
        ("vllm/_C_stable_libtorch.abi3.so", "nvfp4_gemm"),
    ],
)
def test_flashinfers_kernels_do_not_count_as_vllms(path: str, groups: str) -> None:
    kernel = Kernel("nvfp4_gemm", fp4_mma=4)
    code = DeviceCode("0" * 64, (Cubin("sm_121a", "exact", (kernel,), True),), ())
    found = ledger.Ledger("x", (ledger.File(path, code),)).targets()
    assert [group for group, targets in found.items() if targets] == groups.split()


def test_a_foreign_platform_gets_none_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert resolve(ImageRequest("sm120", **WHEEL)).aot.name == "gemma4"  # type: ignore[arg-type]
    assert resolve(ImageRequest("sm121", **WHEEL)).aot.name == "none"  # type: ignore[arg-type]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(UsageError, match="--aot 'most' does not exist"):
        resolve(ImageRequest("sm120", aot="most", **WHEEL))  # type: ignore[arg-type]
