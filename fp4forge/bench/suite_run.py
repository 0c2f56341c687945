"""Runs a suite, trial by trial; the result is kept after each."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fp4forge.bench import extras, load_command, load_result, metrics
from fp4forge.bench import result as results
from fp4forge.bench.load_command import LoadGenerator
from fp4forge.bench.load_session import LoadSession
from fp4forge.bench.prompts import PromptWriter
from fp4forge.bench.result import BenchResult, Trial
from fp4forge.bench.server import MeasuredServer
from fp4forge.bench.suite import NamedSuite, TrialLoad
from fp4forge.core import files
from fp4forge.core.errors import BenchError, ServingError
from fp4forge.kernels.base import Progress

JUMP_SECONDS = 2.0  # that the clock may differ from the time that passed
RAW_FOLDER = "raw"


def now() -> str:
    """The date as results have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def slug(load: TrialLoad, number: int) -> str:
    """The name of a trial's files."""
    label = "".join(letter if letter.isalnum() else "-" for letter in load.label)
    return f"{load.table}-{label}-{number}"


def open_trials(result: BenchResult, suite: NamedSuite, rounds: int) -> list[tuple[TrialLoad, int]]:
    """Trials, with their numbers from 1, that a result lacks or has with faults.

    Args:
        result: what was measured; points that it leaves out are not asked for.
        suite: the chosen tables.
        rounds: how often each trial is wanted.
    """
    found = []
    for load in suite.loads():
        if load.table in result.left_out or load.name in result.left_out:
            continue
        have = result.measured_trials(load.table, load.label)
        for number in range(1, load.trials * rounds + 1):
            if number > len(have) or not have[number - 1].valid:
                found.append((load, number))
    return found


@dataclass
class SuiteRun:
    """One run of a suite."""

    server: MeasuredServer
    client: LoadGenerator
    suite: NamedSuite
    result: BenchResult
    folder: Path
    report: Progress
    rounds: int = 1  # how often each trial is made, over all runs of this result
    until: float = float("inf")  # monotonic time, after which no trial begins
    between: Callable[[], list[str]] = list  # asked after each trial; what it says is a fault
    writer: PromptWriter = field(init=False)
    _session: LoadSession = field(init=False)
    _done: float = 0.0  # weight of the trials that this run made
    _begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.writer = PromptWriter(self.server.count, self.suite.suite.seed)

    def run(self) -> None:
        """Makes every trial that the result lacks; ``_run`` says what it raises."""
        with LoadSession(self.client, self._raw()) as self._session:
            self._run()

    def _raw(self) -> Path:
        """The folder of the tool's files."""
        folder = self.folder / RAW_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _run(self) -> None:
        """Makes every trial that the result lacks.

        Raises:
            ServingError: the server died; every trial until then is kept.
            BenchError: the load generator does not run here.
        """
        open_ = open_trials(self.result, self.suite, self.rounds)
        if open_:
            self.report("warming up")
            warmed = self._trial(self.suite.warmup, 0)
            if not warmed.valid:
                self._stop(self.suite.warmup, warmed)
                raise BenchError(
                    f"the warm-up failed: {'; '.join(warmed.problems)}",
                    rule="every request is answered, as long as it was asked",
                    remedy="build.py serve smoke --url URL asks a simple question",
                )
        for place, (load, number) in enumerate(open_):
            if time.monotonic() >= self.until:
                break
            rest = sum(each.weight for each, _ in open_[place:])
            self.report(
                f"{load.name}, trial {number}: {place + 1} of {len(open_)}{self._eta(rest)}"
            )
            made = self._trial(load, number)
            if found := self.between():
                made = _changed_trial(made, problems=(*made.problems, *found))
            self._keep(load, number, made)
            self._done += load.weight
            if not made.valid:
                self._stop(load, made)
        self.result.complete = True
        results.save(self.result, self.folder)

    def _keep(self, load: TrialLoad, number: int, made: Trial) -> None:
        trials = self.result.trials(load.table, load.label)
        trials[number - 1 : number] = [made]
        results.save(self.result, self.folder)

    def _eta(self, rest: float) -> str:
        if not self._done:
            return ""
        now = time.monotonic()
        seconds = min((now - self._begin) * rest / self._done, self.until - now)
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"

    def _stop(self, load: TrialLoad, made: Trial) -> None:
        """Ends the run if the server is no more; otherwise the fault is only noted.

        Raises:
            ServingError: it does not answer.
        """
        if made.valid or self.server.is_there():
            return
        kept = sum(len(t) for points in self.result.tables.values() for t in points.values())
        raise ServingError(
            f"the server died during {load.name}: {made.problems[0]}",
            rule=f"{kept} trials are kept in {self.folder}",
            remedy="find out why (build.py serve doctor --container NAME), start it, and run again"
            f" with --out {self.folder}: it resumes",
        )

    def _trial(self, load: TrialLoad, number: int) -> Trial:
        """One trial. A server that does not count tokens, or dies, gives a trial with a problem."""
        if load.kind == "tools":
            return extras.tool_calls(self.server, load, now())
        with self._work(load, number) as work:
            body = extras.picture(load, number, self.suite.suite.seed)
            if load.kind == "image":
                prompts = ["an image"] * load.requests  # the request's body replaces it
            else:
                try:
                    prompts = self.writer.write(load, number)
                except ServingError as error:
                    return Trial(failed=load.requests, problems=(error.message,), date=now())
            if load.prompts == "cached":
                self._once(load, work, prompts, {"max_completion_tokens": 1})
            watch = metrics.CounterWatch(self.server.metrics)
            watch.start()
            jumped = _Jump()
            try:
                problem = self._once(load, work, prompts, body)
            finally:
                counters = watch.stop()
            notes = jumped.note()
            if problem:
                return Trial(failed=load.requests, problems=(problem,), notes=notes, date=now())
            raw = load_result.read(work / load_command.RAW)
        who = self.result.identity
        made = load_result.judge(raw, load, counters, may_be_empty=who.thinking or who.allow_empty)
        return _changed_trial(made, notes=made.notes + notes, date=now())

    @contextlib.contextmanager
    def _work(self, load: TrialLoad, number: int) -> Iterator[Path]:
        """The trial's folder; what the tool wrote stays as evidence, the prompts do not."""
        work = self._raw() / slug(load, number)
        work.mkdir(exist_ok=True)
        (work / load_command.RAW).unlink(missing_ok=True)
        try:
            yield work
        finally:
            (work / load_command.PROMPTS).unlink(missing_ok=True)

    def _once(
        self, load: TrialLoad, work: Path, prompts: list[str], body: dict[str, object]
    ) -> str:
        """Runs the tool; returns why it gave no result."""
        lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
        files.replace(work / load_command.PROMPTS, "\n".join(lines) + "\n")
        seed = self.suite.suite.seed
        problem = self._session.run(
            load_command.options(self.server.url, self.server.model, load, work.name, seed, body)
        )
        if not problem and not (work / load_command.RAW).is_file():
            problem = "the load generator wrote no result"
        return problem


class _Jump:
    """Compares the clock with the time that passed."""

    def __init__(self) -> None:
        self.clock, self.passed = time.time(), time.monotonic()

    def note(self) -> tuple[str, ...]:
        """A line if the clock was set; durations are not affected: no clock measures them."""
        off = (time.time() - self.clock) - (time.monotonic() - self.passed)
        return (f"the clock was set by {off:+.0f} s",) if abs(off) > JUMP_SECONDS else ()


def _changed_trial(trial: Trial, **changes: object) -> Trial:
    import msgspec

    made: Trial = msgspec.structs.replace(trial, **changes)
    return made
