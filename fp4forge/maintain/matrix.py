"""What continuous integration builds, and on which runner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fp4forge.core.platform import PLATFORMS
from fp4forge.plan.plan import Plan


def rows(plans: Iterable[Plan]) -> list[dict[str, Any]]:
    """A row of a workflow's matrix for each plan, except those whose base is made locally.

    A source build runs on a self-hosted runner with the GPU it is for, and is tested on it; an
    image from a wheel for all of Blackwell is built by a hosted runner, without a GPU.

    Args:
        plans: everything that can be built (``plan.support``).
    """
    found: list[dict[str, Any]] = []
    for plan in plans:
        hosted = plan.arch == "blackwell"
        if plan.inputs.base.suite or plan.cross or hosted != (plan.strategy == "wheel"):
            continue
        labels = ["self-hosted", "linux", PLATFORMS[plan.platform].runner, "blackwell", plan.arch]
        found.append(
            {
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
