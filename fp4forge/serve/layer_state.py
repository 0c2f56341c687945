"""What each layer of a model keeps of a sequence: bytes a token, or a fixed state.

The kinds are vLLM's (vllm/v1/kv_cache_interface.py of 0.20.2 and 0.33.0): FullAttentionSpec,
SlidingWindowSpec, ChunkedLocalAttentionSpec, MLAAttentionSpec and MambaSpec; the shapes of fixed
states are in vllm/model_executor/layers/mamba/mamba_utils.py (MambaStateShapeCalculator).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fp4forge.checkpoint import kinds as states
from fp4forge.checkpoint.config import ModelConfig, TextConfig
from fp4forge.core.errors import CheckpointError, UsageError
from fp4forge.core.text import shown

# Bytes of one element by vLLM's --kv-cache-dtype; the types whose layout is known here.
KV_BYTES: dict[str, float] = {
    "fp8_e4m3": 1,
    "fp8": 1,
    "fp8_e5m2": 1,
    "auto": 2,
    "bfloat16": 2,
    "float16": 2,
    # A byte of scale for 16 (nvfp4_kv_cache_full_dim in vllm/utils/torch_utils.py).
    "nvfp4": 0.5625,
}
_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}
_CONV_BYTES = 2  # the convolution's state has the model's dtype, BF16
_SSM_DEFAULT = {"mamba2": "float32", "gated-delta-net": "auto"}
# The indexer's key: FP8, and an F32 scale for each 128 (deepseek_v2.py, DeepseekV32IndexerCache).
_INDEX_BLOCK = 128
# fp8_ds_mla: 512 FP8 latents, 16 bytes of scales, 64 BF16 rotary values (mla_attention.py).
_SPARSE_LATENT_BYTES = 656


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one kind.

    Attributes:
        count: how many.
        token_bytes: KV bytes of one token of one of them; 0 for a fixed state.
        window: tokens that one keeps; None: all.
        state_bytes: fixed bytes of a sequence in one of them.
        kv_heads: heads that tensor parallelism can divide its cache by; 1 is copied to each GPU.
        kind: one of ``models.family.STATES``.
    """

    count: int
    token_bytes: int
    window: int | None
    state_bytes: int = 0
    kv_heads: int = 1
    kind: str = "full"

    def divided(self, ways: int) -> LayerGroup:
        """What one of several GPUs of a tensor-parallel group keeps."""
        heads = min(ways, self.kv_heads)
        return LayerGroup(
            self.count,
            -(-self.token_bytes // heads),
            self.window,
            -(-self.state_bytes // ways),
            max(self.kv_heads // ways, 1),
            self.kind,
        )


def layers(config: ModelConfig, folder: Path, kv_dtype: str) -> tuple[LayerGroup, ...]:
    """A model's layers by kind.

    Args:
        config: its configuration.
        folder: named in messages.
        kv_dtype: vLLM's --kv-cache-dtype.

    Raises:
        CheckpointError: the configuration lacks what memory depends on.
    """
    text = config.complete
    number = need(folder, "num_hidden_layers", text.num_hidden_layers)
    kinds = states.of(config, number, folder)
    own = states.own(text, number)
    if own <= 0 or len(kinds) < number:
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json: {number} layers, {len(kinds)} layer_types and"
            f" {text.num_kv_shared_layers or 0} num_kv_shared_layers do not go together",
            rule="every layer has a type, and one at least has a KV cache",
        )
    counted = Counter(kind for kind in kinds[:own] if kind != "none")
    if not counted:
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json: no layer keeps a state",
            rule="a language model has layers with attention or a recurrent state",
        )
    return tuple(
        _group_of_kind(text, kind, count, folder, kv_dtype) for kind, count in counted.items()
    )


def _group_of_kind(
    text: TextConfig, kind: str, count: int, folder: Path, kv_dtype: str
) -> LayerGroup:
    element = KV_BYTES[kv_dtype]
    if kind == "latent":
        if element < 1:
            raise UsageError(
                f"--kv-cache-dtype {kv_dtype} is not for this model",
                rule="MLA keeps a latent, in FP8 or 16 bits",
            )
        latent = need(folder, "kv_lora_rank", text.kv_lora_rank)
        latent += need(folder, "qk_rope_head_dim", text.qk_rope_head_dim)
        size = int(latent * element)
        if text.index_head_dim:
            size = _SPARSE_LATENT_BYTES if element == 1 else size
            size += text.index_head_dim + -(-text.index_head_dim // _INDEX_BLOCK) * 4
        return LayerGroup(count, size, None, kind=kind)
    if kind in _SSM_DEFAULT:
        return LayerGroup(count, 0, None, _state_bytes(text, kind, folder), kind=kind)
    heads = need(folder, "num_attention_heads", text.num_attention_heads)
    width = text.head_dim or need(
        folder, "head_dim", need(folder, "hidden_size", text.hidden_size) // heads
    )
    kv_heads = text.num_key_value_heads or heads
    if kind == "full":
        # gemma4.py: full layers have a head size and, if keys are values, a head count of their
        # own.
        width = text.global_head_dim or width
        few = text.num_global_key_value_heads if text.attention_k_eq_v else None
        kv_heads = few or kv_heads
        return LayerGroup(
            count, _key_value_bytes(kv_heads, width, element), None, kv_heads=kv_heads
        )
    name = "sliding_window" if kind == "sliding" else "attention_chunk_size"
    window = need(folder, name, getattr(text, name))
    size = _key_value_bytes(kv_heads, width, element)
    return LayerGroup(count, size, window, kv_heads=kv_heads, kind=kind)


def _key_value_bytes(heads: int, width: int, element: float) -> int:
    """Bytes of a token's keys and values; each head's row has whole bytes."""
    row = width // 2 + width // 16 if element < 1 else int(width * element)
    return 2 * heads * row


def _state_bytes(text: TextConfig, kind: str, folder: Path) -> int:
    """Bytes of the convolution's state and of the recurrent state of one sequence."""
    if kind == "mamba2":
        heads = need(folder, "mamba_num_heads", text.mamba_num_heads)
        width = need(folder, "mamba_head_dim", text.mamba_head_dim)
        state = need(folder, "ssm_state_size", text.ssm_state_size)
        kernel = need(folder, "conv_kernel", text.conv_kernel)
        channels = heads * width + 2 * (text.n_groups or 1) * state
        recurrent, dtype = heads * width * state, text.mamba_ssm_cache_dtype
    else:
        heads = need(folder, "linear_num_value_heads", text.linear_num_value_heads)
        key_heads = need(folder, "linear_num_key_heads", text.linear_num_key_heads)
        keys = need(folder, "linear_key_head_dim", text.linear_key_head_dim)
        values = need(folder, "linear_value_head_dim", text.linear_value_head_dim)
        kernel = need(folder, "linear_conv_kernel_dim", text.linear_conv_kernel_dim)
        channels = 2 * keys * key_heads + values * heads
        recurrent, dtype = heads * values * keys, text.mamba_ssm_dtype
    element = _ELEMENT.get(dtype or _SSM_DEFAULT[kind])
    if element is None:
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json: the state's dtype {shown(dtype or '', 40)!r} is not"
            " known",
            rule="one of " + ", ".join(_ELEMENT),
        )
    return channels * (kernel - 1) * _CONV_BYTES + recurrent * element


def need(folder: Path, name: str, value: int | None) -> int:
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
