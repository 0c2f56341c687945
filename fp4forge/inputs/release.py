"""Releases: what goes into an image, read from ``releases/<version>.yaml``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from fp4forge.core import reading
from fp4forge.core.errors import (
    ReleaseError,
    UsageError,
)
from fp4forge.core.limits import INPUT_BYTES
from fp4forge.core.paths import RELEASES
from fp4forge.core.platform import PLATFORMS
from fp4forge.inputs.reader import BrokenField, InputFormat, by_version, one_of
from fp4forge.kernels.gpus import GPUS

VARIANTS = ("awq", "plain")
CORE = "core"  # the component without which nothing serves
UNPATCHED = "plain"  # upstream as it is
STRATEGIES = ("source", "wheel")

Version = Annotated[
    str,
    Meta(pattern=r"^[0-9]+\.[0-9][a-z0-9.]*$", description="a version", examples=["2.11.0"]),
]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="a SHA-256 in 64 hex digits")]
Variant = Annotated[str, one_of(VARIANTS, "a variant")]
StrategyName = Annotated[str, one_of(STRATEGIES, "a build strategy")]
PlatformName = Annotated[str, one_of(PLATFORMS, "a platform")]
GpuName = Annotated[str, one_of(GPUS, "GPUs that fp4forge knows")]
ArchList = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]+\.[0-9][af]?(\+PTX)?(;[0-9]+\.[0-9][af]?(\+PTX)?)*$",
        description="a TORCH_CUDA_ARCH_LIST",
        examples=["10.0;12.0;12.1"],
    ),
]
Requirement = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?"
        r"([<>=!~]=?[0-9][A-Za-z0-9.*]*(,[<>=!~]=?[0-9][A-Za-z0-9.*]*)*)?$",
        description="a requirement (PEP 508) without a marker",
        examples=["cmake>=3.26.1,<4"],
    ),
]
CmakeName = Annotated[str, Meta(pattern="^[A-Za-z0-9_]+$", description="a name in CMake")]
ComponentName = Annotated[str, Meta(pattern="^[a-z0-9_]+$", description="a component of vLLM")]
Folder = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")]


class Artefact(Struct, frozen=True, forbid_unknown_fields=True):
    """A file on the package index, pinned by its SHA-256."""

    file: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9_.+-]+$",
            description="a file name on the package index",
        ),
    ]
    sha256: Sha256


class Vllm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's files on the package index."""

    version: Version
    sdist: Artefact
    wheels: Annotated[
        dict[PlatformName, Artefact], Meta(description="published wheels by platform")
    ]
    wheel_arch_lists: Annotated[
        dict[PlatformName, ArchList],
        Meta(description="what the published wheels were compiled for, read from their ledgers"),
    ] = {}


class VllmComponent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of vLLM that can be compiled or left out."""

    targets: Annotated[tuple[CmakeName, ...], Meta(description="of vLLM's CMake")] = ()
    external: Annotated[str, Meta(description="the external source that it is compiled from")]
    cmake: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9_]*$",
            description="its file under cmake/external_projects, without the ending",
        ),
    ] = ""
    groups: Annotated[
        tuple[str, ...],
        Meta(description="its kernel groups; without code for the image's GPUs it is left out"),
    ] = ()


class Strategy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a build strategy adds to the release."""

    requirements: tuple[Requirement, ...]
    overrides: tuple[Requirement, ...] = ()
    build_requirements: tuple[Requirement, ...] = ()
    components: Annotated[
        dict[ComponentName, VllmComponent],
        Meta(description="the parts of vLLM that a source build compiles; core is one of them"),
    ] = {}
    never_compiled: Annotated[
        tuple[CmakeName, ...],
        Meta(description="files under cmake/external_projects that are left out of every build"),
    ] = ()


RULES = ("foreign-processor", "other-cuda")


