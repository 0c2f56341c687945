"""The closing summary of a build: at most 20 lines of 80 columns; --json and --reports have all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import humanize

from fp4forge.core.console import WIDTH, fields
from fp4forge.oci import reference

if TYPE_CHECKING:
    from fp4forge.publish.pipeline import PublishOutcome
    from fp4forge.publish.platform_index import PublishedIndex

LINES = 20
_INDENT = 9  # a digest fits beside it


def lines(
    outcomes: list[PublishOutcome], index: PublishedIndex | None = None, *, verbose: bool = False
) -> str:
    """What came of a build, for people.

    Args:
        outcomes: one for each platform.
        index: of several platforms.
        verbose: every check, however many lines that takes.
    """
    names = index.tags if index else outcomes[0].tags
    rows = [*_summary_row("verified", ", ".join(names))]
    if index:
        rows += _summary_row("index", index.digest)
    for outcome in outcomes:
        rows += _image_lines(outcome)
    checks = [check for outcome in outcomes for check in outcome.checks]
    if not checks:
        rows += _summary_row("checks", "passed when the immutable tag was made")
        return "\n".join(rows) + "\n"
    counts = {word: sum(c["outcome"] == word for c in checks) for word in ("passed", "skipped")}
    rows += _summary_row(
        "checks", ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    )
    named = [check for check in checks if verbose or check["outcome"] != "passed"]
    room = len(named) if verbose else LINES - len(rows)
    shown = named if len(named) <= room else named[: room - 1]
    rows += [_check_line(check) for check in shown]
    if len(shown) < len(named):
        rows.append(" " * _INDENT + f"and {len(named) - len(shown)} more (--verbose)")
    return "\n".join(rows) + "\n"


def _image_lines(outcome: PublishOutcome) -> Iterator[str]:
    image = reference.parse(outcome.image)
    yield from _summary_row("image", str(replace(image, digest="")))
    if image.digest:
        yield from _summary_row("digest", image.digest)
    sizes = {"unpacked": outcome.unpacked_bytes, "to pull": outcome.compressed_bytes}
    parts = [f"{humanize.naturalsize(size)} {name}" for name, size in sizes.items() if size]
    yield from _summary_row("size", ", ".join([outcome.plan["platform"], *parts]))
    took = (f"{step['name']} {step['seconds']:.1f} s" for step in outcome.steps)
    yield from _summary_row("steps", ", ".join(took))


def _check_line(check: dict[str, Any]) -> str:
    text = f"{check['outcome']:<7}  {check['name']}"
    return " " * _INDENT + textwrap.shorten(text, WIDTH - _INDENT, placeholder=" …")


def _summary_row(label: str, text: str) -> list[str]:
    return fields([(label, text)], _INDENT)
