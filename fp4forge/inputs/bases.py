"""Base images: one from a hub, or one made here, as ``releases/bases.yaml`` lists them."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, structs

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.image_names import DIGEST, TAGGED
from fp4forge.core.paths import RELEASES
from fp4forge.core.platform import PLATFORMS
from fp4forge.inputs.reader import BrokenField, InputFormat

# No file of a base is newer (2026-01-01, UTC): the same packages give the same layer.
EPOCH = "1767225600"

# Where distributions keep the keys of package archives.
KEYRINGS = Path("/usr/share/keyrings")


PinnedDigest = Annotated[
    str,
    Meta(
        pattern=f"^({DIGEST})?$",
        description="the image's digest, which build.py lock fills in; empty until then",
    ),
]


class BaseEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A base image: ``image`` names one on a hub, ``suite`` one that is made here."""

    python: Annotated[
        str,
        Meta(
            pattern="^3\\.[0-9]{1,2}$",
            description="the Python that the distribution brings",
            examples=["3.12"],
        ),
    ]
    image: Annotated[
        str,
        Meta(
            pattern=f"^({TAGGED})?$",
            description="a reference with a tag",
            examples=["ubuntu:24.04"],
        ),
    ] = ""
    digest: PinnedDigest = ""
    suite: Annotated[
        str,
        Meta(
            pattern="^([a-z][a-z0-9-]*)?$",
            description="a Debian suite, of which mmdebstrap makes the base",
            examples=["trixie"],
        ),
    ] = ""
    keyring: Annotated[
        str,
        Meta(
            pattern="^([a-z0-9][a-z0-9.-]*\\.(gpg|asc|pgp))?$",
            description="the file under /usr/share/keyrings whose keys sign the suite",
            examples=["debian-archive-keyring.gpg"],
        ),
    ] = ""

    def __post_init__(self) -> None:
        """Checks that there is one way to get the base."""
        if bool(self.image) == bool(self.suite):
            raise BrokenField("image", "and suite do not go together", "each base has one of them")
        if bool(self.suite) != bool(self.keyring):
            raise BrokenField("keyring", "goes with suite", "a base made here names both")


class BaseTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base images by the names that ``--base`` takes."""

    bases: Annotated[
        dict[
            Annotated[
                str, Meta(pattern="^[a-z0-9][a-z0-9.:/-]*$", description="a name that --base takes")
            ],
            BaseEntry,
        ],
        Meta(min_length=1, description="the base images, at least one"),
    ]


FORMAT = InputFormat(BaseTable, "bases", ReleaseError)


class Base(BaseEntry, frozen=True, kw_only=True):
    """A base image with its name."""

    name: str

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name)

    def reference(self, platform: str) -> str:
        """What FROM names for a platform."""
        if self.suite:
            arch = PLATFORMS[platform].debian
            return f"fp4forge.local/bootstrap:{self.suite}-{arch}-{_bootstrap_hash(self)}"
        return f"{self.image}@{self.digest}" if self.digest else self.image


# Containers get a file system mounted there. Without the folder BuildKit makes one in the first
# layer on top, with the time of the build: the same inputs would give another layer.
MOUNT_POINT = "dev"


def bootstrap_line(base: Base, architecture: str, layer: Path, mirror: str) -> list[str]:
    """The command that writes a base's only layer, from packages that the base's keyring signs.

    Args:
        base: with a suite.
        architecture: Debian's name of it.
        layer: the archive to write, in a folder that only root can enter: apt gives folders to its
            own user if that user can reach them. The same packages give the same bytes.
        mirror: address of the packages.

    Returns:
        A command line of mmdebstrap, to be run as root.
    """
    # Not --keyring: apt would trust this machine's keys beside it. The keyring's path is this
    # machine's; the image's own apt has the keys where it expects them.
    keyring = f"[signed-by={KEYRINGS / base.keyring}]"
    return [
        "env",
        f"SOURCE_DATE_EPOCH={EPOCH}",
        f"TMPDIR={layer.parent}",
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--architectures={architecture}",
        "--format=tar",
        "--skip=output/dev",
        "--customize-hook=sed -i 's/ \\[signed-by=[^]]*\\]//' \"$1\"/etc/apt/sources.list",
        base.suite,
        str(layer),
        f"deb {keyring} {mirror} {base.suite} main",
    ]


def _bootstrap_hash(base: Base) -> str:
    """Short hash of how a base is made: a changed recipe gives another base."""
    line = [*bootstrap_line(base, "", Path("layer.tar"), "mirror"), MOUNT_POINT]
    return hashlib.sha256(" ".join(line).encode()).hexdigest()[:8]


@cache
def table() -> dict[str, BaseEntry]:
    """The entries of ``releases/bases.yaml`` by name.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return FORMAT.read(RELEASES / "bases.yaml", f"{RELEASES.name}/bases.yaml").bases


def names() -> tuple[str, ...]:
    """Names that ``--base`` takes."""
    return tuple(table())


def load(name: str) -> Base:
    """The base that ``--base`` names.

    Raises:
        UsageError: there is no such base.
    """
    if name not in table():
        raise UsageError(
            f"--base {name!r} does not exist",
            rule="one of " + ", ".join(names()),
            remedy="add it to releases/bases.yaml",
        )
    return Base(name=name, **structs.asdict(table()[name]))
