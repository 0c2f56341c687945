"""A plan's packages: its locks, split by layer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from fp4forge.core.errors import DriftError
from fp4forge.inputs import image_extras
from fp4forge.inputs.locks import LAYERS, TOOLS, LockName, build_file, content, group_of, read
from fp4forge.inputs.release import Release

if TYPE_CHECKING:
    from fp4forge.plan.plan import Plan

_CUDA_RUNTIME = "nvidia-cuda-runtime"


def _lock_name(plan: Plan) -> LockName:
    return LockName(plan.release, plan.strategy, plan.platform, plan.python)


def layers(plan: Plan) -> dict[str, str]:
    """The plan's lock, split into one text per layer, with the build tools' lock.

    A cross compile adds the build platform's own packages, under ``host/``.
    """
    name = _lock_name(plan)
    texts = _lock_by_layer(name)
    if not plan.serves:
        del texts["vllm"]
    if plan.strategy == "source":
        what = plan.inputs.release
        assert isinstance(what, Release)
        pin = f"vllm=={what.vllm_version} --hash=sha256:{what.sdist.sha256}\n"
        del texts["vllm"]
        # nvcc links these statically into what CMake tries; images have no archives.
        static = read(name).get(_CUDA_RUNTIME)
        if static is None:
            raise DriftError(
                f"lock releases/locks/{name.file} has no {_CUDA_RUNTIME}",
                rule="nvcc links programs with its static library",
                remedy="run build.py lock",
            )
        texts |= {
            "runtime": static,
            "build": content(build_file(plan.release)),
            "sdist": pin,
        }
        for source, found in plan.sources.items():
            pins = [f"{w.requirement} --hash=sha256:{w.sha256}\n" for w in found.wheels]
            texts |= {f"source-{source}": "".join(pins)} if pins else {}
    if plan.cross:
        own = _lock_by_layer(replace(name, platform=plan.cross.build))
        texts |= {f"host/{group}": own[group] for group in LAYERS}
    return texts | _extras(plan) | {"tools": content(TOOLS)}


def _extra_locks(plan: Plan) -> dict[str, LockName]:
    """The locks of the plan's extras that have Python packages."""
    return {
        name: replace(_lock_name(plan), extra=name)
        for name in plan.extras
        if name in image_extras.locked()
    }


def _extras(plan: Plan) -> dict[str, str]:
    return {name: "".join(read(lock).values()) for name, lock in _extra_locks(plan).items()}


def files(plan: Plan) -> tuple[str, ...]:
    """File names of the locks that a plan reads."""
    name = _lock_name(plan)
    found = [name.file, TOOLS, *(lock.file for lock in _extra_locks(plan).values())]
    if plan.strategy == "source":
        found.append(build_file(plan.release))
    if plan.cross:
        found.append(replace(name, platform=plan.cross.build).file)
    return tuple(found)


def _lock_by_layer(name: LockName) -> dict[str, str]:
    texts = dict.fromkeys((*LAYERS, "vllm"), "")
    for package, block in read(name).items():
        texts[group_of(package)] += block
    return texts


def versions(plan: Plan) -> dict[str, str]:
    """Locked version of every package of the plan."""
    found = {}
    names = (_lock_name(plan), *_extra_locks(plan).values())
    for package, block in (entry for name in names for entry in read(name).items()):
        match = re.match(r"[^=]+==([^\s;]+)", block)
        assert match is not None, block[:80]
        found[package] = match[1]
    return found
