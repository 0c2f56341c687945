"""LoRA adapters: their rank, and what NVFP4 experts allow.

With adapters vLLM wraps every layer of experts, and the kernel must know LoRA: of those for NVFP4
only Marlin's does (LoRAExpertsMixin in vllm/model_executor/layers/fused_moe of 0.20.2; 0.33.0 adds
TRT-LLM's on SM10x). 0.20.2 asserts that expert parallelism is off (vllm/lora/layers/fused_moe.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.checkpoint.config import ModelConfig
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError, UsageError
from fp4forge.core.text import shown
from fp4forge.serve.setting import ServerSetting
from fp4forge.serve.split import GpuSplit

FOLDER = "/lora"
# What --max-lora-rank takes (MaxLoRARanks, vllm/config/lora.py of 0.20.2 and 0.33.0).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class _Adapter(Struct, frozen=True):
    """PEFT's adapter_config.json."""

    r: Annotated[int, Meta(ge=1, le=512)]
    peft_type: str = "LORA"
    use_dora: bool = False
    modules_to_save: list[str] | None = None


def flags(adapters: dict[str, Path], config: ModelConfig, split: GpuSplit) -> list[ServerSetting]:
    """The flags of some adapters by name.

    Raises:
        UsageError: a name cannot be used, or the model's experts do not allow adapters.
        CheckpointError: a folder is not a LoRA adapter.
    """
    if not adapters:
        return []
    ranks = [_lora_rank(folder) for folder in adapters.values()]
    experts = bool(config.text.experts)
    if experts and split.experts:
        raise UsageError(
            "--lora does not go with --expert-parallel",
            rule="vLLM's FusedMoEWithLoRA asserts that experts are not spread over GPUs",
            remedy="use --tensor-parallel alone, if the experts' width allows it",
        )
    largest = next(rank for rank in RANKS if rank >= max(ranks))
    first, *more = (f"{name}={FOLDER}/{name}" for name in adapters)
    out = [
        ServerSetting(
            "--enable-lora", "", "adapters beside the model, each by its name in the API"
        ),
        ServerSetting("--lora-modules", first, "the adapters", tuple(more)),
        ServerSetting("--max-lora-rank", str(largest), f"the largest rank here is {max(ranks)}"),
        ServerSetting("--max-loras", str(len(adapters)), "all of them at once"),
    ]
    if experts and config.quantization_config is not None:
        why = "adapters need experts' kernels that know LoRA: of those for NVFP4, Marlin's"
        out.append(ServerSetting("--moe-backend", "marlin", why))
    return out


def parse(words: tuple[str, ...]) -> dict[str, Path]:
    """Adapters by name, from ``NAME=FOLDER`` words.

    Raises:
        UsageError: a word is not one.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or not folder:
            raise UsageError(f"--lora {shown(word, 100)!r}", rule="NAME=FOLDER")
        if name in found:
            raise UsageError(f"--lora {name} is given twice", rule="each adapter has its own name")
        found[name] = Path(folder)
    return found


def _lora_rank(folder: Path) -> int:
    found = reading.json_file(folder / "adapter_config.json", _Adapter, CheckpointError)
    if found.peft_type != "LORA":
        raise CheckpointError(
            f"{shown(folder, 200)} is an adapter of the type {shown(found.peft_type, 40)}",
            rule="vLLM serves LoRA adapters",
        )
    # PEFTHelper._validate_features in vllm/lora/peft_helper.py of 0.20.2.
    if found.use_dora or found.modules_to_save:
        what = "DoRA" if found.use_dora else "modules_to_save"
        raise CheckpointError(
            f"{shown(folder, 200)}/adapter_config.json: vLLM does not serve {what}",
            rule="an adapter has only low-rank matrices",
        )
    return found.r
