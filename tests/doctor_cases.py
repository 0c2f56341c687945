"""The doctor's cases (tests/unit/data/doctor): small inputs, and what is right of each.

``python -m tests.doctor_cases`` writes docs/doctor.md; a test compares it.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fp4forge.core import paths
from fp4forge.doctor import examine, gather, report

DATA = Path(__file__).parent / "unit/data/doctor"
PAGE = paths.ROOT / "docs/doctor.md"
NAMES = sorted(folder.name for folder in DATA.iterdir())
TEXT = """# What the doctor says

`build.py serve doctor` on the cases of `tests/unit/data/doctor`: public reports of 2025 and 2026,
written anew and small, and siblings of them with other models, GPUs and releases. None of them ran
on the hardware that it names. The rules were written with these cases at hand: the table shows what
must stay right, not how other inputs fare. A test compares this page; `python -m
tests.doctor_cases` writes it.

- **ill** (exit code 20): each finding has its evidence, cause and fix.
- **unclear** (exit code 26): something is wrong, or the evidence ends; the first exception or the
  last sign of life is quoted.
- **healthy** (exit code 0): a ready line or a good answer, and nothing bad after it.

{score}

| kind | case | right | verdict | errors found |
|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Outcome:
    """What the doctor said, as a report's text and in parts."""

    verdict: str
    errors: tuple[str, ...]
    found: tuple[str, ...]
    text: str


def expected(name: str) -> dict[str, Any]:
    """What a case must get."""
    return dict(yaml.safe_load((DATA / name / "expected.yaml").read_text()))


def outcome(name: str, folder: Path, change: tuple[str, str] = ("", "")) -> Outcome:
    """Runs a case on a copy in a folder, where ``@CASE@`` becomes that folder.

    Args:
        name: of the case.
        folder: where the copy goes.
        change: text that is replaced in every file, and what replaces it.
    """
    place = folder / name
    shutil.copytree(DATA / name, place)
    for path in place.rglob("*"):
        if path.is_file():
            text = path.read_text().replace("@CASE@", str(place))
            path.write_text(text.replace(*change) if change[0] else text)
    files = {
        "logs": "server.log",
        "inspection": "inspect.json",
        "compose_file": "compose.yaml",
        "smi": "smi.txt",
    }
    given: dict[str, Any] = {
        option: place / file for option, file in files.items() if (place / file).exists()
    }
    found = gather.evidence(gather.EvidenceSources(**given))
    findings = examine.examine(found)
    verdict = examine.judge(found, findings)
    rows = report.rows(found, findings, verdict)
    return Outcome(
        verdict.name,
        tuple(dict.fromkeys(f.id for f in findings if f.severity == "error")),
        tuple(f.id for f in findings),
        "\n".join(f"{left}\n{right}" for left, right in rows).replace(str(place), "CASE"),
    )


def is_right(wanted: dict[str, Any], said: Outcome) -> bool:
    """Whether verdict and causes are the right ones, and nothing false is said."""
    return (
        said.verdict == wanted["verdict"]
        and set(wanted.get("finds", ())) <= set(said.found)
        and not any(re.search(words, said.text) for words in wanted.get("never", ()))
    )


def text(folder: Path) -> str:
    """The page."""
    rows, right, false, ill = [], 0, 0, 0
    for name in NAMES:
        wanted, said = expected(name), outcome(name, folder)
        good = is_right(wanted, said)
        if wanted["verdict"] == "ill":
            ill += 1
            right += good
        false += wanted["verdict"] != "ill" and said.verdict == "ill"
        errors = ", ".join(said.errors) or "none"
        rows.append((wanted["kind"], name, wanted["right"], said.verdict, errors))
    score = (
        f"{len(NAMES)} cases. False alarms: {false} of {len(NAMES) - ill} that are not ill. "
        f"Right cause: {right} of {ill}."
    )
    lines = ("| " + " | ".join(row) + " |" for row in sorted(rows))
    return TEXT.format(score=score, rows="\n".join(lines))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(text(Path(scratch)))
