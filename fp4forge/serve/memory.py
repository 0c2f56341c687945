"""What fits on a GPU: weights from the checkpoint's headers, KV cache as vLLM allocates it.

KV cache: vllm/v1/core/kv_cache_utils.py (groups of layers with one page size) and
vllm/v1/kv_cache_interface.py (blocks of a request) of 0.19.1 and 0.20.2. With the figures of a
real log (tests/unit/data/logs: 53.38 GiB of cache, two of the reference's layers) this gives the
log's concurrency to the second digit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.checkpoint import config as configs
from fp4forge.checkpoint.tensors import Checkpoint
from fp4forge.core.errors import CheckpointError
from fp4forge.core.text import shown
from fp4forge.kernels.gpus import Product

GIB = 2**30
BLOCK_TOKENS = 16  # CacheConfig.block_size on CUDA
KV_BYTES = {"fp8_e4m3": 1, "fp8": 1, "auto": 2, "bfloat16": 2}
# Estimates, from the H200 run of docs/gpu.md (1.65 GiB beside weights and cache, 0.22 of it
# graphs): CUDA context, cuBLAS and Triton workspaces; a graph pool for each layer's 51 sizes.
CONTEXT_BYTES = int(0.7 * GIB)
GRAPH_BYTES_PER_LAYER = int(0.07 * GIB)


@dataclass(frozen=True)
class Layers:
    """Attention layers of one kind: how many, KV bytes per token of one, window (None: all)."""

    count: int
    token_bytes: int
    window: int | None


@dataclass(frozen=True)
class Model:
    """What memory and bandwidth depend on; sizes in bytes."""

    weights: int
    experts: int  # bytes of all experts' tensors
    embeddings: int
    tied: bool  # the embeddings are the output projection too, read whole for each token
    vision: int
    num_experts: int
    top_k: int
    hidden: int
    expert_width: int
    vocabulary: int
    max_context: int
    attention: tuple[Layers, ...]

    @property
    def layers(self) -> int:
        """Attention layers."""
        return sum(kind.count for kind in self.attention)

    def read_per_token(self, batch: int = 1) -> int:
        """Bytes of weights read in one decode step, KV cache not counted.

        Args:
            batch: sequences decoded together; each picks top_k experts, evenly spread.
        """
        dense = self.weights - self.experts - self.vision
        dense -= 0 if self.tied else self.embeddings
        if not self.num_experts:
            return dense + self.experts
        share = 1 - (1 - self.top_k / self.num_experts) ** batch
        return dense + int(self.experts * share)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a GPU holds of a model; bytes, blocks and tokens."""

    total: int
    usable: int
    weights: int
    activations: int
    graphs: int
    context_overhead: int
    cache: int
    block_bytes: int
    blocks: int
    groups: int

    @property
    def fits(self) -> bool:
        """Whether weights and overhead leave any cache at all."""
        return self.blocks > 0

    @property
    def tokens_reported(self) -> int:
        """``GPU KV cache size`` as vLLM 0.19.1 logs it."""
        return self.blocks // self.groups * BLOCK_TOKENS


