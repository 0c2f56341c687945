"""What kind of state each layer of a model keeps, as its configuration and its family say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Raw

from fp4forge.checkpoint.config import ModelConfig, TextConfig
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError
from fp4forge.core.text import shown
from fp4forge.models import family

# Fields of hybrid models' configurations, by the names that transformers 5.5.0 has for them.
_HYBRID = re.compile(
    r"mamba|ssm|rwkv|recurrent|lightning|delta|hybrid|linear_(attn|attention|layer|num|key|value)"
    r"|attn_(layer|type)|attention_layer|layers?_block_type|block_types|conv_(kernel|size)|d_conv"
)


def of(config: ModelConfig, number: int, folder: Path) -> list[str]:
    """The state of every layer, in order: one of ``models.family.STATES``.

    Args:
        config: the configuration.
        number: its layers.
        folder: named in messages.

    Raises:
        CheckpointError: it has a kind of layer that its family's file does not know.
    """
    return _layer_kinds(config.complete, config.family, number, folder)


def assumed(config: ModelConfig, folder: Path) -> str:
    """What is assumed of a model that no family's file covers, for people; empty of others.

    Raises:
        CheckpointError: config.json cannot be read.
    """
    if config.family:
        return ""
    said = f"no file of models/families covers model_type {shown(config.model_type or 'none', 60)}"
    if config.text.layer_types:
        return f"{said}: its layers are counted as layer_types says"
    if config.text.kv_lora_rank:
        return f"{said}: every layer is counted as one with a latent (kv_lora_rank)"
    hybrid = ", ".join(
        shown(name, 60) for name in sorted(_config_fields(folder)) if _HYBRID.search(name)
    )
    if hybrid:
        return (
            f"{said}, and its {hybrid} says that layers keep a fixed state: all are counted as full"
            " attention, which is too much for long contexts; the fixed states are not counted"
        )
    return f"{said}: every layer is counted as full attention"


def _config_fields(folder: Path) -> set[str]:
    """The names of config.json's fields, and of its language model's."""
    found = reading.json_file(folder / "config.json", dict[str, Raw], CheckpointError)
    inner = found.get("text_config", Raw(b"null"))
    text = reading.json(inner, dict[str, Raw] | None, "text_config", CheckpointError)  # type: ignore[arg-type]
    return found.keys() | (text or {}).keys()


def own(text: TextConfig, number: int) -> int:
    """How many layers keep a cache of their own: gemma4.py's last num_kv_shared_layers do not."""
    return number - (text.num_kv_shared_layers or 0)


def _layer_kinds(text: TextConfig, name: str, number: int, folder: Path) -> list[str]:
    """The state of every layer, in order."""
    known = family.get(name).layers
    if text.kv_lora_rank and not name:
        return ["latent"] * number
    listed: Iterable[str] | None = text.layers_block_type
    if listed is None:
        listed = getattr(text, known.field, None)
    if listed:
        return [_layer_state(entry, known, folder) for entry in listed]
    if text.no_rope_layers:  # llama4.py: 0 marks a layer without rotary embeddings, full attention
        return [known.between if rope else "full" for rope in text.no_rope_layers]
    every = (getattr(text, known.interval, None) if known.interval else None) or known.every
    if every:
        return ["full" if (n + 1) % every == 0 else known.between for n in range(number)]
    slides = text.sliding_window and text.use_sliding_window is not False
    if known.otherwise == "sliding" and not slides:
        return ["full"] * number
    return [known.otherwise] * number


def _layer_state(entry: str, known: family.FamilyLayers, folder: Path) -> str:
    if entry not in known.kinds:
        raise CheckpointError(
            f"{shown(folder, 300)}/config.json: the layer kind {shown(entry, 60)!r} is not known",
            rule="known of this model: " + ", ".join(known.kinds or ("none",)),
            remedy="add the kind to the model's file in models/families"
            if known is not family.UNKNOWN.layers
            else "add a file for the model's family to models/families",
        )
    return known.kinds[entry]
