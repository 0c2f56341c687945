"""Everything that can be built."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace

from fp4forge.core.platform import AMD64
from fp4forge.inputs import bases, patches, release
from fp4forge.inputs.failures import Failures
from fp4forge.inputs.release import STRATEGIES
from fp4forge.kernels.gpus import TARGETS
from fp4forge.plan.cross_toolchain import TOOLCHAINS
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve


def supported(failures: Failures | None = None) -> list[Plan]:
    """The plans of everything that can be built.

    Args:
        failures: gets what is wrong with releases; without it the first failure is raised.
    """
    found: list[Plan] = []
    for name in release.names():
        with failures.of(name) if failures else nullcontext():
            found += _supported(name)
    return found


def _supported(name: str) -> list[Plan]:
    plans: list[Plan] = []
    what = release.load(name)
    for strategy, base in itertools.product(STRATEGIES, bases.names()):
        if strategy not in what.strategies:
            continue
        variants = patches.load("vllm", what.vllm_version).variants
        for arch, variant in itertools.product(TARGETS, variants):
            platform = TARGETS[arch].default_platform or AMD64
            request = ImageRequest(arch, name, variant, strategy, base, platform, aot="gemma4")
            plans.append(resolve(request))
            if strategy == "source" and platform in TOOLCHAINS and bases.load(base).suite:
                plans.append(resolve(replace(request, aot="none", cross=True)))
    return plans
