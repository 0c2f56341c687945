"""Checks of the model: where it lies, how it is quantised, and what its family needs.

What is said of a family stands in ``models/families``. Of a model whose family is not known,
nothing is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from fp4forge.core import reading
from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import (
    ERROR,
    NOTE,
    WARNING,
    Diagnosis,
    check,
    failed_line,
    line_of,
    read_log,
)
from fp4forge.doctor.evidence import Evidence, Mount
from fp4forge.doctor.variables import UNKNOWN
from fp4forge.kernels.gpus import GPUS
from fp4forge.models import family, switch_history
from fp4forge.models.family import FamilySetting

_LOADED = (
    r"Resolved architecture: |Loading weights took|Loading safetensors|Application startup complete"
)
# What makes a missing parser a 400 (vllm/entrypoints/openai/chat_completion/serving.py).
_TOOLS = r"tool choice requires --enable-auto-tool-choice|tool.choice.*--tool-call-parser to be set"


@check
def quantization(found: Evidence) -> Iterator[Diagnosis]:
    """A method asked for that the checkpoint does not have."""
    line = failed_line(found, r"KeyError: .*weight_packed")
    chosen = (found.flag("--quantization") or "").lower()
    known = facts.config(found)
    declared = ((known.quantisation.quant_method or "") if known else "").lower()
    differ = bool(chosen and declared) and _quantisation_method(chosen) != _quantisation_method(
        declared
    )
    if line:
        own = declared == "compressed-tensors"
        yield Diagnosis(
            "quantization",
            ERROR,
            line,
            "config.json says compressed-tensors, and the files lack its packed weights"
            if own
            else "ModelOpt's NVFP4 has other tensor names: KeyError 'weight_packed'",
            "build.py checkpoint inspect DIR" if own else "--quantization modelopt",
        )
    elif differ:
        yield Diagnosis(
            "quantization",
            WARNING if found.ready else ERROR,
            f"--quantization {chosen}; config.json says {declared}",
            "the loader looks for tensors that the checkpoint does not have",
            f"--quantization {_quantisation_method(declared)}, or leave the flag out",
        )


def _quantisation_method(name: str) -> str:
    """ModelOpt's methods share one declaration; vLLM picks by the checkpoint."""
    return "modelopt" if name.startswith("modelopt") or name == "nvfp4" else name.replace("_", "-")


def needed(found: Evidence) -> Iterator[FamilySetting]:
    """What the model's family needs with this vLLM, on these GPUs."""
    known, version = facts.family_of(found), found.version
    names = {name for name, gpu in GPUS.items() if gpu.label in facts.capabilities(found)}
    for setting in known.settings if version else ():
        on = not setting.gpus or bool(names & set(setting.gpus))
        experts = not setting.experts or _has_experts(found)
        fp4 = not setting.quantised or _weights_quantised(found)
        if setting.holds(version) and on and experts and fp4:
            yield setting


def _has_experts(found: Evidence) -> bool:
    """Whether the model has experts, by its configuration or by the log."""
    known = facts.config(found)
    logged = bool(read_log(found.parsed.text).moe)
    return logged or bool(known and (known.text.experts or known.text.moe_intermediate_size))


def _weights_quantised(found: Evidence) -> bool:
    """Whether the weights are quantised, by flag, checkpoint or log."""
    known, log = facts.config(found), read_log(found.parsed.text)
    declared = known and known.quantisation.quant_method
    apart = any(
        reading.is_file(folder / "hf_quant_config.json") for folder, _ in facts.folders(found)
    )
    return bool(facts.setting(found, "quantization") or declared or apart or log.moe or log.linear)


@check
def family_settings(found: Evidence) -> Iterator[Diagnosis]:
    """A setting that the family needs and the server lacks."""
    for setting in needed(found):
        name = setting.flag or setting.variable
        if setting.flag == "--moe-backend":
            yield from _moe_backend(found, setting)
        elif found.serves and _setting_value(found, setting) not in (
            setting.value,
            None if found.log else "",
        ):
            yield Diagnosis(
                "family-setting",
                WARNING,
                f"{name} {setting.value} is not set".replace("  ", " "),
                setting.why,
                f"{name} {setting.value}".strip(),
                setting.source,
            )


def _setting_value(found: Evidence, setting: FamilySetting) -> str | None:
    if setting.variable:
        return found.environment.get(setting.variable)
    return found.flag(setting.flag)


