"""Runs ``inside`` in a Python that has ModelOpt: on this machine, or in an image."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import CalibrationError, CheckpointError, FitError, ForgeError, ToolError
from fp4forge.core.limits import QUANTISE_SILENCE_SECONDS
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.oci import dockercli, process

_INSIDE = Path(__file__).parent / "inside"
_MARK = "fp4forge "
_CONTAINER = "container"  # file with the container's id
_KINDS: dict[str, type[ForgeError]] = {
    "text": CalibrationError,
    "checkpoint": CheckpointError,
    "gpu": FitError,
    "memory": FitError,
    "tool": ToolError,
}


class _QuantiserLine(Struct, frozen=True):
    """A line of the program."""

    note: str = ""
    error: str = ""
    kind: str = "tool"
    rule: str = ""
    remedy: str = ""
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class PythonPlace:
    """Where the program runs: a Python of this machine, or an image with one."""

    python: str = "python3"
    image: str = ""

    def line(
        self, program: Path, model: Path, output: Path, text: Path
    ) -> tuple[list[str], ProgramPaths]:
        """The command line, without the request's file, and the paths as the program sees them.

        Args:
            program: a folder with ``inside`` in it.
            model: the model's folder.
            output: the folder that it writes.
            text: the calibration text.
        """
        if not self.image:
            path = os.pathsep.join(filter(None, (str(program), os.environ.get("PYTHONPATH"))))
            line = ["env", f"PYTHONPATH={path}", "HF_HUB_OFFLINE=1", self.python, "-m", "inside"]
            return line, ProgramPaths(str(model), str(output), str(text), str(program))
        mounts = {
            f"{model}": "/model:ro",
            f"{output}": "/output",
            f"{text}": f"/text/{text.name}:ro",
            f"{program}": "/program:ro",
        }
        line = dockercli.line("run", "--rm", "--network=none", "--user=0", "--shm-size=8g")
        line.append(f"--cidfile={program}/{_CONTAINER}")
        if shutil.which("nvidia-smi"):
            line.append("--gpus=all")
        line += [part for one, two in mounts.items() for part in ("--volume", f"{one}:{two}")]
        line += ["--env=PYTHONPATH=/program", "--env=HF_HUB_OFFLINE=1", "--env=HOME=/tmp"]
        line += [f"--entrypoint={self.python}", self.image, "-m", "inside"]
        return line, ProgramPaths("/model", "/output", f"/text/{text.name}", "/program")


@dataclass(frozen=True)
class ProgramPaths:
    """Paths as the program sees them."""

    model: str
    output: str
    text: str
    program: str


def run(
    place: PythonPlace,
    folder: Path,
    model: Path,
    output: Path,
    text: Path,
    request: dict[str, Any],
    report: Progress,
) -> dict[str, Any]:
    """Runs the program; returns its figures.

    Args:
        place: where.
        folder: a temporary folder for the program and its request.
        model: the model's folder.
        output: the folder that it writes; it exists.
        text: the calibration text.
        request: what ``inside/__main__.py`` reads, but for the paths.
        report: called with progress.

    Raises:
        CalibrationError: the text is too short or malformed.
        FitError: one sample does not fit, or there is no GPU for a large model.
        ToolError: that Python lacks something, or fails.
    """
    shutil.copytree(_INSIDE, folder / "inside", ignore=shutil.ignore_patterns("__pycache__"))
    line, paths = place.line(folder, model.resolve(), output.resolve(), text.resolve())
    content = request | {
        "model": paths.model,
        "output": paths.output,
        "state": f"{paths.output}/.state/calibration",
        "calibration": paths.text,
    }
    (folder / "request.json").write_text(json.dumps(content))
    (folder / "request.json").chmod(0o644)
    listener = Listener(report)
    line.append(f"{paths.program}/request.json")
    try:
        code = process.follow(line, listener.hear, QUANTISE_SILENCE_SECONDS, ToolError)
    except BaseException:
        if (folder / _CONTAINER).exists():  # its client is dead, the container is not
            dockercli.run("kill", (folder / _CONTAINER).read_text())
        raise
    return listener.answer(place, code)


class Listener:
    """Tells the program's lines from what libraries print."""

    def __init__(self, report: Progress) -> None:
        self.report = report
        self.result: dict[str, Any] | None = None
        self.failure: _QuantiserLine | None = None
        self.rest: list[str] = []

    def hear(self, line: str) -> None:
        """One line of output."""
        if not line.startswith(_MARK):
            self.rest = [*self.rest[-20:], line.rstrip()]
            return
        said = reading.json(line.removeprefix(_MARK), _QuantiserLine, "quantise/inside", ToolError)
        if said.result is not None:
            self.result = said.result
        if said.error:
            self.failure = said
        if said.note:
            self.report(said.note)

    def answer(self, place: PythonPlace, code: int) -> dict[str, Any]:
        """The figures.

        Raises:
            ForgeError: the program said what is wrong, or ended without an answer.
        """
        where = place.image or place.python
        if self.failure:
            kind = _KINDS.get(self.failure.kind, ToolError)
            raise kind(
                shown(self.failure.error), rule=self.failure.rule, remedy=self.failure.remedy
            )
        if code == 0 and self.result is not None:
            return self.result
        last = "\n".join(text for text in self.rest[-6:] if text)
        raise ToolError(
            f"quantising in {shown(where, 200)} ended with exit code {code}:\n{shown(last, 1500)}",
            rule="137 and -9: the kernel ended it, often for want of memory",
            remedy="running again resumes after the last batch",
        )
