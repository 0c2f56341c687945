"""Runs a release's own CMake to see which sources it compiles for which architectures.

``stand_ins.cmake`` stands for the project, the compiler and the network; conditions and the
arithmetic on lists are vLLM's. Nothing of it is known here.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path

from fp4forge.core.errors import ReleaseError, ToolError

# Targets of every source by its path: what `-gencode` flags set_property() gave it.
Sources = dict[str, list[str]]

_STAND_INS = Path(__file__).with_name("stand_ins.cmake")
_SECONDS = 600  # for a grid; one list takes a third of a second
_FLAG = re.compile(
    r"(.*);APPEND;PROPERTY;COMPILE_OPTIONS;.*;arch=compute_\w+,code=(sm|compute)_([0-9]+)([0-9][af]?)>"
)
_ERROR = re.compile(r"CMake Error at (\S+?):(\d+)(?: \((\w+)\))?:\n((?:(?!\n\n\S).)*)", re.DOTALL)
_FRAME = re.compile(r"^  (\S+):(\d+) \((\w+)\)$", re.MULTILINE)


class CmakeRefused(Exception):
    """vLLM's CMake itself refuses a list; the text is its own."""


def program() -> str:
    """CMake, as the package index's wheel installs it.

    Raises:
        ToolError: it is not installed.
    """
    spec = importlib.util.find_spec("cmake")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "data" / "bin" / "cmake"
        if path.exists():
            return str(path)
    raise ToolError("cmake is not installed", remedy="run make setup")


def evaluate(
    script: Path, cuda: str, lists: list[str], *options: str
) -> list[Sources | CmakeRefused]:
    """What a script compiles, for each list.

    Args:
        script: a CMakeLists.txt, or what ``maintain.cmake_script`` reduced it to.
        cuda: version of the compiler.
        lists: architectures separated by ``;``, as ``kernels.archs.torch_archs`` gives them.
        options: more for CMake's command line.

    Raises:
        ReleaseError: the script uses what has no stand-in; the message names file and line.
        ToolError: CMake is not installed.
    """
    found: list[Sources | CmakeRefused] = []
    with tempfile.TemporaryDirectory(prefix="fp4forge-cmake-") as name:
        header = Path(name) / "cutlass" / "cutlass.h"
        header.parent.mkdir()
        header.touch()
        while len(found) < len(lists):
            said = _run_cmake(script, cuda, lists[len(found) :], Path(name), options)
            result = Path(name) / "result"
            if result.exists():
                blocks = result.read_text().split("--\n")[:-1]
                found += [_sources(block, f"{script.parent.resolve()}/") for block in blocks]
                result.unlink()
            if len(found) < len(lists):
                found.append(_cmake_refusal(said, script))
    return found


def _run_cmake(
    script: Path, cuda: str, lists: list[str], folder: Path, options: tuple[str, ...]
) -> str:
    asked = {
        "SCRIPT": script.resolve(),
        "VERSION": cuda,
        "ASKED": "|".join(text.replace(";", ",") for text in lists),
        "RESULT": folder / "result",
        "CUTLASS": folder,
    }
    line = [program(), "--log-level=ERROR", *options]
    line += [f"-D{name}={value}" for name, value in asked.items()]
    try:
        return subprocess.run(
            [*line, "-P", str(_STAND_INS)],
            cwd=script.parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
        ).stderr
    except subprocess.TimeoutExpired:
        raise ReleaseError(
            f"{script.name} did not finish under CMake within {_SECONDS} s"
        ) from None


def _sources(block: str, root: str) -> Sources:
    found: Sources = {}
    for line in block.splitlines():
        if "-gencode" not in line:
            continue
        match = _FLAG.fullmatch(line)
        if not match:
            raise ReleaseError(
                f"flags of an unknown form: {line[-200:]}", rule="-gencode arch=…,code=…"
            )
        arch = f"{match[3]}.{match[4]}"
        for source in match[1].replace(root, "").split(";"):
            targets = found.setdefault(source, [])
            if match[2] == "compute":  # after its "sm": both are one entry with +PTX
                targets[:] = [t for t in targets if t not in (arch, arch + "+PTX")]
                targets.append(arch + "+PTX")
            elif not {arch, arch + "+PTX"} & set(targets):
                targets.append(arch)
    return found


def _cmake_refusal(said: str, script: Path) -> CmakeRefused:
    """The script's own refusal of a list.

    Raises:
        ReleaseError: CMake stopped for another reason.
    """
    match = _ERROR.search(said)
    if not match:
        raise ReleaseError(f"CMake cannot run {script.name}: {said.strip()[-300:]}")
    text = " ".join(match[4].split("Call Stack")[0].split())
    frames = [(match[1], match[2], match[3]), *_FRAME.findall(match[4])]
    if match[3] == "message" and Path(match[1]).name != _STAND_INS.name:
        return CmakeRefused(text)
    file, line, command = next(
        (frame for frame in frames if Path(frame[0]).name != _STAND_INS.name), frames[0]
    )
    raise ReleaseError(
        f"{file}:{line}: {command or 'CMake'}: {text}",
        rule=f"what vLLM's CMake uses has a stand-in in {_STAND_INS.name}",
        remedy="add one that does what the command does to architectures",
    )
