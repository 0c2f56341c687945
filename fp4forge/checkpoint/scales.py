"""Reads every scale of a checkpoint and reports those that are not finite and positive.

Scales of one byte (E4M3) are a sixteenth of the weights: 40 GB of a 370 GB checkpoint. They are
read in the order of the files, by two threads, and holes of sparse files are not read at all.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.checkpoint.findings import CollectedFindings
from fp4forge.checkpoint.schemes import ARRAY, BLOCKS, FLOATS, SCALAR, Parts, QuantisationScheme
from fp4forge.checkpoint.tensors import ELEMENT_BYTES, Checkpoint, Tensor
from fp4forge.core import reading
from fp4forge.core.errors import CheckpointError
from fp4forge.kernels.base import Progress

_THREADS = 2
_PIECE = 4 << 20  # bytes that a thread reads at once
_PAGE = 64 << 10  # holes are looked for in larger tensors alone
_SIBLINGS = {"gate_proj": "up_proj", "w1": "w3"}
_NAN, _SIGN = 0x7F, 0x80  # of E4M3: one NaN for each sign, no infinities; 0x00, 0x80 are zero


@dataclass(frozen=True)
class _ScaleJob:
    """A tensor of scales, and how to read it."""

    place: str
    tensor: Tensor
    values: str
    patched: bool = False


Seen = tuple[str, str, int]  # finding, place, count


def check(
    found: Checkpoint,
    layers: Mapping[str, tuple[Parts, QuantisationScheme]],
    caches: Mapping[str, Parts],
    seen: CollectedFindings,
    report: Progress,
) -> None:
    """Reads the scales of quantised layers and of the KV cache."""
    jobs = [*_scale_jobs(layers), *_cache_jobs(caches)]
    scalars: dict[str, float] = {}
    with _ShardFiles(found.folder) as files:
        runner = _ScaleReader(files, scalars, len(jobs), report)
        ordered = sorted(
            range(len(jobs)), key=lambda n: (jobs[n].tensor.file, jobs[n].tensor.start)
        )
        results: dict[int, tuple[Seen, ...]] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = [[(n, jobs[n]) for n in ordered[first::_THREADS]] for first in range(_THREADS)]
            for part in pool.map(runner.run, parts):
                results |= part
    for number in sorted(results):
        for kind, place, count in results[number]:
            seen.add(kind, place, count)
    _siblings(layers, scalars, seen)


def _scale_jobs(layers: Mapping[str, tuple[Parts, QuantisationScheme]]) -> Iterator[_ScaleJob]:
    for module, (parts, scheme) in layers.items():
        for name, part in scheme.parts.items():
            tensor = parts.get(name)
            if tensor is None or not tensor.size or tensor.dtype not in part.dtypes:
                continue
            if part.values == BLOCKS:
                yield _ScaleJob(module, tensor, BLOCKS, scheme.patched)
            elif part.values and tensor.dtype in FLOATS:
                one = math.prod(tensor.shape) == 1
                yield _ScaleJob(f"{module}.{name}", tensor, SCALAR if one else ARRAY)


def _cache_jobs(caches: Mapping[str, Parts]) -> Iterator[_ScaleJob]:
    for module, parts in caches.items():
        for name, tensor in parts.items():
            if tensor.dtype in FLOATS and tensor.size:
                one = math.prod(tensor.shape) == 1
                yield _ScaleJob(f"{module}.{name}", tensor, SCALAR if one else ARRAY)


class _ShardFiles:
    """The checkpoint's files, opened once; a hole in one is known without reading it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> _ShardFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def number(self, name: str) -> int:
        with self._lock:
            if name not in self._open:
                handle = reading.opened(self._folder / name, CheckpointError)
                self._open[name] = self._stack.enter_context(handle).fileno()
            return self._open[name]

    def pieces(self, tensor: Tensor, buffer: bytearray) -> Iterator[tuple[int, Any]]:
        """Its bytes: the size of each hole, which reads as zeros, and an array of what follows it.

        Each array is valid until the next one.
        """
        import numpy as np

        number, at = self.number(tensor.file), tensor.start
        one_byte = ELEMENT_BYTES.get(tensor.dtype) == 1  # a hole may end inside a longer element
        whole = memoryview(buffer)
        while at < tensor.end:
            start, end = at, min(at + len(buffer), tensor.end)
            if one_byte and end - at > _PAGE:
                start, end = _next_data(number, at, tensor.end)
                end = min(start + len(buffer), end)
            view = whole[: end - start]
            if os.preadv(number, [view], start) < len(view):
                raise CheckpointError(f"{tensor.file} became shorter while it was read")
            yield start - at, np.frombuffer(view, dtype=np.uint8)
            at = end


