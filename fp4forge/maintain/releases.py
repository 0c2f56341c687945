"""Compares and removes releases."""

from __future__ import annotations

import shutil

from fp4forge.core.errors import UsageError
from fp4forge.core.paths import DOCKERFILES, LOCKS, PATCHES, RELEASES, ROOT
from fp4forge.inputs import bases, defaults, locks, patches, release, switches
from fp4forge.inputs.locks import LockName
from fp4forge.inputs.release import Release
from fp4forge.models import backend_answers

# What a release's file says, in the order in which people ask for it.
_FIELDS = (
    "vllm_version",
    "torch",
    "cuda",
    "transformers",
    "flashinfer",
    "arch_list",
    "resolve_before",
    "unpacked_gb",
)


def differences(old: str, new: str) -> list[tuple[str, str, str]]:
    """What differs between two releases: a name, and its value in both; empty if one lacks it.

    Raises:
        UsageError: one does not exist.
    """
    one, other = release.load(old), release.load(new)
    found = [(name, str(getattr(one, name)), str(getattr(other, name))) for name in _FIELDS]
    pins = [
        {name: external.pinned for name, external in each.externals.items()}
        for each in (one, other)
    ]
    found += rows("external", pins)
    states = [_release_patches(each) for each in (one, other)]
    found += rows("patch", states)
    selected = [_selected_backends(each) for each in (one, other)]
    found += rows("backend", selected) if all(selected) else []
    found += rows("package", [_release_packages(each) for each in (one, other)])
    return [row for row in found if row[1] != row[2]]


def rows(what: str, values: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """A row for each name that one of two releases has: the name, and both values."""
    old, new = values
    return [
        (f"{what} {name}", old.get(name, ""), new.get(name, ""))
        for name in sorted(old.keys() | new.keys())
    ]


def _release_patches(found: Release) -> dict[str, str]:
    series = patches.load("vllm", found.vllm_version)
    return (
        {fix.id: "upstream" for fix in series.already_upstream}
        | {patch.id: "applied" for patch in series.patches}
        | {conflict.id: "waits for a person" for conflict in series.conflicts}
    )


def _selected_backends(found: Release) -> dict[str, str]:
    """What vLLM selects; nothing if no answers of the release were kept."""
    return {
        f"{answer.gpu} {answer.family} {one.kind} {one.layer} {one.cache}".rstrip(): one.selected
        for answer in backend_answers.load(found.vllm_version)
        for one in answer.decisions
    }


def _release_packages(found: Release) -> dict[str, str]:
    """Packages of one lock by their versions: the platforms' locks hardly differ."""
    python = max(bases.load(name).python for name in bases.names())
    strategy, platform = next(iter(found.strategies)), next(iter(found.wheels))
    lock = locks.read(LockName(found.release, strategy, platform, python))
    pins = (locks.pin(block) for block in lock.values())
    return {name: version for name, version in pins if name != "vllm"}


def remove(name: str) -> list[str]:
    """Removes a release: its file, CMake rules, backends, locks, patches and Dockerfiles.

    Args:
        name: of the release.

    Returns:
        What was removed.

    Raises:
        UsageError: there is no such release, or a default names it.
    """
    found = release.load(name)
    if defaults.table().reference.release == name:
        raise UsageError(
            f"release {name} is the reference's",
            rule="releases/defaults.yaml names it",
            remedy="name another release there first",
        )
    version = found.vllm_version
    paths = [
        RELEASES / f"{name}.yaml",
        *(RELEASES / "archs").glob(f"{version}.*"),
        backend_answers.path(version),
        switches.FOLDER / f"{version}.json",
        RELEASES / "vex" / f"{name}.json",
        *LOCKS.glob(f"{name}-*.txt"),
        PATCHES / "vllm" / version,
        DOCKERFILES / name,
    ]
    gone = []
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            continue
        gone.append(str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path))
    return gone
