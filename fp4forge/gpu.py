"""The one table of GPUs: compute capability, products, platform, memory.

Sources: NVIDIA's CUDA GPU list (developer documentation, "CUDA GPU Compute Capability") for
capabilities; product data sheets for bandwidth; what nvidia-smi (on GB10 the kernel) reports as
total for memory.
"""

from __future__ import annotations

import platform as host
from dataclasses import dataclass

from fp4forge.errors import UsageError

AMD64 = "linux/amd64"
ARM64 = "linux/arm64"
PLATFORMS = (AMD64, ARM64)


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
    arch_list: str

    @property
    def max_jit_jobs(self) -> int:
        """The strictest cap among the GPUs."""
        return min(gpu.max_jit_jobs for gpu in self.gpus)


@dataclass(frozen=True)
class Product:
    """A GPU that people buy: memory that software sees in MiB, bandwidth in GB/s (10^9)."""

    name: str
    title: str
    gpu: str
    memory_mib: int
    bandwidth: int
    unified: bool = False  # the host's programs live in the same memory

    @property
    def memory_bytes(self) -> int:
        """Memory that software sees, in bytes."""
        return self.memory_mib * 2**20


PRODUCTS: dict[str, Product] = {
    product.name: product
    for product in (
        Product("gb10", "DGX Spark (GB10)", "sm121", 122_500, 273, unified=True),
        Product("rtx5090", "RTX 5090", "sm120", 32_607, 1792),
        Product("rtxpro6000", "RTX PRO 6000 Blackwell", "sm120", 97_887, 1792),
        Product("b200", "B200", "sm100", 183_359, 8000),
        Product("gb200", "GB200", "sm100", 189_471, 8000),
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


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # 12.0 becomes the family target 12.0f on CUDA 13 and so serves sm_121 too, where a bare
        # 12.1 fails in ptxas after hours and 12.1a traps in FP8 (vLLM's enable_sm120_only).
        Gpu("sm100", (10, 0), ("B200", "GB200"), None, "10.0", 8, "10.0a"),
        Gpu("sm103", (10, 3), ("B300", "GB300"), None, "10.0", 8, "10.3a"),
        Gpu("sm120", (12, 0), ("RTX 5090", "RTX PRO 6000 Blackwell"), AMD64, "12.0", 4, "12.0f"),
        Gpu("sm121", (12, 1), ("GB10 (DGX Spark)",), ARM64, "12.0", 2, "12.1a"),
    )
}

TARGETS: dict[str, Target] = {
    **{g.name: Target(g.name, (g,), g.default_platform, g.arch_list) for g in GPUS.values()},
    "blackwell": Target(
        "blackwell",
        (GPUS["sm100"], GPUS["sm120"], GPUS["sm121"]),
        None,
        "10.0;12.0;12.1",
    ),
}


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


def host_platform() -> str:
    """This machine's platform as OCI writes it.

    Raises:
        UsageError: the machine is neither x86-64 nor 64-bit Arm.
    """
    machine = host.machine().lower()
    if machine in ("x86_64", "amd64"):
        return AMD64
    if machine in ("aarch64", "arm64"):
        return ARM64
    raise UsageError(
        f"this machine is {machine!r}",
        rule="vLLM images exist for linux/amd64 and linux/arm64",
        remedy="give --platform and --builder",
    )


def platform_for(chosen: Target, wanted: str | None) -> str:
    """The platform to build: the one asked for, else the GPU's, else the host's.

    Raises:
        UsageError: ``wanted`` is not a platform that vLLM is built for.
    """
    if wanted is None:
        return chosen.default_platform or host_platform()
    if wanted not in PLATFORMS:
        raise UsageError(
            f"--platform {wanted!r} is not a platform that vLLM is built for",
            rule="one of " + ", ".join(PLATFORMS),
        )
    return wanted