def _moe_backend(found: Evidence, setting: FamilySetting) -> Iterator[Diagnosis]:
    """Experts on another backend than the family's, chosen or about to be."""
    chosen = read_log(found.parsed.text).moe
    evidence = ""
    if chosen:
        if chosen.lower() != setting.value:
            evidence = f"Using '{chosen}' NvFp4 MoE backend"
    elif (
        found.serves
        and found.flag(setting.flag) != setting.value
        and not _marlin_by_variable(found)
    ):
        given = found.flag(setting.flag)
        evidence = f"{setting.flag} {given}" if given else f"{setting.flag} is not set"
    if evidence:
        fix = f"{setting.flag} {setting.value}"
        # A need that a later release ends is a fault of this one; any other is a preference.
        severity = ERROR if setting.until else WARNING
        yield Diagnosis("moe-backend", severity, evidence, setting.why, fix, setting.source)


def _marlin_by_variable(found: Evidence) -> bool:
    """Whether the variable that older releases read chooses Marlin."""
    name = "VLLM_TEST_FORCE_FP8_MARLIN"
    return found.environment.get(name) == "1" and switch_history.known()[name].known(found.version)


@check
def flashinfer_moe(found: Evidence) -> Iterator[Diagnosis]:
    """FlashInfer's experts forced for a family that needs others."""
    name = "VLLM_USE_FLASHINFER_MOE_FP4"
    other = next((s for s in needed(found) if s.flag == "--moe-backend" and s.until), None)
    if (
        found.environment.get(name) == "1"
        and other
        and switch_history.known()[name].known(found.version)
    ):
        yield Diagnosis("flashinfer-moe", ERROR, f"{name}=1", other.why, "remove it", other.source)


@check
def speculative(found: Evidence) -> Iterator[Diagnosis]:
    """Speculative decoding that the family cannot use with this vLLM."""
    known = facts.family_of(found)
    mode = _speculative_mode(found)
    eagle = [m.target for m in found.mounts if "spec_decode/eagle" in m.target.lower()]
    for entry in known.speculative:
        asked = entry.mode == mode or (entry.mode == "eagle3" and bool(eagle))
        if asked and not entry.works and found.version and entry.holds(found.version):
            yield Diagnosis(
                "speculative",
                ERROR,
                ", ".join([f"speculative decoding by {mode}"] * bool(mode) + eagle),
                entry.why,
                "leave speculative decoding out",
                entry.source,
            )


def _speculative_mode(found: Evidence) -> str:
    """The speculative mode that is asked for, by its usual name; empty if none."""
    text = found.flag("--speculative-config") or ""
    match = re.search(r"['\"]?method['\"]?\s*[:=]\s*['\"](\w{1,40})", text)
    match = match or re.search(r"SpeculativeConfig\(method='(\w{1,40})'", found.parsed.text)
    dotted = found.flag("--speculative-config.method")
    name = (match[1] if match else dotted or "").lower()
    if not name and "eagle3" in (text + (found.flag("--speculative-model") or "")).lower():
        return "eagle3"
    return "mtp" if name.endswith("mtp") else name


@check
def attention(found: Evidence) -> Iterator[Diagnosis]:
    """An attention backend that cannot do the model's heads."""
    line = failed_line(found, r"head_size not supported|[Hh]ead size \d+ is not supported")
    chosen = (_attention_backend(found) or "").upper()
    known = facts.config(found)
    wide = max((known.text.global_head_dim or 0, known.text.head_dim or 0)) if known else 0
    # vllm/v1/attention/backends/flashinfer.py, get_supported_head_sizes: 64, 128 and 256.
    cannot = "FLASHINFER" in chosen and "MLA" not in chosen and wide > 256
    if not line and not (cannot and not found.ready):
        return
    heads = f": {wide} wide heads" if wide else ""
    yield Diagnosis(
        "attention-backend",
        ERROR,
        line or f"--attention-backend {chosen}{heads}",
        f"{chosen or 'the chosen backend'} has no kernels for the width of this model's heads"
        + (f" ({wide})" if wide else ""),
        "remove --attention-backend: vLLM picks one that fits (TRITON_ATTN takes any width)",
    )


def _attention_backend(found: Evidence) -> str | None:
    given = facts.setting(found, "attention-backend")
    match = re.search(r"Selected backend (?:AttentionBackendEnum\.)?(\w{1,60})", found.parsed.text)
    return given or found.environment.get("VLLM_ATTENTION_BACKEND") or (match[1] if match else None)


