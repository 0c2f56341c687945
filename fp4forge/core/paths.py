"""Where things are in the repository, and where builds keep their state."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASES = Path(os.environ.get("FP4FORGE_RELEASES", ROOT / "releases"))
LOCKS = RELEASES / "locks"
TEMPLATES = ROOT / "templates"
DOCKERFILES = ROOT / "dockerfiles"
PATCHES = Path(os.environ.get("FP4FORGE_PATCHES", ROOT / "patches"))
KERNELS = ROOT / "fp4forge" / "kernels"
IMAGE_FILES = ROOT / "fp4forge" / "image"
IMAGE_TESTS = ROOT / "tests" / "image"
STATE = Path(os.environ.get("FP4FORGE_BUILD", ROOT / ".build"))
