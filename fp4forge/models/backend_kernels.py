"""Where the kernels of vLLM's backends come from, read from ``models/backend_kernels.yaml``.

A backend that vLLM selects needs kernels for the GPU. They are in the image, or a compiler in the
image makes them while it serves, or the image cannot have them. Which, is a function of what the
image has: predicted from the plan and its lock, and found by looking at the image's files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import MODELS
from fp4forge.inputs.reader import BrokenField, InputFormat, one_of
from fp4forge.kernels.gpus import RUNS, VERDICTS, Gpu, listed, serves
from fp4forge.models.backend_answers import KINDS, BackendAnswer

PATH = MODELS / "backend_kernels.yaml"
WHERE = f"{MODELS.name}/{PATH.name}"

AHEAD = "ahead of time"
JIT = "compiled at run time"
DOWNLOADED = "downloaded at run time"
IMPOSSIBLE = "impossible in this image"
# A backend is as good as the worst of its parts.
ORIGINS = (AHEAD, JIT, DOWNLOADED, IMPOSSIBLE)

_Source = Annotated[
    str, Meta(min_length=10, description="the files of vLLM or FlashInfer that say so")
]
_Package = Annotated[str, Meta(pattern="^([a-z0-9.+-]*)$", description="a package's name")]
_File = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_.+*/-]*$",
        description="a file or folder, relative to dist-packages unless it begins with /; * and"
        " **/ as in glob",
        examples=["nvidia/cu*/bin/nvcc"],
    ),
]
_Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_*-]*$", description="a name")]
_Capabilities = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^[0-9]+\.[0-9x]$")], ...],
    Meta(description="compute capabilities, such as 12.1, or 12.x for all of 12; none: every GPU"),
]


class NeededFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file without which a compiler or a backend does not work, and the package that has it.

    distribution: whether that is a package of the distribution, which every image installs.
    """

    package: _Package
    file: _File
    distribution: bool = False


