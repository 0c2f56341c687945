"""Where an image goes, under which names, and what it is held to on the way."""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.core.errors import UsageError
from fp4forge.oci import catalog
from fp4forge.oci.cosign import Signer
from fp4forge.plan import tags
from fp4forge.publish import distro_packages


@dataclass(frozen=True)
class Destination:
    """Where the image goes; a part of an image index gets no tag but its own immutable one."""

    repository: str
    push: bool
    tags: tuple[str, ...] = ()
    part: bool = False
    advisories: str = ""  # OSV data; empty: not looked at
    moved_packages: str = distro_packages.SAY
    signer: Signer | None = None


def checked(
    repository: str,
    push: bool,
    load: bool,
    names: tuple[str, ...],
    advisories: str = "",
    moved_packages: str = distro_packages.SAY,
    signer: Signer | None = None,
) -> Destination:
    """Where to, after validation.

    Raises:
        UsageError: --push and --load together, or a name that cannot be a further tag.
    """
    if push and load:
        raise UsageError("--push and --load exclude each other", remedy="give one of them")
    further = tuple(tags.check(name) for name in names)
    for name in further:
        if not catalog.is_image(name):
            raise UsageError(
                f"--tag {name!r} has the form of a digest",
                rule="such tags name what lies beside an image: its records and signatures",
                remedy="choose another name",
            )
    return Destination(
        repository,
        push,
        further,
        advisories=advisories,
        moved_packages=moved_packages,
        signer=signer,
    )