@check
def tool_choice(found: Evidence) -> Iterator[Diagnosis]:
    """Requests with tools, to a server without a parser for them."""
    line = line_of(found, _TOOLS)
    if not line:
        return
    name = facts.family_name(found)
    guess = "" if name else family.by_name(facts.model(found))
    known = family.get(name or guess) if (name or guess) in family.table() else family.UNKNOWN
    parser = known.tool_parser
    flag = f"--tool-call-parser {parser.name if parser else 'NAME'}"
    if guess and parser:
        flag += f" (if this is {known.title}, as its name says)"
    elif not parser:
        flag += ": by the model's family, docs/features/tool_calling.md of vLLM lists them"
    yield Diagnosis(
        "tool-choice",
        ERROR,
        line,
        "clients ask for tools, and the server was started without --enable-auto-tool-choice and"
        " --tool-call-parser",
        f"--enable-auto-tool-choice {flag}",
        parser.source if parser else "",
    )


@check
def parser(found: Evidence) -> Iterator[Diagnosis]:
    """A parser made for another family: its markers are not in the tokenizer."""
    known = facts.family_of(found)
    for flag, right in (
        ("--tool-call-parser", known.tool_parser),
        ("--reasoning-parser", known.reasoning_parser),
    ):
        chosen = found.flag(flag)
        owner = next((f for f in family.table().values() if _family_owns(f, flag, chosen)), None)
        foreign = owner is not None and chosen in owner.model_types and owner is not known
        if right and chosen and chosen != right.name and foreign:
            yield Diagnosis(
                "parser",
                WARNING if found.ready else ERROR,
                f"{flag} {chosen}",
                f"that parser reads the markers of {owner.title if owner else ''}; this model is"
                f" {known.title}",
                f"{flag} {right.name}",
                right.source,
            )


def _family_owns(one: family.Family, flag: str, name: str | None) -> bool:
    chosen = one.tool_parser if flag == "--tool-call-parser" else one.reasoning_parser
    return chosen is not None and chosen.name == name


@check
def versions(found: Evidence) -> Iterator[Diagnosis]:
    """A vLLM too old to know the model."""
    known, version = facts.family_of(found), found.version
    for quirk in known.quirks:
        first = quirk.until and not quirk.since and quirk.id.endswith("-from")
        if version and first and Version(version) < Version(quirk.until):
            yield Diagnosis(
                "vllm-version",
                WARNING if found.ready else ERROR,
                f"vLLM {version}",
                quirk.text,
                quirk.fix,
                quirk.source,
            )


def _has_files(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except (OSError, ValueError):  # not for this user's eyes
        return True


@check
def model_mount(found: Evidence) -> Iterator[Diagnosis]:
    """The model is not where the server looks."""
    loaded = bool(line_of(found, _LOADED))
    for folder, here in facts.folders(found):
        if loaded or UNKNOWN in str(folder) or os.path.lexists(folder / "config.json"):
            continue
        there = reading.is_folder(folder)
        state = "is empty" if there else "does not exist on this host"
        if there and _has_files(folder):
            state = "has no config.json"
        certain = there or here
        yield Diagnosis(
            "model-mount",
            ERROR if certain else NOTE,
            f"{folder} {state}",
            "Docker creates an empty folder in place of a missing source"
            if certain
            else "this may be another machine than the server's",
            "mount the folder with config.json and the weights",
        )
    if not loaded and _on_no_mount(facts.model(found), found.mounts):
        yield Diagnosis(
            "model-mount",
            ERROR,
            f"nothing is mounted at {facts.model(found)}",
            "the container has no model at the path that the server reads",
            f"mount the checkpoint at {facts.model(found)}",
        )
    line = failed_line(found, r"Invalid repository ID or local directory|is not a local folder")
    if line:
        yield Diagnosis(
            "model-mount",
            ERROR,
            line,
            "no checkpoint at that place",
            "mount the folder with config.json and the weights",
        )


def _on_no_mount(model: str, mounts: list[Mount]) -> bool:
    """Whether a model's place is on no mount, and every mount is known."""
    if not model.startswith("/") or not mounts or UNKNOWN in model:
        return False
    if any(UNKNOWN in mount.target for mount in mounts):
        return False
    return not any(
        model == m.target or model.startswith(m.target.rstrip("/") + "/") for m in mounts
    )
