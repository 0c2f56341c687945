"""Where a checkpoint contradicts itself: its two declarations, and each against the tensors."""

from __future__ import annotations

from collections.abc import Mapping

from fp4forge.checkpoint.config import Quantisation
from fp4forge.checkpoint.declared import Declaration
from fp4forge.checkpoint.findings import CollectedFindings
from fp4forge.checkpoint.patterns import ModulePatterns
from fp4forge.checkpoint.schemes import FLOATS, Parts, QuantisationScheme
from fp4forge.checkpoint.tensors import Checkpoint


def check(
    found: Checkpoint,
    declaration: Declaration,
    modules: Mapping[str, Parts],
    judged: Mapping[str, tuple[Parts, QuantisationScheme]],
    caches: Mapping[str, Parts],
    seen: CollectedFindings,
) -> None:
    """Reports layers that are declared and not there, and declarations that disagree."""
    if declaration.layers:
        for name in declaration.layers.unused():
            if name not in declaration.excluded:
                scheme = declaration.layers.schemes[name]
                seen.add("declared-missing", f"{name}: {scheme.name if scheme else 'unknown'}")
    if found.modelopt:
        _two_files(found.config.quantisation, found.modelopt, declaration, judged, seen)
    _cache_scales(found.quantisation.kv_cache, caches, seen)


def _two_files(
    config: Quantisation,
    other: Quantisation,
    declaration: Declaration,
    judged: Mapping[str, tuple[Parts, QuantisationScheme]],
    seen: CollectedFindings,
) -> None:
    """config.json against hf_quant_config.json, by what either says."""
    pairs = (
        ("quant_algo", config.algo, other.algo),
        ("KV cache", config.kv_cache, other.kv_cache),
    )
    for what, one, two in pairs:
        if one and two and one != two:
            seen.add("declarations-differ", f"{what}: {one} in config.json, {two} in the other")
    for name in (config.quantized_layers or {}).keys() & (other.quantized_layers or {}).keys():
        one = (config.quantized_layers or {})[name].quant_algo.upper()
        two = (other.quantized_layers or {})[name].quant_algo.upper()
        if one != two:
            seen.add("declarations-differ", f"{name}: {one} in config.json, {two} in the other")
    lists = config.excluded, other.excluded
    if None in lists:
        return
    names = ModulePatterns(other.excluded or (), False, "exclude_modules of hf_quant_config.json")
    for module in judged:
        if module in names and module not in declaration.excluded:
            seen.add(
                "declarations-differ", f"{module}: excluded in hf_quant_config.json, quantised"
            )


def _cache_scales(declared: str, caches: Mapping[str, Parts], seen: CollectedFindings) -> None:
    """Scales of the KV cache: vLLM's process_weights_after_loading in quantization/kv_cache.py."""
    for module, parts in caches.items():
        if "v_scale" in parts and "k_scale" not in parts:
            seen.add("kv-scale-lost", module)
        for name, tensor in parts.items():
            if tensor.dtype not in FLOATS:
                seen.add("wrong-shape", f"{module}.{name}: {tensor.dtype}, not a float")
    if declared == "FP8" and not caches:
        seen.add("kv-no-scales", "config.json")
    if caches and not declared:
        seen.add("kv-undeclared", next(iter(caches)), len(caches))
