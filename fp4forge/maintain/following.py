"""What a pull request for a new release says: what was found, what changes, what was built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fp4forge.core.text import shown
from fp4forge.maintain import releases
from fp4forge.maintain.adding import AddedRelease
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve

_MOST = 60  # rows of one table


def kernels(old: str, new: str, arch: str, base: str) -> list[tuple[str, str, str]]:
    """The kernel groups whose predicted targets differ between two releases, with both."""
    values = []
    for release in (old, new):
        plan = resolve(
            ImageRequest(arch, release, variant="plain", strategy="wheel", base=base, aot="none")
        )
        values.append({group: " ".join(found) for group, found in plan.predicted.items()})
    return [row for row in releases.rows("kernels", values) if row[1] != row[2]]


def markdown(
    report: AddedRelease,
    old: str,
    differences: Iterable[tuple[str, str, str]],
    built: list[dict[str, Any]],
    notes: Iterable[str] = (),
) -> str:
    """The text of a pull request.

    Args:
        report: of ``adding.write``.
        old: the release before.
        differences: names, and their values in both releases.
        built: what ``pipeline.run`` returned for each variant, or its error's JSON.
        notes: further lines.
    """
    lines = [f"vLLM {report.version} was added by `build.py release follow`.", ""]
    if report.person:
        lines += ["**For a person**", "", *(f"- [ ] {line}" for line in report.person), ""]
    lines += [f"- {shown(note, 500)}" for note in notes]
    lines += ["", "| found | |", "|---|---|"]
    lines += [f"| {name} | {_following_cell(value)} |" for name, value in report.found.items()]
    lines += [
        f"| patch {name} | {_following_cell(state)} |" for name, state in report.patches.items()
    ]
    lines += ["", *_images(built)]
    rows = list(differences)
    lines += ["", f"| against {old} | before | now |", "|---|---|---|"]
    lines += [
        f"| {_following_cell(n)} | {_following_cell(a or '-')} | {_following_cell(b or '-')} |"
        for n, a, b in rows[:_MOST]
    ]
    if len(rows) > _MOST:
        lines.append(f"| {len(rows) - _MOST} more | `build.py release diff {old}` | |")
    return "\n".join(lines) + "\n"


def _images(built: list[dict[str, Any]]) -> Iterator[str]:
    yield "| image | unpacked | to pull | checks |"
    yield "|---|---|---|---|"
    for one in built:
        if "error" in one:
            yield f"| {one['variant']} | was not built: {_following_cell(one['message'])} | | |"
            continue
        outcomes = [check["outcome"] for check in one["checks"]]
        said = f"{outcomes.count('passed')} passed, {outcomes.count('skipped')} skipped"
        sizes = (one["unpacked_bytes"], one["compressed_bytes"])
        unpacked, pull = (f"{size / 1e9:.2f} GB" for size in sizes)
        yield f"| {one['plan']['variant']} | {unpacked} | {pull} | {said} |"


def _following_cell(value: object) -> str:
    """A value in a table of Markdown."""
    if isinstance(value, dict):
        value = ", ".join(f"{name}: {text}" for name, text in value.items())
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return shown(value, 300).replace("|", "\\|").replace("`", "'")
