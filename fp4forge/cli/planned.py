"""A plan, for people: what is decided on one screen by default, the rest with --verbose."""

from __future__ import annotations

from fp4forge.cli import origins
from fp4forge.core.console import fields
from fp4forge.plan.plan import Plan
from fp4forge.plan.vllm_components import NO_CODE, NOT_ASKED

_INDENT = 15


def lines(p: Plan, verbose: bool = False) -> list[str]:
    """What a plan decides.

    Args:
        p: the plan.
        verbose: also where sources come from, each rule about files, and each patched file's hash.
    """
    rows = {
        "plan": p.id,
        "release": _release(p),
        "GPU": _gpus(p),
        "arch list": p.arch_list,
        "predicted": _predicted(p),
        "backends": _backends(p),
        "at run time": _at_run_time(p),
        "may miss FP4": ", ".join(p.allow_missing),
        "may be vulnerable": ", ".join(p.allow_vulnerable),
        "variant": f"{p.variant}: patches {', '.join(p.patches)}"
        if p.patches
        else f"{p.variant}: no patches",
        "strategy": p.strategy,
        "components": ", ".join(p.components) or "as published",
        "not compiled": _not_compiled(p),
        "sources": _sources(p, verbose),
        "compiled on": f"{p.cross.build}, by {p.cross.triplet}-g++" if p.cross else "",
        "ahead of time": _ahead(p),
        "base": f"{p.base_image}, Python {p.python}",
        "with": "; ".join(
            f"{name} ({', '.join(has)})" if has else name for name, has in p.extras.items()
        ),
        "platform": p.platform,
        "left out": "\n".join(f"{rule.glob or rule.rule}: {rule.why}" for rule in p.leave_out)
        if verbose
        else f"files by {len(p.leave_out)} rules (--verbose)",
        "hashed": _hashed(p, verbose),
        "tags": f"{p.immutable_tag}\n{p.moving_tag}",
    }
    return fields([(name, value) for name, value in rows.items() if value], _INDENT)


def _release(p: Plan) -> str:
    what = f"vLLM {p.vllm_version}, " if p.serves else ""
    more = f", FlashInfer {p.flashinfer}" if p.serves else ""
    return f"{p.release}: {what}torch {p.torch}, CUDA {p.cuda}, transformers {p.transformers}{more}"


def _gpus(p: Plan) -> str:
    if not p.serves:
        return "every GPU that this torch has kernels for; no ledger: that covers vLLM's kernels"
    of = f" ({', '.join(p.gpus)})" if p.gpus != (p.arch,) else ""
    return f"{p.arch}{of}, capability {', '.join(p.capabilities)}"


def _predicted(p: Plan) -> str:
    """The kernel groups by what they are compiled for."""
    groups: dict[str, list[str]] = {}
    for group, targets in p.predicted.items():
        groups.setdefault(" ".join(targets), []).append(group)
    left_out = groups.pop("", [])
    said = [f"{targets}: {', '.join(names)}" for targets, names in groups.items()]
    return "\n".join(said + ([f"left out: {', '.join(left_out)}"] if left_out else []))


def _backends(p: Plan) -> str:
    if not p.serves:
        return ""
    if not p.backends:
        return f"not known for vLLM {p.vllm_version} (build.py backends --all --write records it)"
    families = {family for found in p.backends.values() for family in found}
    return (
        f"{len(families)} model families on {', '.join(p.backends)}; build.py backends --kept --all"
        f" --release {p.release} shows what vLLM selects"
    )


def _at_run_time(p: Plan) -> str:
    """Backends that vLLM selects and whose kernels are made, or fetched, while it serves."""
    rows = origins.selected(p.backends, origins.of_plan(p))
    return "\n".join(f"{how}: {', '.join(names)}" for how, names in rows.items())


def _not_compiled(p: Plan) -> str:
    """vLLM's components that are left out, with the reason."""
    said = {NOT_ASKED: "not asked for", NO_CODE: f"no code for {', '.join(p.gpus)}"}
    return "\n".join(f"{name}: {said[why]}" for name, why in p.components_left_out.items())


def _sources(p: Plan, verbose: bool) -> str:
    if verbose:
        return "\n".join(
            f"{name}: {s.provider} {s.where}"
            + (f" (vLLM {p.vllm_version} pins {s.instead_of})" if s.instead_of else "")
            for name, s in p.sources.items()
        )
    providers: dict[str, list[str]] = {}
    for name, source in p.sources.items():
        providers.setdefault(source.provider, []).append(name)
    return "; ".join(f"{who}: {', '.join(names)}" for who, names in providers.items())


def _hashed(p: Plan, verbose: bool) -> str:
    if not p.patched_files:
        return "nothing"
    if verbose:
        return "\n".join(f"{name} {digest[:12]}" for name, digest in p.patched_files.items())
    return f"{len(p.patched_files)} patched files (--verbose)"


def _ahead(p: Plan) -> str:
    if not p.serves:
        return ""
    if p.aot.name == "none":
        return "none: FlashInfer compiles its FP4 modules at the first request (--aot gemma4)"
    return f"FlashInfer's modules, {p.aot.name}, for {p.aot.archs}"
