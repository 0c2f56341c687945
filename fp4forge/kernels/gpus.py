"""The one table of GPUs: what CUDA, vLLM and FlashInfer each call a chip, and what is sold with it.

A new GPU is one entry of ``GPUS``. Sources: NVIDIA's CUDA GPU list ("CUDA GPU Compute Capability")
for capabilities; product data sheets for bandwidth; the total that nvidia-smi (on GB10 and Thor
the kernel) reports for memory; FlashInfer 0.6.8 (jit/fp4_quantization.py, gemm/gemm_base.py) for
its modules.
"""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.kernels.base import UsageError


@dataclass(frozen=True)
class Product:
    """A GPU that people buy: memory that software sees in MiB, bandwidth in GB/s (10^9)."""

    name: str
    title: str
    gpu: str
    memory_mib: int
    bandwidth: int
    unified: bool = False  # the host's programs live in the same memory
    per_machine: int = 8  # GPUs that one machine has at most
    recipe: str = ""  # what vllm-project/recipes calls it (taxonomy.yaml)

    @property
    def memory_bytes(self) -> int:
        """Memory that software sees, in bytes."""
        return self.memory_mib * 2**20


@dataclass(frozen=True)
class Gpu:
    """One Blackwell chip as CUDA sees it."""

    name: str
    capability: tuple[int, int]
    products: tuple[str, ...]
    default_platform: str | None  # None: the chip is sold with either host
    arch_list: str  # TORCH_CUDA_ARCH_LIST that serves this chip alone on CUDA 13
    max_jit_jobs: int  # parallel nvcc processes at run time: unified memory is shared with them
    flashinfer_arch: str  # what FlashInfer compiles for it (compilation_context.py)
    flashinfer_gemm: str  # generator of the FP4 GEMM that FlashInfer looks up
    flashinfer_quantise: str  # generator of the FP4 quantiser
    flashinfer_quantise_arch: str  # what that quantiser is compiled for, whatever the list says
    nvcc: str  # first CUDA whose nvcc knows the chip

    @property
    def major(self) -> int:
        """Major compute capability: the family that ``f`` cubins serve."""
        return self.capability[0]

    @property
    def label(self) -> str:
        """Capability as CUDA writes it, such as ``12.1``."""
        return f"{self.capability[0]}.{self.capability[1]}"


@dataclass(frozen=True)
class Target:
    """What ``--arch`` names: one GPU, or a set that one image serves."""

    name: str
    gpus: tuple[Gpu, ...]
    default_platform: str | None
    arch_list: str | None  # None: the release's own

    @property
    def max_jit_jobs(self) -> int:
        """The strictest cap among the GPUs."""
        return min(gpu.max_jit_jobs for gpu in self.gpus)


_ARM64, _AMD64 = "linux/arm64", "linux/amd64"

# 12.0 becomes the family target 12.0f on CUDA 13 and so serves sm_121 too; a bare 12.1 fails in
# ptxas after hours, and 12.1a traps in FP8 (vLLM's enable_sm120_only).
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="sm100",
            capability=(10, 0),
            products=("B200", "GB200"),
            default_platform=None,
            arch_list="10.0",
            max_jit_jobs=8,
            nvcc="12.8",
            flashinfer_arch="10.0a",
            flashinfer_gemm="gen_gemm_sm100_module_cutlass_fp4",
            flashinfer_quantise="gen_fp4_quantization_sm100_module",
            flashinfer_quantise_arch="10.0a",
        ),
        Gpu(
            name="sm103",
            capability=(10, 3),
            products=("B300", "GB300"),
            default_platform=None,
            arch_list="10.0",
            max_jit_jobs=8,
            nvcc="12.9",
            flashinfer_arch="10.3a",
            flashinfer_gemm="gen_gemm_sm103_module_cutlass_fp4",
            flashinfer_quantise="gen_fp4_quantization_sm103_module",
            flashinfer_quantise_arch="10.3a",
        ),
        # vLLM lists 11.0f beside 10.0f, in the groups of SM10x (CMakeLists.txt, FP4_ARCHS).
        Gpu(
            name="sm110",
            capability=(11, 0),
            products=("Jetson Thor",),
            default_platform=_ARM64,
            arch_list="11.0",
            max_jit_jobs=2,
            nvcc="13.0",
            flashinfer_arch="11.0a",
            flashinfer_gemm="gen_gemm_sm100_module_cutlass_fp4",
            flashinfer_quantise="gen_fp4_quantization_sm110_module",
            flashinfer_quantise_arch="11.0a",
        ),
        Gpu(
            name="sm120",
            capability=(12, 0),
            products=("RTX 5090", "RTX PRO 6000 Blackwell"),
            default_platform=_AMD64,
            arch_list="12.0",
            max_jit_jobs=4,
            nvcc="12.8",
            flashinfer_arch="12.0f",
            flashinfer_gemm="gen_gemm_sm120_module_cutlass_fp4",
            flashinfer_quantise="gen_fp4_quantization_sm120f_module",
            flashinfer_quantise_arch="12.0f",
        ),
        Gpu(
            name="sm121",
            capability=(12, 1),
            products=("GB10 (DGX Spark)",),
            default_platform=_ARM64,
            arch_list="12.0",
            max_jit_jobs=2,
            nvcc="12.9",
            flashinfer_arch="12.1a",
            flashinfer_gemm="gen_gemm_sm120_module_cutlass_fp4",
            flashinfer_quantise="gen_fp4_quantization_sm120f_module",
            flashinfer_quantise_arch="12.0f",
        ),
    )
}

