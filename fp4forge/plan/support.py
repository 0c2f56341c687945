"""Everything that can be built."""

from __future__ import annotations

import itertools
from dataclasses import replace

from fp4forge.core.platform import AMD64
from fp4forge.inputs import bases, patches, release
from fp4forge.inputs.release import STRATEGIES
from fp4forge.kernels.gpus import TARGETS
from fp4forge.plan.cross import TOOLCHAINS
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import Request
from fp4forge.plan.resolve import resolve


def supported() -> list[Plan]:
    """The plans of everything that can be built."""
    plans: list[Plan] = []
    for name, strategy, base in itertools.product(release.names(), STRATEGIES, bases.names()):
        what = release.load(name)
        if strategy not in what.strategies:
            continue
        variants = patches.load("vllm", what.vllm_version).variants
        for arch, variant in itertools.product(TARGETS, variants):
            platform = TARGETS[arch].default_platform or AMD64
            request = Request(arch, name, variant, strategy, base, platform, aot="gemma4")
            plans.append(resolve(request))
            if strategy == "source" and platform in TOOLCHAINS and bases.load(base).suite:
                plans.append(resolve(replace(request, aot="none", cross=True)))
    return plans
