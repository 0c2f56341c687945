"""Writes the checkpoints that the engine's tests serve; runs inside the image, on a CPU.

Usage: models.py FOLDER [SEED]. Beside an NVFP4 checkpoint lies what transformers makes of its
dequantised weights (logprobs.json), and of other random weights, as a measure.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from checkpoint import (  # tests/image/proofs
    SPECIAL,
    TINY,
    Case,
    Tensors,
    float_weights,
    multimodal_config,
    quantised,
    write,
    write_processor,
    write_tokenizer,
)
from serve import reference_logprobs

VOCABULARY = len(SPECIAL) + 256
SHAPES = TINY | {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "max_position_embeddings": 4096,
    "sliding_window": 512,
    # Not a multiple of 32: the CPU's compiled MoE operator would be taken, which has no tanh-GELU.
    "hidden_size": 80,
    "bos_token_id": SPECIAL.index("<bos>"),
    "eos_token_id": SPECIAL.index("<eos>"),
    "pad_token_id": SPECIAL.index("<pad>"),
}
PROMPT_TOKENS = 96


def prompt(seed: int) -> list[int]:
    """Random text: one token for each byte."""
    torch.manual_seed(seed)
    letters = torch.randint(len(SPECIAL), VOCABULARY, (PROMPT_TOKENS,)).tolist()
    return [SPECIAL.index("<bos>"), *letters]


def nvfp4(folder: Path, case: Case, seed: int = 0) -> None:
    """A checkpoint as ModelOpt writes it, expert by expert, and its reference."""
    source = write(folder, SHAPES, case, float_weights(SHAPES, seed=seed))
    write_tokenizer(folder)
    if case.no_input_scale:
        return
    other = quantised(float_weights(SHAPES, seed=seed + 5), case)
    found = {
        "prompt": prompt(seed),
        "same": _logprobs(source, seed),
        "other": _logprobs(other, seed),
    }
    (folder / "logprobs.json").write_text(json.dumps(found))


def _logprobs(source: Tensors, seed: int) -> list[list[float]]:
    found: list[list[float]] = reference_logprobs(SHAPES, source, prompt(seed), "cpu").tolist()
    return found


def bfloat16(folder: Path) -> None:
    """A multimodal checkpoint without quantisation, by transformers' own classes."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForConditionalGeneration

    config = multimodal_config(SHAPES)
    config.dtype = torch.bfloat16
    _save(Gemma4ForConditionalGeneration(config), folder)
    write_processor(folder)


def qwen3(folder: Path) -> None:
    """One more family: a dense Qwen3."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        bos_token_id=SHAPES["bos_token_id"],
        eos_token_id=SHAPES["eos_token_id"],
    )
    _save(Qwen3ForCausalLM(config), folder)
    write_tokenizer(folder)


def knows_paris(folder: Path) -> None:
    """A Llama whose layers add nothing: each token has one that follows it.

    After the template's last newline it says "Paris" and ends.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chain = [*tokenizer.encode("\nParis", add_special_tokens=False), SHAPES["eos_token_id"]]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=SHAPES["bos_token_id"],
        eos_token_id=SHAPES["eos_token_id"],
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0 if weight.dim() == 1 else 0.0)
        for place, (token, follower) in enumerate(itertools.pairwise(chain)):
            model.model.embed_tokens.weight[token, place] = 1
            model.lm_head.weight[follower, place] = 10
    model.to(torch.bfloat16).eval().save_pretrained(folder)


def _save(model: Any, folder: Path) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 0.05)
    model.to(torch.bfloat16).eval().save_pretrained(folder)


def main() -> None:
    """Command line."""
    root = Path(sys.argv[1])
    nvfp4(root / "nvfp4", Case("native"), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    nvfp4(root / "uncalibrated", Case("uncalibrated", no_input_scale=(2, 6)))
    bfloat16(root / "multimodal")
    qwen3(root / "qwen3")
    knows_paris(root / "knows-paris")
    for path in root.rglob("*"):  # safetensors writes 0600; the server is another user
        path.chmod(0o755 if path.is_dir() else 0o644)


main()
