"""What is refused before anything is started: the model, the request, the disk."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fp4forge.checkpoint import tensors
from fp4forge.checkpoint.tensors import Checkpoint, Tensor
from fp4forge.core.errors import (
    CalibrationError,
    CheckpointError,
    DiskError,
    UsageError,
)
from fp4forge.core.text import shown
from fp4forge.inputs.modelopt import QuantisedFormat
from fp4forge.kernels.base import Progress
from fp4forge.models import family as families
from fp4forge.quantise import weights

_FLOATS = ("BF16", "F16", "F32")
_BITS = 4.5  # of an NVFP4 weight: 4, and 8 for each 16
_MARGIN = 1.1


@dataclass(frozen=True)
class SourceModel:
    """A model that can be quantised; sizes in bytes."""

    checkpoint: Checkpoint
    family: str
    weights: int
    expected: int  # of the checkpoint that is made


def source(folder: Path, kept: Iterable[str], report: Progress) -> SourceModel:
    """Reads the model's headers and weights.

    Args:
        folder: the model's.
        kept: patterns of modules that stay as they are.
        report: called with progress.

    Raises:
        CheckpointError: it is not a whole checkpoint, of no known family, quantised already, or
            has weights that are not finite.
    """
    found = tensors.read(folder)
    if found.problems or (found.index is not None and set(found.index) - set(found.tensors)):
        lost = sorted(set(found.index or ()) - set(found.tensors))
        first = found.problems[0] if found.problems else None
        raise CheckpointError(
            f"{first.where}: {first.text}" if first else f"{shown(lost[0], 200)} is in no file",
            rule="a model is quantised whole",
            remedy="build.py checkpoint fetch resumes, and checks every hash",
        )
    _refuse_quantised(found)
    name = found.config.family
    if not name:
        raise CheckpointError(
            f"{shown(folder, 300)} belongs to none of the families that fp4forge knows"
            f" (model_type {shown(str(found.config.model_type), 60)!r})",
            rule="models/families says what of a model stays in BF16: "
            + ", ".join(families.table()),
            remedy="write a file for the family (CONTRIBUTING.md)",
        )
    if bad := weights.not_finite(found, report):
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(
            f"weights are NaN or infinite: {', '.join(bad[:3])}{more}",
            rule="a block's scale is the maximum of its weights",
            remedy="the model is damaged: fetch or train it again",
        )
    size = sum(tensor.size for tensor in found.tensors.values())
    patterns = tuple(kept)
    expected = sum(_bytes_after(tensor, patterns) for tensor in found.tensors.values())
    return SourceModel(found, name, size, int(expected))


def _refuse_quantised(found: Checkpoint) -> None:
    """Refuses a checkpoint that is quantised.

    Raises:
        CheckpointError: its configuration says so, or its tensors show it.
    """
    declared = found.quantisation.method or found.quantisation.algo
    other = next((t for t in found.tensors.values() if t.dtype.startswith(("F8", "U8"))), None)
    if declared or other:
        raise CheckpointError(
            f"{shown(found.folder, 300)} is quantised already: "
            + (
                shown(declared, 60)
                if declared
                else f"{other and other.name} is {other and other.dtype}"
            ),
            rule="NVFP4 is made from BF16, FP16 or FP32 weights",
            remedy="fetch the model it was made from",
        )


def _bytes_after(tensor: Tensor, kept: tuple[str, ...]) -> float:
    """Bytes that a tensor of the model has in the checkpoint."""
    elements = tensor.size / (4 if tensor.dtype == "F32" else 2)
    inside = any(part in tensor.name for part in ("_proj", ".experts.", ".mlp."))
    if tensor.dtype not in _FLOATS or len(tensor.shape) < 2 or not inside:
        return min(tensor.size, elements * 2)
    if any(fnmatch.fnmatchcase(tensor.name, pattern + "*") for pattern in kept):
        return elements * 2
    return elements * _BITS / 8


def fitting(quantised: QuantisedFormat, name: str, found: SourceModel) -> None:
    """Refuses a format that vLLM does not load for this model.

    Raises:
        UsageError: experts cannot have it.
    """
    has = found.checkpoint.config.text.experts
    if has and not quantised.experts:
        raise UsageError(
            f"--format {name} does not go with experts, and the model has {has} a layer",
            rule=quantised.why,
            remedy="--format nvfp4",
        )


def text(path: Path, samples: int, length: int, number_experts: int) -> None:
    """Refuses a calibration text that cannot be long enough: a token has at least one byte.

    Raises:
        CalibrationError: there is none, it is too short, or a sample has fewer tokens than experts.
    """
    if not path.is_file():
        raise CalibrationError(
            f"{shown(path, 300)} is not a file",
            rule="--calibration is a text file, a .jsonl, or builtin",
        )
    size = path.stat().st_size
    if size < max(1, samples) * length:
        raise CalibrationError(
            f"{shown(path, 300)} has {size:,} bytes; {max(1, samples):,} samples of {length:,}"
            " tokens need more",
            rule="samples are full windows of text; nothing is padded",
            remedy="use a longer text, fewer --samples, or a shorter --sequence-length",
        )
    if length < number_experts:
        raise CalibrationError(
            f"--sequence-length {length} is less than the {number_experts} experts of a layer",
            rule="each expert that saw no token gets one of each sample",
            remedy=f"--sequence-length {number_experts}, or more",
        )


def disk(found: SourceModel, folder: Path) -> None:
    """Refuses a disk on which the checkpoint has no room.

    Raises:
        DiskError: there is less free than it needs.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = int(found.expected * _MARGIN)
    if free < needed:
        raise DiskError(
            f"{shown(place, 300)} has {free / 1e9:.1f} GB free, the checkpoint needs"
            f" {needed / 1e9:.1f} GB",
            rule="the checkpoint is written whole before it gets its name",
            remedy="free some, or -o on another disk",
        )
