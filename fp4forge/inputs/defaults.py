"""The one place that decides an option that is not given (``releases/defaults.yaml``)."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import release as releases
from fp4forge.inputs.patches import load
from fp4forge.inputs.reader import InputFormat, one_of
from fp4forge.inputs.release import StrategyName, Variant, Version
from fp4forge.kernels.gpus import PRODUCTS, TARGETS


class Defaults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image is built from and for; the newest release that has the strategy."""

    strategy: StrategyName
    variant: Variant
    base: Annotated[str, Meta(min_length=1, description="a base of releases/bases.yaml")]
    arch: Annotated[str, one_of(TARGETS, "a GPU, or a set of them")]


class ReferenceDefaults(Defaults, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reference image, with its release."""

    release: Annotated[Version, Meta(description="a release")]
    product: Annotated[str, one_of(PRODUCTS, "the GPU as it is sold")]


class DefaultsTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a command takes for an option that is not given."""

    reference: Annotated[ReferenceDefaults, Meta(description="what the reference card asks for")]
    image: Annotated[Defaults, Meta(description="what make image and serve compose mean")]


FORMAT = InputFormat(DefaultsTable, "defaults", ReleaseError)


@cache
def table() -> DefaultsTable:
    """The values of ``releases/defaults.yaml``.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return FORMAT.read(RELEASES / "defaults.yaml", f"{RELEASES.name}/defaults.yaml")


def newest(strategy: str, variant: str) -> str:
    """The newest release that can be built by a strategy as a variant.

    A variant whose patches are not written yet does not count.

    Raises:
        UsageError: there is none.
    """
    for name in reversed(releases.names()):
        found = releases.load(name)
        if strategy in found.strategies and variant in load("vllm", found.vllm_version).variants:
            return name
    raise UsageError(
        f"--from {strategy!r}: no release can be built that way",
        rule="one of " + ", ".join(releases.STRATEGIES),
    )


def image_release() -> str:
    """The release of the image that ``make image`` builds: what a served model is judged by.

    Raises:
        UsageError: no release can be built that way.
    """
    image = table().image
    return release_and_strategy(None, image.strategy, image.variant)[0]


def release_and_strategy(
    release: str | None, strategy: str | None, variant: str
) -> tuple[str, str]:
    """Both, if one or none of them is given.

    With neither, the reference's. A strategy alone takes the reference's release if it is the
    reference's strategy, else the newest release that has it for the variant. A release alone
    takes the reference's strategy if it has it, else its own first one.

    Raises:
        UsageError: there is no such release, or none with that strategy.
    """
    reference = table().reference
    if release is None:
        if strategy in (None, reference.strategy):
            return reference.release, reference.strategy
        return newest(strategy or "", variant), strategy or ""
    if strategy is None:
        offered = releases.load(release).strategies
        first = next(iter(offered))
        strategy = reference.strategy if reference.strategy in offered else first
    return release, strategy
