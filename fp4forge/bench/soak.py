"""A long run: the same load until the hours are over, answers checked between, and a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fp4forge.bench import needle
from fp4forge.bench.compare import interval, verdict
from fp4forge.bench.figures import FIGURES, samples
from fp4forge.bench.result import BenchResult, Trial
from fp4forge.bench.server import MeasuredServer
from fp4forge.core.text import shown
from fp4forge.serve import client, quality
from fp4forge.serve.client import ChatAnswer

PAUSE = 60.0  # seconds between two checks of the answers
DRIFTS = ("ttft_median", "decode_median", "aggregate")
_QUESTIONS = tuple(prompt for prompt in quality.PROMPTS if prompt.name in ("capital", "product"))


@dataclass(frozen=True)
class SoakQuestion:
    """A question with a right answer."""

    name: str
    text: str
    wrong: Callable[[ChatAnswer], str]


def questions(seed: int) -> list[SoakQuestion]:
    """A fact, arithmetic, and a number to be found in prose."""
    found = [SoakQuestion(prompt.name, prompt.text, prompt.wrong) for prompt in _QUESTIONS]
    hidden = needle.hidden(seed)
    return [*found, SoakQuestion("needle", hidden.text, hidden.wrong)]


@dataclass
class SoakChecks:
    """Asks the questions that the model answered rightly before the load, once a minute."""

    server: MeasuredServer
    asked: list[SoakQuestion] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # question -> what was wrong with it
    _last: float = 0.0

    def begin(self, every: Sequence[SoakQuestion]) -> None:
        """Finds out which questions the model can answer at all."""
        for question in every:
            if problem := self._ask(question):
                self.left_out[question.name] = problem
            else:
                self.asked.append(question)
        self._last = time.monotonic()

    def problems(self) -> list[str]:
        """What is wrong now; nothing is asked before a minute is over."""
        if time.monotonic() - self._last < PAUSE:
            return []
        self._last = time.monotonic()
        found = [(question.name, self._ask(question)) for question in self.asked]
        return [f"the answer to {name} became wrong: {why}" for name, why in found if why]

    def _ask(self, question: SoakQuestion) -> str:
        answer = client.chat(
            self.server.url,
            [{"role": "user", "content": question.text}],
            model=self.server.model,
            key=self.server.key,
            max_tokens=1024,
        )
        return shown(answer.problem or question.wrong(answer), 200)


def drifts(result: BenchResult) -> Iterator[str]:
    """Figures that became worse from the first third of the trials to the last."""
    (load,) = result.named.loads()
    trials = [t for t in result.measured_trials(load.table, load.label) if t.valid]
    third = len(trials) // 3
    if third < 3:
        return
    for name in DRIFTS:
        first, last = (_soak_samples(name, part) for part in (trials[:third], trials[-third:]))
        low, high = interval(first, last, FIGURES[name].reduce)
        if verdict(FIGURES[name].better, low, high, result.measured.threshold) == "worse":
            before, after = (FIGURES[name].reduce(each) for each in (first, last))
            yield f"{FIGURES[name].title} drifted from {before:,.4g} to {after:,.4g}"


def _soak_samples(name: str, trials: Sequence[Trial]) -> list[float]:
    return samples(name, trials)[0]
