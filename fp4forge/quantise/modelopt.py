"""What a release of ModelOpt is asked for: ``releases/quantise/modelopt-VERSION.yaml``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs.reader import InputFormat, by_version

_Text = Annotated[str, Meta(min_length=5)]
_Config = Annotated[str, Meta(pattern="^[A-Z][A-Z0-9_]*_CFG$", description="ModelOpt's name of it")]
Pattern = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.*?-]+$", description="of modules' names, with * and ?")
]
_FOLDER = RELEASES / "quantise"


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
    """A defect of ModelOpt, and whether this version has it no more."""

    id: str
    upstream: Annotated[bool, Meta(description="fixed in this version: nothing is done here")]
    text: _Text
    source: _Text


class ModelOptRelease(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version of ModelOpt."""

    version: Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)+$")]
    source: _Text
    formats: Annotated[dict[str, QuantisedFormat], Meta(min_length=1)]
    keep: tuple[KeptModules, ...] = ()
    fixes: tuple[ModelOptFix, ...] = ()


FORMAT = InputFormat(ModelOptRelease, "quantiser", ReleaseError)


def names() -> tuple[str, ...]:
    """The versions of ModelOpt, oldest first."""
    stems = (path.stem.removeprefix("modelopt-") for path in _FOLDER.glob("modelopt-*.yaml"))
    return by_version(stems, "releases/quantise", ReleaseError)


def load(version: str | None = None) -> ModelOptRelease:
    """A version's file; by default the newest.

    Raises:
        UsageError: there is none of that version.
        ReleaseError: the file is malformed.
    """
    known = names()
    version = (version or known[-1]).removeprefix("modelopt-")
    if version not in known:
        raise UsageError(
            f"no ModelOpt {version!r}",
            rule="releases/quantise has " + ", ".join(known),
            remedy="--release " + known[-1],
        )
    file = f"modelopt-{version}.yaml"
    return FORMAT.read(_FOLDER / file, f"releases/quantise/{file}")
