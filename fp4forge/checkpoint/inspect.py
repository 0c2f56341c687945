"""Whether a checkpoint can be served by this project's images, and what each finding needs.

What vLLM's loader wants of ModelOpt's NVFP4 is in vllm/model_executor/layers/quantization/
modelopt.py (ModelOptNvFp4LinearMethod, ModelOptNvFp4FusedMoE) and models/gemma4.py of 0.19.1 and
0.20.2; a layer [out, in] has weight u8 [out, in/2], weight_scale e4m3 [out, in/16] and the f32
scalars weight_scale_2 and input_scale.
"""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp4forge.checkpoint import tensors
from fp4forge.checkpoint.tensors import Checkpoint, Tensor
from fp4forge.core import reading
from fp4forge.kernels.base import Progress

BLOCK = 16  # elements that share one block scale
ERROR, PATCH, WARNING, NOTE = "error", "patch", "warning", "note"
_PARTS = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
_MODULE = re.compile(rf"^(?P<module>.+)\.(?P<part>{'|'.join(_PARTS)})$")
_EXPERT = re.compile(
    r"layers\.(?P<layer>\d+)\.(?:mlp\.)?(?P<moe>moe\.)?experts\.(?P<expert>\d+)\.(?P<kind>\w+)$"
)
_VISION = re.compile(r"(vision_tower|embed_vision|multi_modal_projector|audio_tower|embed_audio)")
_ROUTER = re.compile(r"layers\.\d+\.(?:\w+\.)*router\.")
_KINDS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing seen: severity, where and how often, what it means, the patch or fix it needs."""

    id: str
    severity: str
    text: str
    count: int = 0
    where: tuple[str, ...] = ()
    patch: str = ""
    fix: str = ""


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
    findings: tuple[Finding, ...]


@dataclass
class _Collected:
    """Findings of one kind at many places."""

    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, place: str, count: int = 1) -> None:
        self.places[kind].append(place)
        self.counts[kind] += count


# id -> severity, text, patch, fix. Patches are named as in patches/vllm/*/series.yaml.
_KNOWN: dict[str, tuple[str, str, str, str]] = {
    "missing-part": (
        ERROR,
        "parts of quantised layers are not there",
        "",
        "export the checkpoint again, whole",
    ),
    "missing-expert": (ERROR, "experts are not there", "", "export the checkpoint again, whole"),
    "wrong-shape": (
        ERROR,
        "parts do not have the layout of NVFP4",
        "",
        "the layout is weight [out, in/2], weight_scale [out, in/16], two scalars",
    ),
    "no-input-scale": (
        ERROR,
        "no input_scale: vLLM leaves memory's garbage there and serves it",
        "modelopt-expert-input-scales",
        "the patch refuses such a checkpoint; calibrate until every expert saw a token, or give"
        " it the largest input_scale of its siblings",
    ),
    "nan-block-scale": (
        PATCH,
        "block scales are NaN (ModelOpt's overflow before 0.44)",
        "modelopt-nan-block-scales",
        "the patch zeroes and counts them",
    ),
    "negative-block-scale": (
        ERROR,
        "block scales are negative",
        "",
        "scales of NVFP4 are magnitudes: export again",
    ),
    "zero-block-scale": (NOTE, "block scales are zero: their 16 weights are zero", "", ""),
    "bad-scalar-nan": (ERROR, "scalars are NaN", "", "calibrate and export again"),
    "bad-scalar-infinite": (ERROR, "scalars are infinite", "", "calibrate and export again"),
    "bad-scalar-negative": (ERROR, "scalars are negative", "", "calibrate and export again"),
    "bad-scalar-zero": (ERROR, "scalars are zero", "", "calibrate and export again"),
    "gate-up-mismatch": (
        WARNING,
        "gate_proj and up_proj have different weight_scale_2: vLLM keeps the larger",
        "",
        "export with fused scales (an expert that saw no token has a scale of its own)",
    ),
    "experts-not-quantised": (
        ERROR,
        "experts are not quantised although the configuration says so",
        "",
        "ModelOpt before 0.45 does not see Gemma-4's fused experts: register Gemma4TextExperts",
    ),
    "vision-quantised": (
        ERROR,
        "the vision path is quantised; vLLM's has no place for its scales",
        "",
        "exclude *vision_tower* and *embed_vision* when quantising",
    ),
    "router-quantised": (ERROR, "routers are quantised", "", "routers stay in BF16: exclude them"),
    "moe-prefix": (
        PATCH,
        "expert names already carry .moe.: KeyError in stock vLLM",
        "gemma4-moe-prefix",
        "",
    ),
    "awq-dense": (
        PATCH,
        "dense layers carry pre_quant_scale (NVFP4_AWQ)",
        "modelopt-nvfp4-awq",
        "",
    ),
    "awq-experts": (
        ERROR,
        "experts carry pre_quant_scale: no MoE kernel of vLLM applies it",
        "",
        "quantise experts with NVFP4_DEFAULT_CFG (max), AWQ only for dense layers",
    ),
    "gelu-tanh": (
        PATCH,
        "the experts' activation is tanh-GELU; stock vLLM runs erf-GELU",
        "gemma4-gelu-tanh",
        "",
    ),
    "tied-twice": (NOTE, "tie_word_embeddings is set and lm_head.weight is there as well", "", ""),
    "not-in-index": (
        WARNING,
        "tensors are in files but not in the index: vLLM skips such files",
        "",
        "write the index again",
    ),
    "index-only": (ERROR, "the index names tensors that no file has", "", "fetch the files again"),
    "missing-file": (
        ERROR,
        "files of the index are not there",
        "",
        "build.py checkpoint fetch resumes a download",
    ),
    "bad-file": (ERROR, "files cannot be read", "", "fetch them again"),
    "unknown-format": (
        ERROR,
        "quantised in a way that these images were not made for",
        "",
        "ModelOpt NVFP4 and NVFP4_AWQ, compressed-tensors NVFP4 and BF16 are known",
    ),
}


def inspect(folder: Path, report: Progress = lambda _: None) -> Inspection:
    """Inspects a checkpoint: every header and every scale; no weight is read.

    Args:
        folder: the checkpoint's folder.
        report: called with progress.

    Raises:
        CheckpointError: the folder is not a checkpoint.
    """
    report("headers")
    found = tensors.read(folder)
    seen = _Collected()
    modules = _modules(found.tensors)
    kind = _format(found, modules)
    _files(found, seen)
    if kind.startswith("modelopt"):
        _layouts(modules, seen)
        _scales(found, modules, seen, report)
        _experts(found, modules, seen)
    if kind == "unknown":
        seen.add("unknown-format", found.quantisation.quant_algo or "no quant_algo")
    if found.config.tied:
        for name in found.tensors:
            if name.endswith("lm_head.weight"):
                seen.add("tied-twice", name)
    if _tanh_gelu(found):
        seen.add("gelu-tanh", "config.json")
    findings = tuple(
        Finding(
            id=id_,
            severity=severity,
            text=text,
            count=seen.counts[id_],
            where=tuple(_brief(seen.places[id_])),
            patch=patch,
            fix=fix,
        )
        for id_, (severity, text, patch, fix) in _KNOWN.items()
        if id_ in seen.places
    )
    order = (ERROR, PATCH, WARNING, NOTE)
    findings = tuple(sorted(findings, key=lambda f: order.index(f.severity)))
    return Inspection(
        folder=str(folder),
        format=kind,
        servable=all(f.severity != ERROR for f in findings),
        flag=_flag(kind),
        patches=tuple(f.patch for f in findings if f.severity == PATCH and f.patch),
        weight_bytes=sum(tensor.size for tensor in found.tensors.values()),
        layers=found.config.text.num_hidden_layers or 0,
        experts=found.config.text.num_experts or 0,
        quantised_modules=sum("weight_scale" in parts for parts in modules.values()),
        findings=findings,
    )


def _flag(kind: str) -> str:
    flags = {"compressed-tensors": "--quantization compressed-tensors", "bf16": ""}
    return flags.get(kind, "--quantization modelopt")


def _modules(found: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in found.items():
        match = _MODULE.match(name)
        if match:
            modules[match["module"]][match["part"]] = tensor
    return modules


def _format(found: Checkpoint, modules: dict[str, dict[str, Tensor]]) -> str:
    """modelopt NVFP4, modelopt NVFP4_AWQ, compressed-tensors, bf16 or unknown."""
    declared = found.config.quantisation
    algo = found.quantisation.quant_algo or declared.quant_algo or ""
    packed = any(name.endswith(".weight_packed") for name in found.tensors)
    if declared.quant_method == "compressed-tensors" or packed:
        return "compressed-tensors"
    if algo in ("NVFP4", "NVFP4_AWQ"):
        return f"modelopt {algo}"
    if any("weight_scale_2" in parts for parts in modules.values()):
        return "modelopt NVFP4"
    return "unknown" if algo or found.config.quantization_config else "bf16"


def _files(found: Checkpoint, seen: _Collected) -> None:
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
    for name in found.tensors:
        if name not in found.index:
            seen.add("not-in-index", name)


def _layouts(modules: dict[str, dict[str, Tensor]], seen: _Collected) -> None:
    for module, parts in modules.items():
        weight, expert = parts.get("weight"), _EXPERT.search(module)
        quantised = weight is not None and weight.dtype == "U8"
        if not quantised and "weight_scale" not in parts:
            continue
        if _VISION.search(module):
            seen.add("vision-quantised", module)
        if _ROUTER.search(module + "."):
            seen.add("router-quantised", module)
        if "pre_quant_scale" in parts:
            seen.add("awq-experts" if expert else "awq-dense", module)
        if expert and expert["moe"]:
            seen.add("moe-prefix", module)
        missing = [p for p in ("weight", "weight_scale", "weight_scale_2") if p not in parts]
        if missing:
            seen.add("missing-part", f"{module}: {', '.join(missing)}")
            continue
        if "input_scale" not in parts:
            seen.add("no-input-scale", module)
        scale = parts["weight_scale"]
        wanted = (weight.shape[0], weight.shape[1] * 2 // BLOCK) if weight else ()
        if not quantised or scale.dtype != "F8_E4M3" or scale.shape != wanted:
            assert weight is not None
            seen.add(
                "wrong-shape",
                f"{module}: weight {weight.dtype} {list(weight.shape)},"
                f" weight_scale {scale.dtype} {list(scale.shape)}",
            )
        for part in ("weight_scale_2", "input_scale"):
            scalar = parts.get(part)
            if scalar and (scalar.dtype != "F32" or scalar.size != 4):
                text = f"{module}.{part}: {scalar.dtype} {list(scalar.shape)}, not one F32"
                seen.add("wrong-shape", text)


def _scales(
    found: Checkpoint, modules: dict[str, dict[str, Tensor]], seen: _Collected, report: Progress
) -> None:
    import numpy as np

    scalars: dict[str, float] = {}
    with found.bytes() as view:
        for number, (module, parts) in enumerate(modules.items()):
            if number % 500 == 0:
                report(f"scales of {number} of {len(modules)} layers")
            for part in ("weight_scale_2", "input_scale"):
                tensor = parts.get(part)
                if tensor and tensor.dtype == "F32" and tensor.size == 4:
                    (value,) = struct.unpack("<f", view(tensor))
                    scalars[f"{module}.{part}"] = value
                    _scalar(f"{module}.{part}", value, seen)
            scale = parts.get("weight_scale")
            if scale and scale.dtype == "F8_E4M3":
                data = np.frombuffer(view(scale), dtype=np.uint8)
                # e4m3fn has one NaN for each sign and no infinities; 0x00 and 0x80 are zero.
                if nan := int(np.count_nonzero((data & 0x7F) == 0x7F)):
                    seen.add("nan-block-scale", module, nan)
                positive_end = int(np.count_nonzero(data > 0x80)) - int((data == 0xFF).sum())
                if positive_end:
                    seen.add("negative-block-scale", module, positive_end)
                if zero := int(np.count_nonzero((data & 0x7F) == 0)):
                    seen.add("zero-block-scale", module, zero)
    for name, value in scalars.items():
        if name.endswith(".gate_proj.weight_scale_2"):
            other = scalars.get(name.replace(".gate_proj.", ".up_proj."))
            if other is not None and value != other:
                seen.add("gate-up-mismatch", name.removesuffix(".gate_proj.weight_scale_2"))


def _scalar(name: str, value: float, seen: _Collected) -> None:
    if value != value:
        seen.add("bad-scalar-nan", name)
    elif value in (float("inf"), float("-inf")):
        seen.add("bad-scalar-infinite", name)
    elif value < 0:
        seen.add("bad-scalar-negative", name)
    elif value == 0:
        seen.add("bad-scalar-zero", name)


def _experts(found: Checkpoint, modules: dict[str, dict[str, Tensor]], seen: _Collected) -> None:
    config = found.config.text
    experts, layers = config.num_experts or 0, config.num_hidden_layers or 0
    if not experts:
        return
    there: dict[int, set[tuple[int, str]]] = defaultdict(set)
    for module, parts in modules.items():
        match = _EXPERT.search(module)
        if not match:
            continue
        there[int(match["layer"])].add((int(match["expert"]), match["kind"]))
        weight = parts.get("weight")
        if weight and weight.dtype != "U8" and "weight_scale" not in parts:
            seen.add("experts-not-quantised", module)
    for name, tensor in found.tensors.items():
        if re.search(r"layers\.\d+\.(?:\w+\.)*experts\.(gate_up|down|gate|up)_proj$", name) and (
            len(tensor.shape) == 3
        ):
            seen.add("experts-not-quantised", name)
            there.clear()
            return
    for layer in range(layers):
        if not there[layer]:
            seen.add("missing-expert", f"layers.{layer}: all {experts}", experts)
            continue
        for expert in range(experts):
            lost = [kind for kind in _KINDS if (expert, kind) not in there[layer]]
            if lost:
                seen.add("missing-expert", f"layers.{layer}.experts.{expert}: {', '.join(lost)}")


def _tanh_gelu(found: Checkpoint) -> bool:
    config = found.config.text
    return (
        (found.config.model_type or "").startswith("gemma4")
        and bool(config.num_experts)
        and config.hidden_activation in (None, "gelu_pytorch_tanh")
    )


def _brief(places: Iterable[str]) -> list[str]:
    """Places for people: experts of one layer together, at most ten lines."""
    grouped: dict[tuple[int, str], list[int]] = defaultdict(list)
    rest: list[str] = []
    for place in places:
        match = _EXPERT.search(place)
        if match:
            grouped[int(match["layer"]), match["kind"]].append(int(match["expert"]))
        else:
            rest.append(place)
    lines = [
        f"layer {layer} {kind} of experts {_ranges(numbers)}"
        for (layer, kind), numbers in sorted(grouped.items())
    ] + rest
    return lines if len(lines) <= 10 else [*lines[:9], f"and {len(lines) - 9} more"]


def _ranges(numbers: list[int]) -> str:
    """Numbers as people write them: 0-3, 7."""
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def as_rows(found: Inspection, size: Callable[[int], str]) -> list[tuple[str, Any]]:
    """The inspection as rows of a table."""
    rows: list[tuple[str, Any]] = [
        ("checkpoint", found.folder),
        ("format", found.format),
        ("weights", size(found.weight_bytes)),
        (
            "layers",
            f"{found.layers}, {found.experts} experts each" if found.experts else str(found.layers),
        ),
        ("quantised", f"{found.quantised_modules} modules"),
    ]
    for finding in found.findings:
        text = f"{finding.text} ({finding.count})\n" + "\n".join(finding.where)
        text += f"\npatch: {finding.patch}" if finding.patch else ""
        text += f"\nfix: {finding.fix}" if finding.fix else ""
        rows.append((f"{finding.severity}: {finding.id}", text))
    verdict = "servable" if found.servable else "not servable"
    verdict += f" with {found.flag}" if found.servable and found.flag else ""
    if found.patches:
        verdict += "; needs the awq variant's patches: " + ", ".join(found.patches)
    return [*rows, ("verdict", verdict)]
