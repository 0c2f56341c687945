"""Where backends' kernels come from, for people: of a plan, or as an image records it."""

from __future__ import annotations

from typing import Any

import msgspec

from fp4forge.models.backend_kernels import AHEAD, DOWNLOADED, IMPOSSIBLE
from fp4forge.oci.acquire import RecordedKernels, RecordedOrigin
from fp4forge.plan.plan import Plan

_SHORT = {AHEAD: "ahead", DOWNLOADED: "downloaded", IMPOSSIBLE: "impossible"}


def of_plan(plan: Plan) -> RecordedKernels:
    """What a plan predicts; empty if nothing is known of its release."""
    return msgspec.convert(plan.backend_kernels, RecordedKernels)


def short(origin: RecordedOrigin | None) -> str:
    """An origin in a table's cell: a word, or the compilers."""
    if origin is None:
        return ""
    return ", ".join(origin.by) or _SHORT.get(origin.origin, origin.origin)


def rows(found: RecordedKernels) -> list[tuple[str, ...]]:
    """A row for each backend: its kind, its name, and a cell for each GPU."""
    named = dict.fromkeys(
        (kind, name)
        for kinds in found.gpus.values()
        for kind, backends in kinds.items()
        for name in backends
    )
    kinds = list(dict.fromkeys(kind for kind, _ in named))
    return [
        (kind, name, *(short(origin(found, gpu, kind, name)) for gpu in found.gpus))
        for kind, name in sorted(named, key=lambda one: kinds.index(one[0]))
    ]


def compilers(found: RecordedKernels) -> str:
    """The run-time compilers, with what is missing of them."""
    return "; ".join(
        f"{name}: impossible, no {lacks}" if lacks else f"{name}: there"
        for name, lacks in found.compilers.items()
    )


def origin(found: RecordedKernels, gpu: str, kind: str, name: str) -> RecordedOrigin | None:
    """Where a backend's kernels come from on a GPU; None: it is not known."""
    return found.gpus.get(gpu, {}).get(kind, {}).get(name)


def selected(
    backends: dict[str, dict[str, dict[str, str]]], found: RecordedKernels
) -> dict[str, list[str]]:
    """Backends that vLLM selects and whose kernels are not in the image, by how they come.

    Args:
        backends: what vLLM selects, by GPU, family and layer.
        found: where the kernels come from.
    """
    made: dict[str, dict[str, None]] = {}
    for gpu, families in backends.items():
        for layers in families.values():
            for layer, name in layers.items():
                one = origin(found, gpu, layer.partition(":")[0], name)
                if one and one.origin != AHEAD:
                    made.setdefault(short(one), {})[name] = None
    return {how: list(names) for how, names in sorted(made.items())}


def as_json(found: RecordedKernels) -> Any:
    """As ``--json`` prints it."""
    return msgspec.to_builtins(found)
