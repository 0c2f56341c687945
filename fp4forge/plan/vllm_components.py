"""What a source build compiles: vLLM's components and the external sources that they need.

Targets, variables, file names and pins stand in the release files, as that vLLM's CMake has them
(CMakeLists.txt and cmake/external_projects/*.cmake).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4forge.core.errors import ArtefactError, ReleaseError, UsageError
from fp4forge.inputs.release import CORE
from fp4forge.kernels.gpus import GPUS, serves

if TYPE_CHECKING:
    from fp4forge.inputs.release import External, Release, SourceWheel, Strategy

PROVIDERS = ("git", "pypi")
# Why a component is left out.
NOT_ASKED, NO_CODE = "request", "gpus"


# The objects of the gate: the smallest with FP4 instructions for every FP4 target, and a small one
# that includes CUTLASS.
GATE_SOURCE = "nvfp4_quant_kernels.cu"
GATE_ENTRY = "nvfp4_scaled_mm_entry.cu"


@dataclass(frozen=True)
class ExternalSource:
    """Where an external source comes from; ``instead_of`` is vLLM's pin, if this is another."""

    provider: str  # git, pypi or local
    where: str  # URL#commit, requirements, or SHA-256 of the local tree
    variable: str
    instead_of: str = ""
    wheels: tuple[SourceWheel, ...] = ()  # of the provider pypi


@dataclass(frozen=True)
class ComponentChoice:
    """The components of a plan."""

    names: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)  # component -> NOT_ASKED or NO_CODE
    sources: dict[str, ExternalSource] = field(default_factory=dict)

    def instructions(
        self, source: Strategy, arch_list: str, predicted: dict[str, list[str]]
    ) -> dict[str, Any]:
        """What ``image/stages/compile.py`` reads.

        Args:
            source: the release's strategy, with the components.
            arch_list: what they are compiled for.
            predicted: targets by kernel group.
        """
        components = source.components
        files = {c.cmake for c in components.values() if c.cmake}
        kept = {components[name].cmake for name in self.names}
        return {
            "arch_list": arch_list,
            "targets": [t for name in self.names for t in components[name].targets],
            "without": sorted(files - kept) + list(source.never_compiled),
            "sources": {
                source.variable: f"/externals/{name}" + _SUBFOLDER.get(name, "")
                for name, source in self.sources.items()
            },
            # For the compile's key: other sources are another compile.
            "pins": {name: source.where for name, source in self.sources.items()},
            "gate": {
                "source": GATE_SOURCE,
                "entry": GATE_ENTRY,
                "targets": predicted["nvfp4_quantise"],
            },
        }


# The file in which a source states its own version, and the numbers there.
_VERSIONS = {
    "cutlass": ("include/cutlass/version.h", r"(?m)^#define CUTLASS_(?:MAJOR|MINOR|PATCH)\s+(\d+)")
}
# The variable names a folder inside the repository (triton_kernels.cmake).
_SUBFOLDER = {"triton_kernels": "/python/triton_kernels/triton_kernels"}


def choose(
    wanted: str,
    given: tuple[str, ...],
    release: Release,
    groups: dict[str, list[str]],
    gpus: tuple[str, ...],
) -> ComponentChoice:
    """The components to compile and their sources.

    Args:
        wanted: ``all`` or names separated by commas.
        given: ``NAME=git``, ``NAME=pypi`` or ``NAME=DIR`` for external sources.
        release: with the pins.
        groups: what every kernel group is compiled for.
        gpus: names of the requested GPUs.

    Raises:
        UsageError: an unknown component, source or provider.
        ArtefactError: a local tree does not hold the source.
        ReleaseError: the release does not pin a source that a component needs.
    """
    components = release.components
    names = tuple(components) if wanted == "all" else tuple(dict.fromkeys(wanted.split(",")))
    for name in names:
        if name not in components:
            raise UsageError(
                f"--components {name!r} does not exist in vLLM {release.vllm_version}",
                rule="all, or " + ", ".join(components),
            )
    if CORE not in names:
        raise UsageError(f"--components needs {CORE}", rule="the image serves through it")
    left_out = {name: NOT_ASKED for name in components if name not in names}
    for name in names:
        targets = [t for group in components[name].groups for t in groups.get(group, ())]
        if components[name].groups and not _gpus_served(targets, gpus):
            left_out[name] = NO_CODE
    kept = tuple(name for name in names if name not in left_out)
    needed = dict.fromkeys(components[name].external for name in kept)
    if lacking := [name for name in needed if name not in release.externals]:
        raise ReleaseError(
            f"releases/{release.release}.yaml has no external {', '.join(lacking)}",
            rule="the components " + ", ".join(kept) + " need it",
            remedy="pin it under externals as vLLM's CMake does, or choose --components without it",
        )
    choices = dict(_parse_source(text, release) for text in given)
    sources = {name: choices.get(name) or _pinned_source(name, "git", release) for name in needed}
    return ComponentChoice(kept, left_out, sources)


def local_trees(given: tuple[str, ...]) -> dict[str, Path]:
    """The sources that are local trees, by name; BuildKit gets them as named contexts."""
    pairs = (text.partition("=")[::2] for text in given)
    return {name: Path(where).resolve() for name, where in pairs if where not in PROVIDERS}


def _gpus_served(targets: list[str], gpus: tuple[str, ...]) -> bool:
    return any(serves(target, GPUS[gpu]) != "missing" for target in targets for gpu in gpus)


def _pinned_source(name: str, provider: str, release: Release) -> ExternalSource:
    pin = release.externals[name]
    if provider == "git":
        return ExternalSource("git", f"{pin.git}#{pin.commit}", pin.variable)
    if not pin.pypi:
        raise UsageError(
            f"--source {name}=pypi: the package index has no {name}", rule="git or DIR"
        )
    where = " ".join(wheel.requirement for wheel in pin.pypi)
    return ExternalSource("pypi", where, pin.variable, pin.pinned, pin.pypi)


def _parse_source(text: str, release: Release) -> tuple[str, ExternalSource]:
    name, equals, where = text.partition("=")
    if not equals or name not in release.externals:
        raise UsageError(
            f"--source {text!r} names no external source",
            rule="NAME=git, NAME=pypi or NAME=DIR with NAME one of " + ", ".join(release.externals),
        )
    if where in PROVIDERS:
        return name, _pinned_source(name, where, release)
    folder = Path(where)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ArtefactError(
            f"--source {name}: {where!r} is not a folder with sources", rule="a checkout of " + name
        )
    pin = release.externals[name]
    _check_tree_version(name, folder, pin, release)
    return name, ExternalSource("local", "sha256:" + _tree_hash(folder), pin.variable, pin.pinned)


def _check_tree_version(name: str, folder: Path, pin: External, release: Release) -> None:
    """Refuses a tree that says of itself that it is another version than vLLM pins."""
    if name not in _VERSIONS or not pin.tag:
        return
    file, pattern = _VERSIONS[name]
    text = (folder / file).read_text(errors="replace") if (folder / file).is_file() else ""
    found = ".".join(re.findall(pattern, text))
    if f"v{found}" != pin.tag:
        described = f"{name} {found}" if found else f"no {name}: its {file} states no version"
        raise ArtefactError(
            f"--source {name}: {folder} is {described}",
            rule=f"vLLM {release.vllm_version} pins {pin.tag}; another version breaks its kernels",
            remedy=f"a checkout of {pin.tag}, or --source {name}=git",
        )


def _tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".git" not in path.relative_to(folder).parts:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
