"""What memory and bandwidth depend on of a model: sizes of its tensors and its layers' state."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fp4forge.checkpoint import config as configs
from fp4forge.checkpoint import kinds, plausible
from fp4forge.checkpoint.tensors import Checkpoint, Tensor
from fp4forge.core.errors import CheckpointError
from fp4forge.core.text import shown
from fp4forge.models import family
from fp4forge.serve.layer_state import LayerGroup, layers, need

# Marlin multiplies by multiples of 64 (csrc/moe/marlin_moe_wna16/ops.cu of 0.19.1, 0.20.2 and
# 0.33.0); native FP4 GEMMs want 32 (nvfp4_scaled_mm_kernels.cu), which 64 contains.
MARLIN_MULTIPLE = 64
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.")
_EMBEDDING = re.compile(r"(embed_tokens|\bembeddings|word_embeddings|wte)\.weight$")
_LOOKUP = re.compile(r"embed_tokens_per_layer\.")  # Gemma-4 E2B and E4B
_OUTPUT = re.compile(r"(?:^|\.)lm_head\.")
# Whole on each GPU of a tensor-parallel group: norms, routers, and MLA's projections into the
# latent (ReplicatedLinear in vllm/model_executor/models).
_REPLICATED = re.compile(
    r"(norm|router|\.gate\.|q_a_proj|kv_a_proj|fused_qkv_a|shared_expert_gate|indexer)"
)


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What memory and bandwidth depend on; sizes in bytes."""

    weights: int
    experts: int = 0  # bytes of all experts' tensors
    embeddings: int = 0
    lookups: int = 0  # embeddings for each layer: a token reads one row of them
    output: int = 0  # the output projection; 0 if the embeddings are it
    multimodal: int = 0
    drafter: int = 0  # layers for multi-token prediction, loaded only for speculative decoding
    replicated: int = 0  # whole on each GPU of a tensor-parallel group
    num_experts: int = 0
    top_k: int = 0
    hidden: int
    expert_width: int
    expert_ranks: int = 1  # data-parallel ranks whose tokens the experts get
    expert_multiple: int = MARLIN_MULTIPLE  # what an expert's width must be a multiple of
    heads: int = 0
    vocabulary: int
    max_context: int
    num_layers: int
    attention: tuple[LayerGroup, ...]
    family: str = ""
    assumed: str = ""  # of a model of no known family

    @property
    def tied(self) -> bool:
        """Whether the embeddings are the output projection too, read whole for each token."""
        return not self.output

    @property
    def layers(self) -> int:
        """Layers that keep a state."""
        return sum(kind.count for kind in self.attention)

    def read_per_token(self, batch: int = 1) -> int:
        """Bytes of weights read in one decode step, KV cache not counted.

        Args:
            batch: sequences decoded together; each picks top_k experts, evenly spread.
        """
        dense = self.weights - self.experts - self.multimodal - self.drafter - self.lookups
        dense -= 0 if self.tied else self.embeddings
        if not self.num_experts:
            return dense + self.experts
        share = 1 - (1 - self.top_k / self.num_experts) ** batch
        return dense + int(self.experts * share)


def describe(found: Checkpoint, kv_dtype: str = "fp8_e4m3") -> ModelSizes:
    """A model's figures from its tensors and configuration.

    Args:
        found: the checkpoint, headers read.
        kv_dtype: vLLM's --kv-cache-dtype.

    Raises:
        CheckpointError: the configuration lacks what vLLM needs of it.
    """
    config, folder = found.config.complete, found.folder
    _check_whole(found)
    for problem in plausible.problems(found.config):
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json contradicts itself: {problem}",
            rule="memory depends on its sizes",
            remedy="take the config.json that the model was published with",
        )
    number = need(folder, "num_hidden_layers", config.num_hidden_layers)
    name = found.config.family
    sizes = _bytes_by_part(found.tensors, family.get(name).modules, number)
    return ModelSizes(
        weights=sum(tensor.size for tensor in found.tensors.values()),
        experts=sizes["experts"],
        embeddings=sizes["embeddings"],
        lookups=sizes["lookups"],
        output=sizes["output"],
        multimodal=sizes["multimodal"],
        drafter=sizes["drafter"],
        replicated=sizes["replicated"],
        num_experts=config.experts,
        top_k=config.top_k_experts or config.num_experts_per_tok or 0,
        hidden=need(folder, "hidden_size", config.hidden_size),
        expert_width=configs.width(config.moe_intermediate_size)
        or configs.width(config.intermediate_size),
        expert_multiple=MARLIN_MULTIPLE if _nvfp4(found) else 1,
        heads=config.num_attention_heads or 0,
        vocabulary=need(folder, "vocab_size", config.vocab_size),
        max_context=config.max_position_embeddings or 0,
        num_layers=number,
        attention=layers(found.config, folder, kv_dtype),
        family=name,
        assumed=kinds.assumed(found.config, folder),
    )


def _nvfp4(found: Checkpoint) -> bool:
    """Whether experts run on FP4 kernels: MXFP4's pad the width, BF16's take any."""
    declared = found.config.quantisation
    apart = found.quantisation.quant_algo or ""
    names = f"{declared.quant_method or ''} {declared.quant_algo or ''} {apart}".lower()
    return bool(names.strip()) and "mxfp4" not in names


def _check_whole(found: Checkpoint) -> None:
    """Refuses a checkpoint of which a part is not there: its size would be too small.

    Raises:
        CheckpointError: a file cannot be read, or is missing.
    """
    wrong = [f"{problem.where}: {problem.text}" for problem in found.problems]
    missing = sorted(set((found.index or {}).values()) - {t.file for t in found.tensors.values()})
    wrong += [f"{name} is not there, or holds nothing" for name in missing]
    if wrong:
        raise CheckpointError(
            f"{shown(found.folder, 300)} is not whole: {shown(wrong[0], 300)}"
            + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""),
            rule="memory is computed from every tensor",
            remedy="build.py checkpoint fetch resumes a download; checkpoint inspect lists all",
        )


def read(folder: Path, kv_dtype: str = "fp8_e4m3") -> ModelSizes:
    """``describe`` of a folder.

    Raises:
        CheckpointError: it is not a checkpoint, or its configuration lacks what vLLM needs.
    """
    from fp4forge.checkpoint import tensors

    return describe(tensors.read(folder), kv_dtype)


_PARTS = (
    "experts",
    "embeddings",
    "lookups",
    "output",
    "multimodal",
    "drafter",
    "replicated",
    "rest",
)


def _bytes_by_part(tensors: dict[str, Tensor], modules: str, layers: int) -> dict[str, int]:
    """Bytes by the part of the model that a tensor is of."""
    multimodal = re.compile(modules or family.MODULES)
    sizes = dict.fromkeys(_PARTS, 0)
    for name, tensor in tensors.items():
        sizes[_part_of_model(name, multimodal, layers)] += tensor.size
    return sizes


def _part_of_model(name: str, multimodal: re.Pattern[str], layers: int) -> str:
    layer = _LAYER.search(name)
    if multimodal.search(name):
        return "multimodal"
    if name.startswith(("mtp.", "model.mtp.")) or (layer and int(layer[1]) >= layers):
        return "drafter"
    if _EXPERT.search(name):
        return "experts"
    if _LOOKUP.search(name):
        return "lookups"
    if _EMBEDDING.search(name):
        return "embeddings"
    if _OUTPUT.search(name):
        return "output"
    return "replicated" if _REPLICATED.search(name) else "rest"
