"""Requests to quantise small models (``tests/image/quantise/tiny_gemma4.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_gemma4 import write

from fp4forge.core.paths import MODELS

__all__ = ["TEXT", "request", "write"]

TEXT = MODELS / "calibration.txt"


def request(model: Path, output: Path, kind: str = "nvfp4", **changes: Any) -> dict[str, Any]:
    """A request as ``fp4forge.quantise.job`` writes it."""
    from fp4forge.inputs import modelopt

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
