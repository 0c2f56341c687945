"""Holds an image to the tests of its kind: which those are is in the plan and the release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fp4forge.inputs import modelopt

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps this folder's tests for images that quantise, less what their release leaves out."""
    plan = json.loads(Path(config.getoption("--plan")).read_text())
    if plan["strategy"] != modelopt.STRATEGY:
        items[:] = [item for item in items if not item.path.is_relative_to(HERE)]
        return
    left_out = {check.test for check in modelopt.load(plan["release"]).checks_left_out}
    items[:] = [
        item
        for item in items
        if item.path.is_relative_to(HERE)
        or not left_out & {item.path.name, getattr(item, "originalname", item.name)}
    ]
