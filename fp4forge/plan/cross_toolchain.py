"""Compiling for another platform than the machine's, with nvcc's cross mode.

Device code does not depend on the host. For host code nvcc takes the compiler that ``-ccbin``
names and instructs cudafe++ and cicc by itself when that compiler is an Arm one (nvcc 13.0.88,
``--dryrun``). The target's CUDA and torch wheels give headers and libraries; nothing of them runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.core.errors import UsageError
from fp4forge.core.platform import AMD64, ARM64


@dataclass(frozen=True)
class CrossToolchain:
    """One direction of a cross compile, as each of its parts names the target."""

    build: str  # platform that runs the compilers
    triplet: str  # GNU's, of the host compiler
    processor: str  # CMake's and the wheel's
    debian: str  # dpkg's
    cuda: str  # CUDA's folder under targets/; NVIDIA's cross packages use it for Arm servers


# nvcc crosses from x86-64 to Arm only (CUDA installation guide, cross-compilation).
TOOLCHAINS = {ARM64: CrossToolchain(AMD64, "aarch64-linux-gnu", "aarch64", "arm64", "sbsa-linux")}


def choose(strategy: str, platform: str, suite: str, aot: str) -> CrossToolchain:
    """The toolchain for ``--cross``.

    Args:
        strategy: of the plan.
        platform: the image's.
        suite: Debian suite of the base; empty for a base from a hub.
        aot: which of FlashInfer's modules are compiled into the image.

    Raises:
        UsageError: there is nothing to compile, or no toolchain for it.
    """
    if strategy != "source":
        raise UsageError("--cross goes with --from source", rule="a wheel is compiled already")
    if platform not in TOOLCHAINS:
        raise UsageError(
            f"--cross does not compile for {platform}",
            rule="nvcc compiles for " + ", ".join(TOOLCHAINS) + " on another platform",
        )
    if not suite:
        raise UsageError(
            "--cross goes with --base bootstrap",
            rule="the target's headers come from the same Debian mirror; Ubuntu has another one",
        )
    if aot != "none":
        raise UsageError(
            f"--cross does not go with --aot {aot}",
            rule="FlashInfer compiles its modules on the image's own platform only",
            remedy="--aot none",
        )
    return TOOLCHAINS[platform]
