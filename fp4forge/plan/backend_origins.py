"""Predicts where the kernels of vLLM's backends come from in a plan's image.

From the lock, the files that the release leaves out, the kernel groups that are compiled, and
FlashInfer's modules; ``models/backend_kernels.yaml`` says which of them a backend needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from fp4forge.core.errors import CoverageError
from fp4forge.kernels.gpus import GPUS, listed
from fp4forge.models import backend_answers, backend_kernels
from fp4forge.models.backend_kernels import IMPOSSIBLE, ImageContent, KernelOrigin, NeededFile
from fp4forge.plan.plan import Plan
from fp4forge.plan.prediction import predict

# Origins by GPU, kind of layer and backend; a backend with kernels for one KV cache has its name.
Origins = dict[str, dict[str, dict[str, KernelOrigin]]]


def content(plan: Plan) -> ImageContent:
    """What the image of a plan has; ``packages`` of the plan are its lock's.

    Raises:
        UsageError, ReleaseError: as ``prediction.predict``.
    """
    table = backend_kernels.table()
    targets = predict(plan.arch_list, plan.vllm_version, plan.cuda).groups
    without = plan.inputs.release.groups_of(plan.components_left_out)
    targets = {g: t for g, t in targets.items() if g not in without}
    capabilities = {GPUS[gpu].label for gpu in plan.gpus}
    libraries = {
        part.library
        for part in table.parts()
        if part.generator in plan.aot.generators
        or (
            plan.aot.name == "all"
            and part.generator
            and any(listed(label, part.on) for label in capabilities)
        )
    }
    return ImageContent(
        files=frozenset(need.file for need in table.files() if _is_in(need, plan)),
        # What ledgers have counts as they have it.
        targets={name: tuple(found) for name, found in (targets | plan.predicted).items()},
        libraries=frozenset(libraries),
    )


def _is_in(need: NeededFile, plan: Plan) -> bool:
    """Whether an image has a file: its package is in the lock, and no glob leaves the file out."""
    if need.distribution:
        return True  # templates/Dockerfile.j2 installs it; a test compares
    path = backend_kernels.sample(need.file)
    # fnmatch's * crosses folders: what it leaves out in error, the image test finds.
    gone = any(rule.glob and fnmatchcase(path, rule.glob) for rule in plan.leave_out)
    return need.package in plan.packages and not gone


def origins(vllm: str, gpus: tuple[str, ...], found: ImageContent) -> Origins:
    """Where the kernels of every backend come from that a release's selection code names.

    Args:
        vllm: version; without kept answers (``releases/backends``) nothing is known.
        gpus: names in ``GPUS``.
        found: what the image has.

    Raises:
        ReleaseError: a backend has no entry in ``models/backend_kernels.yaml``.
    """
    answers = backend_answers.load(vllm)
    backend_kernels.check(answers)
    made: Origins = {}
    for gpu in gpus:
        for kind, name, cache in _named(vllm, gpu):
            origin = backend_kernels.origin(kind, name, GPUS[gpu], found, cache)
            made.setdefault(gpu, {}).setdefault(kind, {})[label(name, cache)] = origin
    return made


def label(name: str, cache: str) -> str:
    """A backend's name in a table, with the KV cache that needs other kernels."""
    return f"{name}, KV cache {cache}" if cache else name


def _named(vllm: str, gpu: str) -> Iterator[tuple[str, str, str]]:
    """Kind, name and KV cache (empty if it makes no difference) of a release's backends."""
    named: dict[tuple[str, str, str], None] = {}
    for answer in backend_answers.load(vllm):
        for decision in answer.decisions if answer.gpu == gpu else ():
            for option in decision.options:
                parts = backend_kernels.find(decision.kind, option.name).parts
                named[decision.kind, option.name, ""] = None
                if decision.cache in {part.cache for part in parts} - {""}:
                    named[decision.kind, option.name, decision.cache] = None
    yield from named


def impossible(vllm: str, origins: Origins, excused: Set[str] = frozenset()) -> list[str]:
    """Backends that vLLM selects by itself and that cannot run, a line each.

    Args:
        vllm: version.
        origins: as ``origins`` gives them.
        excused: kernel groups of components that were left out: vLLM does without those.
    """
    lines: dict[str, None] = {}
    for answer in backend_answers.load(vllm):
        for decision in answer.decisions if answer.gpu in origins else ():
            rows = origins[answer.gpu][decision.kind]
            # The row of this KV cache, if it has one of its own.
            row = rows.get(label(decision.selected, decision.cache)) or rows.get(decision.selected)
            if row and row.origin == IMPOSSIBLE and not (row.lacks and set(row.lacks) <= excused):
                lines[f"{answer.gpu}: vLLM selects {decision.selected}, {row}"] = None
    return list(lines)


def predicted(plan: Plan) -> dict[str, Any]:
    """What a plan keeps: what compilers lack, and the origins; empty if nothing is known.

    Raises:
        CoverageError: vLLM would select a backend whose kernels the image cannot have.
        ReleaseError: as ``origins``.
    """
    found = content(plan)
    made = origins(plan.vllm_version, plan.gpus, found)
    wanted = {gpu: rows for gpu, rows in made.items() if gpu not in plan.allow_missing}
    without = plan.inputs.release.groups_of(plan.components_left_out)
    if lines := impossible(plan.vllm_version, wanted, without):
        raise CoverageError(
            "\n".join(lines),
            rule="the image has the kernels, or their compiler, of each backend that vLLM selects",
            remedy="keep the package or the component, or leave the GPU out; "
            f"{backend_kernels.WHERE} says what each backend needs",
        )
    return as_json(found, made)


def as_json(found: ImageContent, made: Origins) -> dict[str, Any]:
    """Origins as a plan keeps them."""
    if not made:
        return {}
    return {"compilers": backend_kernels.compilers(found), "gpus": msgspec.to_builtins(made)}


def differences(predicted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between a plan and its image (both as ``as_json``), a line each.

    What decides is compared: which origin, by which compilers, and what these lack. The reason
    may name other architectures: a file has more of them than the group that is asked for.
    """
    lines = []
    for name, lacks in predicted["compilers"].items():
        if (has := found["compilers"].get(name, name)) != lacks:
            lines.append(f"{name} lacks {has or 'nothing'}, predicted {lacks or 'nothing'}")
    for gpu, kinds in predicted["gpus"].items():
        for kind, rows in kinds.items():
            for name, row in rows.items():
                planned = msgspec.convert(row, KernelOrigin)
                own = found["gpus"].get(gpu, {}).get(kind, {}).get(name)
                real = msgspec.convert(own, KernelOrigin) if own else None
                if real is None or (real.origin, real.by) != (planned.origin, planned.by):
                    lines.append(f"{gpu}, {kind} {name}: {real}, predicted {planned}")
    return lines
