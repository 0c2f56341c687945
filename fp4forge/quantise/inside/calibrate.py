"""The calibration: batches that fit, statistics that survive kill -9, every expert reached."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path
from typing import Any

import torch

from . import batching, memory, say
from .experts import Coverage

_AUTO = 64  # samples at once at most: the state is written after each batch
_SECOND = 8  # samples of the pass that reaches the remaining experts


class Calibration:
    """What ModelOpt calls as its ``forward_loop``.

    Args:
        model: on its devices.
        samples: token ids, one row each, all of one length: there is no padding.
        batch: samples at once; 0: as many as fit.
        state: file that has the statistics after each batch; None: not resumable.
    """

    def __init__(self, model: Any, samples: torch.Tensor, batch: int, state: Path | None) -> None:
        self.samples, self.asked, self.state = samples, batch, state
        self.coverage: Coverage | None = None
        self.batch = self.resumed = self.calls = 0
        self.seconds = 0.0
        self.first: dict[str, Any] = {}
        self.probes: dict[str, int] = {}
        forward = inspect.signature(model.forward).parameters
        # The statistics need no logits, and a vocabulary of 262,144 is the largest tensor of all.
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}

    def __call__(self, model: Any) -> None:
        """One pass over all samples; algorithms that search make several."""
        self.calls += 1
        began = time.monotonic()
        cover = self.coverage = self.coverage or Coverage(model)
        done = self._restore(model) if self.calls == 1 else 0
        self.resumed = max(self.resumed, done)
        with torch.no_grad(), cover.counting():
            cover.begin()
            self.batch = self.batch or self.asked or self._probe(model)
            progress = say.SampleProgress("samples", len(self.samples), done)

            def each(start: int, end: int) -> None:
                cover.begin()
                with memory.out_of_memory():
                    self._forward(model, start, end)

            def after(end: int, batch: int) -> None:
                if self.calls == 1:
                    cover.commit()
                self.batch = batch
                self._keep(model, end)
                progress.at(end, f"batches of {batch}")

            self.batch = batching.run(len(self.samples), self.batch, each, after, done)
        if self.calls == 1:
            self.first = cover.figures()
        if cover.unreached():
            self._second(model, cover)
        self.seconds += time.monotonic() - began

    def _second(self, model: Any, cover: Coverage) -> None:
        number = min(_SECOND, len(self.samples))
        say.line(note=f"second pass: {cover.figures()['unreached']} experts saw no token")

        def each(start: int, end: int) -> None:
            cover.begin()
            with memory.out_of_memory():
                self._forward(model, start, end)

        pending: list[dict[str, torch.Tensor]] = []
        with torch.no_grad(), cover.rerouting(self.samples.shape[1]):
            batching.run(number, self.batch, each, lambda *_: pending.append(cover.pending))
        for counted in pending:
            cover.pending = counted
            cover.commit()

    def _forward(self, model: Any, start: int, end: int) -> None:
        device = next(model.parameters()).device
        model(input_ids=self.samples[start:end].to(device), use_cache=False, **self.options)

    def _probe(self, model: Any) -> int:
        """The batch that fits, by a batch of 1 and one of 2; their statistics are the samples'."""
        if len(self.samples) < 2:
            return 1
        try:
            with memory.out_of_memory():
                self._forward(model, 0, 1)  # the first pass allocates what later ones keep
                one = memory.added(lambda: self._forward(model, 0, 1))
                two = memory.added(lambda: self._forward(model, 0, 2))
        except batching.OutOfMemory:
            return 1
        fit = batching.line(one, two)
        free = memory.free()
        self.probes = {"one": one, "two": two, "free": free}
        return min(fit.fits(free), _AUTO, len(self.samples))

    def _keep(self, model: Any, done: int) -> None:
        if self.state is None or self.calls != 1:
            return
        assert self.coverage is not None
        content = {
            "done": done,
            "batch": self.batch,
            "counts": self.coverage.counts,
            "amax": {
                name: quantizer._calibrator._calib_amax
                for name, quantizer in _collecting(model)
                if quantizer._calibrator._calib_amax is not None
            },
        }
        partial = self.state.with_suffix(".new")
        torch.save(content, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.state)

    def _restore(self, model: Any) -> int:
        """Takes up the statistics of an earlier run; returns the samples that it did."""
        if self.state is None or not self.state.exists():
            return 0
        found = torch.load(self.state, weights_only=True)
        assert self.coverage is not None
        self.coverage.counts = found["counts"]
        self.batch = found["batch"]
        for name, quantizer in _collecting(model):
            if name in found["amax"]:
                quantizer._calibrator._calib_amax = found["amax"][name]
        say.line(note=f"resumed after sample {found['done']}")
        done: int = found["done"]
        return done


def _collecting(model: Any) -> Any:
    """Activation quantizers that collect a maximum now, by name."""
    for name, module in model.named_modules():
        if (
            name.endswith("input_quantizer")
            and getattr(module, "_if_calib", False)
            and hasattr(getattr(module, "_calibrator", None), "_calib_amax")
        ):
            yield name, module
