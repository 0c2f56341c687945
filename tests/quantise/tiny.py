"""Small models with random weights, by transformers' own classes, and a calibration text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoint import (
    DENSE,
    SPECIAL,
    TINY,
    text_config,
    write_tokenizer,
)

from fp4forge.core.paths import MODELS

TEXT = MODELS / "calibration.txt"
_VOCABULARY = len(SPECIAL) + 256
_CHANGES = {
    "vocab_size": _VOCABULARY,
    "vocab_size_per_layer_input": _VOCABULARY,
    "max_position_embeddings": 4096,
    "sliding_window": 512,
    "hidden_size": 80,
    "bos_token_id": SPECIAL.index("<bos>"),
    "eos_token_id": SPECIAL.index("<eos>"),
    "pad_token_id": SPECIAL.index("<pad>"),
}


def write(folder: Path, dense: bool = False) -> Path:
    """A Gemma-4 of two layers, with eight experts each unless it is dense."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    torch.manual_seed(0)
    model: Any = Gemma4ForCausalLM(text_config((DENSE if dense else TINY) | _CHANGES))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.normal_(0, 0.05)
    model.to(torch.bfloat16).eval().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def request(model: Path, output: Path, kind: str = "nvfp4", **changes: Any) -> dict[str, Any]:
    """A request as ``fp4forge.quantise.job`` writes it."""
    from fp4forge.quantise import modelopt

    chosen = modelopt.load()
    quantised = chosen.formats[kind]
    output.mkdir(parents=True, exist_ok=True)
    (output / ".state").mkdir(exist_ok=True)
    return {
        "model": str(model),
        "output": str(output),
        "state": str(output / ".state" / "calibration"),
        "calibration": str(TEXT),
        "modelopt": chosen.version,
        "config": quantised.config,
        "layers": quantised.layers,
        "activations": quantised.activations,
        "comparable": quantised.comparable,
        "resumable": quantised.resumable,
        "keep": [kept.pattern for kept in chosen.keep],
        "samples": 8,
        "length": 64,
        "seed": 0,
        "batch": 0,
        "report": 0,
        "weights": 1,
        "cpu_weights": 1 << 30,
        "allow_cpu": False,
        **changes,
    }
