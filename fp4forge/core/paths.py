"""Where things are in the checkout or the installed package, and where builds keep their state."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The user's home folder; for a user without HOME and passwd entry, Debian's name for none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = (PACKAGE.parent / "releases").is_dir()
# The checkout; of an installed package the folder that has the same files (pyproject.toml).
ROOT = PACKAGE.parent if CHECKOUT else PACKAGE / "data"
RELEASES = Path(os.environ.get("FP4FORGE_RELEASES") or ROOT / "releases")
FAMILIES = Path(os.environ.get("FP4FORGE_FAMILIES") or ROOT / "models" / "families")
FAULTS = ROOT / "models" / "faults.yaml"
LOCKS = RELEASES / "locks"
TEMPLATES = ROOT / "templates"
DOCKERFILES = ROOT / "dockerfiles"
SCHEMAS = ROOT / "schemas"
MODELS = ROOT / "models"
BENCHMARKS = ROOT / "benchmarks"
PATCHES = Path(os.environ.get("FP4FORGE_PATCHES") or ROOT / "patches")
KERNELS = PACKAGE / "kernels"
IMAGE_FILES = PACKAGE / "image"
IMAGE_TESTS = ROOT / "tests" / "image"
_STATE = ROOT / ".build" if CHECKOUT else home() / ".cache/fp4forge"
STATE = Path(os.environ.get("FP4FORGE_BUILD") or _STATE)
OCI = STATE / "oci"  # the layout that builds export to
