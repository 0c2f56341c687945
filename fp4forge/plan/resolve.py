"""Turns a request into a plan."""

from __future__ import annotations

import re

from fp4forge.core.errors import CoverageError, UsageError
from fp4forge.core.platform import host_platform
from fp4forge.inputs import bases, image_extras, patches
from fp4forge.inputs import release as releases
from fp4forge.inputs.image_extras import ImageExtra
from fp4forge.inputs.patches import Patch
from fp4forge.inputs.release import Release
from fp4forge.kernels import archs, ledger
from fp4forge.models import backend_answers
from fp4forge.plan import aot, cross_toolchain, quantiser, vllm_components
from fp4forge.plan.image_kinds import QUANTISE
from fp4forge.plan.plan import Plan, PlanInputs
from fp4forge.plan.prediction import predict
from fp4forge.plan.request import DecidedRequest, ImageRequest, decide, one_of

# The csrc patch that lets FP8 kernels run on all of SM12x, and what it takes away.
FP8_FAMILY = "fp8-sm12x-family"
_GUARD = "enable_sm120_only"
# The Python patch without which vLLM on a GPU imports FlashAttention's extension, or ends.
FLASH_ATTN_OPTIONAL = "flash-attn-optional"


def resolve(request: ImageRequest) -> Plan:
    """Resolves a request of either kind; the plan has no id before ``stage`` has seen its files.

    Raises:
        UsageError: an unknown arch, release, variant, strategy, base or platform.
        ReleaseError, PatchError: the release's files are malformed.
    """
    if request.kind == QUANTISE:
        return quantiser.resolve(request)
    decided = decide(request)
    chosen, platform = decided.target, decided.platform
    what = releases.load(decided.release)
    what.strategy(decided.strategy)
    base = bases.load(decided.base)
    if decided.strategy == "wheel" and platform not in what.wheels:
        raise UsageError(
            f"release {what.release} has no published wheel for {platform}",
            rule="wheels exist for " + ", ".join(what.wheels),
            remedy="--from source",
        )
    gpus = tuple(gpu.name for gpu in chosen.gpus)
    arch_list = _plan_arch_list(request, decided, what)
    prediction = predict(arch_list, what.vllm_version, what.cuda)
    _check_coverage(request, prediction, gpus)
    series = patches.load("vllm", what.vllm_version)
    series.check(decided.variant)
    python = series.for_variant(decided.variant)
    csrc: tuple[Patch, ...] = ()
    choice = vllm_components.ComponentChoice()
    if decided.strategy == "source":
        csrc = series.for_variant(decided.variant, "csrc")
        choice = vllm_components.choose(
            request.components, request.sources, what, prediction.groups, gpus
        )
        if not {"fa2", "fa3"} & set(choice.names) and FLASH_ATTN_OPTIONAL not in {
            patch.id for patch in python
        }:
            raise UsageError(
                f"vLLM {what.vllm_version} does not start on a GPU without FlashAttention",
                rule=f"components without fa2 need the patch {FLASH_ATTN_OPTIONAL}",
                remedy="--variant awq, or --components core,fa2",
            )
    elif request.components != "all" or request.sources:
        raise UsageError(
            "--components and --source go with --from source",
            rule="a published wheel is compiled already",
        )
    ahead = _aot_modules(request, platform, gpus)
    chosen_extras = image_extras.choose(request.extras)
    toolchain = (
        cross_toolchain.choose(decided.strategy, platform, base.suite, ahead.name)
        if request.cross
        else None
    )
    without = what.groups_of(choice.left_out)
    patched = {patch.id for patch in csrc}
    predicted = ledger.expected(
        {group: targets for group, targets in prediction.groups.items() if group not in without},
        tuple(g for g in prediction.fp8_guards if g != _GUARD or FP8_FAMILY not in patched),
    )
    return Plan(
        release=what.release,
        vllm_version=what.vllm_version,
        torch=what.torch,
        cuda=what.cuda,
        transformers=what.transformers,
        flashinfer=what.flashinfer,
        arch=chosen.name,
        gpus=gpus,
        capabilities=tuple(gpu.label for gpu in chosen.gpus),
        arch_list=arch_list,
        predicted=predicted | aot.expected(ahead, gpus),
        backends=backend_answers.selections(what.vllm_version, gpus),
        allow_missing=request.allow_missing,
        allow_vulnerable=tuple(sorted(set(request.allow_vulnerable))),
        variant=decided.variant,
        strategy=decided.strategy,
        base=base.name,
        base_image=base.reference(platform),
        platform=platform,
        python=base.python,
        environment=_image_variables(what.environment.get(decided.variant, {}), chosen_extras),
        max_jit_jobs=chosen.max_jit_jobs,
        patches=tuple(patch.id for patch in (*python, *csrc)),
        patched_files=patches.patched_files(python),
        leave_out=tuple(rule for rule in what.leave_out if rule.applies(gpus)),
        unpacked_gb=_unpacked_budget(what, gpus, ahead, tuple(chosen_extras.values())),
        extras={name: extra.libraries for name, extra in chosen_extras.items()},
        programs=tuple(p for extra in chosen_extras.values() for p in extra.programs),
        epoch=what.epoch,
        packages_overridden=tuple(
            re.split("[<=>!~]", text)[0] for text in what.strategy(decided.strategy).overrides
        ),
        aot=ahead,
        components=choice.names,
        components_left_out=choice.left_out,
        sources=choice.sources,
        cross=toolchain,
        inputs=PlanInputs(what, base, series),
    )


def _image_variables(variant: dict[str, str], extras: dict[str, ImageExtra]) -> dict[str, str]:
    """Variables of the image; the variant's come last, as in the Dockerfile."""
    found: dict[str, str] = {}
    for extra in extras.values():
        found |= extra.environment
    return found | variant


def _unpacked_budget(
    what: Release, gpus: tuple[str, ...], ahead: aot.AotModules, more: tuple[ImageExtra, ...]
) -> float:
    """GB that the image may take unpacked: the release's, and what GPUs and extras add to it."""
    kept = sum(rule.gb for rule in what.leave_out if not rule.applies(gpus))
    modules = what.aot_all_gb * len(gpus) if ahead.name == "all" else 0
    return round(what.unpacked_gb + kept + modules + sum(extra.gb for extra in more), 6)


def _aot_modules(request: ImageRequest, platform: str, gpus: tuple[str, ...]) -> aot.AotModules:
    """FlashInfer's modules: compiled by the build platform's nvcc for its own kind of host."""
    name = request.aot or ("gemma4" if platform == host_platform() else "none")
    one_of("--aot", name, aot.CHOICES)
    return aot.choose(name, gpus)


def _plan_arch_list(request: ImageRequest, decided: DecidedRequest, what: Release) -> str:
    if decided.strategy == "wheel":
        if request.arch_list:
            raise UsageError(
                "--arch-list goes with --from source",
                rule="a published wheel is compiled already",
                remedy="--from source, or leave --arch-list out",
            )
        return what.wheel_arch_lists[decided.platform]
    return request.arch_list or decided.target.arch_list or what.arch_list


def _check_coverage(
    request: ImageRequest, prediction: archs.Prediction, gpus: tuple[str, ...]
) -> None:
    lost = {g: why for g, why in prediction.lost(gpus).items() if g not in request.allow_missing}
    if lost:
        raise CoverageError(
            "\n".join(f"{gpu} would get no FP4: {why}" for gpu, why in lost.items()),
            rule=f"every GPU of --arch {request.arch} is served by {prediction.list!r}",
            remedy="build.py arch explain shows what a list gives;"
            f" --allow-missing {next(iter(lost))} builds without it",
        )
