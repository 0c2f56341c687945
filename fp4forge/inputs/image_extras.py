"""What an image gets on request: ``releases/extras.yaml``."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs.reader import InputFormat

_Name = Annotated[str, Meta(pattern="^[a-z][a-z0-9]*$")]


class ImageExtra(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Distribution and Python packages under one name.

    Raises:
        ValueError: it adds nothing.
    """

    title: Annotated[str, Meta(description="what they are for")]
    packages: Annotated[
        tuple[Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9.+-]+$")], ...],
        Meta(min_length=1, description="names that Debian and Ubuntu share"),
    ] = ()
    requirements: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]*(>=[0-9][0-9.]*)?$")], ...],
        Meta(min_length=1, description="of Python packages; they are locked for each release"),
    ] = ()
    libraries: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+-]+\.so(\.[0-9]+)*$")], ...],
        Meta(description="what an image test loads"),
    ] = ()
    programs: Annotated[
        tuple[Annotated[str, Meta(pattern="^[a-z][a-z0-9-]*$")], ...],
        Meta(description="what an image test asks for --version"),
    ] = ()
    environment: Annotated[
        dict[
            Annotated[str, Meta(pattern="^[A-Z][A-Z0-9_]*$")],
            Annotated[str, Meta(pattern="^[A-Za-z0-9._-]+$")],
        ],
        Meta(description="variables of the image"),
    ] = {}
    gb: Annotated[float, Meta(ge=0, description="what they add to the unpacked image")]
    source: str

    def __post_init__(self) -> None:
        """Checks what a type cannot say."""
        if not self.packages and not self.requirements:
            raise ValueError("an extra has packages or requirements")


class ExtrasTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of them."""

    extras: dict[_Name, ImageExtra]


FORMAT = InputFormat(ExtrasTable, "extras", ReleaseError)


@cache
def table() -> dict[str, ImageExtra]:
    """Every extra by its name.

    Raises:
        ReleaseError: ``releases/extras.yaml`` cannot be read, or is malformed.
    """
    return FORMAT.read(RELEASES / "extras.yaml", f"{RELEASES.name}/extras.yaml").extras


def locked() -> tuple[str, ...]:
    """Names of those that have Python packages, and so a lock for each lock of a release."""
    return tuple(name for name, extra in table().items() if extra.requirements)


def choose(names: tuple[str, ...]) -> dict[str, ImageExtra]:
    """The named ones, sorted.

    Raises:
        UsageError: there is none of a name.
    """
    known = table()
    for name in names:
        if name not in known:
            raise UsageError(f"--with {name!r} does not exist", rule="one of " + ", ".join(known))
    return {name: known[name] for name in sorted(set(names))}
