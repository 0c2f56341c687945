"""The flags of ``vllm serve`` that follow from a checkpoint, its family and its place on GPUs."""

from __future__ import annotations

import os
from pathlib import Path

from fp4forge.checkpoint import config as configs
from fp4forge.inputs import switches
from fp4forge.models import family
from fp4forge.serve.setting import ServerSetting
from fp4forge.serve.split import ONE, GpuSplit


def quantisation(
    model: Path, config: configs.ModelConfig, found: str | None
) -> list[ServerSetting]:
    """The flag of the checkpoint's format; uniform ModelOpt NVFP4 is seen without an inspection."""
    if found is not None:
        name, _, value = found.partition(" ")
        return (
            [ServerSetting(name, value, "the checkpoint's format, as it was inspected")]
            if name
            else []
        )
    declared = config.quantisation
    if os.path.lexists(model / "hf_quant_config.json"):
        declared = configs.read_modelopt(model)
    elif declared.quant_method != "modelopt":
        return []
    if declared.quant_algo not in (None, "NVFP4", "NVFP4_AWQ"):
        return []
    why = "ModelOpt's NVFP4; compressed-tensors looks for other tensor names"
    return [ServerSetting("--quantization", "modelopt", why)]


def of_family(
    known: family.Family,
    config: configs.ModelConfig,
    version: str,
    gpus: tuple[str, ...],
    kind: str,
) -> list[ServerSetting]:
    """What a family needs in a release, on some GPUs; ``kind`` is "flag" or "variable"."""
    quantised = config.quantization_config is not None
    return [
        ServerSetting(getattr(setting, kind), setting.value, setting.why)
        for setting in known.settings
        if getattr(setting, kind)
        and setting.holds(version)
        and (config.text.experts or not setting.experts)
        and (quantised or not setting.quantised)
        and (not setting.gpus or not gpus or set(setting.gpus) & set(gpus))
    ]


def of_split(split: GpuSplit, config: configs.ModelConfig) -> list[ServerSetting]:
    """How the model is divided over GPUs."""
    if split == ONE:
        return [ServerSetting("--tensor-parallel-size", "1", "the model is on one GPU")]
    ways = str(split.tensor)
    cut = f"heads and widths are cut {ways} ways" if split.tensor > 1 else "no width is divided"
    out = [ServerSetting("--tensor-parallel-size", ways, cut)]
    if split.pipeline > 1:
        stages = str(split.pipeline)
        out.append(ServerSetting("--pipeline-parallel-size", stages, f"layers in {stages} stages"))
    if split.data > 1:
        ranks = str(split.data)
        why = f"{ranks} ranks answer requests, each with a cache of its own"
        out.append(ServerSetting("--data-parallel-size", ranks, why))
    if split.experts and config.text.experts:
        why = f"each GPU gets whole experts of {config.text.experts}"
        out.append(ServerSetting("--enable-expert-parallel", "", why))
    return out


def parsers(known: family.Family, version: str) -> list[ServerSetting]:
    """A family's parsers of tool calls and reasoning, as far as the release has them."""
    out = []
    tool, reasoning = known.tool_parser, known.reasoning_parser
    known_to = switches.load(version)
    if tool and tool.holds(version) and (not known_to or tool.name in known_to.tool_parsers):
        out += [
            ServerSetting("--enable-auto-tool-choice", "", "the model may call tools"),
            ServerSetting("--tool-call-parser", tool.name, tool.why),
        ]
    names = known_to.reasoning_parsers if known_to else None
    if reasoning and reasoning.holds(version) and (names is None or reasoning.name in names):
        out.append(ServerSetting("--reasoning-parser", reasoning.name, reasoning.why))
    return out
