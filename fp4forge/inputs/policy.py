"""Which releases are supported: ``releases/policy.yaml``."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import release as releases
from fp4forge.inputs.reader import InputFormat


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many releases are supported, and which others are kept."""

    supported: Annotated[
        int, Meta(ge=1, le=50, description="how many of the newest releases are supported")
    ]
    kept: Annotated[
        dict[str, Annotated[str, Meta(min_length=5)]],
        Meta(description="older releases that stay, and for what"),
    ] = {}


FORMAT = InputFormat(Policy, "policy", ReleaseError)


@cache
def policy() -> Policy:
    """The policy.

    Raises:
        ReleaseError: ``releases/policy.yaml`` cannot be read, or is malformed.
    """
    return FORMAT.read(RELEASES / "policy.yaml", f"{RELEASES.name}/policy.yaml")


def supported() -> tuple[str, ...]:
    """The releases that are supported, oldest first."""
    return releases.names()[-policy().supported :]


def notice(release: str) -> str:
    """Says that a release is no longer supported; empty if it still is."""
    found = supported()
    if release in found:
        return ""
    kept = policy().kept.get(release)
    why = f"kept as {kept}" if kept else "kept until it is removed"
    return (
        f"release {release} is no longer supported ({why}): it gets no fixes;"
        f" supported are {', '.join(found)}"
    )
