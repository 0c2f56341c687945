"""Whether a checkpoint can be served by this project's images, and what each finding needs.

Each layer is judged by its own scheme (schemes.py) as the configuration declares it (declared.py);
models/formats.yaml says which vLLM release loads the whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.checkpoint import (
    contradictions,
    declared,
    experts,
    plausible,
    scales,
    schemes,
    structure,
    tensors,
)
from fp4forge.checkpoint.declared import Declaration
from fp4forge.checkpoint.findings import (
    ERROR,
    NOTE,
    PATCH,
    WARNING,
    CheckpointFinding,
    CollectedFindings,
)
from fp4forge.checkpoint.loading import Loading, loading
from fp4forge.checkpoint.schemes import Parts, QuantisationScheme
from fp4forge.checkpoint.tensors import Checkpoint
from fp4forge.core import reading
from fp4forge.kernels.base import Progress

__all__ = (
    "ERROR",
    "NOTE",
    "PATCH",
    "WARNING",
    "CheckpointFinding",
    "Inspection",
    "as_rows",
    "inspect",
)

_VISION = re.compile(r"(vision_tower|embed_vision|multi_modal_projector|audio_tower|embed_audio)")
_UNQUANTISED_VISION = re.compile(r"(vision_tower|vision_model)")  # modelopt.py, for any model
_ROUTER = re.compile(r"layers\.\d+\.(?:\w+\.)*router\.")
_LINEAR = re.compile(r"\.\w+_proj$")


@dataclass(frozen=True)
class Inspection:
    """The verdict on a checkpoint; sizes in bytes."""

    folder: str
    format: str
    servable: bool
    flag: str
    patches: tuple[str, ...]
    weight_bytes: int
    layers: int
    experts: int
    quantised_modules: int
    findings: tuple[CheckpointFinding, ...]
    schemes: dict[str, int]  # quantised modules by scheme
    since: str  # the oldest vLLM release known to load it; empty if none does
    release: str  # the release that "servable" is about
    releases: tuple[str, ...]  # all releases of this project that load it


def inspect(
    folder: Path, report: Progress = lambda _: None, release: str | None = None
) -> Inspection:
    """Inspects a checkpoint: every header and every scale; no weight is read.

    Args:
        folder: the checkpoint's folder.
        report: called with progress.
        release: a release of this project; by default that of the image that compose takes.

    Raises:
        CheckpointError: the folder is not a checkpoint, or its configuration cannot be used.
        UsageError: there is no such release.
    """
    report("headers")
    return judge(tensors.read(folder), report, release)


def judge(
    found: Checkpoint, report: Progress = lambda _: None, release: str | None = None
) -> Inspection:
    """``inspect`` of a checkpoint whose headers were read.

    Raises:
        CheckpointError: its configuration cannot be used.
        UsageError: there is no such release.
    """
    seen = CollectedFindings()
    modules, caches = schemes.modules(found.tensors)
    declaration = declared.read(found.quantisation, modules)
    for kind, place in declaration.problems:
        seen.add(kind, place)
    _missing_files(found, seen)
    judged: dict[str, tuple[Parts, QuantisationScheme]] = {}
    if declaration.format != declared.UNKNOWN:
        report("layers")
        judged = _judge_layers(found, modules, declaration, seen)
        for name in filter(schemes.foreign, found.tensors):
            seen.add("unknown-part", name)
        experts.check(found, modules, seen)
        structure.check(found, modules, judged, seen)
        contradictions.check(found, declaration, modules, judged, caches, seen)
        scales.check(found, judged, caches, seen, report)
    for problem in plausible.problems(found.config):
        seen.add("bad-config", problem)
    if found.config.tied:
        for name in found.tensors:
            if name.endswith("lm_head.weight"):
                seen.add("tied-twice", name)
    if _tanh_gelu(found):
        seen.add("gelu-tanh", "config.json")
    architectures = tuple(found.config.architectures or ())
    support = loading(
        declaration.format, judged, declaration.promised, architectures, release, seen
    )
    return _inspection(found, declaration, judged, support, seen)


def _inspection(
    found: Checkpoint,
    declaration: Declaration,
    judged: Mapping[str, tuple[Parts, QuantisationScheme]],
    support: Loading,
    seen: CollectedFindings,
) -> Inspection:
    findings = seen.findings()
    patches = [f.patch for f in findings if f.severity == PATCH and f.patch]
    if support.patch and support.patch not in patches:
        patches.append(support.patch)
    return Inspection(
        folder=str(found.folder),
        format=declaration.format,
        servable=all(f.severity != ERROR for f in findings),
        flag=support.flag,
        patches=tuple(patches),
        weight_bytes=sum(tensor.size for tensor in found.tensors.values()),
        layers=found.config.text.num_hidden_layers or 0,
        experts=found.config.text.experts,
        quantised_modules=len(judged),
        findings=findings,
        schemes=dict(Counter(scheme.name for _, scheme in judged.values())),
        since=support.since,
        release=support.release,
        releases=support.releases,
    )


def _missing_files(found: Checkpoint, seen: CollectedFindings) -> None:
    for problem in found.problems:
        seen.add("bad-file", f"{problem.where}: {problem.text}")
    if found.index is None:
        return
    unreadable = {problem.where for problem in found.problems}
    for name in sorted(set(found.index.values())):
        if not reading.is_file(found.folder / name):
            seen.add("missing-file", name)
            unreadable.add(name)
    for name, file in found.index.items():
        if name not in found.tensors and file not in unreadable:
            seen.add("index-only", name)
    for name in (*found.skipped, *found.tensors):
        if name not in found.index:
            seen.add("not-in-index", name)


def _judge_layers(
    found: Checkpoint,
    modules: Mapping[str, Parts],
    declaration: Declaration,
    seen: CollectedFindings,
) -> dict[str, tuple[Parts, QuantisationScheme]]:
    """Judges every layer; returns the quantised ones with the scheme that each has."""
    gemma = _is_gemma(found)
    judged: dict[str, tuple[Parts, QuantisationScheme]] = {}
    for module, parts in modules.items():
        scheme = declaration.scheme(module)
        if not schemes.quantised(parts):
            if scheme and module not in declaration.excluded:
                _unquantised_layer(module, declaration, gemma, seen)
            continue
        if module in declaration.excluded:
            seen.add("excluded-quantised", module)
        elif scheme is None:
            seen.add("not-declared", module)
        else:
            schemes.check(module, parts, scheme, seen)
        there = scheme or schemes.seen(parts)
        if there:
            judged[module] = parts, there
        _judge_by_name(module, parts, declaration, gemma, seen)
    return judged


def _unquantised_layer(
    module: str, declaration: Declaration, gemma: bool, seen: CollectedFindings
) -> None:
    """A layer that is not quantised, and declared to be."""
    if experts.EXPERT.match(module) or experts.FUSED.match(module):
        seen.add("experts-not-quantised" if gemma else "experts-plain", module)
    elif declaration.layers:
        seen.add("declared-plain", module)
    elif (
        declaration.format != "mxfp4"  # vLLM quantises experts alone
        and _LINEAR.search(module)
        and not _VISION.search(module)
        and not _UNQUANTISED_VISION.search(module)
    ):
        seen.add("maybe-plain", module)


def _judge_by_name(
    module: str, parts: Parts, declaration: Declaration, gemma: bool, seen: CollectedFindings
) -> None:
    """What a quantised layer's name says about it."""
    modelopt = declaration.format.startswith("modelopt")
    vision = _VISION if gemma else _UNQUANTISED_VISION
    if modelopt and vision.search(module):
        seen.add("vision-quantised", module)
    if _ROUTER.search(module + "."):
        seen.add("router-quantised", module)
    expert = experts.EXPERT.match(module)
    if "pre_quant_scale" in parts:
        seen.add("awq-experts" if expert else "awq-dense", module)
    if gemma and expert and ".moe.experts." in module:
        seen.add("moe-prefix", module)


