"""Known faults of vLLM and of what it stands on, read from ``models/faults.yaml``.

A fault is a hypothesis: its signature suggests it, and versions, GPUs, families and flags that are
known refute it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated

from msgspec import Meta, Struct
from packaging.version import InvalidVersion, Version

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import FAULTS
from fp4forge.inputs.reader import BrokenField, InputFormat, one_of
from fp4forge.kernels import gpus

COMPONENTS = (
    "vllm",
    "flashinfer",
    "cutlass",
    "compressed-tensors",
    "container",
    "driver",
    "host",
    "huggingface",
    "modelopt",
    "nccl",
    "ray",
    "torch",
    "transformers",
    "triton",
)
_Text = Annotated[str, Meta(min_length=10, description="a sentence of at least 10 characters")]
_Version = Annotated[
    str,
    Meta(pattern=r"^([0-9]+\.[0-9][0-9a-z.]*)?$", description="of the component; empty: any"),
]
_Pattern = Annotated[str, Meta(description="a regular expression over the log; empty: none")]


class KnownFault(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault that other people met, with what shows it and what helps."""

    id: Annotated[str, Meta(pattern="^[a-z0-9-]+$")]
    component: Annotated[str, one_of(COMPONENTS, "what has the fault")]
    severity: Annotated[str, one_of(("error", "warning", "note"), "how bad it is")] = "error"
    first_bad: _Version = ""
    fixed_in: Annotated[_Version, Meta(description="the first version without it")] = ""
    signature: _Pattern = ""
    unless: Annotated[_Pattern, Meta(description="what in the log refutes it")] = ""
    gpus: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[0-9]+\.[0-9x]$")], ...],
        Meta(description="compute capabilities that it concerns, such as 12.1 or 12.x; none: all"),
    ] = ()
    families: Annotated[
        tuple[str, ...], Meta(description="model families that it concerns; none: all")
    ] = ()
    flags: Annotated[
        dict[str, str], Meta(description="flags that must be set to a value that matches")
    ] = {}
    split: Annotated[bool, Meta(description="only if several GPUs serve the model")] = False
    persists: Annotated[
        bool, Meta(description="a server that became ready still has it: its answers or its speed")
    ] = False
    symptom: _Text
    fix: _Text
    source: _Text
    example: Annotated[tuple[str, ...], Meta(min_length=1, description="lines that show it")]
    counterexample: Annotated[
        tuple[str, ...], Meta(min_length=1, description="similar lines that do not")
    ]

    def __post_init__(self) -> None:
        """Checks the patterns, and that something decides."""
        for field in ("signature", "unless"):
            try:
                re.compile(getattr(self, field))
            except re.error as error:
                raise BrokenField(field, f"is not a pattern: {error}", "Python's re") from None
        if not (self.signature or self.first_bad or self.fixed_in or self.flags):
            raise BrokenField("signature", "is empty", "a signature, a range of versions, or flags")

    def concerns(self, version: str) -> bool | None:
        """Whether a version has it; None if the version is not known or not one."""
        try:
            wanted = Version(version)
        except InvalidVersion:
            return None
        return not (
            (self.first_bad and wanted < Version(self.first_bad))
            or (self.fixed_in and wanted >= Version(self.fixed_in))
        )

    def on(self, capability: str) -> bool:
        """Whether a GPU of that compute capability has it."""
        return gpus.listed(capability, self.gpus)


class FlagDefault(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A flag's value in vLLM, if nobody sets it."""

    flag: Annotated[str, Meta(pattern="^--[a-z0-9-]+$")]
    value: str
    since: _Version = ""
    source: _Text


class DriverNeeds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The driver that vLLM's own builds need, by their CUDA."""

    since: _Version
    driver: Annotated[int, Meta(ge=400, le=9999)]
    cuda: str
    source: _Text


class FaultTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole table."""

    defaults: tuple[FlagDefault, ...] = ()
    drivers: tuple[DriverNeeds, ...] = ()
    faults: tuple[KnownFault, ...]

    def __post_init__(self) -> None:
        """Checks that every id is there once."""
        names = [fault.id for fault in self.faults]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BrokenField("faults", f"has {', '.join(twice)} twice", "an id for each fault")


FORMAT = InputFormat(FaultTable, "faults", ReleaseError)


@cache
def table() -> FaultTable:
    """Every known fault.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return FORMAT.read(FAULTS, "models/faults.yaml")


def default(flag: str, version: str) -> str:
    """A flag's value in that vLLM, if nobody sets it; of the newest if the version is unknown."""
    fitting = [
        entry
        for entry in table().defaults
        if entry.flag == flag
        and (not version or not entry.since or Version(version) >= Version(entry.since))
    ]
    return fitting[-1].value if fitting else ""


def driver(version: str) -> DriverNeeds | None:
    """What vLLM's own builds of that version need; None if the table does not say."""
    fitting = [n for n in table().drivers if version and Version(version) >= Version(n.since)]
    return fitting[-1] if fitting else None
