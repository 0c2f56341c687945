"""The model that the reference card describes, and the card's figures of memory."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import MODELS
from fp4forge.inputs.reader import InputFormat, one_of
from fp4forge.kernels.gpus import PRODUCTS

_Positive = Annotated[int, Meta(ge=1)]


class ReferenceShape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes that no other known model has together."""

    layers: _Positive
    num_experts: _Positive
    expert_width: _Positive
    hidden: _Positive


class CardFigure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of the card."""

    figure: Literal["weights", "kv_tokens", "dense_bf16", "dense_nvfp4", "moe_nvfp4"]
    card: Annotated[str, Meta(min_length=3, description="as the card prints it")]
    differs: Annotated[str, Meta(min_length=10, description="why ours differs")]


class ReferenceModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model, the machine and the settings that the card's figures are for."""

    source: Annotated[str, Meta(min_length=10)]
    shape: ReferenceShape
    machine: Annotated[str, one_of(PRODUCTS, "a product of kernels/gpus.py")]
    utilization: Annotated[float, Meta(gt=0, le=1, description="--gpu-memory-utilization")]
    sequences: Annotated[int, Meta(ge=1, description="--max-num-seqs")]
    batched_tokens: Annotated[int, Meta(ge=1, description="--max-num-batched-tokens")]
    figures: tuple[CardFigure, ...]


FORMAT = InputFormat(ReferenceModel, "reference", ReleaseError)


@cache
def load() -> ReferenceModel:
    """The values of ``models/reference.yaml``.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return FORMAT.read(MODELS / "reference.yaml", f"{MODELS.name}/reference.yaml")