class LeaveOut(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files of installed packages that serving does not need: a glob, or a rule about any file."""

    glob: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9_.*/-]*$",
            description="files relative to dist-packages; ** crosses folders",
            examples=["flashinfer_cubin/**"],
        ),
    ] = ""
    rule: Annotated[str, one_of(("", *RULES), "a rule of image/stages/install.py")] = ""
    why: Annotated[str, Meta(min_length=10, description="the reason, in at least 10 characters")]
    unless: Annotated[
        tuple[GpuName, ...], Meta(description="kept if one of these GPUs is requested")
    ] = ()
    gb: Annotated[
        float,
        Meta(
            ge=0,
            description="GB that the files take unpacked, added to the budget of GPUs that keep"
            " them",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        """Checks that there is one way to name the files."""
        if bool(self.glob) == bool(self.rule):
            raise BrokenField("glob", "and rule do not go together", "each entry has one of them")

    def applies(self, gpus: tuple[str, ...]) -> bool:
        """Whether an image for these GPUs goes without the files."""
        return not set(self.unless) & set(gpus)


class SourceWheel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wheel on the package index that carries sources: ``folder`` of it goes to ``into``."""

    requirement: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9-]+==[0-9a-z.]+$",
            description="the wheel as NAME==VERSION",
            examples=["nvidia-cutlass==4.2.0.0"],
        ),
    ]
    sha256: Sha256
    folder: Annotated[Folder, Meta(description="a folder in the wheel")]
    into: Annotated[
        str,
        Meta(
            pattern=r"^(\.|[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*)$",
            description="where the folder goes in the sources' tree; . is its root",
        ),
    ] = "."

    @property
    def glob(self) -> str:
        """Matches the wheel's file name."""
        name, _, version = self.requirement.partition("==")
        return f"{name.replace('-', '_')}-{version}-*.whl"


