"""What kind of state each layer of a model keeps, as its configuration and its family say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fp4forge.checkpoint.config import Config, TextConfig
from fp4forge.core.errors import CheckpointError
from fp4forge.core.text import shown
from fp4forge.models import family


def of(config: Config, number: int, folder: Path) -> list[str]:
    """The state of every layer, in order: one of ``models.family.STATES``.

    Args:
        config: the configuration.
        number: its layers.
        folder: named in messages.

    Raises:
        CheckpointError: it has a kind of layer that its family's file does not know.
    """
    return _kinds(config.complete, config.family, number, folder)


def own(text: TextConfig, number: int) -> int:
    """How many layers keep a cache of their own: gemma4.py's last num_kv_shared_layers do not."""
    return number - (text.num_kv_shared_layers or 0)


def _kinds(text: TextConfig, name: str, number: int, folder: Path) -> list[str]:
    """The state of every layer, in order."""
    known = family.get(name).layers
    if text.kv_lora_rank and not name:
        return ["latent"] * number
    listed: Iterable[str] | None = text.layers_block_type
    if listed is None:
        listed = getattr(text, known.field, None)
    if listed:
        return [_state(entry, known, folder) for entry in listed]
    if text.no_rope_layers:  # llama4.py: 0 marks a layer without rotary embeddings, full attention
        return [known.between if rope else "full" for rope in text.no_rope_layers]
    every = (getattr(text, known.interval, None) if known.interval else None) or known.every
    if every:
        return ["full" if (n + 1) % every == 0 else known.between for n in range(number)]
    slides = text.sliding_window and text.use_sliding_window is not False
    if known.otherwise == "sliding" and not slides:
        return ["full"] * number
    return [known.otherwise] * number


def _state(entry: str, known: family.Layers, folder: Path) -> str:
    if entry not in known.kinds:
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json: the layer kind {shown(entry, 60)!r} is not known",
            rule="known of this model: " + ", ".join(known.kinds or ("none",)),
            remedy="add the kind to the model's file in models/families",
        )
    return known.kinds[entry]
