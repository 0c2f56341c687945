"""Shared by all tests: the checkout's root is importable, and markers say what a test needs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# What the tests of a folder need; pyproject.toml describes the markers.
_NEEDS = {"e2e": ("engine",), "gpu": ("gpu",)}
# Fixtures of the published image: minutes, when nothing is cached. Who asks for the second alone
# runs it and builds nothing. The tests of e2e/faults have small images of their own, some by the
# same names.
_BUILDS, _RUNS = {"published", "edited", "built_upon"}, {"image"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by folder and fixtures, so that ``-m`` selects what a machine can run."""
    tests = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(tests).parts[0] if tests in item.path.parents else ""
        for name in _NEEDS.get(folder, ()):
            item.add_marker(name)
        asked = set(getattr(item, "fixturenames", ()))
        if folder == "e2e" and item.path.parent.name != "faults":
            for name in ("builds",) if asked & _BUILDS else ("runs",) if asked & _RUNS else ():
                item.add_marker(name)
