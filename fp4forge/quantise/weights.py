"""Finds NaN and infinity in weights, without torch: 16-bit floats are compared as integers."""

from __future__ import annotations

import mmap

import numpy as np

from fp4forge.checkpoint.tensors import Checkpoint, Tensor
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError
from fp4forge.kernels.base import Progress

# The exponent's bits; all of them set: NaN or infinity (IEEE 754; bfloat16 has float32's exponent).
_EXPONENT = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
}
_CHUNK = 64 << 20


def not_finite(found: Checkpoint, report: Progress) -> list[str]:
    """Names of the tensors that have a value which is not finite.

    Args:
        found: its files are whole.
        report: called with progress.

    Raises:
        CheckpointError: a file cannot be read.
    """
    total = sum(tensor.size for tensor in found.tensors.values()) or 1
    bad: list[str] = []
    done = 0
    by_file: dict[str, list[Tensor]] = {}
    for tensor in found.tensors.values():
        by_file.setdefault(tensor.file, []).append(tensor)
    for name, tensors in sorted(by_file.items()):
        with (
            reading.opened(found.folder / name, CheckpointError) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for tensor in tensors:
                if tensor.dtype in _EXPONENT and _any_not_finite(data, tensor):
                    bad.append(tensor.name)
                done += tensor.size
                report(f"weights {100 * done // total} %")
    return sorted(bad)


def _any_not_finite(data: mmap.mmap, tensor: Tensor) -> bool:
    kind, bits = _EXPONENT[tensor.dtype]
    width = np.dtype(kind).itemsize
    for start in range(tensor.start, tensor.end, _CHUNK):
        size = min(_CHUNK, tensor.end - start)
        part = np.frombuffer(data, kind, size // width, start)
        if bool(((part & bits) == bits).any()):
            return True
    return False