def describe(found: Checkpoint, kv_dtype: str = "fp8_e4m3") -> Model:
    """A model's figures from its tensors and configuration.

    Args:
        found: the checkpoint, headers read.
        kv_dtype: vLLM's --kv-cache-dtype.

    Raises:
        CheckpointError: the configuration lacks what vLLM needs of it.
    """
    config, folder = found.config.text, found.folder
    heads = _need(folder, "num_attention_heads", config.num_attention_heads)
    hidden = _need(folder, "hidden_size", config.hidden_size)
    layers = _need(folder, "num_hidden_layers", config.num_hidden_layers)
    width = config.head_dim or _need(folder, "head_dim", hidden // heads)
    kv_heads = config.num_key_value_heads or heads
    kinds = config.layer_types or ["full_attention"] * layers
    element = KV_BYTES[kv_dtype]
    # gemma4.py: full layers have a head size and, where keys are values, a head count of their
    # own; the last num_kv_shared_layers keep no cache.
    own = layers - (config.num_kv_shared_layers or 0)
    if own <= 0 or len(kinds) < layers:
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json: {layers} layers, {len(kinds)} layer_types and"
            f" {config.num_kv_shared_layers or 0} num_kv_shared_layers do not go together",
            rule="every layer has a type, and one at least has a KV cache",
        )
    wide = config.global_head_dim or width
    few = (config.num_global_key_value_heads if config.attention_k_eq_v else None) or kv_heads
    full = sum(kind == "full_attention" for kind in kinds[:own])
    attention = [Layers(full, 2 * few * wide * element, None)]
    if own > full:
        window = _need(folder, "sliding_window", config.sliding_window)
        attention.append(Layers(own - full, 2 * kv_heads * width * element, window))
    sizes = _sizes(found)
    return Model(
        weights=sum(tensor.size for tensor in found.tensors.values()),
        experts=sizes["experts"],
        embeddings=sizes["embeddings"],
        tied=not any(name.endswith("lm_head.weight") for name in found.tensors),
        vision=sizes["vision"],
        num_experts=config.num_experts or 0,
        top_k=config.top_k_experts or config.num_experts_per_tok or 0,
        hidden=hidden,
        expert_width=configs.width(config.moe_intermediate_size)
        or configs.width(config.intermediate_size),
        vocabulary=_need(folder, "vocab_size", config.vocab_size),
        max_context=config.max_position_embeddings or 0,
        attention=tuple(kind for kind in attention if kind.count),
    )


def _need(folder: Path, name: str, value: int | None) -> int:
    """A size that memory depends on.

    Raises:
        CheckpointError: it is missing or 0.
    """
    if not value:
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json: {name} is missing or 0",
            rule="memory depends on layers, heads, head sizes, window and vocabulary",
        )
    return value


def _sizes(found: Checkpoint) -> dict[str, int]:
    sizes = dict.fromkeys(("experts", "embeddings", "vision"), 0)
    for name, tensor in found.tensors.items():
        if re.search(r"\.experts\.", name):
            sizes["experts"] += tensor.size
        elif re.search(r"(vision_tower|embed_vision|multi_modal_projector)", name):
            sizes["vision"] += tensor.size
        elif name.endswith("embed_tokens.weight"):
            sizes["embeddings"] += tensor.size
    return sizes


