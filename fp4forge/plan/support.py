"""Everything that can be built, and what is left out of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from fp4forge.core.errors import CoverageError, ForgeError, UsageError
from fp4forge.core.platform import AMD64
from fp4forge.inputs import bases, patches, release
from fp4forge.inputs.broken_releases import Failures
from fp4forge.inputs.release import STRATEGIES
from fp4forge.kernels.gpus import TARGETS
from fp4forge.plan.cross_toolchain import TOOLCHAINS
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve


@dataclass
class Supported:
    """The plans of everything that can be built, and why the others are left out."""

    plans: list[Plan] = field(default_factory=list)
    left_out: dict[tuple[str, str, str], ForgeError] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """A line for each release, GPU and strategy that is left out."""
        return [
            f"left out: release {name} on {arch} from {strategy}: {error.message}"
            for (name, arch, strategy), error in self.left_out.items()
        ]


def supported(failures: Failures | None = None) -> Supported:
    """The plans of everything that can be built.

    A release that cannot serve one GPU is planned for the others; one that can serve none is
    broken.

    Args:
        failures: gets what is wrong with releases; without it the first failure is raised.
    """
    found = Supported()
    for name in release.names():
        with failures.of(name) if failures else nullcontext():
            own = _of(name)
            if not own.plans and own.left_out:
                raise next(iter(own.left_out.values()))
            found.plans += own.plans
            found.left_out |= own.left_out
    return found


def _of(name: str) -> Supported:
    found = Supported()
    for request in _requests(name):
        try:
            found.plans.append(resolve(request))
        except (CoverageError, UsageError) as error:
            found.left_out.setdefault((name, request.arch, str(request.strategy)), error)
    return found


def _requests(name: str) -> Iterator[ImageRequest]:
    what = release.load(name)
    for strategy, base in itertools.product(STRATEGIES, bases.names()):
        if strategy not in what.strategies:
            continue
        variants = patches.load("vllm", what.vllm_version).variants
        for arch, variant in itertools.product(TARGETS, variants):
            platform = TARGETS[arch].default_platform or AMD64
            request = ImageRequest(arch, name, variant, strategy, base, platform, aot="gemma4")
            yield request
            if strategy == "source" and platform in TOOLCHAINS and bases.load(base).suite:
                yield replace(request, aot="none", cross=True)