TARGETS: dict[str, Target] = {
    **{g.name: Target(g.name, (g,), g.default_platform, g.arch_list) for g in GPUS.values()},
    "blackwell": Target(
        "blackwell", (GPUS["sm100"], GPUS["sm120"], GPUS["sm121"]), None, arch_list=None
    ),
}

PRODUCTS: dict[str, Product] = {
    product.name: product
    for product in (
        Product(
            "gb10",
            "DGX Spark (GB10)",
            "sm121",
            122_500,
            273,
            unified=True,
            per_machine=1,
            recipe="dgx_spark_gb10",
        ),
        Product("thor", "Jetson AGX Thor", "sm110", 125_772, 273, unified=True, per_machine=1),
        Product("rtx5090", "RTX 5090", "sm120", 32_607, 1792, recipe="rtx_5090"),
        Product(
            "rtxpro6000", "RTX PRO 6000 Blackwell", "sm120", 97_887, 1792, recipe="rtx_pro_6000"
        ),
        Product("b200", "B200", "sm100", 183_359, 8000, recipe="b200"),
        Product("gb200", "GB200", "sm100", 189_471, 8000, per_machine=4, recipe="gb200"),
    )
}


def product(name: str) -> Product:
    """The product that ``--gpu`` names.

    Raises:
        UsageError: the name is not one of ``PRODUCTS``.
    """
    if name not in PRODUCTS:
        raise UsageError(
            f"--gpu {name!r} is not a product that fp4forge knows",
            rule="one of " + ", ".join(PRODUCTS),
        )
    return PRODUCTS[name]


def target(name: str) -> Target:
    """The target that ``--arch`` names.

    Raises:
        UsageError: the name is not one of ``TARGETS``.
    """
    if name not in TARGETS:
        raise UsageError(
            f"--arch {name!r} is not a GPU that fp4forge knows",
            rule="one of " + ", ".join(TARGETS),
            remedy="a DGX Spark is sm121, an RTX 5090 or RTX PRO 6000 sm120, a B200 sm100",
        )
    return TARGETS[name]


# How code runs on a GPU, the best first: compiled for this very chip; for its family or an earlier
# minor; as PTX, which the driver compiles; not at all.
VERDICTS = ("native", "family", "ptx", "missing")
RUNS = VERDICTS[:2]  # verdicts of code that is compiled already


def listed(label: str, capabilities: tuple[str, ...]) -> bool:
    """Whether a table's capabilities, such as ``12.1`` or ``12.x``, have a GPU's; none has all."""
    major = label.partition(".")[0] + ".x"
    return not capabilities or label in capabilities or major in capabilities


def serves(target: str, gpu: Gpu) -> str:
    """How code compiled for a target runs on a GPU: one of ``VERDICTS``.

    Source: CUDA C++ Programming Guide, "Compute Capability and Streaming Multiprocessor
    Versions", and NVIDIA's note on family-specific features (CUDA 12.9). Bare SASS runs on the
    same major from its minor on; ``a`` on that chip alone; ``f`` on its family.
    """
    base = target.removesuffix("+PTX")
    suffix = base[-1] if base[-1] in "af" else ""
    major, minor = (int(part) for part in base.rstrip("af").split("."))
    if (major, minor) == gpu.capability and suffix != "f":
        return "native"
    if major == gpu.major and minor <= gpu.capability[1] and suffix != "a":
        return "native" if (major, minor) == gpu.capability and not suffix else "family"
    if target.endswith("+PTX") and not suffix and (major, minor) <= gpu.capability:
        return "ptx"
    return "missing"
