"""The committed Dockerfiles: which of their steps have a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fp4forge.core.paths import DOCKERFILES

FILES = sorted(DOCKERFILES.glob("*/*.Dockerfile"))
# What fetches: distribution packages, and locked packages by their hashes.
FETCHES = re.compile(r"\bapt-get update\b|\bpip (?:install|download)\b|/install\.py --lock ")
# Compiling reaches a shared compiler cache, if the builder has one.
COMPILES = re.compile(r"-m fp4forge\.image\.stages\.(?:compile|aot)\b")


def steps(path: Path) -> list[str]:
    """The RUN instructions of a Dockerfile, each as one line."""
    text = re.sub(r"(?m)^#.*\n", "", path.read_text())
    return re.findall(r"(?m)^RUN .*$", re.sub(r"\\\n\s*", " ", text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_neither_fetches_nor_compiles_has_no_network(path: Path) -> None:
    found = steps(path)
    assert len(found) >= 7
    for step in found:
        needs = FETCHES.search(step) or COMPILES.search(step)
        assert bool(needs) != ("RUN --network=none " in step), step
