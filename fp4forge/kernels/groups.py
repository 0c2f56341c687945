"""The one table of kernel groups: which sources of vLLM hold them, and what a binary shows of them.

A group is what one can lose without the others: its sources have files of their own in vLLM's
CMake, and its kernels names of their own in a binary. Prediction and ledger are compared group by
group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fp4forge.kernels.cubins import Kernel

# Marlin's first two template arguments are the types of activations and weights.
_MARLIN = re.compile(r"6MarlinILl(\d+)ELl(\d+)E")


@dataclass(frozen=True)
class Group:
    """One group. Patterns are searched for; an empty one is in no source, or in every name."""

    name: str
    sources: str  # in the path of a source in CMake
    kernel: str  # in a kernel's mangled name
    needs: str = ""  # the count of instructions that a kernel must have; without one, names decide
    without: str = "$^"  # not in the kernel's name
    beside: str = ""  # in the name of any kernel of the same cubin, so of the same source
    one_family: bool = False  # all sources are compiled for the family of the lowest target

    def expected(self, targets: Iterable[str]) -> list[str]:
        """What a binary shows of the group if its sources are compiled for these targets.

        FP4 and FP8 instructions exist only in exact and family targets (``cubins``).
        """
        found = set(targets)
        if self.needs:
            found = {t for t in found if t[-1] in "af" and _major(t) >= _BLACKWELL}
        if self.one_family and found:
            lowest = min(map(_major, found))
            found = {t for t in found if _major(t) == lowest}
        return sorted(found)

    def names(self, kernel: str) -> bool:
        """Whether a kernel of this name can be the group's."""
        return bool(re.search(self.kernel, kernel) and not re.search(self.without, kernel))

    def holds(self, kernel: Kernel, names: str) -> bool:
        """Whether a kernel of a cubin counts for the group; ``names`` are all of the cubin's."""
        return bool(
            (not self.needs or getattr(kernel, self.needs))
            and self.names(kernel.name)
            and re.search(self.beside, names)
        )


_BLACKWELL = 10  # its first major
# FlashMLA's ModelType of an FP4 cache: 4 in its legacy kernels, and 3 as the second of two types in
# the kernels for DeepSeek V4.1 (v41fp4).
_FLASHMLA = r"ModelType(4E|\dELS\d+_3E)"
_GROUPED = "GroupProblemShape"
_FLASHINFER = ("flashinfer", "flashinfer_jit_cache")

# The first group that fits a kernel is its group. vLLM 0.19.1 to 0.33.0 have these names.
_TABLE = (
    # QuTLASS's GEMMs are CUTLASS's as vLLM's are: those for MXFP4 and NVFP4 come of one source.
    # Its TARGET_CUDA_ARCH selects one family for all sources (qutlass.cmake).
    Group(
        "qutlass_gemm",
        r"^qutlass/.*/gemm\.cu",
        r"GemmUniversal.*float_e2m1",
        "fp4_mma",
        without=_GROUPED,
        beside=r"GemmUniversalIN4cute.*float_ue8m0",
        one_family=True,
    ),
    Group(
        "nvfp4_gemm",
        r"fp4/nvfp4_scaled_mm_(sm120_)?kernels",
        r"GemmUniversal.*float_e2m1|nvfp4_gemm",
        "fp4_mma",
        without=_GROUPED,
    ),
    Group("mxfp4_grouped_gemm", r"fp4/mxfp4_blockwise_moe", r"float_ue8m0", "fp4_mma"),
    Group("nvfp4_grouped_gemm", r"fp4/nvfp4_blockwise_moe", _GROUPED, "fp4_mma"),
    Group("mxfp4_quantise", r"fp4/mxfp4_experts_quant", r"mxfp4_cvt", "fp4_cvt"),
    Group("nvfp4_kv_cache", r"nvfp4_kv_cache_kernels", r"reshape_and_cache_nvfp4", "fp4_cvt"),
    Group("nvfp4_mla_cache", r"nvfp4_ds_mla_cache", r"nvfp4_ds_mla|upconvert_nvfp4", "fp4_cvt"),
    Group("minimax_m3_insert", r"fused_minimax_m3", r"minimax_m3_fused_ops", "fp4_cvt"),
    Group("flashmla_fp4", r"^flashmla/.*fp4", _FLASHMLA, "fp4_cvt"),
    Group("qutlass_quantise", r"^qutlass/.*/fused_quantize", r"GemmQuant|GemmUniversal", "fp4_cvt"),
    # Experts get four outputs and offsets, as no other quantiser does.
    Group(
        "nvfp4_experts_quantise",
        r"fp4/nvfp4_experts_quant",
        r"cvt_fp16_to_fp4I.*S7_S7_S7_i",
        "fp4_cvt",
    ),
    Group(
        "nvfp4_quantise",
        r"fp4/(nvfp4_quant_kernels|activation_nvfp4)",
        r"cvt_fp16_to_fp4|nvfp4_quant",
        "fp4_cvt",
    ),
    Group(
        "fp8_gemm",
        r"/scaled_mm_sm1[02]0_fp8\.",
        r"GemmUniversal.*float_e4m3",
        "fp8_mma",
        without=rf"{_GROUPED}|float_ue8m0",
    ),
    Group("moe_data", r"/moe/moe_data", r"compute_problem_sizes"),
    Group("marlin", r"marlin/sm(75|80)_kernel", r"^_ZN6marlin6Marlin"),
    Group("moe_marlin", r"marlin_moe_wna16/sm(75|80)_kernel", r"^_ZN16marlin_moe_wna166Marlin"),
)
# FlashInfer's modules by their files: those of vLLM's NVFP4 linear layers. What else it has (MoE,
# attention, all-reduce; with FP4 instructions too) counts for none.
_MODULES = (
    ("fp4_gemm_", Group("flashinfer_gemm", "", "", "fp4_mma")),
    ("fp4_quantization_", Group("flashinfer_quantise", "", "", "fp4_cvt")),
)