def _is_gemma(found: Checkpoint) -> bool:
    types = (found.config.model_type, found.config.text.model_type)
    return any((name or "").startswith("gemma4") for name in types)


def _tanh_gelu(found: Checkpoint) -> bool:
    config = found.config.text
    return (
        (found.config.model_type or "").startswith("gemma4")
        and bool(config.num_experts)
        and config.hidden_activation in (None, "gelu_pytorch_tanh")
    )


def as_rows(found: Inspection, size: Callable[[int], str]) -> list[tuple[str, Any]]:
    """The inspection as rows of a table."""
    counted = ", ".join(f"{count} {name}" for name, count in found.schemes.items())
    rows: list[tuple[str, Any]] = [
        ("checkpoint", found.folder),
        ("format", found.format),
        ("weights", size(found.weight_bytes)),
        (
            "layers",
            f"{found.layers}, {found.experts} experts each" if found.experts else str(found.layers),
        ),
        ("quantised", f"{found.quantised_modules} modules" + (f": {counted}" if counted else "")),
    ]
    for finding in found.findings:
        text = f"{finding.text} ({finding.count})\n" + "\n".join(finding.where)
        text += f"\npatch: {finding.patch}" if finding.patch else ""
        text += f"\nfix: {finding.fix}" if finding.fix else ""
        rows.append((f"{finding.severity}: {finding.id}", text))
    return [*rows, ("verdict", verdict(found))]


def verdict(found: Inspection) -> str:
    """Whether the checkpoint can be served, by which vLLM, with which flag and patches."""
    errors = {finding.id for finding in found.findings if finding.severity == ERROR}
    flag = f" with {found.flag}" if found.flag else ""
    if not errors:
        said = f"servable by release {found.release}"
    elif errors == {"needs-newer-vllm"}:
        said = f"not servable by release {found.release}"
    else:
        return "not servable: " + ", ".join(sorted(errors))
    said += f": loads from vLLM {found.since} on{flag}" if found.since else flag
    if any(finding.id == "cut-down" for finding in found.findings):
        said += "; answers are right only with the tensors that are missing (cut-down)"
    if found.releases:
        said += f"; this project's releases {', '.join(found.releases)} have it"
    if found.patches:
        said += "; needs the awq variant's patches: " + ", ".join(found.patches)
    return said
