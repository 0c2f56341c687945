"""FlashInfer's modules that are compiled into an image, so that serving never starts nvcc.

FlashInfer looks for ``flashinfer/data/aot/<module>/<module>.so`` before it compiles
(flashinfer/jit/core.py, 0.6.7 and 0.6.8.post1). On a Spark that compile takes minutes at the first
request and, uncapped, has run hosts out of memory (flashinfer-ai/flashinfer#3634).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp4forge.kernels.gpus import GPUS

CHOICES = ("none", "gemma4", "all")


@dataclass(frozen=True)
class AotModules:
    """The modules of a plan; JSON for ``image/stages/aot.py``."""

    name: str = "none"
    archs: str = ""  # FLASHINFER_CUDA_ARCH_LIST
    generators: tuple[str, ...] = ()

    def instructions(self) -> dict[str, Any]:
        """What the build stage reads."""
        return {"choice": self.name, "archs": self.archs, "generators": list(self.generators)}


def choose(name: str, gpus: tuple[str, ...]) -> AotModules:
    """The modules for GPUs: those of the reference's path, all of FlashInfer's, or none.

    Args:
        name: one of ``CHOICES``.
        gpus: names in ``GPUS``.
    """
    if name == "none":
        return AotModules()
    archs = " ".join(GPUS[gpu].flashinfer_arch for gpu in gpus)
    # get_cutlass_fp4_gemm_module and get_fp4_quantization_module of FlashInfer choose these by the
    # GPU's capability; vLLM's NVFP4 linear layers call both (kernels/linear/nvfp4/flashinfer.py).
    # Gemma-4's attention is Triton's and its experts are Marlin's: they need none.
    found = dict.fromkeys(
        name
        for gpu in (GPUS[name] for name in gpus)
        for name in (f"gemm.{gpu.flashinfer_gemm}", f"fp4_quantization.{gpu.flashinfer_quantise}")
    )
    return AotModules(name, archs, tuple(found))


def expected(choice: AotModules, gpus: tuple[str, ...]) -> dict[str, list[str]]:
    """What a ledger's ``targets`` must be for the modules' groups; empty for none.

    The GEMM is compiled for every target of the list, the quantiser for SM12x as 12.0f alone,
    whatever the list says; FlashInfer's whole list has one more for each capability
    (flashinfer/aot.py, gen_all_modules).
    """
    if choice.name == "none":
        return {}
    gemm = {GPUS[gpu].flashinfer_arch for gpu in gpus}
    quantise = {GPUS[gpu].flashinfer_quantise_arch for gpu in gpus}
    if choice.name == "all":
        quantise |= {f"{GPUS[gpu].label}a" for gpu in gpus}
    return {"flashinfer_gemm": sorted(gemm), "flashinfer_quantise": sorted(quantise)}
