"""Where things are in the checkout or the installed package, and where builds keep their state."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = not (PACKAGE.parent / "releases").is_dir()
# The checkout; of an installed package the folder that has the same files (pyproject.toml).
ROOT = PACKAGE / "data" if _INSTALLED else PACKAGE.parent
RELEASES = Path(os.environ.get("FP4FORGE_RELEASES", ROOT / "releases"))
LOCKS = RELEASES / "locks"
TEMPLATES = ROOT / "templates"
DOCKERFILES = ROOT / "dockerfiles"
SCHEMAS = ROOT / "schemas"
PATCHES = Path(os.environ.get("FP4FORGE_PATCHES", ROOT / "patches"))
KERNELS = PACKAGE / "kernels"
IMAGE_FILES = PACKAGE / "image"
IMAGE_TESTS = ROOT / "tests" / "image"
_STATE = Path("~/.cache/fp4forge").expanduser() if _INSTALLED else ROOT / ".build"
STATE = Path(os.environ.get("FP4FORGE_BUILD", _STATE))
OCI = STATE / "oci"  # the layout that builds export to
