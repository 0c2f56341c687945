"""What an inspection can find: every finding's severity, meaning, patch and fix in one table."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from fp4forge.core.text import shown

ERROR, PATCH, WARNING, NOTE = "error", "patch", "warning", "note"
_SEVERITIES = (ERROR, PATCH, WARNING, NOTE)
_PLACES = 10  # lines that a finding shows
_EXPERT = re.compile(r"layers\.(\d{1,9})\.(?:\w+\.)*experts\.(\d{1,9})\.(\w+)$")

_LAYER = re.compile(r"^((?:[^:]*\.)?layers\.)(\d{1,9})(?!\d)(.*)$", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class CheckpointFinding:
    """One thing seen: severity, where and how often, what it means, the patch or fix it needs."""

    id: str
    severity: str
    text: str
    count: int = 0
    where: tuple[str, ...] = ()
    patch: str = ""
    fix: str = ""


class FindingKind(NamedTuple):
    """What a finding means. Patches are named as in patches/vllm/*/series.yaml."""

    severity: str
    text: str
    patch: str = ""
    fix: str = ""


_AGAIN = "export the checkpoint again, whole"

KINDS: dict[str, FindingKind] = {
    "unknown-format": FindingKind(
        ERROR,
        "quantised in a way that these images were not made for",
        fix="models/formats.yaml lists the formats that are known",
    ),
    "needs-newer-vllm": FindingKind(
        ERROR,
        "this release's vLLM does not load the checkpoint",
        fix="use an image of a release that does",
    ),
    "bad-config": FindingKind(
        ERROR,
        "config.json contradicts itself",
        fix="take the config.json that the model was published with",
    ),
    "unknown-architecture": FindingKind(
        ERROR,
        "no vLLM release here has a class for the model",
        fix="correct architectures in config.json; vLLM may run other models by transformers'"
        " classes (--model-impl transformers), which was not tried here",
    ),
    "wrong-strategy": FindingKind(
        ERROR,
        "4-bit weights without the strategy tensor_group: vLLM finds no scheme for them",
        fix="quantise again with scheme NVFP4",
    ),
    "not-declared": FindingKind(
        ERROR,
        "tensors are quantised, and the configuration does not say so: vLLM loads them as BF16",
        fix="restore quantization_config in config.json, or export again",
    ),
    "excluded-quantised": FindingKind(
        ERROR,
        "tensors are quantised, and the configuration excludes them: vLLM loads them as BF16",
        fix="remove the entry from ignore or exclude_modules, or export again",
    ),
    "declared-missing": FindingKind(
        ERROR,
        "the configuration names quantised layers, but their tensors are missing",
        fix=_AGAIN,
    ),
    "declared-plain": FindingKind(
        ERROR,
        "the configuration names quantised layers, and their weights are not quantised",
        fix="export again, or remove the entries from quantized_layers",
    ),
    "maybe-plain": FindingKind(
        WARNING,
        "layers are not quantised, and no list excludes them: vLLM may build them quantised",
        fix="name them in ignore (exclude_modules in hf_quant_config.json)",
    ),
    "other-scheme": FindingKind(
        ERROR,
        "tensors have another scheme than the configuration declares",
        fix="export again, or correct the declaration",
    ),
    "declarations-differ": FindingKind(
        WARNING,
        "hf_quant_config.json and config.json disagree; vLLM reads config.json",
        fix="keep the declaration that the tensors have",
    ),
    "missing-layer": FindingKind(ERROR, "layers have no tensors", fix=_AGAIN),
    "missing-tensor": FindingKind(
        ERROR,
        "tensors that every model of this family has are missing; vLLM does not notice this in a"
        " quantised model, and serves uninitialised memory",
        fix=_AGAIN,
    ),
    "wrong-size": FindingKind(
        ERROR,
        "tensors differ in size from what config.json says",
        fix="correct config.json, or export the checkpoint again",
    ),
    "cut-down": FindingKind(
        NOTE,
        "several kinds of small tensors are nowhere in the checkpoint; vLLM would serve their"
        " initial values: right only for a checkpoint cut down for a test",
        fix=_AGAIN,
    ),
    "missing-part": FindingKind(ERROR, "parts of quantised layers are missing", fix=_AGAIN),
    "unknown-part": FindingKind(
        ERROR,
        "layers have tensors of another scheme (GPTQ, AWQ, integers)",
        fix="quantise again with one of the formats that models/formats.yaml lists",
    ),
    "missing-expert": FindingKind(ERROR, "experts are missing", fix=_AGAIN),
    "expert-count": FindingKind(
        ERROR,
        "the experts are not those that config.json says",
        fix="correct the number of experts in config.json, or export again",
    ),
    "wrong-shape": FindingKind(
        ERROR,
        "parts do not have the layout of their scheme",
        fix="NVFP4 has weight [out, in/2], a scale for each 16 weights [out, in/16], two scalars;"
        " docs/serving.md lists the others",
    ),
    "no-input-scale": FindingKind(
        ERROR,
        "no input_scale: vLLM serves uninitialised memory in its place",
        "modelopt-expert-input-scales",
        "the patch refuses such a checkpoint; calibrate until every expert saw a token, or give"
        " it the largest input_scale of its siblings",
    ),
    "no-input-global-scale": FindingKind(
        ERROR,
        "no input_global_scale: vLLM serves uninitialised memory in its place",
        fix="calibrate again, or quantise with scheme NVFP4A16, whose activations stay BF16",
    ),
    "nan-block-scale": FindingKind(
        PATCH,
        "block scales are NaN (ModelOpt's overflow before 0.44)",
        "modelopt-nan-block-scales",
        "the patch zeroes and counts them",
    ),
    "nan-group-scale": FindingKind(
        ERROR, "group scales are NaN", fix="quantise again: no patch covers this format"
    ),
    "negative-block-scale": FindingKind(
        ERROR,
        "block scales are negative",
        fix="scales of NVFP4 are magnitudes: export again",
    ),
    "zero-block-scale": FindingKind(NOTE, "block scales are zero: their 16 weights are zero"),
    "bad-scalar-nan": FindingKind(ERROR, "scalars are NaN", fix="calibrate and export again"),
    "bad-scalar-infinite": FindingKind(
        ERROR, "scalars are infinite", fix="calibrate and export again"
    ),
    "bad-scalar-negative": FindingKind(
        ERROR, "scalars are negative", fix="calibrate and export again"
    ),
    "bad-scalar-zero": FindingKind(ERROR, "scalars are zero", fix="calibrate and export again"),
    "bad-scales": FindingKind(
        ERROR, "scales are NaN, infinite or negative", fix="calibrate and export again"
    ),
    "gate-up-mismatch": FindingKind(
        WARNING,
        "gate and up projection have different global scales: vLLM keeps one of them",
        fix="export with fused scales (an expert that saw no token has a scale of its own)",
    ),
    "kv-scale-lost": FindingKind(
        ERROR,
        "attention has a v_scale and no k_scale: vLLM stops at an assertion",
        fix="export the scales of the KV cache again",
    ),
    "kv-no-scales": FindingKind(
        NOTE, "the KV cache is declared as FP8 without scales: vLLM takes 1.0 for all of them"
    ),
    "kv-undeclared": FindingKind(
        NOTE,
        "there are scales of the KV cache, and none is declared: --kv-cache-dtype fp8 uses them",
    ),
    "experts-plain": FindingKind(
        ERROR,
        "experts are not quantised although the configuration says so",
        fix="export again with the experts quantised, or exclude them",
    ),
    "experts-not-quantised": FindingKind(
        ERROR,
        "experts are not quantised although the configuration says so",
        fix="ModelOpt before 0.45 does not see Gemma-4's fused experts: register Gemma4TextExperts",
    ),
    "vision-quantised": FindingKind(
        ERROR,
        "the vision path is quantised; vLLM's has no place for its scales",
        fix="exclude *vision_tower* and *embed_vision* when quantising",
    ),
    "router-quantised": FindingKind(
        ERROR, "routers are quantised", fix="routers stay in BF16: exclude them"
    ),
    "moe-prefix": FindingKind(
        PATCH, "expert names already carry .moe.: KeyError in stock vLLM", "gemma4-moe-prefix"
    ),
    "awq-dense": FindingKind(
        PATCH, "dense layers carry pre_quant_scale (NVFP4_AWQ)", "modelopt-nvfp4-awq"
    ),
    "awq-experts": FindingKind(
        ERROR,
        "experts carry pre_quant_scale: no MoE kernel of vLLM applies it",
        fix="quantise experts with NVFP4_DEFAULT_CFG (max), AWQ only for dense layers",
    ),
    "gelu-tanh": FindingKind(
        PATCH,
        "the experts' activation is tanh-GELU; stock vLLM runs erf-GELU",
        "gemma4-gelu-tanh",
    ),
    "tied-twice": FindingKind(
        NOTE, "tie_word_embeddings is set and lm_head.weight is there as well"
    ),
    "not-in-index": FindingKind(
        WARNING,
        "files or tensors are missing from the index: vLLM skips files that it does not name",
        fix="write the index again",
    ),
    "index-only": FindingKind(
        ERROR, "the index names tensors that are in no file", fix="fetch the files again"
    ),
    "missing-file": FindingKind(
        ERROR,
        "files that the index names are missing",
        fix="build.py checkpoint fetch resumes a download",
    ),
    "bad-file": FindingKind(ERROR, "files cannot be read", fix="fetch them again"),
}


@dataclass
class CollectedFindings:
    """Findings of one kind at many places."""

    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, place: str, count: int = 1) -> None:
        """Adds one place, where something was seen a number of times."""
        self.places[kind].append(place)
        self.counts[kind] += count

    def findings(self) -> tuple[CheckpointFinding, ...]:
        """All findings, errors first."""
        found = [
            CheckpointFinding(
                id=id_,
                severity=kind.severity,
                text=kind.text,
                count=self.counts[id_],
                where=tuple(_places_in_brief(self.places[id_])),
                patch=kind.patch,
                fix=kind.fix,
            )
            for id_, kind in KINDS.items()
            if id_ in self.places
        ]
        return tuple(sorted(found, key=lambda one: _SEVERITIES.index(one.severity)))


def _places_in_brief(places: Iterable[str]) -> list[str]:
    """Places for people: experts of one layer together, then layers, at most ten lines."""
    grouped: dict[tuple[int, str], list[int]] = defaultdict(list)
    rest: list[str] = []
    for place in places:
        match = _EXPERT.search(place)
        if match:
            grouped[int(match[1]), match[3]].append(int(match[2]))
        else:
            rest.append(place)
    if len(rest) > _PLACES:
        rest = _places_by_layer(rest)
    lines = [
        f"layer {layer} {kind} of experts {_number_ranges(numbers)}"
        for (layer, kind), numbers in sorted(grouped.items())
    ] + rest
    if len(lines) > _PLACES:
        lines = [*lines[: _PLACES - 1], f"and {len(lines) - _PLACES + 1} more"]
    return [shown(line, 600) for line in lines]


def _places_by_layer(places: Iterable[str]) -> list[str]:
    """Places that differ in the number of their layer alone, together."""
    grouped: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place in places:
        match = _LAYER.match(place)
        before, after = (match[1], match[3]) if match else (place, "")
        grouped[before, after].extend([int(match[2])] if match else [])
    return [
        before + _number_ranges(numbers) + after for (before, after), numbers in grouped.items()
    ]


def _number_ranges(numbers: list[int]) -> str:
    """Numbers as people write them: 0-3, 7."""
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)
