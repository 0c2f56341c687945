"""Writes a small Gemma-4 with random weights, by transformers' own classes.

Runs in the image, with ``proofs/checkpoint.py`` beside it, and in tests/quantise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from checkpoint import DENSE, SPECIAL, TINY, text_config, write_tokenizer

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


if __name__ == "__main__":
    write(Path(sys.argv[1]))