def groups(model: Model) -> tuple[int, int, list[tuple[Layers, int]]]:
    """vLLM's KV cache groups.

    Returns:
        Layers of a group, bytes of one layer's page, and each group's kind with the tokens of
        its block (``_get_kv_cache_groups_uniform_page_size``, ``unify_kv_cache_spec_page_size``).
    """
    page = max(kind.token_bytes for kind in model.attention) * BLOCK_TOKENS
    counts = [kind.count for kind in model.attention]
    size = max(counts) if max(counts) < min(counts) * 1.5 else min(counts)
    out = []
    for kind in model.attention:
        out += [(kind, page // kind.token_bytes)] * -(-kind.count // size)
    return size, page, out


def blocks_per_sequence(model: Model, context: int, batched_tokens: int) -> int:
    """Blocks that vLLM reserves for one sequence of a context length (its admission bound)."""
    total = 0
    for kind, tokens in groups(model)[2]:
        if kind.window is None:
            total += -(-context // tokens)
        else:  # the window's tokens, and a chunk of the prompt on its way in
            total += -(-min(kind.window - 1 + batched_tokens, context) // tokens) + 1
    return total


def kv_bytes_per_token(model: Model) -> tuple[int, int]:
    """Bytes that one more token costs: within the sliding windows, and beyond them."""
    beyond = sum(kind.count * kind.token_bytes for kind in model.attention if not kind.window)
    within = sum(kind.count * kind.token_bytes for kind in model.attention)
    return within, beyond


def default_batched_tokens(product: Product) -> int:
    """vLLM's default of --max-num-batched-tokens when serving (arg_utils.get_batch_defaults)."""
    return 8192 if product.memory_bytes >= 70 * GIB else 2048


def fit(
    model: Model, product: Product, utilization: float, sequences: int, batched_tokens: int
) -> Fit:
    """Memory left for the KV cache, in blocks.

    Args:
        model: from ``describe``.
        product: the GPU.
        utilization: --gpu-memory-utilization.
        sequences: --max-num-seqs: their logits and graphs take memory.
        batched_tokens: --max-num-batched-tokens: the profile run's activations.
    """
    # The profile run's peak: Marlin's expert buffers (input, gate and up, product; bf16) or the
    # sampler's logits (f32, and a copy), whichever is larger; hidden states beside them.
    experts = batched_tokens * max(model.top_k, 1) * (3 * model.expert_width + model.hidden) * 2
    logits = sequences * model.vocabulary * 4 * 2
    activations = max(experts, logits) + batched_tokens * model.hidden * 2 * 6
    graphs = GRAPH_BYTES_PER_LAYER * model.layers
    usable = int(product.memory_bytes * utilization)
    cache = max(usable - model.weights - activations - graphs - CONTEXT_BYTES, 0)
    size, page, all_groups = groups(model)
    return Fit(
        total=product.memory_bytes,
        usable=usable,
        weights=model.weights,
        activations=activations,
        graphs=graphs,
        context_overhead=CONTEXT_BYTES,
        cache=cache,
        block_bytes=size * page,
        blocks=cache // (size * page),
        groups=len(all_groups),
    )


def sequences_for(model: Model, found: Fit, context: int, batched_tokens: int) -> int:
    """The most sequences of a context length that the cache holds at once."""
    return found.blocks // blocks_per_sequence(model, context, batched_tokens)


def context_for(model: Model, found: Fit, sequences: int, batched_tokens: int) -> int:
    """The largest context, in tokens, that so many sequences can each have; 0 if none."""
    low, high = 0, model.max_context
    while low < high:
        middle = (low + high + 1) // 2
        if blocks_per_sequence(model, middle, batched_tokens) * sequences <= found.blocks:
            low = middle
        else:
            high = middle - 1
    return low


def decode_rate(model: Model, product: Product, batch: int, context: int) -> float:
    """Tokens per second of one sequence that memory bandwidth allows at most."""
    cache = sum(
        kind.count * kind.token_bytes * min(context, kind.window or context)
        for kind in model.attention
    )
    return product.bandwidth * 1e9 / (model.read_per_token(batch) + batch * cache)


# The reference card's figures, with why ours differ; docs/serving.md has the same table.
CARD: tuple[tuple[str, str, str], ...] = (
    ("weights", "16.4 GB", "read from the files; BF16 parts, vision among them, count"),
    ("kv_tokens", "~700K tokens on a Spark at 0.85", "0.19.1 counts every layer for every token"),
    ("dense_bf16", "54 GB a token, 2,700 GB/s at 50 tok/s", "27 x 10^9 parameters of 2 bytes"),
    (
        "dense_nvfp4",
        "13.5 GB a token, 675 GB/s",
        "4 bits without the block scales: with them 4.5 bits, 15.2 GB",
    ),
    (
        "moe_nvfp4",
        "2.8 GB a token, 140 GB/s",
        "the card leaves out the output projection, read whole in BF16 for each token",
    ),
)


def against_card(model: Model, found: Fit) -> list[dict[str, Any]]:
    """The card's figures beside ours, for the model and GPU that it measured."""
    ours = {
        "weights": f"{model.weights / 1e9:.1f} GB",
        "kv_tokens": f"{found.tokens_reported / 1e3:.0f}K tokens",
        "dense_bf16": _read(27e9 * 2),
        "dense_nvfp4": _read(27e9 * 4.5 / 8),
        "moe_nvfp4": _read(model.read_per_token()),
    }
    return [
        {"figure": name, "card": card, "ours": ours[name], "why": why} for name, card, why in CARD
    ]


def _read(size: float) -> str:
    return f"{size / 1e9:.1f} GB a token, {size * 50 / 1e9:,.0f} GB/s"


def is_reference(model: Model) -> bool:
    """Whether this is the model that the reference card describes."""
    shape = (model.layers, model.num_experts, model.expert_width, model.hidden)
    return shape == (30, 128, 704, 2816)
