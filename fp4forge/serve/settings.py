"""What a server is started with: flags and environment that are right for a vLLM release.

Each has its reason, shown by --explain and as a comment in the manifest. Which release knows
which switch is in SWITCHES; tests hold it against vLLM's own envs.py and arg_utils.py.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from fp4forge.checkpoint import config as configs
from fp4forge.core import reading
from fp4forge.core.errors import UsageError
from fp4forge.core.text import steers
from fp4forge.models import gemma4

PORT = 8000
MODEL_DIR = "/models"
CACHE_DIR = "/home/vllm/.cache"
SHM_GB = 8


@dataclass(frozen=True)
class Workload:
    """One row of the reference card's table; lengths and batches in tokens."""

    name: str
    card: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int | None = None


# "Workload-tuned configs" of the card; the batch of its second benchmark for throughput.
WORKLOADS = {
    w.name: w
    for w in (
        Workload("interactive", "Long-context (RAG, docs): few long conversations", 65536, 4),
        Workload("balanced", "Balanced: mixed chat and agents", 8192, 32),
        Workload("throughput", "Max throughput: many short agents", 2048, 256, 16384),
        Workload("long-context", "Max context: one stream, the whole window", 262144, 1),
    )
}


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
            "FlashInfer's MoE refuses Gemma-4's activation: vLLM raises",
        ),
        Switch(
            "VLLM_FLASHINFER_MOE_BACKEND",
            "0.11",
            "0.27.1",
            "--moe-backend",
            "no effect without VLLM_USE_FLASHINFER_MOE_FP4",
        ),
        Switch("VLLM_MARLIN_USE_ATOMIC_ADD", "0.9", None, "", "no effect on this model"),
        Switch(
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
            "0.5",
            None,
            "",
            "only lets --max-model-len exceed the model's own 262,144",
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
    "--trust-remote-code": "Gemma-4 is vLLM's own code; the flag lets a checkpoint run its own",
    "patch mounts": "the patches are in the image; it refuses files mounted over them",
}