class RunTimeCompiler(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What compiles kernels while vLLM serves."""

    needs: Annotated[tuple[NeededFile, ...], Meta(min_length=1, description="what it needs")]
    source: _Source


class KernelPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some of a backend's kernels; they come in one of three ways.

    group: a kernel group, compiled into vLLM's extensions.
    compiler: one of the table's compilers.
    package: they are in the package.
    file: the extension or the package's file that has them; of a group only if ledgers lack it.
    generator: FlashInfer's function for the module that ``--aot`` compiles.
    library: the name of that module.
    downloads: whether FlashInfer downloads them while it serves, if the package is not there.
    on: the GPUs that need this part.
    cache: the data type of the KV cache that needs it; empty: any.
    """

    group: _Name = ""
    compiler: _Name = ""
    package: _Package = ""
    file: _File = ""
    generator: Annotated[str, Meta(pattern=r"^[a-z0-9_.]*$")] = ""
    library: _Name = ""
    downloads: bool = False
    on: _Capabilities = ()
    cache: _Name = ""

    def __post_init__(self) -> None:
        """Checks that there is one way."""
        if [bool(self.group), bool(self.compiler), bool(self.package)].count(True) != 1:
            raise BrokenField("group", "is not the only way", "one of group, compiler and package")
        if self.package and not self.file:
            raise BrokenField("file", "is missing", "a package is looked for by one of its files")


class BackendKernels(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Backends whose kernels come in the same ways.

    only: capabilities that they have kernels for; others get none, whatever is installed.
    """

    kind: Annotated[str, one_of(KINDS, "a kind of layer")]
    names: Annotated[tuple[_Name, ...], Meta(min_length=1, description="names in vLLM")]
    parts: Annotated[tuple[KernelPart, ...], Meta(min_length=1, description="all are needed")]
    source: _Source
    only: _Capabilities = ()


class BackendKernelTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``models/backend_kernels.yaml``."""

    compilers: Annotated[dict[_Name, RunTimeCompiler], Meta(description="compilers by name")]
    backends: Annotated[tuple[BackendKernels, ...], Meta(description="all backends")]

    def __post_init__(self) -> None:
        """Checks that every compiler is known and that no backend is there twice."""
        seen: set[tuple[str, str]] = set()
        for backend in self.backends:
            for part in backend.parts:
                if part.compiler and part.compiler not in self.compilers:
                    raise BrokenField(
                        "backends", f"name the compiler {part.compiler}", "one of compilers"
                    )
            for name in backend.names:
                if (backend.kind, name) in seen:
                    raise BrokenField("backends", f"have {name} twice", "one entry for each name")
                seen.add((backend.kind, name))

    def parts(self) -> tuple[KernelPart, ...]:
        """The parts of all backends."""
        return tuple(part for backend in self.backends for part in backend.parts)

    def files(self) -> tuple[NeededFile, ...]:
        """Every file that a compiler or a backend needs, each once."""
        found = [need for compiler in self.compilers.values() for need in compiler.needs]
        found += [
            NeededFile(package=part.package, file=part.file)
            for part in self.parts()
            if part.package
        ]
        return tuple(dict.fromkeys(found))


FORMAT = InputFormat(BackendKernelTable, "backend_kernels", ReleaseError)


@cache
def table() -> BackendKernelTable:
    """The table.

    Raises:
        ReleaseError: the file cannot be read, or is malformed.
    """
    return FORMAT.read(PATH, WHERE)


@dataclass(frozen=True)
class ImageContent:
    """What an image has of what kernels come from.

    files: those of ``BackendKernelTable.files`` that are there.
    targets: what each kernel group is compiled for, such as ``12.0f`` or ``8.0+PTX``.
    libraries: FlashInfer's modules that were compiled ahead of time.
    """

    files: frozenset[str]
    targets: dict[str, tuple[str, ...]]
    libraries: frozenset[str]


class KernelOrigin(Struct, frozen=True, kw_only=True):
    """Where a backend's kernels for a GPU come from.

    origin: one of ``ORIGINS``.
    by: the compilers, if it is compiled at run time.
    why: for each part that decides, what is there or what is missing.
    lacks: kernel groups that are missing.
    """

    origin: str
    by: tuple[str, ...] = ()
    why: str = ""
    lacks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for people."""
        if self.origin == JIT:
            return f"{JIT} by {', '.join(self.by)}"
        return f"{self.origin}: {self.why}"


def find(kind: str, name: str) -> BackendKernels:
    """The entry of a backend.

    Raises:
        ReleaseError: there is none.
    """
    for backend in table().backends:
        if backend.kind == kind and name in backend.names:
            return backend
    raise unknown([(kind, name)])


def unknown(names: list[tuple[str, str]]) -> ReleaseError:
    """The failure for backends (kind and name) that the table does not have."""
    listed = ", ".join(f"{name} ({kind})" for kind, name in names)
    return ReleaseError(
        f"{WHERE} does not say where the kernels of {listed} come from",
        rule="each backend that vLLM's selection code names has an entry",
        remedy=f"add it to {WHERE}, with the files of vLLM that show it",
    )


def missing(names: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of some backends (kind and name) that the table does not have."""
    known = {(entry.kind, name) for entry in table().backends for name in entry.names}
    return [one for one in dict.fromkeys(names) if one not in known]


def check(answers: tuple[BackendAnswer, ...]) -> None:
    """Checks that the table has every backend of some answers.

    Raises:
        ReleaseError: it lacks some; the message names them all.
    """
    named = [
        (decision.kind, option.name)
        for answer in answers
        for decision in answer.decisions
        for option in decision.options
    ]
    if lacking := missing(named):
        raise unknown(lacking)


def compilers(content: ImageContent) -> dict[str, str]:
    """What each run-time compiler lacks in an image; empty: nothing."""
    return {name: _lacks(found.needs, content) for name, found in table().compilers.items()}


def origin(kind: str, name: str, gpu: Gpu, content: ImageContent, cache: str = "") -> KernelOrigin:
    """Where a backend's kernels for a GPU come from.

    Args:
        kind: one of ``KINDS``.
        name: of the backend, as vLLM's selection code has it.
        gpu: the GPU.
        content: what the image has.
        cache: data type of the KV cache, for attention.

    Raises:
        ReleaseError: the table does not have the backend.
    """
    backend = find(kind, name)
    if not listed(gpu.label, backend.only):
        return KernelOrigin(
            origin=IMPOSSIBLE,
            why=f"it has no kernels for {gpu.label}, only for {', '.join(backend.only)}",
        )
    parts = [
        _part(part, gpu, content)
        for part in backend.parts
        if listed(gpu.label, part.on) and part.cache in ("", cache)
    ]
    if not parts:
        return KernelOrigin(origin=IMPOSSIBLE, why=f"it has no kernels for {gpu.label}")
    worst = max(parts, key=lambda one: ORIGINS.index(one.origin)).origin
    deciding = [one for one in parts if one.origin == worst]
    return KernelOrigin(
        origin=worst,
        by=tuple(dict.fromkeys(name for one in deciding for name in one.by)),
        why="; ".join(dict.fromkeys(one.why for one in deciding)),
        lacks=tuple(dict.fromkeys(group for one in deciding for group in one.lacks)),
    )


def _part(part: KernelPart, gpu: Gpu, content: ImageContent) -> KernelOrigin:
    if part.group:
        return _compiled_part(part.group, gpu, content)
    if part.package:
        need = NeededFile(package=part.package, file=part.file)
        if not _lacks((need,), content):
            return KernelOrigin(origin=AHEAD, why=f"in {part.package}")
        if part.downloads:
            return KernelOrigin(
                origin=DOWNLOADED, why=f"no {part.package}: FlashInfer downloads its cubins"
            )
        return KernelOrigin(origin=IMPOSSIBLE, why=f"no {part.package}")
    if part.generator and part.library in content.libraries:
        return KernelOrigin(origin=AHEAD, why=f"FlashInfer's module {part.library}")
    lacks = _lacks(table().compilers[part.compiler].needs, content)
    if lacks:
        return KernelOrigin(origin=IMPOSSIBLE, why=f"{part.compiler} lacks {lacks}")
    why = f"{part.library} by {part.compiler}" if part.library else part.compiler
    return KernelOrigin(origin=JIT, by=(part.compiler,), why=why)


def _compiled_part(group: str, gpu: Gpu, content: ImageContent) -> KernelOrigin:
    targets = content.targets.get(group, ())
    verdicts = {target: serves(target, gpu) for target in targets}
    best = min(verdicts, key=lambda target: VERDICTS.index(verdicts[target]), default="")
    if not best or verdicts[best] == "missing":
        has = f", only {' '.join(targets)}" if targets else ""
        return KernelOrigin(
            origin=IMPOSSIBLE, why=f"no {group} for {gpu.label}{has}", lacks=(group,)
        )
    driver = "" if verdicts[best] in RUNS else ", which the driver compiles"
    return KernelOrigin(origin=AHEAD, why=f"{group} {best}{driver}")


def _lacks(needs: tuple[NeededFile, ...], content: ImageContent) -> str:
    """The packages of the files that are not there."""
    return ", ".join(
        dict.fromkeys(need.package for need in needs if need.file not in content.files)
    )


def sample(glob: str) -> str:
    """A path that a glob of the table matches."""
    return re.sub(r"\*", "x", glob.replace("**/", "x/"))
