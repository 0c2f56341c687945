"""Which vLLM release loads which quantised format, read from ``models/formats.yaml``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import MODELS
from fp4forge.inputs.reader import BrokenField, InputFormat
from fp4forge.inputs.release import Version

OUTPUT = "output projection"  # a layer's key, beside the schemes' names


class FormatSupport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Since when vLLM loads something, and where that was read."""

    since: Annotated[
        Version | None,
        Meta(description="the oldest vLLM release known to load it; null: none does"),
    ] = ""
    proved: Annotated[
        tuple[Version, ...], Meta(description="the releases whose source was read and load it")
    ] = ()
    source: Annotated[str, Meta(description="the file of vLLM, or the report, that says so")] = ""


class FormatEntry(FormatSupport, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint's format: vLLM's flag for it, and the schemes that its layers may have."""

    flag: Annotated[
        str,
        Meta(
            pattern="^(--[a-z-]+ [a-z0-9_-]+)?$",
            description="vLLM's option; empty if vLLM finds the format alone",
            examples=["--quantization modelopt"],
        ),
    ] = ""
    patch: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9-]*$",
            description="the patch of patches/vllm/*/series.yaml that lets vLLM load it",
        ),
    ] = ""
    layers: Annotated[
        dict[str, FormatSupport],
        Meta(description="schemes of single layers; empty fields: as the format"),
    ] = {}

    def __post_init__(self) -> None:
        """Checks that every claim has its source."""
        if not self.source:
            raise BrokenField("source", "is missing", "every format says where vLLM has it")
        if self.since == "":
            raise BrokenField("since", "is missing", "a version, or null if no release loads it")
        if self.since is None and self.proved:
            raise BrokenField(
                "proved", "names releases, and since is null", "since is the oldest one"
            )


class FormatTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All formats by name."""

    formats: Annotated[
        dict[str, FormatEntry],
        Meta(min_length=1, description="formats as checkpoint inspect names them"),
    ]


FORMAT = InputFormat(FormatTable, "formats", ReleaseError)


@cache
def table() -> dict[str, FormatEntry]:
    """The formats of ``models/formats.yaml``.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return FORMAT.read(MODELS / "formats.yaml", f"{MODELS.name}/formats.yaml").formats


def since(entry: FormatEntry, layers: Iterable[str]) -> str:
    """The oldest vLLM release known to load a format with layers of some schemes; empty: none.

    Raises:
        KeyError: the format does not have such a layer.
    """
    from packaging.version import Version as Ordered

    wanted = [entry.since]
    for layer in layers:
        found = entry.layers[layer].since
        wanted.append(entry.since if found == "" else found)
    known = [version for version in wanted if version]
    return max(known, key=Ordered) if len(known) == len(wanted) else ""
