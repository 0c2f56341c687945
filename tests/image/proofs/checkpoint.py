"""Writes Gemma-4 checkpoints with random weights in ModelOpt's NVFP4 layout.

Tensor names and shapes as ModelOpt 0.43 exports them: for each quantised layer weight (uint8),
weight_scale (E4M3), weight_scale_2 and input_scale (float32), experts one by one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nvfp4 import quantise

TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 256,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 320,
    "num_kv_shared_layers": 0,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 48,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 30.0,
    "dtype": "bfloat16",
}
# The reference's shapes per layer (its card: 128 experts, 704 wide, hidden 2816).
REFERENCE = TINY | {
    "vocab_size": 4096,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": 2,
    "sliding_window": 1024,
    "max_position_embeddings": 4096,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
# Of that, what two GPUs can share on Marlin, which takes multiples of 64: not half of 2112.
SHARED = REFERENCE | {"intermediate_size": 2048}
# No experts: what NVFP4_AWQ is for.
WITHOUT_EXPERTS = {
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
}
DENSE = TINY | WITHOUT_EXPERTS

SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|tool>",
    "<tool|>",
    '<|"|>',
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
    "<|video|>",
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}\t<|image|>{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
# Attributes of a Gemma-4 tokenizer that its processor asks for.
NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}


def write_tokenizer(folder: Path, named: bool = False) -> Any:
    """A real tokenizer made here: Gemma-4's special tokens, then one token for each byte.

    transformers 5 takes either names for special tokens (the processor wants them) or a list of
    tokens that decoding leaves out.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *letters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
        extra_special_tokens=NAMED if named else list(SPECIAL[4:]),
    )
    fast.save_pretrained(folder)
    return fast


