"""Models to ask for: a checkpoint's own config.json, or the example of a family.

A family's file has its examples: the published config.json of models, cut down to what sizes,
layers and routing need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fp4forge.backends.ask import QueriedModel
from fp4forge.checkpoint import config as configs
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError, ReleaseError
from fp4forge.models import family


def of_family(name: str) -> QueriedModel:
    """A family's example; one with experts, if there is one.

    Raises:
        CheckpointError: there is no such family.
        ReleaseError: its file, or the configuration in it, is malformed.
    """
    found = family.get(name).examples
    if not found:  # the empty name is that of no family
        raise CheckpointError("no model family ''", rule="one of " + ", ".join(family.table()))
    where = f"models/families/{name}.yaml"
    model = min(found, key=lambda one: not _has_experts(found[one], f"{where}: {one}"))
    return QueriedModel(model, found[model].config, name)


def _has_experts(example: family.FamilyExample, where: str) -> bool:
    return bool(
        reading.shaped(example.config, configs.ModelConfig, where, ReleaseError).text.experts
    )


def of_folder(folder: Path) -> QueriedModel:
    """A checkpoint's folder; its config.json is all that is read.

    Raises:
        CheckpointError: config.json is not there, or is not one.
    """
    config = configs.read(folder)
    given = reading.json_file(folder / "config.json", dict[str, Any], CheckpointError)
    return QueriedModel(folder.resolve().name, given, config.family)
