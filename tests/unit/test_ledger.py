"""The ledger's bad input and its reasoning; real binaries are in tests/e2e/test_ledger.py."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fp4forge.cli.ledger import file_rows
from fp4forge.kernels import ledger
from fp4forge.kernels.cubins import Cubin, DeviceCode, Kernel, Ptx
from fp4forge.kernels.gpus import GPUS, serves
from fp4forge.kernels.groups import COMPILED, of_kernels, of_sources, to_read

ROOT = Path(__file__).resolve().parents[2]


def run(target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", "ledger", str(target)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def write(folder: Path, kind: str) -> Path:
    elf = Path(sys.executable).resolve().read_bytes()
    path = folder / ("x.whl" if "wheel" in kind else "x.so")
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "text file":
        path.write_text("hello\n")
    elif kind == "truncated ELF":
        path.write_bytes(elf[:3000])
    elif kind == "ELF without CUDA":
        path.write_bytes(elf)
    elif kind == "wheel that leaves itself":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../evil.so", b"\x7fELF")
    elif kind == "wheel without CUDA":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("pkg/a.py", "x = 1\n")
    else:
        path.write_text("no zip\n")
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty file", "is empty"),
        ("text file", "not an ELF file"),
        ("truncated ELF", "ELF"),
        ("ELF without CUDA", "no CUDA device code"),
        ("wheel that leaves itself", "leaves the wheel"),
        ("wheel without CUDA", "no file with CUDA device code"),
        ("wheel that is no zip", "not a readable wheel"),
    ],
)
def test_bad_input(tmp_path: Path, kind: str, says: str) -> None:
    done = run(write(tmp_path, kind))
    assert done.returncode == 18, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path.parent / "evil.so").exists()


def book(*parts: Cubin | Ptx) -> ledger.Ledger:
    cubins = tuple(p for p in parts if isinstance(p, Cubin))
    ptx = tuple(p for p in parts if isinstance(p, Ptx))
    return ledger.Ledger("t", (ledger.File("x.so", DeviceCode("0", cubins, ptx)),))


GEMM = (Kernel("nvfp4_gemm", fp4_mma=4), Kernel("nvfp4_quantise", fp4_cvt=2))


def test_exact_cubins_of_a_sibling_do_not_count() -> None:
    gpus = book(Cubin("sm_120a", "exact", GEMM, True)).gpus
    assert gpus["sm120"]["ok"]
    assert not gpus["sm121"]["ok"]


def test_gemm_without_quantise_is_not_enough() -> None:
    assert not book(Cubin("sm_120f", "family", GEMM[:1], True)).gpus["sm120"]["ok"]


def test_files_alike_are_one_row_and_fp4_is_named() -> None:
    plain = DeviceCode("0" * 64, (Cubin("sm_121a", "exact", (Kernel("attention"),), True),), ())
    fp4 = DeviceCode("1" * 64, (Cubin("sm_121a", "exact", GEMM, True),), ())
    modules = [ledger.File(f"flashinfer/data/aot/{n}/{n}.so", plain) for n in range(700)]
    named = [ledger.File("flashinfer/data/aot/gemm/gemm.so", fp4)]
    few = [ledger.File(f"vllm/{name}.so", plain) for name in ("_C", "_moe_C")]
    assert file_rows((*modules, *named, *few)) == [
        ("flashinfer/data/aot/ (700 files)", "121a", "", "0", "0"),
        ("flashinfer/data/aot/gemm/gemm.so", "121a", "", "4", "2"),
        ("vllm/_C.so", "121a", "", "0", "0"),
        ("vllm/_moe_C.so", "121a", "", "0", "0"),
    ]


@pytest.mark.parametrize(
    ("target", "gpu", "word"),
    [
        ("12.0", "sm121", "family"),
        ("12.1", "sm120", "missing"),
        ("12.0a", "sm121", "missing"),
        ("12.0f", "sm120", "family"),
        ("12.1f", "sm120", "missing"),
        ("10.0f", "sm103", "family"),
        ("8.0+PTX", "sm121", "ptx"),
        ("8.0", "sm121", "missing"),
        ("12.1+PTX", "sm120", "missing"),
        ("12.1a", "sm121", "native"),
        ("10.0", "sm120", "missing"),
    ],
)
def test_what_runs_where(target: str, gpu: str, word: str) -> None:
    assert serves(target, GPUS[gpu]) == word


def found_in(path: str, *kernels: Kernel) -> list[str]:
    return sorted(set(of_kernels(path, kernels)))


def test_only_fp4_marlin_counts() -> None:
    half, bf16, fp4, fp8 = 0x0A05, 0x0708, 0x0102, 0x0304  # mantissa bits, exponent bits
    for activation in (half, bf16):
        name = f"_ZN6marlin6MarlinILl{activation}ELl{fp4}ELl0EEEvv"
        assert found_in("_C.so", Kernel(name)) == ["marlin"]
    for pair in ((fp8, fp4), (bf16, fp8)):
        name = f"_ZN16marlin_moe_wna166MarlinILl{pair[0]}ELl{pair[1]}ELl0EEEvv"
        assert found_in("_C.so", Kernel(name)) == []


# Names of vLLM 0.33.0's kernels, cut where they no longer matter.
DENSE = "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalIN4cute5tupleIJiiiiEEE"
GROUPED = "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalINS1_17GroupProblemShapeI"
NV = "NS_12float_e2m1_tENS_13float_ue4m3_tE"
MX = "NS_12float_e2m1_tENS_13float_ue8m0_tE"
QUANTISE = "_ZN4vllm15cvt_fp16_to_fp4I13__nv_bfloat16Lb0ELb1EEEviiiiPKT_PKfPjS7_"
EXPERTS = "_ZN4vllm15cvt_fp16_to_fp4I13__nv_bfloat16Lb1ELb0ELb1EEEviiPKT_PKfPjS7_S7_S7_ib"
FLASHMLA = "_ZN5sm1006decode6sparse6head6439flash_fwdINS2_6ConfigEL9ModelType2ELS6_3ELb1EEE"


@pytest.mark.parametrize(
    ("kernels", "groups"),
    [
        ([Kernel(DENSE + NV, fp4_mma=1)], ["nvfp4_gemm"]),
        ([Kernel(DENSE + NV)], []),  # a symbol proves nothing
        # Kernels of no group hide no other's loss.
        ([Kernel("_ZN4vllm19new_fp4_insertE", fp4_cvt=1)], []),
        ([Kernel(GROUPED + NV, fp4_mma=1)], ["nvfp4_grouped_gemm"]),
        ([Kernel(GROUPED + MX, fp4_mma=1)], ["mxfp4_grouped_gemm"]),
        # QuTLASS has GEMMs of both types in one source, vLLM's own only NVFP4's.
        ([Kernel(DENSE + NV, fp4_mma=1), Kernel(DENSE + MX, fp4_mma=1)], ["qutlass_gemm"]),
        ([Kernel(DENSE + MX, fp4_cvt=1)], ["qutlass_quantise"]),
        ([Kernel(QUANTISE, fp4_cvt=1)], ["nvfp4_quantise"]),
        ([Kernel(EXPERTS, fp4_cvt=1)], ["nvfp4_experts_quantise"]),
        (
            [Kernel("_ZN4vllm21mxfp4_cvt_fp16_to_fp4I6__halfLb1EEEvii", fp4_cvt=1)],
            ["mxfp4_quantise"],
        ),
        ([Kernel("_ZN4vllm30reshape_and_cache_nvfp4_kernelI", fp4_cvt=1)], ["nvfp4_kv_cache"]),
        (
            [Kernel("_ZN4vllm36concat_and_cache_nvfp4_ds_mla_kernelE", fp4_cvt=1)],
            ["nvfp4_mla_cache"],
        ),
        (
            [
                Kernel(
                    "_ZN4vllm20minimax_m3_fused_ops37fusedI18Fp8KVCacheDataTypeE0ELb1E", fp4_cvt=1
                )
            ],
            ["minimax_m3_insert"],
        ),
        ([Kernel(FLASHMLA, fp4_cvt=1)], ["flashmla_fp4"]),
        ([Kernel("_Z21compute_problem_sizesILb0EEvPKi")], ["moe_data"]),
        ([Kernel(DENSE + "NS_12float_e4m3_tE", fp8_mma=1)], ["fp8_gemm"]),
        ([Kernel("_ZN4fmha36Sm100FmhaMlaKernelINS_12float_e4m3_tE", fp8_mma=1)], []),
    ],
)
def test_a_kernel_counts_for_its_own_group_alone(kernels: list[Kernel], groups: list[str]) -> None:
    assert found_in("vllm/_C_stable_libtorch.abi3.so", *kernels) == groups
    instructions = any(k.fp4_mma or k.fp4_cvt or k.fp8_mma for k in kernels)
    names = tuple(kernel.name for kernel in kernels)
    assert to_read("_C_stable_libtorch.abi3.so", names) or not instructions or groups == []


def test_which_kernels_are_disassembled() -> None:
    fp8 = DENSE + "NS_12float_e4m3_tE"
    names = ("plain", QUANTISE, fp8 + "1", fp8 + "2", "_ZN6marlin6MarlinILl1ELl2E")
    assert to_read("_C.so", names) == (QUANTISE, fp8 + "1")  # one of FP8's stands for all
    assert to_read("_C.so", ("plain",)) == ()
    assert to_read("fp4_quantization_120f.so", ("plain",)) == ("plain",)


def test_a_lost_gemm_is_seen_whatever_else_has_fp4() -> None:
    """The GEMM's cubins for SM12x go; every other kernel with FP4 instructions stays."""
    others = (
        Cubin("sm_120f", "family", (Kernel(GROUPED + NV, fp4_mma=1),), True),
        Cubin(
            "sm_120f",
            "family",
            (Kernel(DENSE + NV, fp4_mma=1), Kernel(DENSE + MX, fp4_mma=1)),
            True,
        ),
        Cubin("sm_120f", "family", (Kernel(QUANTISE, fp4_cvt=1),), True),
        Cubin("sm_100f", "family", (Kernel(DENSE + NV, fp4_mma=1),), True),
    )
    found = book(*others)
    compiled = {"nvfp4_gemm": ["10.0f", "12.0f"]}
    assert ledger.differences(
        {"nvfp4_gemm": COMPILED["nvfp4_gemm"].expected(compiled["nvfp4_gemm"])}, found.targets()
    ) == ["nvfp4_gemm: predicted 10.0f 12.0f, found 10.0f"]
    assert ledger.lost(found, ("sm120", "sm121")) == {"sm120": "nvfp4_gemm", "sm121": "nvfp4_gemm"}
    assert ledger.lost(found, ("sm100",)) == {"sm100": "nvfp4_quantise"}


