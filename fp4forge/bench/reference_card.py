"""The reference card's own figures, read from ``benchmarks/card.yaml``."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.bench.figures import FIGURES
from fp4forge.core.errors import BenchError
from fp4forge.core.paths import BENCHMARKS
from fp4forge.inputs.reader import InputFormat, one_of

_Figure = Annotated[str, one_of(FIGURES, "a figure")]


class CardRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of a table of the card."""

    table: Annotated[str, Meta(description="a table's id in the suite card")]
    label: Annotated[str, Meta(description="a point's label there")]
    line: Annotated[str, Meta(min_length=3, description="the card's own row, as it prints it")]
    figures: Annotated[dict[_Figure, float], Meta(description="its figures, in our units")]


class ReferenceCard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The card's tables."""

    source: Annotated[str, Meta(min_length=10)]
    machine: Annotated[str, Meta(min_length=10)]
    caveats: Annotated[
        tuple[str, ...], Meta(description="what keeps its figures from being repeated")
    ] = ()
    rows: tuple[CardRow, ...]


FORMAT = InputFormat(ReferenceCard, "card", BenchError)


@cache
def card() -> ReferenceCard:
    """The card's figures."""
    return FORMAT.read(BENCHMARKS / "card.yaml", "benchmarks/card.yaml")


def figures(table: str, label: str) -> dict[str, float]:
    """The card's figures of a point; none if it has none."""
    return next((r.figures for r in card().rows if (r.table, r.label) == (table, label)), {})
