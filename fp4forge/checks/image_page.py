"""One page for each image: what was checked, which kernels are in it, where its bytes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fp4forge.checks.check import ImageCheck, summary
from fp4forge.image.render import html
from fp4forge.kernels.gpus import GPUS
from fp4forge.kernels.groups import GROUPS
from fp4forge.kernels.ledger import Ledger
from fp4forge.oci import acquire, engine


def page(image: str, plan: dict[str, Any], checks: tuple[ImageCheck, ...]) -> str:
    """The self-contained page; whatever comes from the image is escaped.

    Args:
        image: reference of the image, which the engine has.
        plan: what it was held to, as JSON.
        checks: what the image tests said.
    """
    records = acquire.records(engine.connect(), image)
    facts = {name: value for check in checks for name, value in check.facts.items()}
    return html(
        "report.html.j2",
        image=image,
        plan=plan,
        checks=checks,
        summary=summary(checks),
        ledger=records.ledger,
        groups=GROUPS,
        patches=records.patches.patches,
        unpacked=facts.get("unpacked_bytes", 0),
        layers=facts.get("layers", []),
        caught=_sabotages(),
    )


def _sabotages() -> list[list[str]]:
    """Each way to spoil an image, and the checks that catch it; tests/e2e proves every row."""
    rows: list[list[str]] = json.loads((Path(__file__).parent / "sabotages.json").read_text())
    return rows


def ledger_page(found: Ledger) -> str:
    """A ledger as one HTML page."""
    return html(
        "ledger.html.j2",
        ledger=found,
        groups=GROUPS,
        targets=found.targets(),
        products={name: ", ".join(gpu.products) for name, gpu in GPUS.items()},
    )
