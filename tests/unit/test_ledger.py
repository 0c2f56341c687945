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
from fp4forge.kernels.groups import groups_of

ROOT = Path(__file__).resolve().parents[2]


def run(target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build.py", "ledger", str(target)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


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


GEMM = (Kernel("gemm", fp4_mma=4), Kernel("quant", fp4_cvt=2))


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
        ("12.0", "sm121", "family"), ("12.1", "sm120", "missing"), ("12.0a", "sm121", "missing"),
        ("12.0f", "sm120", "family"), ("12.1f", "sm120", "missing"), ("10.0f", "sm103", "family"),
        ("8.0+PTX", "sm121", "ptx"), ("8.0", "sm121", "missing"), ("12.1+PTX", "sm120", "missing"),
        ("12.1a", "sm121", "native"), ("10.0", "sm120", "missing"),
    ],
)  # fmt: skip
def test_what_runs_where(target: str, gpu: str, word: str) -> None:
    assert serves(target, GPUS[gpu]) == word


def test_only_fp4_marlin_counts() -> None:
    half, bf16, fp4, fp8 = 0x0A05, 0x0708, 0x0102, 0x0304  # mantissa bits, exponent bits
    for activation in (half, bf16):
        name = f"_ZN6marlin6MarlinILl{activation}ELl{fp4}ELl0EEEvv"
        assert list(groups_of(Kernel(name))) == ["marlin"]
    for pair in ((fp8, fp4), (bf16, fp8)):
        name = f"_ZN16marlin_moe_wna166MarlinILl{pair[0]}ELl{pair[1]}ELl0EEEvv"
        assert list(groups_of(Kernel(name))) == []


def test_differences_show_both_columns() -> None:
    lines = ledger.differences({"nvfp4_gemm": ["12.0f"]}, {"nvfp4_gemm": ["12.0a"]})
    assert lines == ["nvfp4_gemm: predicted 12.0f, found 12.0a"]
    assert ledger.differences({"m": ["8.0+PTX"]}, {"m": ["8.0", "8.0+PTX"]}) == []
    assert ledger.differences({"m": ["8.0+PTX"]}, {"m": ["8.0"]})
    assert ledger.differences({"m": []}, {"m": ["12.0"]})
