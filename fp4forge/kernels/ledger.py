"""The ledger: which kernels the files of a target hold, for which GPUs they run, and how.

Verdicts are read off the binaries: FP4 by its instructions, architectures by the cubins' notes.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.kernels import cubins
from fp4forge.kernels.base import BinaryError, Progress
from fp4forge.kernels.cubins import DeviceCode, Kernel
from fp4forge.kernels.gpus import GPUS, RUNS, VERDICTS, serves
from fp4forge.kernels.groups import COMPILED, GROUPS, REQUIRED, filled, of_kernels


@dataclass(frozen=True)
class File:
    """One extension and its device code; the path is relative to the target."""

    path: str
    code: DeviceCode

    def as_json(self) -> dict[str, Any]:
        """The file as the ledger prints it."""
        return {
            "path": self.path,
            "sha256": self.code.sha256,
            "cubins": [cubin.as_json() for cubin in self.code.cubins],
            "ptx": [{"arch": p.arch, "kernels": len(p.kernels)} for p in self.code.ptx],
        }


@dataclass(frozen=True)
class Ledger:
    """All files of a target and what each GPU gets."""

    target: str
    files: tuple[File, ...]

    @functools.cached_property
    def gpus(self) -> dict[str, dict[str, Any]]:
        """For each GPU every group's verdict (native, family, ptx, missing), and ``ok``."""
        best = {name: dict.fromkeys(GROUPS, "missing") for name in GPUS}
        for target, groups in self._groups():
            for gpu in GPUS.values():
                word = serves(target, gpu)
                for group in groups:
                    if VERDICTS.index(word) < VERDICTS.index(best[gpu.name][group]):
                        best[gpu.name][group] = word
        return {
            name: {**found, "ok": all(found[g] in RUNS for g in REQUIRED)}
            for name, found in best.items()
        }

    def targets(self) -> dict[str, list[str]]:
        """For each group the architectures that hold it, such as ``12.0f`` or ``8.0+PTX``."""
        found: dict[str, set[str]] = {group: set() for group in GROUPS}
        for target, groups in self._groups():
            for group in groups:
                found[group].add(target)
        return {group: sorted(targets) for group, targets in found.items()}

    def _groups(self) -> Iterator[tuple[str, set[str]]]:
        for file in self.files:
            for cubin in file.code.cubins:
                yield cubin.target, set(of_kernels(file.path, cubin.kernels))
            for ptx in file.code.ptx:
                yield ptx.target, set(of_kernels(file.path, tuple(map(Kernel, ptx.kernels))))

    def as_json(self, details: bool = True) -> dict[str, Any]:
        """The documented JSON; without details no kernels, for keeping in an image."""
        files = [file.as_json() for file in self.files]
        if not details:
            for file in files:
                for cubin in file["cubins"]:
                    cubin["kernels"] = len(cubin["kernels"])
        return {"target": self.target, "files": files, "groups": self.targets(), "gpus": self.gpus}


def packages(folders: list[Path], cache: Path, report: Progress) -> Ledger:
    """The ledger of installed packages; paths start with the package's name.

    Raises:
        BinaryError: one of them has no device code, or cannot be read.
    """
    files = [
        File(f"{root.name}/{file.path}", file.code)
        for root in folders
        for file in folder(str(root), root, cache, report).files
    ]
    return Ledger(", ".join(root.name for root in folders), tuple(files))


def folder(target: str, root: Path, cache: Path, report: Progress) -> Ledger:
    """The ledger of a folder's ELF objects.

    Args:
        target: what the folder is called in messages and in the ledger.
        root: the folder.
        cache: folder of earlier results (``cubins.read``).
        report: called with progress.

    Raises:
        BinaryError: none of its files has device code, or one cannot be read.
    """
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and re.search(r"\.(so|o|cubin)\b", path.name)
    ]
    binaries = [path for path in found if cubins.has_device_code(path)]

    def read(number: int, path: Path) -> File:
        said = _numbered(report, f"file {number} of {len(binaries)}")
        return File(path.relative_to(root).as_posix(), cubins.read(path, cache, said))

    # While one file is extracted, another one's cubins are disassembled.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = tuple(pool.map(read, range(1, len(binaries) + 1), binaries))
    if not files:
        raise BinaryError(
            f"{target} has no file with CUDA device code",
            rule="ELF objects with a section .nv_fatbin",
        )
    return Ledger(target, files)


def _numbered(report: Progress, which: str) -> Progress:
    return lambda text: report(f"{which}, {text}")


def expected(compiled: dict[str, list[str]], guards: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What a ledger's ``targets`` must be, from what vLLM's CMake compiles each group for.

    Args:
        compiled: targets by group.
        guards: what leaves FP8's kernels empty (``groups.FP8_GUARDS``).
    """
    found = {name: group.expected(compiled.get(name, ())) for name, group in COMPILED.items()}
    return found | {"fp8_gemm": filled(found["fp8_gemm"], guards)}


def differences(predicted: dict[str, list[str]], found: dict[str, list[str]]) -> list[str]:
    """Groups in which prediction and ledger differ, a line each with both columns.

    A target with +PTX is compiled as SASS for the same architecture too; that is no difference.
    """
    lines = []
    for group, targets in predicted.items():
        with_sass = set(targets) | {t.removesuffix("+PTX") for t in targets}
        have = set(found.get(group, ()))
        if not set(targets) <= have <= with_sass:
            lines.append(
                f"{group}: predicted {' '.join(targets) or 'nothing'},"
                f" found {' '.join(sorted(have)) or 'nothing'}"
            )
    return lines


def lost(ledger: Ledger, required: tuple[str, ...]) -> dict[str, str]:
    """Required GPUs that lack a required group, with what they lack."""
    return {
        name: ", ".join(g for g in REQUIRED if ledger.gpus[name][g] not in RUNS)
        for name in required
        if not ledger.gpus[name]["ok"]
    }
