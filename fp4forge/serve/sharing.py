"""One GPU for several models: which share of its memory each server gets."""

from __future__ import annotations

import math
from dataclasses import replace

from fp4forge.core.errors import FitError
from fp4forge.kernels.gpus import PRODUCTS, Product
from fp4forge.serve import kv_cache, memory, placing
from fp4forge.serve.model_sizes import ModelSizes
from fp4forge.serve.placing import WantedCapacity
from fp4forge.serve.split import ONE

LEAST = 0.1  # the smallest share that --gpu-memory-utilization takes (memory.is_share)
_DIGITS = 1000  # shares are whole thousandths


def divide(
    models: dict[str, ModelSizes], product: Product, wanted: WantedCapacity
) -> dict[str, float]:
    """--gpu-memory-utilization of each server, such that all hold the same number of sequences.

    Args:
        models: by name.
        product: the GPU.
        wanted: context and number of sequences that each must hold at least, and the share that
            they have together.

    Raises:
        FitError: the GPU does not hold them; the message has what would.
    """
    shares = _divided(models, product, wanted)
    if shares:
        return shares
    fixed = sum(_fixed_bytes(model, product, wanted) for model in models.values())
    cache = sum(_cache_bytes(model, product, wanted) for model in models.values())
    usable = product.memory_bytes * wanted.utilization
    raise FitError(
        f"{' and '.join(models)} do not fit on one {product.title}: {fixed / 1e9:.1f} GB of weights"
        f" and overhead, {cache / 1e9:.1f} GB for one sequence of {wanted.context:,} tokens each;"
        f" {usable / 1e9:.1f} GB are usable",
        rule="each server holds at least one sequence of --max-model-len, and takes at least"
        f" {LEAST:.0%} of the memory",
        remedy=_nearest(models, product, wanted),
    )


def _divided(
    models: dict[str, ModelSizes], product: Product, wanted: WantedCapacity
) -> dict[str, float]:
    """The shares; empty if they do not fit. A model that needs less than LEAST gets LEAST."""
    fixed = {name: _fixed_bytes(model, product, wanted) for name, model in models.items()}
    cache = {name: _cache_bytes(model, product, wanted) for name, model in models.items()}
    room = math.floor(wanted.utilization * _DIGITS)
    parts: dict[str, int] = {}
    while open_ := [name for name in models if name not in parts]:
        left = (room - sum(parts.values())) * product.memory_bytes / _DIGITS
        each = (left - sum(fixed[n] for n in open_)) / sum(cache[n] for n in open_)
        if each < wanted.sequences:
            return {}
        found = {
            n: math.floor((fixed[n] + each * cache[n]) / product.memory_bytes * _DIGITS)
            for n in open_
        }
        least = math.ceil(LEAST * _DIGITS)
        small = {n: least for n, part in found.items() if part < least}
        parts |= small or found
    if sum(parts.values()) > room:
        return {}
    shares = {name: parts[name] / _DIGITS for name in models}
    for name, model in models.items():  # rounding may have taken what the last sequence needs
        alone = placing.on(model, product, ONE, replace(wanted, utilization=shares[name]))
        if not alone.fit.fits or alone.sequences < wanted.sequences:
            return {}
    return shares


def _fixed_bytes(model: ModelSizes, product: Product, wanted: WantedCapacity) -> int:
    found = memory.fit(
        model, product, wanted.utilization, wanted.sequences, wanted.batched(product)
    )
    return found.weights + found.activations + found.graphs + found.context_overhead


def _cache_bytes(model: ModelSizes, product: Product, wanted: WantedCapacity) -> int:
    """Bytes of KV cache of one sequence."""
    context = min(wanted.context, model.max_context or wanted.context)
    size, page, _ = kv_cache.groups(model)
    blocks = kv_cache.blocks_per_sequence(model, context, wanted.batched(product))
    return blocks * size * page


def _nearest(models: dict[str, ModelSizes], product: Product, wanted: WantedCapacity) -> str:
    """What would fit: a larger share of the memory, a shorter context, a larger GPU."""
    hundredths = range(math.ceil(wanted.utilization * 100), 96)
    more = next(
        (n for n in hundredths if _divided(models, product, replace(wanted, utilization=n / 100))),
        None,
    )
    low, high = 0, wanted.context
    while low < high:
        middle = (low + high + 1) // 2
        if _divided(models, product, replace(wanted, context=middle)):
            low = middle
        else:
            high = middle - 1
    larger = [
        other
        for other in sorted(PRODUCTS.values(), key=lambda p: p.memory_bytes)
        if other.memory_bytes > product.memory_bytes and _divided(models, other, wanted)
    ]
    out = [f"--utilization {more / 100:g}"] if more else []
    out += [f"a workload of at most {low:,} tokens (--workload)"] if low else []
    out += [f"a {larger[0].title}"] if larger else []
    return "; ".join([*out, "a GPU for each"])
