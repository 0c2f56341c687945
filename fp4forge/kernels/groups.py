"""The one table of kernel groups: what CMake compiles them from, and what a binary shows of them.

vLLM's CMake groups sources by the architectures that it compiles them for; a ledger groups kernels
by what they do. ``COMPILED_BY`` ties the two: a group of the ledger holds the targets of these
groups of CMake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fp4forge.kernels.cubins import Kernel

# Marlin's first two template arguments are the types of activations and weights.
_MARLIN = re.compile(r"6MarlinILl(\d+)ELl(\d+)E")

# Kernel groups of the verdict; Marlin counts where it takes FP4 weights with 16-bit activations.
# Names only assign a kernel that has the instructions to a group.
GROUPS = ("nvfp4_gemm", "nvfp4_grouped_gemm", "nvfp4_quantise", "fp8_gemm", "marlin", "moe_marlin",
          "flashinfer_gemm", "flashinfer_quantise")  # fmt: skip
REQUIRED = ("nvfp4_gemm", "nvfp4_quantise")

# Which of vLLM's CMake groups compiles the kernels of a verdict's group, by SM family.
COMPILED_BY = {
    "nvfp4_gemm": ("nvfp4_sm10x", "nvfp4_sm12x"),
    "nvfp4_quantise": ("nvfp4_sm10x", "nvfp4_sm12x"),
    "fp8_gemm": ("fp8_scaled_mm_sm10x", "fp8_scaled_mm_sm12x"),
    "marlin": ("marlin_sm75", "marlin_sm80", "marlin_bf16"),
    "moe_marlin": ("moe_marlin_sm75", "moe_marlin_sm80"),
}

# What a group is called here, by what stands in its sources' paths; the first match counts.
_NAMES = (
    (r"moe/moe_align", "moe_core"),
    (r"csrc/cache_kernels", "core"),
    (r"libtorch_stable/torch_bindings", "core_stable"),
    (r"nvfp4_kv_cache", "nvfp4_kv_cache"),
    (r"nvfp4.*sm120", "nvfp4_sm12x"),
    (r"nvfp4", "nvfp4_sm10x"),
    (r"moe/marlin_moe_wna16/sm(\d+)", r"moe_marlin_sm\1"),
    (r"moe/marlin_moe_wna16", "moe_marlin"),
    (r"marlin/sm80_kernel_\*_bfloat16", "marlin_bf16"),
    (r"marlin/sm(\d+)", r"marlin_sm\1"),
    (r"quantization/marlin/", "marlin"),
    (r"scaled_mm_c3x_sm90", "fp8_scaled_mm_sm90"),
    (r"scaled_mm_c3x_sm100", "fp8_scaled_mm_sm10x"),
    (r"scaled_mm_c3x_sm120", "fp8_scaled_mm_sm12x"),
    (r"scaled_mm_c2x", "scaled_mm_c2x"),
    (r"grouped_mm_c3x_sm90", "cutlass_moe_sm90"),
    (r"grouped_mm_c3x_sm100", "cutlass_moe_sm10x"),
    (r"moe_data", "cutlass_moe_data"),
    (r"cutlass_mla", "mla"),
    (r"mxfp8_grouped_mm", "mxfp8_grouped_mm"),
    (r"dsv3_fused_a", "dsv3_fused_a_gemm"),
    (r"dsv3_router", "dsv3_router_gemm"),
    (r"machete", "machete"),
    (r"hadamard", "hadacore"),
    (r"w4a8", "w4a8"),
    (r"allspark", "allspark"),
    (r"flash_fwd_mla_fp8|extension/", "flashmla_extension"),
    (r"get_decoding_sched_meta|flash_mla", "flashmla"),
    (r"gemm_ada|qutlass", "qutlass"),
    (r"cumem_allocator", "cumem_allocator"),
    (r"moe_wna16\.cu", "moe_wna16"),
)


def group_name(sources: list[str]) -> str:
    """The name of the group that compiles these sources; the first source's where none fits."""
    for pattern, name in _NAMES:
        for source in sources:
            if match := re.search(pattern, source):
                return match.expand(name)
    return Path(sources[0]).stem


def groups_of(kernel: Kernel) -> Iterator[str]:
    """The groups that a kernel counts for."""
    if kernel.fp4_mma:
        grouped = "GroupProblemShape" in kernel.name
        yield "nvfp4_grouped_gemm" if grouped else "nvfp4_gemm"
    if kernel.fp4_cvt:
        yield "nvfp4_quantise"
    if kernel.fp8_mma and "float_e4m3" in kernel.name and "GroupProblemShape" not in kernel.name:
        yield "fp8_gemm"
    if match := _MARLIN.search(kernel.name):
        activation, weight = (_scalar(int(number)) for number in match.groups())
        if weight == (2, 1) and activation in ((5, 10), (8, 7)):
            yield "moe_marlin" if "marlin_moe" in kernel.name else "marlin"


def _scalar(number: int) -> tuple[int, int]:
    """Exponent and mantissa bits of a vllm::ScalarType id (csrc/core/scalar_type.hpp)."""
    return number & 0xFF, number >> 8 & 0xFF
