"""What continuous integration builds, and on which runner."""

from __future__ import annotations

from typing import Any

from fp4forge.core.platform import PLATFORMS
from fp4forge.inputs.failures import Failures
from fp4forge.plan.support import supported


def rows(failures: Failures | None = None) -> list[dict[str, Any]]:
    """A row for a workflow's matrix for everything that can be built, except bases made locally.

    A source build runs on a self-hosted runner with the GPU it is for, and is tested on it; an
    image from a wheel for all of Blackwell is built by a hosted runner, without a GPU.

    Args:
        failures: gets what is wrong with releases; without it the first failure is raised.
    """
    found: list[dict[str, Any]] = []
    for plan in supported(failures):
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
