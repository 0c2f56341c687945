"""Generated pages are what their generators give."""

from __future__ import annotations

import json

from fp4forge.core.paths import ROOT
from tests.e2e import test_sabotage


def test_the_table_of_sabotages_is_the_committed_one() -> None:
    text = test_sabotage.table()
    assert (ROOT / "docs/sabotage.md").read_text() == text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    data = json.loads((ROOT / "fp4forge/checks/sabotages.json").read_text())
    assert data == rows[1:]  # what every report's page shows


def test_there_are_enough_ways_to_spoil_an_image() -> None:
    names = [sabotage.name for sabotage in test_sabotage.SABOTAGES]
    assert len(set(names)) == len(names) >= 25