@dataclass(frozen=True)
class Setting:
    """One flag or variable, its value (empty: none) and its reason."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Server:
    """Everything a manifest needs."""

    name: str
    image: str
    model: str
    served_name: str
    port: int
    version: str
    workload: Workload
    flags: tuple[Setting, ...]
    environment: tuple[Setting, ...]
    start_minutes: int
    shm_gb: int

    @property
    def arguments(self) -> list[str]:
        """The command after the image: ``serve MODEL`` and its flags."""
        out = ["serve", MODEL_DIR + "/" + self.served_name]
        for flag in self.flags:
            out += [flag.name, flag.value] if flag.value else [flag.name]
        return out

    def as_json(self) -> dict[str, Any]:
        """For --json and --explain."""
        from dataclasses import asdict

        return asdict(self) | {"arguments": self.arguments, "left_out": LEFT_OUT}


def marlin_moe(version: str) -> tuple[tuple[Setting, ...], tuple[Setting, ...]]:
    """Flags and environment that make MoE layers use Marlin in that release."""
    why = gemma4.MOE_WHY
    if SWITCHES["--moe-backend"].known(version):
        return (Setting("--moe-backend", gemma4.MOE_BACKEND, why),), ()
    if SWITCHES["VLLM_TEST_FORCE_FP8_MARLIN"].known(version):
        return (), (Setting("VLLM_TEST_FORCE_FP8_MARLIN", "1", why),)
    raise UsageError(
        f"vLLM {version} has no switch known here that chooses the MoE kernel",
        rule="fp4forge/serve/settings.py, SWITCHES",
    )


def server(
    model: Path,
    workload: str,
    version: str,
    image: str,
    *,
    utilization: float = 0.85,
    port: int = PORT,
    served_name: str | None = None,
    quantised: bool | None = None,
    max_context: int | None = None,
) -> Server:
    """The settings of a server.

    Args:
        model: the checkpoint's folder on the host that serves.
        workload: one of WORKLOADS.
        version: vLLM's version in the image.
        image: reference, by digest if it was resolved.
        utilization: --gpu-memory-utilization, 0-1.
        port: on the host.
        served_name: name in the API; by default the folder's.
        quantised: whether the checkpoint is ModelOpt's; None: read from its configuration.
        max_context: the model's own limit in tokens, if known.

    Raises:
        UsageError: a value that cannot be used, with the rule.
        CheckpointError: the folder's config.json cannot be read.
    """
    if workload not in WORKLOADS:
        raise UsageError(
            f"--workload {workload!r} is not known", rule="one of " + ", ".join(WORKLOADS)
        )
    if not 0.1 <= utilization <= 0.98:
        raise UsageError(
            f"--utilization {utilization} cannot be used", rule="a share of memory, 0.1 to 0.98"
        )
    folder = str(model.absolute())
    if steers(folder):
        raise UsageError(
            f"--model {folder!r} cannot be mounted",
            rule="a path without control characters",
            remedy="give another path; a symbolic link will do",
        )
    served = served_name or model.absolute().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", served):
        raise UsageError(
            f"the served name {served!r} cannot be used",
            rule="letters, digits, '.', '_' and '-', at most 128",
            remedy="give --name",
        )
    config = configs.read(model) if os.path.lexists(model) else configs.Config()
    if quantised is None:
        quantised = config.quantisation.quant_method == "modelopt" or reading.is_file(
            model / "hf_quant_config.json"
        )
    chosen = WORKLOADS[workload]
    limit = max_context or config.text.max_position_embeddings
    length = min(chosen.max_model_len, limit) if limit else chosen.max_model_len
    moe_flags, moe_environment = marlin_moe(version)
    flags = [Setting("--served-model-name", served, "the model's name in the API")]
    if quantised:
        flags.append(
            Setting(
                "--quantization",
                "modelopt",
                "ModelOpt's NVFP4; compressed-tensors looks for other tensor names",
            )
        )
    flags += [
        *moe_flags,
        Setting("--kv-cache-dtype", "fp8_e4m3", "twice the tokens of BF16; the format by name"),
        Setting("--tensor-parallel-size", "1", "the model fits one GPU"),
        Setting("--max-model-len", str(length), f"workload {chosen.name}: {chosen.card}"),
        Setting("--max-num-seqs", str(chosen.max_num_seqs), f"workload {chosen.name}"),
    ]
    if chosen.max_num_batched_tokens:
        flags.append(
            Setting(
                "--max-num-batched-tokens",
                str(chosen.max_num_batched_tokens),
                f"workload {chosen.name}: larger prefill chunks",
            )
        )
    flags += [
        Setting(
            "--gpu-memory-utilization",
            f"{utilization:g}",
            "the rest is the host's: on unified memory the host's programs live in it",
        ),
        Setting("--enable-chunked-prefill", "", "long prompts come in pieces between decodes"),
        Setting("--enable-prefix-caching", "", "a shared beginning of prompts is computed once"),
        Setting("--enable-auto-tool-choice", "", "the model may call tools"),
        Setting("--tool-call-parser", gemma4.TOOL_CALL_PARSER, gemma4.TOOL_CALL_WHY),
        Setting(
            "--reasoning-parser",
            gemma4.REASONING_PARSER,
            "thinking goes to its own field of the answer",
        ),
        Setting("--host", "0.0.0.0", "inside the container"),  # noqa: S104
        Setting("--port", str(PORT), "inside the container; the health check asks there"),
    ]
    environment = (
        Setting(
            "PYTORCH_CUDA_ALLOC_CONF",
            "expandable_segments:True",
            "less fragmentation when prompts differ in length",
        ),
        Setting(
            "TRITON_CACHE_DIR",
            f"{CACHE_DIR}/triton",
            "kernels compiled once are found after a restart, in the cache volume",
        ),
        *moe_environment,
    )
    return Server(
        # A DNS label (RFC 1035), as Kubernetes wants for a Service; Docker takes it too.
        name=re.sub("[^a-z0-9]+", "-", f"vllm-{served.lower()}")[:63].rstrip("-"),
        image=image,
        model=folder,
        served_name=served,
        port=port,
        version=version,
        workload=chosen,
        flags=tuple(flags),
        environment=environment,
        start_minutes=10,
        shm_gb=SHM_GB,
    )
