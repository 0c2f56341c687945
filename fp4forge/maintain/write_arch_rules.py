"""Writes what a release compiles for which architectures: its script, and a table of its results.

``releases/archs/<version>.cmake`` is what decides architectures in vLLM's CMake files;
``<version>.json`` is what that script, run by CMake, makes of the lists of ``grid``. Lists that are
not in the table are left to CMake (``plan.prediction``).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fp4forge.core import files
from fp4forge.core.errors import DriftError, ReleaseError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs.release import check_version
from fp4forge.kernels import archs
from fp4forge.kernels.groups import FP8_GUARDS
from fp4forge.maintain import cmake_script
from fp4forge.plan import cmake

# Older architectures before Blackwell's, as published wheels have them for each kind of host.
_OLDER = ("7.5;8.0;8.6;8.9;9.0", "8.0;8.7;8.9;9.0")
_MOST = 3  # Blackwell entries of a list in the table
_NOTICE = """\
# What decides architectures in the CMake files of vLLM {version}'s sdist; `build.py arch extract`
# cuts it out. Copyright contributors to the vLLM project; SPDX-License-Identifier: Apache-2.0.
# SHA-256 of the files read:
"""


def grid(cuda: str) -> list[str]:
    """Lists of the table for a CUDA: a few Blackwell entries, alone and after older ones."""
    bases: dict[str, list[str]] = {}
    for entry in sorted(archs.known(cuda), key=lambda text: (archs.version(text), text)):
        bases.setdefault(entry.rstrip("af"), []).append(entry)
    lists = [
        ";".join(chosen)
        for count in range(1, _MOST + 1)
        for some in itertools.combinations(bases.values(), count)
        for chosen in itertools.product(*some)
    ]
    for older in _OLDER:
        lists += [older, older.replace("9.0", "9.0a")]
        lists += [
            ";".join((older, *some))
            for count in range(1, len(bases) + 1)
            for some in itertools.combinations(bases, count)
        ]
    return lists


def extract(tree: Path, version: str) -> dict[str, str]:
    """The script and the table of a vLLM source tree, as file names under ``releases/archs``.

    Raises:
        ReleaseError: a file is missing, uses what has no stand-in, sets flags that no list reaches,
            or cannot be reduced without changing results. The message names file and line.
        ToolError: CMake is not installed.
    """
    text = script(tree, version)
    _check_reached(tree)
    results: dict[str, dict[str, cmake.Sources]] = {}
    with tempfile.TemporaryDirectory(prefix="fp4forge-arch-") as name:
        reduced = Path(name) / f"{version}.cmake"
        reduced.write_text(text)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pairs = [
                [
                    pool.submit(cmake.evaluate, path, cuda, grid(cuda))
                    for path in (tree / "CMakeLists.txt", reduced)
                ]
                for cuda in archs.CUDAS
            ]
        for cuda, (original, part) in zip(archs.CUDAS, pairs, strict=True):
            for entries, whole, less in zip(
                grid(cuda), original.result(), part.result(), strict=True
            ):
                if str(whole) != str(less):
                    raise ReleaseError(
                        f"{tree}: the reduced script compiles {entries} for CUDA {cuda} otherwise",
                        rule="maintain/cmake_script.py leaves out only what decides nothing",
                    )
                if isinstance(whole, dict):
                    results.setdefault(cuda, {})[entries] = whole
    table = _arch_table(results) | {"fp8_guards": _guards(tree)}
    if not any("nvfp4" in s for unit in table["units"] for s in unit):
        raise ReleaseError(f"{tree}/CMakeLists.txt names no NVFP4 kernels")
    return {
        f"{version}.cmake": text,
        f"{version}.json": json.dumps(table, indent=0, separators=(",", ":")) + "\n",
    }


def script(tree: Path, version: str) -> str:
    """What decides architectures in a tree's CMake files, with where it comes from.

    Raises:
        ReleaseError: a file is missing, or is not what CMake reads.
    """
    hashes: dict[str, str] = {}
    found = cmake_script.included(tree, "CMakeLists.txt", hashes)
    notice = _NOTICE.format(version=check_version(version))
    notice += "".join(f"#   {digest}  {name}\n" for name, digest in hashes.items())
    return notice + cmake_script.text(cmake_script.reduce(found))


def write(extracted: dict[str, str]) -> list[Path]:
    """Writes what ``extract`` found; returns the files."""
    paths = [RELEASES / "archs" / name for name in extracted]
    for path, text in zip(paths, extracted.values(), strict=True):
        files.replace(path, text)
    return paths


def check(extracted: dict[str, str]) -> None:
    """Compares what ``extract`` found with what is committed.

    Raises:
        DriftError: a file differs.
    """
    for name, text in extracted.items():
        path = RELEASES / "archs" / name
        if not path.is_file() or path.read_text() != text:
            raise DriftError(
                f"releases/archs/{name} is not what the sources say",
                rule="build.py arch extract wrote it",
                remedy=f"build.py arch extract --vllm {Path(name).stem}, and read the difference",
            )


def _check_reached(tree: Path) -> None:
    """Refuses sources that the evaluation never comes to: a condition that it does not know.

    Raises:
        ReleaseError: naming file and line.
    """
    reached: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="fp4forge-trace-") as name:
        trace = Path(name) / "trace"
        options = ("--trace", "--trace-format=json-v1", f"--trace-redirect={trace}")
        for cuda in archs.CUDAS:
            bases = [a for a in archs.known(cuda) if a[-1] not in "af"]
            widest = ";".join((_OLDER[0], *sorted(bases, key=archs.version)))
            cmake.evaluate(tree / "CMakeLists.txt", cuda, [widest], *options)
            for line in trace.read_text().splitlines():
                event = json.loads(line)
                if event.get("cmd", "").lower() == "set_gencode_flags_for_srcs":
                    path = (tree / event["file"]).resolve()
                    reached.add(
                        f"{path.relative_to(tree.resolve())}:{event['line']}"
                        if path.is_relative_to(tree.resolve())
                        else ""
                    )
    for command in cmake_script.included(tree, "CMakeLists.txt", {}):
        if command.name == "set_gencode_flags_for_srcs" and command.where not in reached:
            raise ReleaseError(
                f"{command.where}: no list reaches these sources",
                rule="every set_gencode_flags_for_srcs is reached for one of CUDA "
                + ", ".join(archs.CUDAS),
                remedy="stand_ins.cmake lacks what its conditions ask for",
            )


def _arch_table(results: dict[str, dict[str, cmake.Sources]]) -> dict[str, Any]:
    """The results without repetition: units of sources that are always compiled alike."""
    points = [sources for lists in results.values() for sources in lists.values()]
    alike: dict[tuple[str, ...], list[str]] = {}
    for source in dict.fromkeys(itertools.chain.from_iterable(points)):
        behaviour = tuple(" ".join(sources.get(source, ())) for sources in points)
        alike.setdefault(behaviour, []).append(source)
    targets = sorted({text for behaviour in alike for text in behaviour})
    rows = _Numbers()
    numbers = [
        rows[" ".join(str(targets.index(b[place])) for b in alike)] for place in range(len(points))
    ]
    places = iter(numbers)
    lists = {cuda: {text: next(places) for text in found} for cuda, found in results.items()}
    return {"units": [*alike.values()], "targets": targets, "results": [*rows], "lists": lists}


class _Numbers(dict[str, int]):
    """Numbers texts in the order in which they come."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


def _guards(tree: Path) -> list[str]:
    """What leaves the FP8 kernels of Blackwell empty for some targets.

    Raises:
        ReleaseError: a wrapper of theirs is not known.
    """
    found: dict[str, str] = {}
    for path in (
        *tree.glob("csrc/**/scaled_mm*sm1[02]0*fp8*"),
        *tree.glob("csrc/**/cutlass/c3x/scaled_mm.cuh"),
    ):
        for guard in re.findall(r"enable_sm1\w+_only", path.read_text()):
            found[guard] = path.relative_to(tree).as_posix()
    for guard in found.keys() - FP8_GUARDS.keys():
        raise ReleaseError(
            f"{found[guard]}: {guard} is not known",
            rule="one of " + ", ".join(FP8_GUARDS),
            remedy="add it to FP8_GUARDS in kernels/groups.py",
        )
    return sorted(found)
