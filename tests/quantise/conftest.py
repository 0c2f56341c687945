"""Needs ModelOpt and torch: ``make test-quantise`` makes such a Python."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from fp4forge.core.paths import IMAGE_TESTS

sys.path.append(str(IMAGE_TESTS / "proofs"))  # checkpoint.py and nvfp4.py
sys.path.append(str(IMAGE_TESTS / "quantise"))  # tiny_gemma4.py

os.environ.setdefault("OMP_NUM_THREADS", "1")  # such small tensors: threads would only wait

MISSING = [n for n in ("modelopt", "torch", "transformers") if importlib.util.find_spec(n) is None]
collect_ignore = ["test_invariants.py", "tiny.py"] if MISSING else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says so where nothing ran."""
    if MISSING:
        terminalreporter.write_line(
            f"tests/quantise did NOT run: this Python lacks {', '.join(MISSING)};"
            " make test-quantise",
            red=True,
        )


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts."""
    from tests.quantise import tiny

    return tiny.write(tmp_path_factory.mktemp("models") / "moe")


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without experts."""
    from tests.quantise import tiny

    return tiny.write(tmp_path_factory.mktemp("models") / "dense", dense=True)