def write_processor(folder: Path) -> None:
    """Gemma-4's own processor with its defaults, around the tokenizer from above."""
    from transformers.models.gemma4 import (
        feature_extraction_gemma4,
        image_processing_gemma4,
        processing_gemma4,
        video_processing_gemma4,
    )

    processing_gemma4.Gemma4Processor(
        feature_extractor=feature_extraction_gemma4.Gemma4AudioFeatureExtractor(),
        image_processor=image_processing_gemma4.Gemma4ImageProcessor(),
        tokenizer=write_tokenizer(folder, named=True),
        video_processor=video_processing_gemma4.Gemma4VideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


@dataclass
class Case:
    """What is special about a checkpoint."""

    name: str
    multimodal: bool = False
    moe_prefix: bool = False  # names already carry .moe
    nan_scales: tuple[tuple[str, int], ...] = ()  # tensor suffix, byte planted once
    nan_everywhere: bool = False  # planted in every other block of all such tensors
    no_input_scale: tuple[int, ...] = ()  # experts that saw no token
    input_scale: dict[int, float] = field(default_factory=dict)  # expert -> planted value
    no_dense_input_scale: str = ""  # a dense layer, by the end of its name
    algo: str = "NVFP4"
    awq_dense: bool = False
    awq_experts: bool = False
    dense: bool = False  # a model without experts


Tensors = dict[str, torch.Tensor]


def text_config(shapes: dict[str, Any]) -> Any:
    """transformers' configuration of the text model."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    return Gemma4TextConfig(**shapes)


VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "position_embedding_size": 64,
    # vLLM's gemma4_mm.py reads it; transformers' configuration has no default for it.
    "default_output_length": 280,
}


def multimodal_config(shapes: dict[str, Any]) -> Any:
    """transformers' configuration of the model with a vision tower."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4Config

    text = text_config(shapes).to_dict()
    ids = {f"{name}_id": SPECIAL.index(token) for name, token in NAMED.items()}
    ids["video_token_id"] = SPECIAL.index("<|video|>")
    return Gemma4Config(text_config=text, vision_config=dict(VISION), audio_config=None, **ids)


def float_weights(
    shapes: dict[str, Any], seed: int = 0, device: str = "cpu", multimodal: bool = False
) -> Tensors:
    """Random weights of transformers' own Gemma-4, by its names, in float32."""
    from transformers.models.gemma4 import modeling_gemma4 as gemma4

    torch.manual_seed(seed)
    with torch.device("meta"):
        model = (
            gemma4.Gemma4ForConditionalGeneration(multimodal_config(shapes))
            if multimodal
            else gemma4.Gemma4ForCausalLM(text_config(shapes))
        )
    weights = {}
    for name, meta in model.state_dict().items():
        if name == "lm_head.weight" and shapes["tie_word_embeddings"]:
            continue
        tensor = torch.empty(meta.shape, dtype=torch.float32, device=device)
        if meta.dim() >= 2:
            tensor.normal_(0.0, 0.7 / meta.shape[-1] ** 0.5)
        elif "q_norm" in name or "k_norm" in name:
            # Trained models keep scores within a few units; at 1 they spread by 16 and a
            # softmax over random ones only shows which rounding came first.
            tensor.normal_(0.3, 0.03)
        elif "norm" in name:
            tensor.normal_(1.0, 0.1)
        else:
            tensor.fill_(1.0)
        weights[name] = tensor
    return weights


def split_experts(weights: Tensors) -> Tensors:
    """Fused 3D expert tensors as one 2D matrix for each expert and projection."""
    split: Tensors = {}
    for name, tensor in weights.items():
        if name.endswith(".experts.gate_up_proj"):
            base, half = name.removesuffix("gate_up_proj"), tensor.shape[1] // 2
            for e, matrix in enumerate(tensor):
                split[f"{base}{e}.gate_proj.weight"] = matrix[:half]
                split[f"{base}{e}.up_proj.weight"] = matrix[half:]
        elif name.endswith(".experts.down_proj"):
            base = name.removesuffix("down_proj")
            for e, matrix in enumerate(tensor):
                split[f"{base}{e}.down_proj.weight"] = matrix
        else:
            split[name] = tensor
    return split


def is_quantised(name: str) -> bool:
    """Whether ModelOpt's NVFP4_DEFAULT_CFG quantises a layer of this model."""
    outside = (".router.", ".vision_tower.", ".embed_vision.")
    return name.endswith("_proj.weight") and not any(part in name for part in outside)


def fused(name: str) -> str:
    """Layers that vLLM fuses share their scale: a name for the group."""
    for part in ("q_proj", "k_proj", "v_proj"):
        name = name.replace(f".{part}.", ".qkv.")
    return name.replace(".gate_proj.", ".gate_up.").replace(".up_proj.", ".gate_up.")


def quantised(weights: Tensors, case: Case) -> Tensors:
    """The checkpoint's tensors: NVFP4 parts for quantised layers, bfloat16 for the rest."""
    split = split_experts(weights)
    amax: dict[str, float] = {}
    for name, tensor in split.items():
        if is_quantised(name):
            key = fused(name)
            amax[key] = max(amax.get(key, 0.0), float(tensor.abs().max()))
    out: Tensors = {}
    generator = torch.Generator().manual_seed(1)
    factors: dict[str, torch.Tensor] = {}
    for name, tensor in split.items():
        if not is_quantised(name):
            out[name] = tensor.to(torch.bfloat16)
            continue
        base, key = name.removesuffix("weight"), fused(name)
        expert = int(name.split(".experts.")[1].split(".")[0]) if ".experts." in name else None
        awq = case.awq_dense if expert is None else case.awq_experts
        if awq:
            width = tensor.shape[1]
            if key not in factors:
                factors[key] = (torch.rand(width, generator=generator) + 0.5).to(tensor.device)
            out[base + "pre_quant_scale"] = factors[key].to(torch.bfloat16)
            tensor = tensor / factors[key].to(torch.bfloat16).float()
        # Divided by factors of at least 0.5, AWQ's weights can be larger.
        packed, block_scale, scale = quantise(tensor, 4 * amax[key] if awq else amax[key])
        out[base + "weight"], out[base + "weight_scale"] = packed, block_scale
        out[base + "weight_scale_2"] = scale
        left_out = case.no_dense_input_scale and case.no_dense_input_scale in name
        if not left_out and (expert not in case.no_input_scale or expert is None):
            value = case.input_scale.get(expert, 0.01) if expert is not None else 0.01
            out[base + "input_scale"] = torch.tensor(value)
    for suffix, byte in case.nan_scales:
        names = [n for n in out if n.endswith(suffix)]
        for name in names if case.nan_everywhere else names[:1]:
            raw = out[name].view(torch.uint8)
            (raw[:, ::2] if case.nan_everywhere else raw[:1, :1]).fill_(byte)
    return out


def dequantised(tensors: Tensors) -> Tensors:
    """Float32 weights that a checkpoint's tensors stand for, by transformers' split names."""
    from nvfp4 import dequantise

    plain: Tensors = {}
    for name, tensor in tensors.items():
        base = name.rsplit(".", 1)[0]
        if name.endswith(".weight") and f"{base}.weight_scale" in tensors:
            scale = tensors[f"{base}.weight_scale"]
            plain[name] = dequantise(tensor, scale, tensors[f"{base}.weight_scale_2"])
            if (factors := tensors.get(f"{base}.pre_quant_scale")) is not None:
                plain[name] *= factors.float()
        elif name.endswith("pre_quant_scale") or not name.endswith(("_scale", "_scale_2")):
            plain[name] = tensor.float()
    return plain


def rename(tensors: Tensors, case: Case) -> Tensors:
    """Names as the case's exporter writes them."""
    renamed = {}
    for name, tensor in tensors.items():
        new = name.replace(".experts.", ".moe.experts.") if case.moe_prefix else name
        renamed[new] = tensor
    return renamed


def write(folder: Path, shapes: dict[str, Any], case: Case, weights: Tensors) -> Tensors:
    """Writes a checkpoint; returns its tensors by transformers' names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = quantised(weights, case)
    save_file(
        {n: t.cpu().contiguous() for n, t in rename(tensors, case).items()},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    excluded = ["lm_head", "*router*", "*vision_tower*", "*embed_vision*"]
    producer = {"name": "modelopt", "version": "written by this test"}
    config = (multimodal_config if case.multimodal else text_config)(shapes).to_dict()
    kind = "Gemma4ForConditionalGeneration" if case.multimodal else "Gemma4ForCausalLM"
    config["architectures"] = [kind]
    config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": case.algo,
        "producer": producer,
        "group_size": 16,
        "ignore": excluded,
    }
    quantization = {
        "quant_algo": case.algo,
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": excluded,
    }
    hf_quant = {"producer": producer, "quantization": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "hf_quant_config.json").write_text(json.dumps(hf_quant, indent=1))
    return tensors
