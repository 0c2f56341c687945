"""Whether the sizes of a configuration go together: what no model can have is named."""

from __future__ import annotations

from collections.abc import Iterator

from fp4forge.checkpoint.config import ModelConfig


def problems(config: ModelConfig) -> Iterator[str]:
    """Fields of config.json that contradict each other, a line each.

    vLLM stops at most of them, some only at the first request (the router's top-k).
    """
    text = config.text
    picked = text.top_k_experts or text.num_experts_per_tok
    given = text.num_experts_per_tok if text.top_k_experts is None else text.top_k_experts
    if text.experts and picked and picked > text.experts:
        yield f"{picked} experts for each token, {text.experts} experts in a layer"
    if text.experts and given == 0:
        yield f"no expert for each token, {text.experts} experts in a layer"
    heads, few = text.num_attention_heads, text.num_key_value_heads
    if heads and few and heads % few:
        yield f"{heads} attention heads cannot share {few} KV heads"
    width = text.hidden_size
    if heads and width and not text.head_dim and not text.kv_lora_rank and width % heads:
        yield f"hidden_size {width} cannot be divided by {heads} attention heads"
    layers = text.num_hidden_layers
    if layers and text.layer_types is not None and len(text.layer_types) < layers:
        yield f"{len(text.layer_types)} layer_types, {layers} layers"
    if layers and (text.num_kv_shared_layers or 0) >= layers:
        yield f"{text.num_kv_shared_layers} layers share a KV cache, of {layers}"
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        if getattr(text, name) == 0:
            yield f"{name} is 0"
