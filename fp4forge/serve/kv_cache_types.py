"""Which types of KV cache a vLLM release has, and which its attention takes on a GPU.

The types are those of CacheDType in its sources (``releases/switches``); what attention takes is
the answer of its own selection code (``releases/backends``, written by ``build.py backends``).
"""

from __future__ import annotations

from collections.abc import Iterable

from fp4forge.core.errors import UsageError
from fp4forge.core.text import shown
from fp4forge.inputs import release as releases
from fp4forge.inputs import switches
from fp4forge.models import backend_answers
from fp4forge.serve.layer_state import KV_BYTES

DEFAULT = "fp8_e4m3"
# What the answers are kept under: one name for each way to store a cache.
_ASKED = {"fp8": "fp8_e4m3", "bfloat16": "auto", "float16": "auto"}


def available(kind: str, version: str) -> None:
    """Refuses a type that a release does not have, or whose size is not known here.

    Raises:
        UsageError: it cannot be used; the message says which can.
    """
    known = switches.load(version)
    if known and kind not in known.kv_cache_types:
        raise UsageError(
            f"--kv-cache-dtype {shown(kind, 60)}: vLLM {version} does not have it",
            rule="it has " + ", ".join(name for name in known.kv_cache_types if name in KV_BYTES),
            remedy=_releases_with_cache(kind),
        )
    if kind not in KV_BYTES:
        raise UsageError(
            f"--kv-cache-dtype {shown(kind, 60)}: its size is not known here",
            rule="one of " + ", ".join(KV_BYTES),
        )


def check(kind: str, version: str, gpus: Iterable[str], family: str) -> str:
    """Refuses a type that a release's attention does not take on a GPU.

    Args:
        kind: --kv-cache-dtype.
        version: vLLM's.
        gpus: the chips that the server may run on.
        family: the model's; empty if none covers it.

    Returns:
        A remark if nobody asked this release about this model and GPU; else nothing.

    Raises:
        UsageError: it cannot be used; the message says why, and what can.
    """
    available(kind, version)
    unknown = []
    for gpu in gpus:
        answer = backend_answers.find(version, gpu, family)
        asked = [d for d in answer.of("attention") if _same_cache(d.cache, kind)] if answer else []
        refused = next((decision for decision in asked if not decision.selected), None)
        if refused:
            reasons = ", ".join(f"{o.name}: {o.reason}" for o in refused.options if o.reason)
            raise UsageError(
                f"--kv-cache-dtype {kind}: no attention of vLLM {version} takes it on {gpu}",
                rule=f"{refused.layer}: {reasons or refused.refused}",
                remedy=_cache_types_taken(answer) if answer else "",
            )
        if not asked:
            unknown.append(gpu)
    if unknown and kind != DEFAULT:
        return (
            f"which attention of vLLM {version} takes a KV cache of {kind} on"
            f" {', '.join(unknown)} was not asked (build.py backends)"
        )
    return ""


def _same_cache(cache: str, kind: str) -> bool:
    return cache == _ASKED.get(kind, kind)


def _cache_types_taken(answer: backend_answers.BackendAnswer) -> str:
    """The types that attention takes."""
    decisions = answer.of("attention")
    caches = dict.fromkeys(decision.cache for decision in decisions)
    taken = [
        cache
        for cache in caches
        if all(decision.selected for decision in decisions if decision.cache == cache)
    ]
    return "--kv-cache-dtype " + " or ".join(taken) if taken else ""


def _releases_with_cache(kind: str) -> str:
    """The releases here that have a type."""
    having = [
        name
        for name in releases.names()
        if (known := switches.load(releases.load(name).vllm_version))
        and kind in known.kv_cache_types
    ]
    return f"--release {having[-1]} has it" if having else "no release here has it"
