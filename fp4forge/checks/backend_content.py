"""What an image has of what backends' kernels come from, by its own files and its ledger."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from fp4forge.kernels.cubins import Cubin, Ptx
from fp4forge.models import backend_kernels
from fp4forge.models.backend_kernels import ImageContent


def questions() -> list[str]:
    """The files to look for, as ``models/backend_kernels.yaml`` has them."""
    return sorted({need.file for need in backend_kernels.table().files()})


def content(ledger: dict[str, Any], files: list[str], libraries: list[str]) -> ImageContent:
    """What an image has.

    Args:
        ledger: its ledger.json; of a group that ledgers lack, the file that has it counts.
        files: those of ``questions`` that are there.
        libraries: FlashInfer's modules that are there.
    """
    targets = {name: tuple(found) for name, found in ledger["groups"].items()}
    for part in backend_kernels.table().parts():
        if part.group and part.group not in ledger["groups"]:
            targets[part.group] = _targets(ledger["files"], part.file)
    return ImageContent(frozenset(files), targets, frozenset(libraries))


def _targets(files: list[dict[str, Any]], glob: str) -> tuple[str, ...]:
    """What the kernels of some extensions are compiled for."""
    chosen = [file for file in files if fnmatchcase(file["path"], glob)]
    found = {
        Cubin(cubin["arch"], cubin["kind"], (), False).target
        for file in chosen
        for cubin in file["cubins"]
        if cubin["kernels"]
    }
    found |= {Ptx(ptx["arch"], ()).target for file in chosen for ptx in file["ptx"]}
    return tuple(sorted(found))
