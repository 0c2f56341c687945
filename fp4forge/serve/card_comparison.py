"""What ``serve fit`` computes beside what the reference card says of the same model and machine."""

from __future__ import annotations

from msgspec import structs

from fp4forge.kernels.gpus import product
from fp4forge.models import reference_model
from fp4forge.serve import memory
from fp4forge.serve.model_sizes import ModelSizes

# The card's dense model of the same size, and its tokens per second.
_DENSE_PARAMETERS, _DENSE_RATE = 27e9, 50
_NVFP4_BYTES = 4.5 / 8  # four bits, and a scale of eight for each sixteen weights


def applies(model: ModelSizes) -> bool:
    """Whether a model has the shape of the one that the card describes."""
    shape = structs.asdict(reference_model.load().shape)
    return all(getattr(model, name) == size for name, size in shape.items())


def rows(model: ModelSizes) -> list[dict[str, str]]:
    """The card's figures, ours, and why they differ, for the card's machine and settings."""
    card = reference_model.load()
    found = memory.fit(
        model, product(card.machine), card.utilization, card.sequences, card.batched_tokens
    )
    ours = {
        "weights": f"{model.weights / 1e9:.1f} GB",
        "kv_tokens": f"{found.tokens_reported / 1e3:.0f}K tokens",
        "dense_bf16": _read_rate(_DENSE_PARAMETERS * 2),
        "dense_nvfp4": _read_rate(_DENSE_PARAMETERS * _NVFP4_BYTES),
        "moe_nvfp4": _read_rate(model.read_per_token()),
    }
    return [
        {"figure": row.figure, "card": row.card, "ours": ours[row.figure], "why": row.differs}
        for row in card.figures
    ]


def _read_rate(size: float) -> str:
    return f"{size / 1e9:.1f} GB a token, {size * _DENSE_RATE / 1e9:,.0f} GB/s"
