"""Quantises a model: checks, calibration, export, and the inspection that gives the name."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.checkpoint import inspect as inspecting
from fp4forge.core import files, limits, reading, scratch
from fp4forge.core.console import Console
from fp4forge.core.errors import CheckpointError, UsageError
from fp4forge.core.paths import MODELS
from fp4forge.core.text import as_json, shown
from fp4forge.inputs import release as releases
from fp4forge.inputs.modelopt import ModelOptRelease
from fp4forge.models import family as families
from fp4forge.quantise import model_card, preconditions, program
from fp4forge.quantise.program import PythonPlace

BUILTIN = "builtin"
_TEXT = MODELS / "calibration.txt"
_PARTIAL = ".partial"
# The reference card's calibration; the text that ships is shorter.
_SAMPLES, _LENGTH, _SHORT_LENGTH = 512, 4096, 256
_REPORT = 4  # held-out samples


@dataclass(frozen=True)
class QuantiseRequest:
    """A request.

    Attributes:
        model: the model's folder.
        output: the checkpoint's folder, made by this.
        format: a format of the release.
        calibration: a file, or ``builtin``.
        samples: None: the card's 512, or all of the builtin text.
        length: tokens of a sample; None: the card's 4096; of the builtin text 256.
        seed: of the samples' order.
        batch: samples at once; 0: as many as fit.
        keep: more patterns of modules that stay in BF16.
        report: whether held-out text is compared.
        allow_cpu: whether a large model may run without a GPU.
    """

    model: Path
    output: Path
    format: str
    calibration: str = BUILTIN
    samples: int | None = None
    length: int | None = None
    seed: int = 0
    batch: int = 0
    keep: tuple[str, ...] = ()
    report: bool = False
    allow_cpu: bool = False

    @property
    def text(self) -> Path:
        """The calibration text."""
        return _TEXT if self.calibration == BUILTIN else Path(self.calibration)


@dataclass(frozen=True)
class QuantisePlan:
    """What will be done: the request with everything filled in; sizes in bytes."""

    asked: QuantiseRequest
    release: ModelOptRelease
    source: preconditions.SourceModel
    keep: tuple[str, ...]
    samples: int
    length: int

    def as_json(self) -> dict[str, Any]:
        """For ``--dry-run`` and ``--json``."""
        quantised = self.release.formats[self.asked.format]
        return {
            "model": str(self.asked.model),
            "output": str(self.asked.output),
            "family": self.source.family,
            "format": self.asked.format,
            "modelopt": self.release.version,
            "config": quantised.config,
            "calibration": self.asked.calibration if quantised.activations else "none",
            "samples": self.samples or "all there are",
            "sequence_length": self.length,
            "seed": self.asked.seed,
            "keep": list(self.keep),
            "weight_bytes": self.source.weights,
            "expected_bytes": self.source.expected,
        }


def plan(asked: QuantiseRequest, release: ModelOptRelease, console: Console) -> QuantisePlan:
    """Checks everything that can be checked before anything is started.

    Raises:
        UsageError: the format, the folders or a pattern cannot be used.
        CheckpointError: the model cannot be quantised.
        CalibrationError: the text is too short.
        DiskError: the disk is too small.
    """
    if asked.format not in release.formats:
        raise UsageError(
            f"--format {asked.format!r} is not set up for ModelOpt {release.version}",
            rule="one of " + ", ".join(release.formats),
        )
    quantised = release.formats[asked.format]
    if asked.report and not quantised.activations:
        raise UsageError(
            f"--report with --format {asked.format}: there is no calibration text to hold out from",
            remedy="leave out --report",
        )
    if asked.output.exists() and (not asked.output.is_dir() or any(asked.output.iterdir())):
        raise UsageError(
            f"{shown(asked.output, 300)} exists",
            rule="a checkpoint gets its name once, when it is whole",
            remedy="another folder for -o",
        )
    builtin = asked.calibration == BUILTIN
    samples = (0 if builtin else _SAMPLES) if asked.samples is None else asked.samples
    length = asked.length or (_SHORT_LENGTH if builtin else _LENGTH)
    with console.step("check") as step:
        keep = [kept.pattern for kept in release.keep]
        source = preconditions.source(asked.model, [*keep, *asked.keep], step.report)
        keep += [kept.pattern for kept in families.get(source.family).keep]
        preconditions.fitting(quantised, asked.format, source)
        if quantised.activations:
            extra = _REPORT if asked.report else 0
            number = source.checkpoint.config.text.experts
            preconditions.text(asked.text, samples + extra, length, number)
        preconditions.disk(source, asked.output)
        step.detail = f"{source.family}, {source.weights / 1e9:.2f} GB"
    patterns = tuple(dict.fromkeys((*keep, *asked.keep)))
    return QuantisePlan(asked, release, source, patterns, samples, length)


def quantise(plan: QuantisePlan, place: PythonPlace, console: Console) -> dict[str, Any]:
    """Does it; returns the figures.

    Until it is inspected and servable, the checkpoint's folder is called ``DIR.partial``.

    Raises:
        CheckpointError: what was made cannot be served; it keeps that name.
        CalibrationError, FitError, ToolError: as ``program.run``.
        UsageError: another run writes there, or an earlier one was asked for something else.
    """
    asked = plan.asked
    partial = asked.output.with_name(asked.output.name + _PARTIAL)
    lock = _hold_partial(partial)
    try:
        _check_same_job(partial, plan)
        _clear_export(partial)
        with (
            console.step("quantise") as step,
            scratch.folder(Path(scratch.temporary()), "fp4forge-quantise.") as folder,
        ):
            folder.chmod(0o755)
            figures = program.run(
                place, folder, asked.model, partial, asked.text, _inside_request(plan), step.report
            )
            step.detail = (
                f"{figures['samples']} samples in batches of {figures['batch']}"
                if figures["batch"]
                else "weights only"
            )
        with console.step("inspect") as step:
            # By the newest release: older ones lack some formats, and the verdict says which.
            found = inspecting.inspect(partial, step.report, releases.names()[-1])
            step.detail = inspecting.verdict(found)
        figures |= {"plan": plan.as_json(), "verdict": inspecting.verdict(found)}
        figures["bytes"] = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
        if not found.servable:
            bad = [f for f in found.findings if f.severity == inspecting.ERROR]
            raise CheckpointError(
                f"{shown(partial, 300)} cannot be served: "
                + "; ".join(f"{f.id} ({', '.join(f.where[:2])})" for f in bad),
                rule="a checkpoint gets its name if checkpoint inspect has no error for it",
                remedy=f"build.py checkpoint inspect {partial}",
            )
        model_card.write(partial, figures)
        shutil.rmtree(partial / ".state")
        if asked.output.exists():
            asked.output.rmdir()  # empty
        partial.rename(asked.output)
    finally:
        lock.release()
    return figures


def _inside_request(plan: QuantisePlan) -> dict[str, Any]:
    """What ``inside`` reads."""
    asked, quantised = plan.asked, plan.release.formats[plan.asked.format]
    return {
        "modelopt": plan.release.version,
        "config": quantised.config,
        "layers": quantised.layers,
        "activations": quantised.activations,
        "comparable": quantised.comparable,
        "resumable": quantised.resumable,
        "keep": list(plan.keep),
        "samples": plan.samples if quantised.activations else 1,
        "length": plan.length if quantised.activations else 1,
        "seed": asked.seed,
        "batch": asked.batch,
        "report": _REPORT if asked.report else 0,
        "weights": plan.source.weights,
        "cpu_weights": limits.QUANTISE_CPU_BYTES,
        "allow_cpu": asked.allow_cpu,
    }


def _hold_partial(partial: Path) -> Any:
    """Holds the folder.

    Raises:
        UsageError: another run has it.
    """
    from filelock import FileLock, Timeout

    state = partial / ".state"
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another run writes {shown(partial, 300)}", remedy="wait for it, or another -o"
        ) from None
    return lock


def _check_same_job(partial: Path, plan: QuantisePlan) -> None:
    """Refuses to resume something else.

    Raises:
        UsageError: the statistics there belong to another request.
    """
    request = _inside_request(plan)
    for free in ("batch", "allow_cpu", "weights", "cpu_weights"):
        request.pop(free)  # they change no statistic
    if plan.release.formats[plan.asked.format].activations:
        request["text"] = files.sha256(plan.asked.text)
    request["model"] = _model_fingerprint(plan.source)
    wanted, file = as_json(request), partial / ".state" / "request.json"
    if file.exists() and reading.text(file, UsageError) != wanted:
        raise UsageError(
            f"{shown(partial, 300)} belongs to another request",
            rule="a run resumes with the same model, text, samples and format",
            remedy="remove that folder, or another -o",
        )
    files.replace(file, wanted)


def _model_fingerprint(source: preconditions.SourceModel) -> str:
    """A model's files, by name, size and time."""
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(source.checkpoint.folder.glob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _clear_export(partial: Path) -> None:
    """Removes what an earlier export left; the statistics stay."""
    for path in partial.iterdir():
        if path.name == ".state":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
