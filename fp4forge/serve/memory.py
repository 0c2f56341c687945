"""What fits on a GPU: weights from the checkpoint's headers, KV cache as vLLM allocates it."""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.core.errors import UsageError
from fp4forge.kernels.gpus import Product
from fp4forge.serve import kv_cache
from fp4forge.serve.model_sizes import ModelSizes

GIB = 2**30
SHARE_RULE = "a share of memory, 0.1 to 0.98"
UNLIMITED = 1 << 24  # tokens: more than any context, of a model whose configuration has no limit
# Estimates, from the H200 run of docs/gpu.md (1.65 GiB beside weights and cache; its log estimates
# 0.22 GiB for the graphs of two layers at 51 sizes): CUDA context, cuBLAS and Triton workspaces;
# the graphs of one layer at one size, a quarter above that log.
CONTEXT_BYTES = int(0.7 * GIB)
GRAPH_BYTES = int(0.22 * GIB / 2 / 51 * 1.25)


def is_share(value: float) -> bool:
    """Whether --gpu-memory-utilization can be that; NaN cannot."""
    return 0.1 <= value <= 0.98


def check_share(value: float) -> None:
    """Refuses what --gpu-memory-utilization cannot be.

    Raises:
        UsageError: the value is not a share of memory.
    """
    if not is_share(value):
        raise UsageError(f"--utilization {value} cannot be used", rule=SHARE_RULE)


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
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
        """``GPU KV cache size`` as vLLM 0.19.1 logs it; fixed states have no share in it."""
        return self.blocks // self.groups * kv_cache.BLOCK_TOKENS


def graph_sizes(sequences: int) -> int:
    """Batch sizes that CUDA graphs are captured for (VllmConfig._set_cudagraph_sizes)."""
    most = min(2 * sequences, 512)
    return sum(size <= most for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)))


def default_batched_tokens(product: Product) -> int:
    """vLLM's default of --max-num-batched-tokens when serving (arg_utils.get_batch_defaults)."""
    return 8192 if product.memory_bytes >= 70 * GIB else 2048


def fit(
    model: ModelSizes, product: Product, utilization: float, sequences: int, batched_tokens: int
) -> MemoryFit:
    """Memory left for the KV cache, in blocks.

    Args:
        model: from ``model.describe``, or one GPU's part of it (``split.shard``).
        product: the GPU.
        utilization: --gpu-memory-utilization.
        sequences: --max-num-seqs: their logits and graphs take memory.
        batched_tokens: --max-num-batched-tokens: the profile run's activations.
    """
    # The profile run's peak: Marlin's expert buffers (input, gate and up, product; bf16) or the
    # sampler's logits (f32, and a copy), whichever is larger; hidden states beside them. Experts
    # get the tokens of all data-parallel ranks.
    picked = batched_tokens * model.expert_ranks * max(model.top_k, 1)
    experts = picked * (3 * model.expert_width + model.hidden) * 2
    logits = sequences * model.vocabulary * 4 * 2
    activations = max(experts, logits) + batched_tokens * model.hidden * 2 * 6
    graphs = GRAPH_BYTES * model.num_layers * graph_sizes(sequences)
    usable = int(product.memory_bytes * utilization)
    cache = max(usable - model.weights - activations - graphs - CONTEXT_BYTES, 0)
    size, page, all_groups = kv_cache.groups(model)
    return MemoryFit(
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


def sequences_for(model: ModelSizes, found: MemoryFit, context: int, batched_tokens: int) -> int:
    """The most sequences of a context length that the cache holds at once."""
    return found.blocks // kv_cache.blocks_per_sequence(model, context, batched_tokens)


def context_for(model: ModelSizes, found: MemoryFit, sequences: int, batched_tokens: int) -> int:
    """The largest context, in tokens, that so many sequences can each have; 0 if none."""
    low, high = 0, model.max_context or UNLIMITED
    while low < high:
        middle = (low + high + 1) // 2
        if kv_cache.blocks_per_sequence(model, middle, batched_tokens) * sequences <= found.blocks:
            low = middle
        else:
            high = middle - 1
    return low


def decode_rate(model: ModelSizes, product: Product, batch: int, context: int) -> float:
    """Tokens per second of one sequence that memory bandwidth allows at most."""
    cache = sum(
        kind.count * (kind.token_bytes * min(context, kind.window or context) + kind.state_bytes)
        for kind in model.attention
    )
    return product.bandwidth * 1e9 / (model.read_per_token(batch) + batch * cache)
