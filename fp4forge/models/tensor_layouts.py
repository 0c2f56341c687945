"""Which tensors a language model has, by layout, read from ``models/tensors.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import MODELS
from fp4forge.inputs.reader import BrokenField, InputFormat, one_of
from fp4forge.models.family import State

WITHIN = ("model", "layer", "dense", "experts")
_Size = Annotated[
    str,
    Meta(
        pattern=r"^([a-z_]+( [*+] [a-z_]+)*)?$",
        description="fields of config.json, multiplied and added; empty: any size",
        examples=["num_attention_heads * head_dim"],
    ),
]
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.*|]+$")]


class TensorLayout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tensors that go together: a model has all of them, or is of another layout."""

    within: Annotated[str, one_of(WITHIN, "where they are")]
    states: Annotated[
        tuple[State, ...], Meta(description="only layers that keep such a state; none: all")
    ] = ()
    always: Annotated[
        bool, Meta(description="no model goes without, not even one that was cut for a test")
    ] = False
    shared: Annotated[
        tuple[_Name, ...],
        Meta(description="not in layers that read another layer's KV cache"),
    ] = ()
    source: Annotated[str, Meta(min_length=10, description="the file of vLLM that has them")]
    tensors: Annotated[
        dict[_Name, tuple[_Size, ...]], Meta(min_length=1, description="names with their sizes")
    ]

    def __post_init__(self) -> None:
        """Checks that what layers may lack is there."""
        if lost := set(self.shared) - {name.partition("|")[0] for name in self.tensors}:
            raise BrokenField("shared", f"names {sorted(lost)[0]}", "one of the layout's tensors")


class TensorTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All layouts by name."""

    layouts: Annotated[dict[str, TensorLayout], Meta(min_length=1, description="layouts by name")]


FORMAT = InputFormat(TensorTable, "tensors", ReleaseError)


@cache
def layouts() -> dict[str, TensorLayout]:
    """The layouts of ``models/tensors.yaml``.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return FORMAT.read(MODELS / "tensors.yaml", f"{MODELS.name}/tensors.yaml").layouts


def fields(size: str) -> list[str]:
    """The fields of config.json that a size depends on."""
    return re.findall("[a-z_]+", size)


def value(size: str, sizes: Mapping[str, int]) -> int | None:
    """A size as a number; None: it may be any, or a field is not known."""
    if not size or any(name not in sizes for name in fields(size)):
        return None
    total = 0
    for term in size.split(" + "):
        product = 1
        for name in term.split(" * "):
            product *= sizes[name]
        total += product
    return total
