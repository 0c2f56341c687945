"""Whether this machine, its engine and the registry can do what a build needs."""

from __future__ import annotations

import time

from fp4forge.core.console import PipelineStep
from fp4forge.core.errors import PlatformError
from fp4forge.core.platform import host_platform
from fp4forge.oci import engine, engine_checks, registry
from fp4forge.oci.buildkit import BuildOptions
from fp4forge.oci.reference import ImageReference
from fp4forge.plan.plan import Plan

# GB that a build needs free: cold, it writes package cache, build cache, unpacked image, compressed
# layers and a registry (45 GB measured for blackwell, all on one disk); warm, when the engine has
# the base, little more.
COLD_GB = 46.0
WARM_GB = 8.0


def lacking(plan: Plan) -> list[str]:
    """The platforms whose base the engine does not have yet."""
    needed, base = dict.fromkeys((host_platform(), plan.platform)), plan.inputs.base
    return [platform for platform in needed if not engine.present(base.reference(platform))]


def check(plan: Plan, repository: str, options: BuildOptions, warm: bool) -> PipelineStep:
    """Whether engine, platform, disk and registry allow the build; the step for the table.

    Args:
        plan: to be built.
        repository: that is pushed to; empty for none.
        options: of BuildKit.
        warm: whether the engine has the base already.

    Raises:
        ForgeError: one of its classes: what the machine lacks.
    """
    start = time.monotonic()
    info = engine.connect().info()
    engine_checks.check_store(info, options.builder)
    if plan.compiles and options.builder is None:
        _check_compilers(plan)
    engine_checks.check_platform(info, plan.platform, options.builder)
    engine_checks.check_disk(info, WARM_GB if warm else COLD_GB)
    detail = f"engine {info['ServerVersion']}"
    if repository:
        registry.reach(repository)
        detail += f", registry {ImageReference(repository).host or repository}"
    return PipelineStep("check", time.monotonic() - start, detail)


def _check_compilers(plan: Plan) -> None:
    """Whether this machine can run the plan's compilers, which no emulation is fast enough for."""
    here = host_platform()
    needed = plan.cross.build if plan.cross else plan.platform
    if here == needed:
        return
    if plan.cross:
        raise PlatformError(
            f"--cross compiles on {needed}, and this machine is {here}",
            remedy=f"leave --cross out: {plan.platform} is compiled natively here",
        )
    raise PlatformError(
        f"{plan.platform} is compiled on {plan.platform}, and this machine is {here}",
        rule="compilers run natively",
        remedy="--cross (with --aot none), --builder with such a machine, or --from wheel"
        if plan.strategy == "source"
        else "--aot none, or --builder with such a machine",
    )