def test_what_a_binary_shows_of_targets() -> None:
    assert COMPILED["flashmla_fp4"].expected(["9.0a", "10.0f"]) == ["10.0f"]
    assert COMPILED["minimax_m3_insert"].expected(["8.0", "10.0f", "12.0"]) == ["10.0f"]
    assert COMPILED["qutlass_gemm"].expected(["10.0f", "12.0f"]) == ["10.0f"]
    assert COMPILED["moe_data"].expected(["9.0a", "12.0f"]) == ["12.0f", "9.0a"]
    fp8 = {"fp8_gemm": ["10.0f", "11.0f", "12.1a"]}
    assert ledger.expected(fp8)["fp8_gemm"] == fp8["fp8_gemm"]
    assert ledger.expected(fp8, ("enable_sm120_only",))["fp8_gemm"] == ["10.0f", "11.0f"]
    assert ledger.expected(fp8, ("enable_sm100f_only",))["fp8_gemm"] == ["10.0f", "12.1a"]


def test_sources_have_the_groups_of_their_kernels() -> None:
    sources = {
        "csrc/torch_bindings.cpp": ["12.0"],
        "csrc/cache_kernels.cu": ["12.0"],
        "csrc/quantization/fp4/nvfp4_scaled_mm_sm120_kernels.cu": ["12.0f"],
        "csrc/nvfp4_kv_cache_kernels.cu": ["12.0f", "10.0f"],
        "csrc/other_kernels.cu": ["10.0f"],
        "deepselect/csrc/api.cpp": ["10.0f"],
    }
    found = {name: targets for name, targets in of_sources(sources).items() if targets}
    assert found == {
        "core": ["12.0"],
        "nvfp4_gemm": ["12.0f"],
        "nvfp4_kv_cache": ["12.0f", "10.0f"],
        "other_kernels": ["10.0f"],
        "deepselect": ["10.0f"],
    }


def test_differences_show_both_columns() -> None:
    lines = ledger.differences({"nvfp4_gemm": ["12.0f"]}, {"nvfp4_gemm": ["12.0a"]})
    assert lines == ["nvfp4_gemm: predicted 12.0f, found 12.0a"]
    assert ledger.differences({"m": ["8.0+PTX"]}, {"m": ["8.0", "8.0+PTX"]}) == []
    assert ledger.differences({"m": ["8.0+PTX"]}, {"m": ["8.0"]})
    assert ledger.differences({"m": []}, {"m": ["12.0"]})
