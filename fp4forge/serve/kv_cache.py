"""The KV cache of a model as vLLM allocates it: groups of layers, blocks, bytes.

vllm/v1/core/kv_cache_utils.py (groups of layers with one page size) and
vllm/v1/kv_cache_interface.py (blocks of a request) of 0.19.1 and 0.20.2. With the figures of a
real log (tests/unit/data/logs: 53.38 GiB of cache, two of the reference's layers) this gives the
log's concurrency to the second digit.
"""

from __future__ import annotations

from fp4forge.serve.layer_state import LayerGroup
from fp4forge.serve.model_sizes import ModelSizes

BLOCK_TOKENS = 16  # CacheConfig.block_size on CUDA
# A state in use, and one kept for prefix caching (MambaSpec.max_memory_usage_bytes, "align").
STATES_PER_SEQUENCE = 2


def groups(model: ModelSizes) -> tuple[int, int, list[tuple[LayerGroup, int]]]:
    """vLLM's KV cache groups.

    Returns:
        Layers of a group, bytes of one layer's page, and each group's kind with the tokens of
        its block (``_get_kv_cache_groups_uniform_page_size``, ``unify_kv_cache_spec_page_size``;
        a block of a fixed state holds one state).
    """
    page = _page_bytes(model.attention)
    counts = [kind.count for kind in model.attention]
    size = max(counts) if max(counts) < min(counts) * 1.5 else min(counts)
    out = []
    for kind in model.attention:
        tokens = page // kind.token_bytes if kind.token_bytes else 0
        out += [(kind, tokens)] * -(-kind.count // size)
    return size, page, out


def _page_bytes(attention: tuple[LayerGroup, ...]) -> int:
    """Bytes of a layer's page, which every kind of layer gets.

    Blocks of attention grow until one holds a fixed state (``_align_hybrid_block_size`` in
    vllm/platforms/interface.py of 0.20.2).
    """
    token = max(kind.token_bytes for kind in attention)
    state = max(kind.state_bytes for kind in attention)
    if not token:
        return state
    return token * BLOCK_TOKENS * max(-(-state // (token * BLOCK_TOKENS)), 1)


def blocks_per_sequence(model: ModelSizes, context: int, batched_tokens: int) -> int:
    """Blocks that vLLM reserves for one sequence of a context length (its admission bound)."""
    total = 0
    for kind, tokens in groups(model)[2]:
        if not tokens:
            total += STATES_PER_SEQUENCE
        elif kind.window is None:
            total += -(-context // tokens)
        elif kind.kind == "chunked":
            total += -(-min(kind.window + batched_tokens, context) // tokens)
        else:  # the window's tokens, and a chunk of the prompt on its way in
            total += -(-min(kind.window - 1 + batched_tokens, context) // tokens) + 1
    return total


def kv_bytes_per_token(model: ModelSizes) -> tuple[int, int]:
    """Bytes that one more token costs: within the sliding windows, and beyond them."""
    beyond = sum(kind.count * kind.token_bytes for kind in model.attention if not kind.window)
    within = sum(kind.count * kind.token_bytes for kind in model.attention)
    return within, beyond


def state_bytes_per_sequence(model: ModelSizes) -> int:
    """Bytes of the fixed states of one sequence, whatever its length."""
    return sum(kind.count * kind.state_bytes for kind in model.attention)