def _next_data(number: int, start: int, end: int) -> tuple[int, int]:
    """Where a file has its next data from a place on; both are the end if there is none."""
    try:
        data = os.lseek(number, start, os.SEEK_DATA)
        return (data, min(os.lseek(number, data, os.SEEK_HOLE), end)) if data < end else (end, end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to the end of the file
            return end, end
        return start, end  # this file system does not say


class _ScaleReader:
    """Runs jobs and keeps their scalars."""

    def __init__(
        self, files: _ShardFiles, scalars: dict[str, float], total: int, report: Progress
    ) -> None:
        self._files, self._scalars, self._total, self._report = files, scalars, total, report
        self._done = 0

    def run(self, jobs: list[tuple[int, _ScaleJob]]) -> dict[int, tuple[Seen, ...]]:
        buffer = bytearray(_PIECE)
        out: dict[int, tuple[Seen, ...]] = {}
        for number, job in jobs:
            self._done += 1
            if self._done % 2000 == 0:
                self._report(f"scales: {self._done} of {self._total} tensors")
            if job.values == BLOCKS:
                found = self._blocks(job, buffer)
            elif job.values == SCALAR:
                found = self._scalar(job, buffer)
            else:
                found = self._array(job, buffer)
            if found:
                out[number] = tuple(found)
        return out

    def _blocks(self, job: _ScaleJob, buffer: bytearray) -> list[Seen]:
        import numpy as np

        nan = negative = zero = 0
        for hole, data in self._files.pieces(job.tensor, buffer):
            zero += hole
            if not len(data) or (data.max() < _NAN and data.min() > 0):
                continue  # two passes at the speed of memory, and nearly always the answer
            magnitude = data & 0x7F
            bad = magnitude == _NAN
            nan += int(np.count_nonzero(bad))
            zero += int(np.count_nonzero(magnitude == 0))
            negative += int(np.count_nonzero((data > _SIGN) & ~bad))
        kinds = ("nan-block-scale" if job.patched else "nan-group-scale", nan)
        counted = (kinds, ("negative-block-scale", negative), ("zero-block-scale", zero))
        return [(kind, job.place, count) for kind, count in counted if count]

    def _scalar(self, job: _ScaleJob, buffer: bytearray) -> list[Seen]:
        _, data = next(self._files.pieces(job.tensor, buffer))
        (value,) = _floats(data, job.tensor.dtype)
        value = float(value)
        self._scalars[job.place] = value
        if math.isnan(value):
            return [("bad-scalar-nan", job.place, 1)]
        if math.isinf(value):
            return [("bad-scalar-infinite", job.place, 1)]
        if value < 0:
            return [("bad-scalar-negative", job.place, 1)]
        return [("bad-scalar-zero", job.place, 1)] if value == 0 else []

    def _array(self, job: _ScaleJob, buffer: bytearray) -> list[Seen]:
        import numpy as np

        bad = 0
        for _, data in self._files.pieces(job.tensor, buffer):
            values = _floats(data, job.tensor.dtype)
            bad += int(np.count_nonzero(~np.isfinite(values) | (values < 0)))
        return [("bad-scales", job.place, bad)] if bad else []


def _floats(data: Any, dtype: str) -> Any:
    import numpy as np

    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if dtype == "F16" else np.float32)


def _siblings(
    layers: Mapping[str, tuple[Parts, QuantisationScheme]],
    scalars: Mapping[str, float],
    seen: CollectedFindings,
) -> None:
    """Gate and up projection become one layer, with one global scale."""
    for module in layers:
        parent, _, kind = module.rpartition(".")
        if kind not in _SIBLINGS:
            continue
        for part in ("weight_scale_2", "weight_global_scale"):
            own = scalars.get(f"{module}.{part}")
            other = scalars.get(f"{parent}.{_SIBLINGS[kind]}.{part}")
            if own is not None and other is not None and own != other:
                seen.add("gate-up-mismatch", parent)
