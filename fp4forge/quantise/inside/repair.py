"""What ModelOpt's export needs and calibration may leave undone; see releases/quantise.

An activation quantizer's amax must be one finite number above 0. ModelOpt asserts that and dies
(its pull requests 1264 and 1265); here such a quantizer takes its siblings' maximum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_EXPERT = re.compile(r"(\.experts\.)\d+(\.)")
# Layers that read the same activations: vLLM fuses them, with one scale.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def siblings(name: str, names: Mapping[str, object]) -> list[str]:
    """The quantizers whose statistics stand in for a missing one, best kind first.

    Args:
        name: such as ``layers.0.experts.3.down_proj.input_quantizer``.
        names: all activation quantizers.

    Returns:
        The same projection of the other experts of the layer; else the layers that read the same
        activations; else nothing.
    """
    if _EXPERT.search(name):
        shape = _EXPERT.sub(r"\1*\2", name)
        return [n for n in names if n != name and _EXPERT.sub(r"\1*\2", n) == shape]
    for group in _FUSED:
        for part in group:
            if f".{part}." in name:
                fused = [name.replace(f".{part}.", f".{other}.") for other in group]
                return [n for n in fused if n != name and n in names]
    return []


def valid(value: float | None) -> bool:
    """Whether an amax can be exported."""
    return value is not None and math.isfinite(value) and value > 0


def substitutes(amax: Mapping[str, float | None]) -> tuple[dict[str, float], list[str]]:
    """New values for the quantizers whose amax cannot be exported.

    Args:
        amax: of every activation quantizer, by name; None: it saw nothing.

    Returns:
        The siblings' maximum by name; and the names for which no sibling has a value.
    """
    found: dict[str, float] = {}
    lost: list[str] = []
    for name, value in amax.items():
        if valid(value):
            continue
        others = [v for n in siblings(name, amax) if (v := amax[n]) is not None and valid(v)]
        if others:
            found[name] = max(others)
        else:
            lost.append(name)
    return found, lost
