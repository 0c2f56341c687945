"""FlashInfer's modules that were compiled ahead of time."""

import os
import sys
from typing import Any


def run(folder: str, archs: str, instructions: dict[str, Any], loaded: int) -> list[str]:
    """Names of the modules that FlashInfer would compile.

    Args:
        folder: with the build's own stages, which list the modules.
        archs: FLASHINFER_CUDA_ARCH_LIST.
        instructions: what the build stage got.
        loaded: how many of the first modules are loaded too.
    """
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = archs
    os.environ["FLASHINFER_WORKSPACE_BASE"] = "/tmp/aot"
    os.environ["FLASHINFER_DISABLE_JIT"] = "1"
    sys.path.insert(0, folder)
    from fp4forge.image.stages import aot

    found = aot.specs(instructions)
    for spec in found[:loaded]:
        if spec.is_aot:
            spec.build_and_load()
    return [spec.name for spec in found if not spec.is_aot]
