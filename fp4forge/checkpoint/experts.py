"""Whether every layer has its experts: as many as the configuration says, each with all its parts.

Which parts an expert has is seen from its siblings: gate, up and down projection (w1, w3, w2 in
MiniMax and Mixtral), or up and down alone where the activation has no gate (Nemotron-H).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fp4forge.checkpoint.findings import CollectedFindings
from fp4forge.checkpoint.schemes import Parts
from fp4forge.checkpoint.tensors import Checkpoint

EXPERT = re.compile(r"^(.+\.experts)\.(\d{1,9})\.(\w+)$")
FUSED = re.compile(r"^(.+\.experts)\.\w+_proj$")
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_GATES = frozenset(("gate_proj", "w1", "w3"))
_LAYER = re.compile(r"^((?:.*\.)?layers\.\d{1,9})\.")
_ROUTER = re.compile(r"\.(?:gate|router|router\.proj|router\.layer)\.weight$")


@dataclass
class _Set:
    """The experts of one layer: numbers by kind, or the sizes of fused tensors."""

    kinds: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    fused: dict[str, int] = field(default_factory=dict)


def check(found: Checkpoint, modules: Mapping[str, Parts], seen: CollectedFindings) -> None:
    """Reports experts that are missing, and more of them than the configuration says."""
    count = found.config.text.experts
    sets = _expert_sets(modules)
    if not sets:
        if count and not _other_layout(found, count):
            seen.add("missing-expert", f"no layer has experts, config.json says {count} in each")
        return
    alike: dict[str, set[str]] = defaultdict(set)
    for name, one in sets.items():
        alike[re.sub(r"\d+", "0", name)] |= one.kinds.keys()
    for name, one in sets.items():
        for module, size in one.fused.items():
            if count and size != count:
                seen.add("expert-count", f"{module}: {size} experts, config.json says {count}")
        if one.fused:
            continue
        last = max(max(numbers) for numbers in one.kinds.values())
        if count and last >= count:
            seen.add("expert-count", f"{name}: numbers up to {last}, config.json says {count}")
        kinds = _expected_parts(alike[re.sub(r"\d+", "0", name)])
        for place, lost in _lost_experts(name, one, kinds, max(count, last + 1)):
            seen.add("missing-expert", place, lost)
    _whole_layers(found, sets, count, seen)


def _expert_sets(modules: Mapping[str, Parts]) -> dict[str, _Set]:
    sets: dict[str, _Set] = defaultdict(_Set)
    for module, parts in modules.items():
        if ".experts." not in module:
            continue
        if match := EXPERT.match(module):
            sets[match[1]].kinds[match[3]].add(int(match[2]))
        elif match := FUSED.match(module):
            weight = parts.get("weight", parts.get("blocks"))
            if weight and len(weight.shape) > 2:
                sets[match[1]].fused[module] = weight.shape[0]
    return {name: one for name, one in sets.items() if one.kinds or one.fused}


def _other_layout(found: Checkpoint, count: int) -> bool:
    """Whether experts are in tensors of another layout: one dimension of it is their number."""
    return any(
        len(tensor.shape) > 2 and tensor.shape[0] == count for tensor in found.tensors.values()
    )


def _expected_parts(kinds: Iterable[str]) -> tuple[str, ...]:
    """The parts of an expert, if its siblings together have these."""
    there = set(kinds)
    for whole in _GATED:
        if there <= set(whole) and there & _GATES:
            return whole
        if there == {"up_proj"} or there == {"down_proj"}:
            return ("up_proj", "down_proj")
    return tuple(sorted(there))


def _lost_experts(
    name: str, one: _Set, kinds: tuple[str, ...], count: int
) -> Iterator[tuple[str, int]]:
    """Numbers without a part, as ranges with their size."""
    ranges: dict[tuple[int, int], list[str]] = defaultdict(list)
    for kind in kinds:
        for gap in _missing_numbers(one.kinds.get(kind, set()), count):
            ranges[gap].append(kind)
    for (first, last), lost in sorted(ranges.items()):
        numbers = str(first) if first == last else f"{first}-{last}"
        yield f"{name}.{numbers}: {', '.join(lost)}", last - first + 1


def _missing_numbers(numbers: set[int], count: int) -> Iterator[tuple[int, int]]:
    """Ranges below a count that have no number; the count may be absurd."""
    expected = 0
    for number in (*sorted(numbers), count):
        if number > expected:
            yield expected, number - 1
        expected = number + 1


def _whole_layers(
    found: Checkpoint, sets: Mapping[str, _Set], count: int, seen: CollectedFindings
) -> None:
    """Layers with a router, as layers with experts have it, and without experts."""
    have = {match[1] for name in sets if (match := _LAYER.match(name))}
    routers: dict[str, set[str]] = defaultdict(set)
    for name in found.tensors:
        if _ROUTER.search(name) and (match := _LAYER.match(name)):
            routers[match[1]].add(name.removeprefix(match[1]))
    known = set().union(*(routers[layer] for layer in have & routers.keys()))
    for layer, own in routers.items():
        if layer not in have and own & known:
            seen.add("missing-expert", f"{layer}: all {count or ''}".rstrip(), max(count, 1))
