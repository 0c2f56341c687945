"""Batches that fit: probe the memory of one and two samples, fit a line, halve when it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_USED = 0.9  # of the free memory: fragmentation, and what the probes did not see


@dataclass(frozen=True)
class Probe:
    """What two probes say of memory, in bytes: a base, and what each sample adds."""

    base: float
    sample: float

    def fits(self, free: int) -> int:
        """The largest batch within some free memory; at least 1."""
        if self.sample <= 0:  # below what can be measured
            return 1 << 30
        return max(1, int((free * _USED - self.base) // self.sample))


def line(one: int, two: int) -> Probe:
    """The line through the peaks of a batch of 1 and a batch of 2, in bytes above the weights."""
    each = max(0, two - one)
    return Probe(max(0, one - each), each)


class OutOfMemory(Exception):
    """A batch did not fit. The caller of ``run`` raises it for whatever its device raises."""


def run(
    count: int,
    batch: int,
    each: Callable[[int, int], None],
    done: Callable[[int, int], None],
    start: int = 0,
) -> int:
    """Runs samples in batches; a batch that does not fit is halved, and the smaller size kept.

    Args:
        count: samples.
        batch: samples at once, to begin with.
        each: runs the samples from one number to another (exclusive); may raise OutOfMemory.
        done: called after each batch with the number of samples done, and the batch size.
        start: the samples before it were done by an earlier run.

    Returns:
        The last batch size.

    Raises:
        OutOfMemory: a single sample does not fit.
    """
    batch = max(1, min(batch, count))
    while start < count:
        end = min(count, start + batch)
        try:
            each(start, end)
        except OutOfMemory:
            if end - start == 1:
                raise
            batch = max(1, (end - start) // 2)
            continue
        start = end
        done(start, batch)
    return batch
