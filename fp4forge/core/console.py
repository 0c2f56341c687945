"""Progress while steps run; people on stderr, JSON on stdout."""

from __future__ import annotations

import contextlib
import functools
import sys
import textwrap
import threading
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fp4forge.core import interrupts
from fp4forge.core.text import as_json, block, shown

WIDTH = 80  # columns that a terminal has


@dataclass
class PipelineStep:
    """One step of the pipeline, as the closing summary shows it; seconds of wall time."""

    name: str
    seconds: float = 0.0
    detail: str = ""
    verdict: str = "ok"
    note: str = field(default="", repr=False)

    def report(self, text: str) -> None:
        """What the step is doing now."""
        interrupts.check()
        self.note = shown(text, 300)


class Console:
    """Shows steps as they run: one live line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.steps: list[PipelineStep] = []

    @functools.cached_property
    def rich(self) -> Any:
        """rich's console on stderr; imported for what a plain line cannot show."""
        return rich(stderr=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[PipelineStep]:
        """Times a step and shows its notes until it ends."""
        interrupts.check()
        step = PipelineStep(name)
        self.steps.append(step)
        start = time.monotonic()
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(step, start, stop), daemon=True)
        watcher.start()
        try:
            yield step
        except BaseException:
            step.verdict = "failed"
            raise
        finally:
            step.seconds = time.monotonic() - start
            stop.set()
            watcher.join()
            self.say(f"{step.verdict:>6}  {name:<8} {step.seconds:7.1f} s  {step.detail}")

    def _watch(self, step: PipelineStep, start: float, stop: threading.Event) -> None:
        if stop.wait(0.3):  # too short to show
            return
        if self.rich.is_terminal:
            from rich.text import Text

            with self.rich.status(step.name) as status:
                while not stop.wait(0.2):
                    seconds = time.monotonic() - start
                    note = step.note[: max(20, self.rich.width - 30)]
                    status.update(Text(f"{step.name} {seconds:5.0f} s  {note}"))
            return
        noted, silent_since = "", start
        while not stop.wait(1.0):
            now = time.monotonic()
            if step.note != noted or now - silent_since > 30:
                noted, silent_since = step.note, now
                self.say(f"  ...   {step.name:<8} {now - start:7.1f} s  {noted[:150]}")

    def say(self, text: str) -> None:
        """Lines for people; they need no rich, whose import a short run would feel."""
        sys.stderr.write(block(text) + "\n")


def rich(*, stderr: bool = False) -> Any:
    """rich's console for foreign text: brackets are not markup, control characters are shown."""
    from rich.console import Console as Rich
    from rich.text import Text

    class Shown(Rich):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(block(text), **options)

    return Shown(stderr=stderr, highlight=False, markup=False, emoji=False)


def fields(rows: Iterable[tuple[str, str]], indent: int) -> list[str]:
    """Names and texts as lines for people, ``WIDTH`` columns wide; a text's line breaks stay.

    Args:
        rows: a name and its text each.
        indent: columns of the names; a longer name has lines of its own.
    """
    out, room = [], WIDTH - indent
    for name, text in rows:
        wrapped = [
            part
            for line in text.split("\n")
            for part in textwrap.wrap(line, room, break_on_hyphens=False) or [""]
        ]
        if len(name) >= indent:
            out += textwrap.wrap(name, WIDTH, break_on_hyphens=False)
            name = ""
        for part in wrapped:
            out.append(f"{name:<{indent}}{part}".rstrip())
            name = ""
    return out


def table(
    heads: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    title: str = "",
    right: Container[str] = (),
    whole: Container[str] = (),
) -> Any:
    """A table for people, as every command prints one; ``rich`` prints it.

    Args:
        heads: of the columns; without any the table has no line of heads.
        rows: of texts.
        title: above it.
        right: heads of columns with figures.
        whole: heads of columns that are never folded: figures, and names that people copy.
    """
    from rich import box
    from rich.table import Table

    named = list(heads)
    made = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_header=any(named),
    )
    for head in named:
        made.add_column(
            head,
            justify="right" if head in right else "left",
            overflow="fold",
            no_wrap=head in whole,
        )
    for row in rows:
        made.add_row(*row)
    return made


def print_rows(rows: Iterable[tuple[str, object]]) -> None:
    """A table of names and texts for people, on stdout."""
    rich().print(table(("", ""), ((name, str(value)) for name, value in rows)))


def print_json(value: Any) -> None:
    """JSON for scripts, on stdout; a terminal may be there as well."""
    sys.stdout.write(as_json(value, 2) + "\n")
