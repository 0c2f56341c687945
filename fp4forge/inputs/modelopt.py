"""Releases of ModelOpt: what is asked of it, and its image (``releases/quantise/``)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import release
from fp4forge.inputs.reader import InputFormat, by_version
from fp4forge.inputs.release import External, ImageRelease, Release, Requirement, Strategy

_Text = Annotated[str, Meta(min_length=5)]
_Config = Annotated[str, Meta(pattern="^[A-Z][A-Z0-9_]*_CFG$", description="ModelOpt's name of it")]
Pattern = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.*?-]+$", description="of modules' names, with * and ?")
]
_FOLDER = RELEASES / "quantise"
PREFIX = "modelopt-"
STRATEGY = "quantise"  # of its image's plan


class QuantisedFormat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A format: ModelOpt's configuration for it."""

    config: _Config
    why: _Text
    source: _Text
    layers: Annotated[
        dict[Pattern, _Config], Meta(description="layers with another configuration's numerics")
    ] = {}
    activations: Annotated[bool, Meta(description="whether activations are quantised")] = True
    experts: Annotated[bool, Meta(description="whether vLLM loads experts in it")] = True
    comparable: Annotated[
        bool, Meta(description="whether its weights are the model's, but for rounding")
    ] = True
    resumable: Annotated[bool, Meta(description="whether its statistics can be taken up")] = True


class KeptModules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Modules that stay in BF16."""

    pattern: Pattern
    why: _Text
    source: _Text


class ModelOptFix(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A defect of ModelOpt, and whether this version fixes it."""

    id: str
    upstream: Annotated[bool, Meta(description="fixed in this version: nothing is done here")]
    text: _Text
    source: _Text


class LeftOutCheck(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image test of the vLLM image that this image is not held to."""

    test: Annotated[
        str,
        Meta(
            pattern=r"^test_[a-z0-9_]+(\.py)?$",
            description="a function under tests/image, or a whole file of it",
            examples=["test_port", "test_proofs.py"],
        ),
    ]
    why: Annotated[str, Meta(min_length=10, description="the reason, in at least 10 characters")]


class ModelOptRelease(ImageRelease, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version of ModelOpt, and what its image has."""

    title: ClassVar[str] = "fp4forge ModelOpt"
    # Its image compiles nothing, so it takes no sources from elsewhere.
    externals: ClassVar[dict[str, External]] = {}

    version: Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)+$")]
    source: _Text
    requirements: Annotated[
        tuple[Requirement, ...],
        Meta(min_length=1, description="what the image's lock is resolved from"),
    ]
    checks_left_out: Annotated[
        tuple[LeftOutCheck, ...],
        Meta(description="tests of the vLLM image that do not apply to this one"),
    ]
    formats: Annotated[dict[str, QuantisedFormat], Meta(min_length=1)]
    keep: tuple[KeptModules, ...] = ()
    fixes: tuple[ModelOptFix, ...] = ()

    @property
    def release(self) -> str:
        """The name of the release, which locks, Dockerfiles and tags begin with."""
        return f"{PREFIX}{self.version}"

    @property
    def source_file(self) -> str:
        """Its file under ``releases/``."""
        return f"{_FOLDER.name}/{self.release}.yaml"

    @property
    def product_version(self) -> str:
        """The version of what the image is for: ModelOpt's."""
        return self.version

    @property
    def strategies(self) -> dict[str, Strategy]:
        """The one way to build it: from published wheels."""
        return {STRATEGY: Strategy(requirements=self.requirements)}


FORMAT = InputFormat(ModelOptRelease, "quantiser", ReleaseError)


def names() -> tuple[str, ...]:
    """The versions of ModelOpt, oldest first."""
    stems = (path.stem.removeprefix(PREFIX) for path in _FOLDER.glob(f"{PREFIX}*.yaml"))
    return by_version(stems, "releases/quantise", ReleaseError)


def release_names() -> tuple[str, ...]:
    """The names of all releases of ModelOpt, oldest first: ``modelopt-VERSION``."""
    return tuple(f"{PREFIX}{version}" for version in names())


def is_release(name: str) -> bool:
    """Whether a release's name is one of ModelOpt's, not of vLLM's."""
    return name.startswith(PREFIX)


def of_either_kind(name: str) -> Release | ModelOptRelease:
    """The release of that name, of vLLM or of ModelOpt.

    Raises:
        UsageError: there is no such release.
        ReleaseError: its file is malformed.
    """
    return load(name) if is_release(name) else release.load(name)


def load(version: str | None = None) -> ModelOptRelease:
    """A version's file; by default the newest.

    Args:
        version: such as ``0.47.0`` or ``modelopt-0.47.0``; its beginning (``modelopt-0.47``) names
            the newest version that has it.

    Raises:
        UsageError: there is none of that version.
        ReleaseError: the file is malformed.
    """
    known = names()
    if not known:
        raise UsageError(
            "fp4forge has no release of ModelOpt",
            rule=f"releases/quantise has a {PREFIX}VERSION.yaml for each",
            remedy="git status shows which files are missing",
        )
    wanted = (known[-1] if version is None else version).removeprefix(PREFIX)
    found = [name for name in known if f"{name}.".startswith(f"{wanted}.")]
    if not found:
        raise UsageError(
            f"no ModelOpt {wanted!r}",
            rule="releases/quantise has " + ", ".join(known),
            remedy=f"--release {PREFIX}{known[-1]}",
        )
    file = f"{PREFIX}{found[-1]}.yaml"
    return FORMAT.read(_FOLDER / file, f"releases/quantise/{file}")
