"""Speculative decoding: the drafter inspected, known traps refused with their source."""

from __future__ import annotations

import json
from pathlib import Path

from fp4forge.checkpoint import config as configs
from fp4forge.checkpoint.config import ModelConfig
from fp4forge.core.errors import UsageError
from fp4forge.core.text import shown
from fp4forge.models import family
from fp4forge.models.family import FamilySpeculation
from fp4forge.serve import model_sizes as models
from fp4forge.serve.setting import ServerSetting

FLAG = "--speculative-config"
DRAFT_DIR = "/draft"
_PLACES = {
    "separate": "a checkpoint of its own",
    "checkpoint": "in the model's own checkpoint",
    "none": "no model",
}
_NGRAM_LOOKUP = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}


def flags(
    config: ModelConfig,
    model: Path,
    mode: str | None,
    drafter: Path | None,
    version: str,
    gpus: tuple[str, ...],
) -> list[ServerSetting]:
    """The flag of a speculative mode.

    Args:
        config: the target's configuration.
        model: the target's folder, named in messages.
        mode: one of ``models.family.SPECULATIVE``; None: no speculation.
        drafter: folder of the drafter, for the modes that need one.
        version: vLLM's.
        gpus: the chips that the server may run on.

    Raises:
        UsageError: the mode does not work for this family in that release, or the drafter does not
            belong to the target.
        CheckpointError: the drafter's config.json cannot be read.
    """
    if mode is None:
        if drafter is not None:
            raise UsageError(
                "--draft without --speculative",
                rule="a drafter belongs to a speculative mode",
                remedy="add --speculative MODE",
            )
        return []
    if mode not in family.SPECULATIVE:
        rule = "one of " + ", ".join(family.SPECULATIVE)
        raise UsageError(f"--speculative {mode!r} is not known", rule=rule)
    said = _family_mode(config, mode, version)
    chosen: dict[str, object] = {"method": said.method or mode}
    needs = said.drafter == "separate"
    if needs != (drafter is not None):
        raise UsageError(
            f"--speculative {mode} " + ("needs" if needs else "takes no") + " --draft",
            rule=f"for {family.get(config.family).title} its drafter is " + _PLACES[said.drafter],
            remedy="give the drafter's folder" if needs else "leave it out",
        )
    if said.drafter == "checkpoint":
        _has_drafter(model, config)
    experts = config.text.experts
    if drafter is not None:
        draft = configs.read(drafter)
        _check_drafter(config, draft, model, drafter, mode)
        chosen["model"] = DRAFT_DIR
        experts = draft.text.experts
    chosen["num_speculative_tokens"] = said.tokens
    if mode == "ngram":
        chosen |= _NGRAM_LOOKUP
    elif experts:
        # Without it the drafter's experts take the target's --moe-backend, which may be one for
        # NVFP4 alone (SpeculativeConfig.moe_backend, vllm/config/speculative.py since 0.19.1).
        special = {said.moe_backends[gpu] for gpu in gpus if gpu in said.moe_backends}
        chosen["moe_backend"] = special.pop() if special else "auto"
    return [ServerSetting(FLAG, json.dumps(chosen), said.why)]


def _family_mode(config: ModelConfig, mode: str, version: str) -> FamilySpeculation:
    name = config.family
    known = family.get(name)
    for said in known.speculative:
        if said.mode == mode and said.holds(version):
            if said.works:
                return said
            raise UsageError(
                f"--speculative {mode}: {said.why}",
                rule=f"{known.title} with vLLM {version} ({said.source})",
                remedy="leave it out, or use another mode",
            )
    able = [said.mode for said in known.speculative if said.works and said.holds(version)]
    raise UsageError(
        f"--speculative {mode} is not known to work for "
        + (known.title if name else "this model")
        + f" with vLLM {version}",
        rule="known to work: " + (", ".join(able) or "none"),
        remedy=f"add a statement with its source to models/families/{name or 'NAME'}.yaml",
    )


def _has_drafter(model: Path, config: ModelConfig) -> None:
    """Refuses multi-token prediction without its layers."""
    if any(model.glob("*.safetensors")):
        there = models.read(model).drafter > 0
    else:
        there = bool(config.text.mtp_num_hidden_layers or config.text.num_nextn_predict_layers)
    if not there:
        raise UsageError(
            f"--speculative mtp: {shown(model.name, 100)} has no layers for it",
            rule="multi-token prediction needs the checkpoint's own drafter (mtp.*, or layers"
            " after the last)",
            remedy="take a checkpoint that kept them, or another mode",
        )


def _check_drafter(
    config: ModelConfig, draft: ModelConfig, model: Path, drafter: Path, mode: str
) -> None:
    """A drafter's kind, and its sizes against its target's."""
    names = " ".join(draft.architectures or ())
    if mode.lower() not in names.lower():
        raise UsageError(
            f"--draft {shown(drafter, 200)} is not a drafter for {mode}: its architecture is"
            f" {shown(names or 'not named', 100)}",
            rule=f"a drafter for --speculative {mode} has {mode} in its architecture's name",
        )
    for what, ours, theirs in (
        ("vocab_size", config.text.vocab_size, draft.text.vocab_size),
        (
            "hidden_size",
            config.text.hidden_size,
            draft.target_hidden_size or draft.text.hidden_size,
        ),
    ):
        if ours and theirs and ours != theirs:
            raise UsageError(
                f"--draft {shown(drafter, 200)} is for another model: its {what} is {theirs:,},"
                f" that of {shown(model.name, 100)} {ours:,}",
                rule="a drafter reads its target's hidden states and writes its tokens",
                remedy="take the drafter that was trained for this model",
            )