# Wrappers that leave FP8's kernels empty (csrc/cutlass_extensions/common.hpp), and for what.
FP8_GUARDS = {"enable_sm100f_only": r"11\.", "enable_sm120_only": r"12\.[1-9]"}

COMPILED = {group.name: group for group in _TABLE}
REQUIRED = ("nvfp4_gemm", "nvfp4_quantise")
GROUPS = tuple(
    dict.fromkeys(
        (
            *REQUIRED,
            "nvfp4_grouped_gemm",
            "nvfp4_experts_quantise",
            "nvfp4_kv_cache",
            *COMPILED,
            *(group.name for _, group in _MODULES),
        )
    )
)

# What other sources are called in `arch explain`, by what stands in their paths; the first match
# counts. A source of no name is core if it is compiled for what the bindings are compiled for.
_OTHERS = (
    # External sources, and what vLLM adds to them.
    (r"^(\w+)/(?<!csrc/)", r"\1"),
    (r"csrc/(\w+)_registration\.", r"\1"),
    (r"marlin_moe_wna16/sm(\d+)", r"moe_marlin_sm\1"),
    (r"marlin_moe_wna16", "moe_marlin_repack"),
    (r"marlin/sm(\d+)", r"marlin_sm\1"),
    (r"/(gptq_)?marlin/", "marlin_repack"),
    (r"/scaled_mm_(?:c3x|blockwise|azp)?_?sm(\d+)", r"fp8_scaled_mm_sm\1"),
    (r"grouped_mm_c3x_sm(\d+)", r"cutlass_moe_sm\1"),
    (r"attention/mla/", "mla"),
    (r"machete", "machete"),
    (r"w4a8", "w4a8"),
    (r"expert_special|mxfp8", "mxfp8_grouped_mm"),
    (r"flash-attn/csrc", "flash_attn_2"),
    (r"flash-attn/hopper", "flash_attn_3"),
)
_BINDINGS = "torch_bindings.cpp"


def filled(targets: Iterable[str], guards: Iterable[str]) -> list[str]:
    """The targets for which FP8's kernels are not empty under guards of ``FP8_GUARDS``."""
    empty = [FP8_GUARDS[guard] for guard in guards]
    return [t for t in targets if not any(re.match(pattern, t) for pattern in empty)]


def of_sources(sources: dict[str, list[str]]) -> dict[str, list[str]]:
    """Targets of every group, from what vLLM's CMake compiles each source for."""
    core = next((t for s, t in sources.items() if s.endswith(_BINDINGS)), None)
    found: dict[str, list[str]] = {group.name: [] for group in _TABLE}
    for source, targets in sources.items():
        name = _name(source) or ("core" if targets == core else PurePosixPath(source).stem)
        into = found.setdefault(name, [])
        into += [target for target in targets if target not in into]
    return found


def _name(source: str) -> str:
    for group in _TABLE:
        if re.search(group.sources, source):
            return group.name
    for pattern, name in _OTHERS:
        if match := re.search(pattern, source):
            return match.expand(name)
    return ""


# What is in the name of a kernel that can have FP4 instructions: a type or a use of its numbers.
# Of MiniMax-M3's inserts the cache's kind and a switch decide.
_CAN_HOLD = re.compile(
    rf"fp4|e2m1|minimax_m3_fused_ops.*DataTypeE0ELb1|{_FLASHMLA}|GemmQuant", re.IGNORECASE
)


def to_read(file: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The kernels of a cubin whose instructions are counted.

    Those that can have FP4 instructions, by their names, and the first of FP8's GEMM: its wrapper
    empties all of a cubin or none (``FP8_GUARDS``).

    Args:
        file: name of the file that it is in; all of FlashInfer's ``fp4_…`` modules can.
        names: of all its kernels.
    """
    if "fp4" in file:
        return names
    fp8 = [name for name in names if COMPILED["fp8_gemm"].names(name)]
    return (*(name for name in names if _CAN_HOLD.search(name)), *fp8[:1])


def of_kernels(path: str, kernels: tuple[Kernel, ...]) -> Iterator[str]:
    """The groups that the kernels of one cubin, or one PTX, count for.

    Args:
        path: of the file, relative to the target.
        kernels: all of the cubin's.
    """
    file = PurePosixPath(path)
    if set(_FLASHINFER) & set(file.parts):
        for prefix, group in _MODULES:
            if file.name.startswith(prefix) and any(group.holds(k, "") for k in kernels):
                yield group.name
        return
    names = "\n".join(kernel.name for kernel in kernels)
    for kernel in kernels:
        name = next((group.name for group in _TABLE if group.holds(kernel, names)), "")
        if name and ("marlin" not in name or _takes_fp4(kernel.name)):
            yield name


def _takes_fp4(name: str) -> bool:
    """Whether a Marlin kernel takes FP4 weights with 16-bit activations."""
    match = _MARLIN.search(name)
    if not match:
        return False
    activation, weight = (_scalar(int(number)) for number in match.groups())
    return weight == (2, 1) and activation in ((5, 10), (8, 7))


def _scalar(number: int) -> tuple[int, int]:
    """Exponent and mantissa bits of a vllm::ScalarType id (csrc/core/scalar_type.hpp)."""
    return number & 0xFF, number >> 8 & 0xFF


def _major(target: str) -> int:
    return int(target.split(".")[0])
