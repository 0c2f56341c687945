"""Switches that vLLM's releases gained and lost; tests hold the table against vLLM's own files."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version


@dataclass(frozen=True)
class Switch:
    """A switch that releases gained and lost: first version with it, first without."""

    name: str
    since: str
    gone: str | None
    successor: str
    note: str

    def known(self, version: str) -> bool:
        """Whether that vLLM release reads it."""
        there = Version(version) >= Version(self.since)
        return there and (self.gone is None or Version(version) < Version(self.gone))


# Seen in vllm/envs.py and vllm/engine/arg_utils.py of 0.19.1, 0.20.2, 0.21.0, 0.22.1, 0.27.1 and
# 0.33.0; a switch that went between two of them is called gone in the later one.
SWITCHES = {
    s.name: s
    for s in (
        Switch(
            "VLLM_TEST_FORCE_FP8_MARLIN",
            "0.11",
            "0.33.0",
            "--moe-backend marlin",
            "forces Marlin for MoE and FP8 layers, not for NVFP4 linear layers",
        ),
        Switch(
            "VLLM_NVFP4_GEMM_BACKEND",
            "0.12",
            "0.27.1",
            "--linear-backend",
            "chooses the NVFP4 linear kernel; marlin gives up native FP4",
        ),
        Switch(
            "VLLM_USE_FLASHINFER_MOE_FP4",
            "0.11",
            "0.27.1",
            "--moe-backend",
            "forces FlashInfer's MoE, which raises for experts that it refuses",
        ),
        Switch(
            "VLLM_FLASHINFER_MOE_BACKEND",
            "0.11",
            "0.27.1",
            "--moe-backend",
            "no effect without VLLM_USE_FLASHINFER_MOE_FP4",
        ),
        Switch(
            "VLLM_MARLIN_USE_ATOMIC_ADD", "0.9", None, "", "no effect with Marlin's FP4 kernels"
        ),
        Switch(
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
            "0.5",
            None,
            "",
            "only lets --max-model-len exceed the model's own limit",
        ),
        Switch("--moe-backend", "0.19.0", None, "", "chooses the MoE kernel"),
        Switch("--linear-backend", "0.22.1", None, "", "chooses the linear kernel"),
    )
}

# The card's settings that are not written, and why.
LEFT_OUT = {
    "VLLM_MARLIN_USE_ATOMIC_ADD=1": SWITCHES["VLLM_MARLIN_USE_ATOMIC_ADD"].note,
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1": SWITCHES["VLLM_ALLOW_LONG_MAX_MODEL_LEN"].note,
    "TORCH_MATMUL_PRECISION=high": "no release of vLLM or torch reads it",
    "NVIDIA_FORWARD_COMPAT=1": "the image brings no forward-compatibility driver libraries",
    "--trust-remote-code": "the flag lets a checkpoint run code of its own",
    "patch mounts": "the patches are in the image; it refuses files mounted over them",
}
