"""What continuous integration builds, and on which runner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fp4forge.core.platform import PLATFORMS
from fp4forge.inputs import defaults
from fp4forge.plan.image_kinds import QUANTISE, SERVE
from fp4forge.plan.plan import Plan


def rows(plans: Iterable[Plan]) -> list[dict[str, Any]]:
    """A row of a workflow's matrix for each plan, except those whose base is made locally.

    A source build runs on a self-hosted runner with the GPU it is for, and is tested on it. A
    hosted runner, without a GPU, builds what is for every GPU: vLLM's image from a wheel for all of
    Blackwell, and the image that quantises.

    Args:
        plans: everything that can be built (``plan.support``).
    """
    found: list[dict[str, Any]] = []
    every_gpu = defaults.table().image.arch
    for plan in plans:
        hosted = plan.arch == every_gpu or not plan.serves
        if plan.inputs.base.suite or plan.cross or hosted == (plan.strategy == "source"):
            continue
        labels = ["self-hosted", "linux", PLATFORMS[plan.platform].runner, "blackwell", plan.arch]
        found.append(
            {
                "kind": SERVE if plan.serves else QUANTISE,
                "release": plan.release,
                "arch": plan.arch,
                "variant": plan.variant,
                "from": plan.strategy,
                "base": plan.base,
                "platform": plan.platform,
                "runner": "hosted" if hosted else "self-hosted",
                "gpu": not hosted,
                "runs-on": ["ubuntu-24.04"] if hosted else labels,
            }
        )
    return found
