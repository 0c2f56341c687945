"""One page for each image: what was checked, which kernels are in it, where its bytes are."""

from __future__ import annotations

from typing import Any

from fp4forge import compare, engine
from fp4forge.ledger import GROUPS
from fp4forge.paths import ROOT
from fp4forge.render import html
from fp4forge.verify import Check, summary


def page(image: str, plan: dict[str, Any], checks: tuple[Check, ...]) -> str:
    """The self-contained page; whatever comes from the image is escaped.

    Args:
        image: reference of the image, which the engine has.
        plan: what it was held to, as JSON.
        checks: what the image tests said.
    """
    records = compare.records(engine.connect(), image)
    facts = {name: value for check in checks for name, value in check.facts.items()}
    return html(
        "report.html.j2",
        image=image,
        plan=plan,
        checks=checks,
        summary=summary(checks),
        ledger=records.get("ledger"),
        groups=GROUPS,
        patches=records.get("patches", {}).get("patches", []),
        unpacked=facts.get("unpacked_bytes", 0),
        layers=facts.get("layers", []),
        caught=_sabotages(),
    )


def _sabotages() -> list[list[str]]:
    """Rows of the generated table in docs/sabotage.md: each sabotage and what catches it."""
    lines = (ROOT / "docs" / "sabotage.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [row for row in rows[1:] if len(row) == 2]
