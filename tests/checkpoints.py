"""Checkpoints for tests and benchmarks: real safetensors files, sparse where their bytes are
zero, in the layout that ModelOpt exports Gemma-4's experts in."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from fp4forge.checkpoint.tensors import ELEMENT_BYTES

Entry = tuple[str, tuple[int, ...], bytes | None]  # dtype, shape, content (None: zeros)
Tensors = dict[str, Entry]

TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "sliding_window": 32,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 48,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
# The reference card's model.
REFERENCE: dict[str, Any] = TINY | {
    "num_hidden_layers": 30,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": 2,
    "sliding_window": 1024,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "vocab_size": 262144,
    "max_position_embeddings": 262144,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
}
_ONE = struct.pack("<f", 1.0)


def linear(name: str, rows: int, columns: int, scale: int = 0x38) -> Tensors:
    """One NVFP4 layer; every block scale is the e4m3 byte given (0x38 is 1.0)."""
    blocks = rows * columns // 16
    return {
        f"{name}.weight": ("U8", (rows, columns // 2), None),
        f"{name}.weight_scale": (
            "F8_E4M3",
            (rows, columns // 16),
            bytes([scale]) * blocks if scale else None,
        ),
        f"{name}.weight_scale_2": ("F32", (), _ONE),
        f"{name}.input_scale": ("F32", (), _ONE),
    }


def gemma4(shapes: dict[str, Any], scale: int = 0x38) -> Tensors:
    """A Gemma-4 MoE as ModelOpt exports it: routers, norms and vision in BF16."""
    hidden, heads = shapes["hidden_size"], shapes["num_attention_heads"]
    out: Tensors = {
        "model.embed_tokens.weight": ("BF16", (shapes["vocab_size"], hidden), None),
        "model.vision_tower.patch.weight": ("BF16", (hidden, 64), None),
        "model.norm.weight": ("BF16", (hidden,), None),
    }
    for layer, kind in enumerate(shapes["layer_types"]):
        at = f"model.layers.{layer}"
        full = kind == "full_attention"
        width = shapes["global_head_dim" if full else "head_dim"]
        few = shapes["num_global_key_value_heads" if full else "num_key_value_heads"]
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            out |= plain(f"{at}.{norm}_layernorm", hidden)
        out |= plain(f"{at}.self_attn.q_norm", width) | plain(f"{at}.self_attn.k_norm", width)
        out |= linear(f"{at}.self_attn.q_proj", heads * width, hidden, scale)
        out |= linear(f"{at}.self_attn.k_proj", few * width, hidden, scale)
        if not full:
            out |= linear(f"{at}.self_attn.v_proj", few * width, hidden, scale)
        out |= linear(f"{at}.self_attn.o_proj", hidden, heads * width, scale)
        inner = shapes["intermediate_size"]
        out |= linear(f"{at}.mlp.gate_proj", inner, hidden, scale)
        out |= linear(f"{at}.mlp.up_proj", inner, hidden, scale)
        out |= linear(f"{at}.mlp.down_proj", hidden, inner, scale)
        out[f"{at}.router.proj.weight"] = ("BF16", (shapes["num_experts"], hidden), None)
        for expert in range(shapes["num_experts"]):
            narrow, name = shapes["moe_intermediate_size"], f"{at}.experts.{expert}"
            out |= linear(f"{name}.gate_proj", narrow, hidden, scale)
            out |= linear(f"{name}.up_proj", narrow, hidden, scale)
            out |= linear(f"{name}.down_proj", hidden, narrow, scale)
    return out


def write_file(path: Path, tensors: Tensors) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape, _) in tensors.items():
        size = math.prod(shape) * ELEMENT_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        start = handle.tell()
        for name, (_, _, content) in tensors.items():
            if content is not None:
                handle.seek(start + header[name]["data_offsets"][0])
                handle.write(content)
        handle.truncate(start + offset)


def write(
    folder: Path, tensors: Tensors, shapes: dict[str, Any], algo: str = "NVFP4", shards: int = 2
) -> Path:
    """A checkpoint's folder: config.json, hf_quant_config.json, shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = shapes | {"model_type": "gemma4_text"}
    if algo:
        config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": algo}
        quantisation = {"quantization": {"quant_algo": algo, "kv_cache_quant_algo": None}}
        (folder / "hf_quant_config.json").write_text(json.dumps(quantisation))
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    index: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_file(folder / file, part)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def packed(name: str, rows: int, columns: int, activations: bool = True) -> Tensors:
    """One NVFP4 layer as compressed-tensors writes it; global scales have one element."""
    out: Tensors = {
        f"{name}.weight_packed": ("U8", (rows, columns // 2), None),
        f"{name}.weight_scale": (
            "F8_E4M3",
            (rows, columns // 16),
            bytes([0x38]) * (rows * columns // 16),
        ),
        f"{name}.weight_global_scale": ("F32", (1,), _ONE),
    }
    if activations:
        out[f"{name}.input_global_scale"] = ("F32", (1,), _ONE)
    return out


def weights_only(name: str, rows: int, columns: int) -> Tensors:
    """One layer of ModelOpt's W4A16_NVFP4."""
    out = linear(name, rows, columns)
    del out[f"{name}.input_scale"]
    return out


def fp8(name: str, rows: int, columns: int) -> Tensors:
    """One FP8 layer with one scale for the weights and one for the activations."""
    return {
        f"{name}.weight": ("F8_E4M3", (rows, columns), None),
        f"{name}.weight_scale": ("F32", (), _ONE),
        f"{name}.input_scale": ("F32", (), _ONE),
    }


def scaled(name: str, rows: int, columns: int, scale: str, *shape: int) -> Tensors:
    """One FP8 layer with an array of scales."""
    return {
        f"{name}.weight": ("F8_E4M3", (rows, columns), None),
        f"{name}.{scale}": ("F32", shape, _ONE * math.prod(shape)),
    }


def plain(name: str, *shape: int) -> Tensors:
    """One layer in BF16."""
    return {f"{name}.weight": ("BF16", shape, None)}


def norms(layers: int, hidden: int, head: int = 0) -> Tensors:
    """The norms of a model whose layers are Llama's, or with a head's size Qwen3's."""
    out = plain("model.norm", hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        out |= plain(f"{at}.input_layernorm", hidden)
        out |= plain(f"{at}.post_attention_layernorm", hidden)
        if head:
            out |= plain(f"{at}.self_attn.q_norm", head) | plain(f"{at}.self_attn.k_norm", head)
    return out


def publish(
    folder: Path,
    tensors: Tensors,
    config: dict[str, Any],
    modelopt: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint's folder with one file and its configuration as given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if modelopt is not None:
        text = json.dumps({"quantization": modelopt})
        (folder / "hf_quant_config.json").write_text(text)
    write_file(folder / "model.safetensors", tensors)
    return folder
