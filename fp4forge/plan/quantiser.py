"""The plan of an image that quantises: ModelOpt's release in place of vLLM's.

It is for every GPU that its torch has kernels for: nothing is compiled for one, so it has no arch
list, no prediction and no ledger.
"""

from __future__ import annotations

from fp4forge.core import platform as platforms
from fp4forge.inputs import bases, defaults, modelopt, patches
from fp4forge.inputs.broken_releases import Failures
from fp4forge.inputs.release import UNPATCHED
from fp4forge.kernels.gpus import GPUS
from fp4forge.plan.image_kinds import QUANTISE
from fp4forge.plan.plan import Plan, PlanInputs
from fp4forge.plan.request import ImageRequest

ANY_GPU = "any"
_PACKAGE = "nvidia-modelopt"


def resolve(request: ImageRequest) -> Plan:
    """Resolves a request for an image that quantises.

    Raises:
        UsageError: an unknown release, base or platform.
        ReleaseError: the release's file is malformed.
    """
    what = modelopt.load(request.release)
    base = bases.load(request.base or defaults.table().reference.base)
    platform = platforms.check(request.platform) if request.platform else platforms.host_platform()
    return Plan(
        release=what.release,
        vllm_version="",
        torch=what.torch,
        cuda=what.cuda,
        transformers=what.transformers,
        flashinfer="",
        arch=ANY_GPU,
        gpus=(),
        capabilities=(),
        arch_list="",
        predicted={},
        backends={},
        allow_missing=(),
        allow_vulnerable=tuple(sorted(set(request.allow_vulnerable))),
        variant=UNPATCHED,
        strategy=modelopt.STRATEGY,
        base=base.name,
        base_image=base.reference(platform),
        platform=platform,
        python=base.python,
        environment={},
        max_jit_jobs=min(gpu.max_jit_jobs for gpu in GPUS.values()),
        patches=(),
        patched_files={},
        leave_out=what.leave_out,
        unpacked_gb=what.unpacked_gb,
        epoch=what.epoch,
        inputs=PlanInputs(what, base, patches.load(_PACKAGE, what.version)),
    )


def supported(failures: Failures) -> list[Plan]:
    """The plans of every image that quantises, for the platform of hosted runners.

    Args:
        failures: gets what is wrong with a release's file; the others are planned.
    """
    found: list[Plan] = []
    for name in modelopt.release_names():
        with failures.of(name):
            found += [
                resolve(ImageRequest("", name, base=base, platform=platforms.AMD64, kind=QUANTISE))
                for base in bases.names()
            ]
    return found
