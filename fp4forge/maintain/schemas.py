"""JSON schemas of the input files (``schemas/``), generated from their types for editors."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from fp4forge.advisories import vex
from fp4forge.bench import prompts, reference_card, suite
from fp4forge.core.paths import SCHEMAS
from fp4forge.inputs import (
    bases,
    defaults,
    image_extras,
    modelopt,
    patches,
    policy,
    release,
    sbom,
    service_images,
)
from fp4forge.inputs.reader import InputFormat
from fp4forge.models import (
    backend_kernels,
    family,
    faults,
    formats,
    reference_model,
    switch_history,
    tensor_layouts,
)
from fp4forge.serve import recipes

FORMATS: tuple[InputFormat[Any], ...] = (
    release.FORMAT,
    bases.FORMAT,
    image_extras.FORMAT,
    defaults.FORMAT,
    policy.FORMAT,
    service_images.FORMAT,
    patches.FORMAT,
    family.FORMAT,
    faults.FORMAT,
    recipes.FORMAT,
    formats.FORMAT,
    reference_model.FORMAT,
    tensor_layouts.FORMAT,
    backend_kernels.FORMAT,
    switch_history.FORMAT,
    suite.FORMAT,
    prompts.FORMAT,
    reference_card.FORMAT,
    vex.FORMAT,
    sbom.FORMAT,
    modelopt.FORMAT,
)


def _schema_texts() -> dict[str, str]:
    """File name and text of every schema."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        f"{made.name}.json": json.dumps(dialect | msgspec.json.schema(made.struct), indent=1) + "\n"
        for made in FORMATS
    }


def differences() -> list[str]:
    """What ``schemas/`` has that differs from what the types give, a line each."""
    wanted = _schema_texts()
    have = {path.name: path.read_text() for path in SCHEMAS.glob("*")}
    names = sorted(wanted.keys() | have.keys())
    return [f"differs: schemas/{name}" for name in names if wanted.get(name) != have.get(name)]


def write() -> int:
    """Writes every schema; returns their number."""
    wanted = _schema_texts()
    SCHEMAS.mkdir(exist_ok=True)
    for path in SCHEMAS.glob("*"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (SCHEMAS / name).write_text(text)
    return len(wanted)