class External(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sources that vLLM's CMake takes from elsewhere, at the commit or tag that it pins."""

    git: Annotated[
        str,
        Meta(pattern=r"^https://[A-Za-z0-9./_-]+\.git$", description="the repository's https URL"),
    ]
    commit: Annotated[
        str,
        Meta(
            pattern=r"^([0-9a-f]{40}|v[0-9]+\.[0-9]+\.[0-9]+)$",
            description="a commit; a tag only if the commit that vLLM's tag means is not known",
        ),
    ]
    variable: Annotated[
        str,
        Meta(
            pattern="^[A-Z][A-Z0-9_]*_SRC_DIR$",
            description="the variable that names a local tree to vLLM's CMake",
            examples=["VLLM_CUTLASS_SRC_DIR"],
        ),
    ]
    pypi: Annotated[
        tuple[SourceWheel, ...],
        Meta(
            description="wheels on the package index that carry the same sources, unpacked over"
            " one another"
        ),
    ] = ()
    tag: Annotated[
        str,
        Meta(
            pattern=r"^(v[0-9]+\.[0-9]+\.[0-9]+)?$",
            description="what vLLM pins, if that is a tag: tags can move",
            examples=["v4.2.1"],
        ),
    ] = ""

    @property
    def pinned(self) -> str:
        """vLLM's own pin, for people."""
        return f"{self.tag} ({self.commit[:12]})" if self.tag else self.commit


class ImageRelease(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the releases of every kind of image have: versions, files to leave out, a budget."""

    title: ClassVar[str]  # of the image, in labels and SBOMs

    torch: Version
    cuda: Annotated[
        str, Meta(pattern=r"^1[23]\.[0-9]$", description="a CUDA version", examples=["13.0"])
    ]
    transformers: Version
    resolve_before: Annotated[
        str,
        Meta(
            pattern="^20[0-9]{2}-[01][0-9]-[0-3][0-9]$",
            description="a day; locks take only files uploaded before it",
            examples=["2026-06-05"],
        ),
    ]
    leave_out: Annotated[
        tuple[LeaveOut, ...],
        Meta(description="files of installed packages that the image does not need"),
    ]
    unpacked_gb: Annotated[
        float,
        Meta(
            gt=0,
            description="budget for the unpacked image in GB (10^9 bytes), without the files of"
            " leave_out",
        ),
    ]

    def __post_init__(self) -> None:
        """Checks what no single field shows."""
        try:
            datetime.fromisoformat(self.resolve_before)
        except ValueError:
            raise BrokenField("resolve_before", f"is {self.resolve_before!r}", "a day") from None

    @property
    def components(self) -> dict[str, VllmComponent]:
        """What a source build compiles; none if it has no source strategy."""
        return {}

    def groups_of(self, components: Iterable[str]) -> set[str]:
        """The kernel groups of some components."""
        return {group for name in components for group in self.components[name].groups}

    @property
    def epoch(self) -> int:
        """SOURCE_DATE_EPOCH of images of this release: the day its locks end, in seconds UTC."""
        return int(datetime.fromisoformat(self.resolve_before).replace(tzinfo=UTC).timestamp())


class Release(ImageRelease, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes into an image: versions, hashes, requirements. One file for each release."""

    title: ClassVar[str] = "fp4forge vLLM"

    release: Annotated[Version, Meta(description="the file's name without .yaml")]
    vllm: Vllm
    flashinfer: Version
    arch_list: ArchList
    strategies: Annotated[
        dict[StrategyName, Strategy],
        Meta(min_length=1, description="the ways to build this release, at least one"),
    ]
    externals: Annotated[
        dict[
            Annotated[
                str,
                Meta(pattern="^[a-z][a-z0-9_-]*$", description="the name of an external source"),
            ],
            External,
        ],
        Meta(description="sources that vLLM's CMake takes from elsewhere, as this vLLM pins them"),
    ]
    environment: Annotated[
        dict[
            Variant,
            dict[
                Annotated[str, Meta(pattern="^[A-Z][A-Z0-9_]*$", description="a variable's name")],
                Annotated[
                    str,
                    Meta(
                        pattern="^[A-Za-z0-9_.,:=/-]*$",
                        description="a variable's value: letters, digits and _ . , : = / -",
                    ),
                ],
            ],
        ],
        Meta(description="defaults of the image's environment by variant"),
    ]
    aot_all_gb: Annotated[
        float, Meta(gt=0, description="GB that --aot all adds to that budget for each GPU")
    ]

    def __post_init__(self) -> None:
        """Checks what no single field shows."""
        super().__post_init__()
        if "wheel" in self.strategies and self.vllm.wheels.keys() - self.vllm.wheel_arch_lists:
            raise BrokenField(
                "vllm",
                "has no wheel_arch_lists for a wheel",
                "releases with a wheel strategy have the arch list of every wheel",
            )
        if "source" in self.strategies and CORE not in self.components:
            raise BrokenField(
                "strategies.source", f"has no component {CORE}", "the image serves through it"
            )

    @property
    def source_file(self) -> str:
        """Its file under ``releases/``."""
        return f"{self.release}.yaml"

    @property
    def components(self) -> dict[str, VllmComponent]:
        """What a source build compiles; none if it has no source strategy."""
        source = self.strategies.get("source")
        return source.components if source else {}

    @property
    def product_version(self) -> str:
        """The version of what the image is for: vLLM's."""
        return self.vllm.version

    @property
    def vllm_version(self) -> str:
        """The version of vLLM."""
        return self.vllm.version

    @property
    def sdist(self) -> Artefact:
        """vLLM's source distribution."""
        return self.vllm.sdist

    @property
    def wheels(self) -> dict[str, Artefact]:
        """vLLM's published wheels by platform."""
        return self.vllm.wheels

    @property
    def wheel_arch_lists(self) -> dict[str, str]:
        """What those wheels were compiled for."""
        return self.vllm.wheel_arch_lists

    def strategy(self, name: str) -> Strategy:
        """The strategy's requirements.

        Raises:
            UsageError: this release cannot be built that way.
        """
        if name not in self.strategies:
            raise UsageError(
                f"release {self.release} has no {name} strategy",
                rule=f"it can be built from: {', '.join(self.strategies)}",
                remedy=f"--from {next(iter(self.strategies))}, or another --release"
                f" ({', '.join(names())})",
            )
        return self.strategies[name]


FORMAT = InputFormat(Release, "release", ReleaseError)


def names() -> tuple[str, ...]:
    """Names of all releases, oldest first."""
    found = (path.stem for path in RELEASES.glob("[0-9]*.yaml"))
    return by_version(found, RELEASES.name, ReleaseError)


def parse(text: str, where: str) -> Release:
    """Parses one release file.

    Args:
        text: the YAML.
        where: its path, for messages.

    Raises:
        ReleaseError: the text is not YAML, or not a release; the message names the field.
    """
    release = FORMAT.parse(text, where)
    if release.release != Path(where).stem:
        raise ReleaseError(
            f"{where}: release is {release.release!r}", rule="it equals the file's name"
        )
    return release


def load(name: str) -> Release:
    """Loads ``releases/<name>.yaml``.

    Raises:
        UsageError: there is no such release.
        ReleaseError: the file cannot be read, or is not a release.
    """
    path = RELEASES / f"{name}.yaml"
    if not re.fullmatch(r"[0-9][0-9a-z.]*", name) or not path.exists():
        raise UsageError(
            f"--release {name!r} does not exist",
            rule="one of " + ", ".join(names()),
            remedy="docs/releases.md says how to add one; those of releases/quantise go with"
            " --kind quantise",
        )
    where = str(path.relative_to(RELEASES.parent))
    return parse(reading.text(path, ReleaseError, INPUT_BYTES, where), where)


def check_version(text: str) -> str:
    """A version after validation.

    Raises:
        UsageError: it does not have the form of one.
    """
    if not re.fullmatch(r"[0-9][0-9a-z.]*", text):
        raise UsageError(f"{text!r} is not a version", rule="digits, letters and dots")
    return text
