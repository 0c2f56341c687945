"""The phases of a start, as vLLM's log shows them.

The lines are those of vLLM 0.20.2 and 0.33.0: v1/engine/core.py, v1/worker/gpu_model_runner.py,
model_executor/model_loader/default_loader.py, model_executor/warmup/kernel_warmup.py and
compilation/backends.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CONTAINER = "container"
# The line that begins each phase; a phase may be missing, and none comes twice.
_BEGINS = (
    ("imports", re.compile(r"vLLM API server version |non-default args: ")),
    ("engine", re.compile(r"Initializing a V1 LLM engine")),
    ("weights", re.compile(r"Starting to load model ")),
    ("compile", re.compile(r"Model loading took |Using cache directory: |Dynamo bytecode")),
    ("KV cache", re.compile(r"(GPU|CPU) KV cache size: ")),
    ("warm-up", re.compile(r"Warming up |Autotun\w+ ")),
    ("CUDA graphs", re.compile(r"Capturing CUDA graphs")),
    ("server", re.compile(r"init engine \(.* took |Starting vLLM .*server on ")),
)
READY = "ready"
_WEIGHTS = re.compile(r"Loading weights took ([0-9.]{1,10}) seconds")


@dataclass
class StartTracker:
    """Follows a start; times are seconds since the container was started.

    Attributes:
        weights: bytes of the checkpoint's tensors, for the rate of loading.
        before: seconds of each phase of an earlier start with the same image and model.
        seconds: of each phase that is over.
    """

    weights: int = 0
    before: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    phase: str = CONTAINER
    rate: str = ""
    _since: float = 0.0

    def feed(self, line: str, now: float) -> bool:
        """Takes a line of the log; whether a new phase begins with it."""
        if (took := _WEIGHTS.search(line)) and float(took[1]) > 0 and self.weights:
            self.rate = f"{self.weights / float(took[1]) / 1e9:.2f} GB/s"
        reached = [name for name, _ in _BEGINS]
        first = reached.index(self.phase) + 1 if self.phase in reached else 0
        for name, pattern in _BEGINS[first:]:
            if pattern.search(line):
                self._enter(name, now)
                return True
        return False

    def ready(self, now: float) -> None:
        """The server answers."""
        self._enter(READY, now)

    def _enter(self, name: str, now: float) -> None:
        self.seconds[self.phase] = round(now - self._since, 1)
        self.phase, self._since = name, now

    def text(self, now: float) -> str:
        """What to show now."""
        said = f"{self.phase} {now - self._since:.0f} s"
        if last := self.before.get(self.phase):
            said += f" of {last:.0f} s last time"
        if self.phase == "compile" and self.rate:
            said += f"; weights came at {self.rate}"
        if self.before:
            said += f"; ready in about {max(0.0, sum(self.before.values()) - now):.0f} s"
        return said

    def summary(self) -> str:
        """Seconds of each phase."""
        said = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return said + (f" ({self.rate})" if self.rate else "")
