"""Models to ask for: a checkpoint's own config.json, or the example of a family.

``models/configs.json`` has an example for each family: the published config.json of a model, cut
down to what sizes, layers and routing need.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fp4forge.backends.ask import QueriedModel
from fp4forge.checkpoint import config as configs
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError, ReleaseError
from fp4forge.core.paths import MODELS
from fp4forge.models import family

_EXAMPLES = MODELS / "configs.json"


@cache
def examples() -> dict[str, dict[str, Any]]:
    """Configurations of published models by their names.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return reading.json_file(_EXAMPLES, dict[str, dict[str, Any]], ReleaseError)


def of_family(name: str) -> QueriedModel:
    """A family's example; one with experts, if there is one.

    Raises:
        CheckpointError: the family does not exist, or has no example.
    """
    family.get(name)
    found: list[tuple[bool, str]] = []
    for model, given in examples().items():
        config = reading.shaped(
            given, configs.ModelConfig, f"{_EXAMPLES.name}: {model}", ReleaseError
        )
        if config.family == name:
            found.append((not config.text.experts, model))
    if not found:
        raise CheckpointError(
            f"family {name} has no example",
            rule=f"models/{_EXAMPLES.name} has the examples",
            remedy="give a checkpoint with --model",
        )
    model = min(found, key=lambda one: one[0])[1]
    return QueriedModel(model, examples()[model], name)


def of_folder(folder: Path) -> QueriedModel:
    """A checkpoint's folder; its config.json is all that is read.

    Raises:
        CheckpointError: config.json is not there, or is not one.
    """
    config = configs.read(folder)
    given = reading.json_file(folder / "config.json", dict[str, Any], CheckpointError)
    return QueriedModel(folder.resolve().name, given, config.family)
