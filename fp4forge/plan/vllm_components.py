"""What a source build compiles: vLLM's components and the external sources that they need.

Targets, variables and file names are those of vLLM's CMake (CMakeLists.txt and
cmake/external_projects/*.cmake of 0.19.1 and 0.20.2); the pins of the external sources stand in
the release files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4forge.core.errors import ArtefactError, ReleaseError, UsageError
from fp4forge.kernels.gpus import GPUS, serves

if TYPE_CHECKING:
    from fp4forge.inputs.release import External, Release, SourceWheel

PROVIDERS = ("git", "pypi")
# Why a component is left out.
NOT_ASKED, NO_CODE = "request", "gpus"


@dataclass(frozen=True)
class VllmComponent:
    """A part of vLLM that can be compiled or left out."""

    targets: tuple[str, ...]  # of CMake
    external: str  # the source it needs, as releases name it
    cmake: str = ""  # file under cmake/external_projects
    groups: tuple[str, ...] = ()  # kernel groups; without code for the GPUs it is left out


COMPONENTS = {
    "core": VllmComponent(("_C", "_C_stable_libtorch", "_moe_C", "cumem_allocator"), "cutlass"),
    "fa2": VllmComponent(
        ("_vllm_fa2_C", "_vllm_fa4_cutedsl_C"), "flash-attn", "vllm_flash_attn", ("flash_attn_2",)
    ),
    "fa3": VllmComponent(("_vllm_fa3_C",), "flash-attn", "vllm_flash_attn", ("flash_attn_3",)),
    "flashmla": VllmComponent(
        ("_flashmla_C", "_flashmla_extension_C"),
        "flashmla",
        "flashmla",
        ("flashmla", "flashmla_fp4"),
    ),
    # QuTLASS adds its sources to _C (qutlass.cmake).
    "qutlass": VllmComponent(
        (), "qutlass", "qutlass", ("qutlass", "qutlass_gemm", "qutlass_quantise")
    ),
    "triton_kernels": VllmComponent(("triton_kernels",), "triton_kernels", "triton_kernels"),
}
# Cloned by vLLM's CMake, but not by this project: its extension is for one Python only.
_NEVER = ("deepgemm",)
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

    def instructions(self, arch_list: str, predicted: dict[str, list[str]]) -> dict[str, Any]:
        """What ``image/stages/compile.py`` reads."""
        files = {c.cmake for c in COMPONENTS.values() if c.cmake}
        kept = {COMPONENTS[name].cmake for name in self.names}
        return {
            "arch_list": arch_list,
            "targets": [t for name in self.names for t in COMPONENTS[name].targets],
            "without": sorted(files - kept) + list(_NEVER),
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
    names = tuple(COMPONENTS) if wanted == "all" else tuple(dict.fromkeys(wanted.split(",")))
    for name in names:
        if name not in COMPONENTS:
            raise UsageError(
                f"--components {name!r} does not exist", rule="all, or " + ", ".join(COMPONENTS)
            )
    if "core" not in names:
        raise UsageError("--components needs core", rule="the image serves through it")
    left_out = {name: NOT_ASKED for name in COMPONENTS if name not in names}
    for name in names:
        targets = [t for group in COMPONENTS[name].groups for t in groups.get(group, ())]
        if COMPONENTS[name].groups and not _gpus_served(targets, gpus):
            left_out[name] = NO_CODE
    kept = tuple(name for name in names if name not in left_out)
    needed = dict.fromkeys(COMPONENTS[name].external for name in kept)
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
