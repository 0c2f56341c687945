#!/usr/bin/env python3
"""fp4forge's command line. Runs itself in the checkout's virtual environment, if there is one."""

import gc
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"

if Path(sys.prefix) != VENV and (VENV / "bin" / "python").exists():
    os.execv(VENV / "bin" / "python", [str(VENV / "bin" / "python"), *sys.argv])

sys.path.insert(0, str(ROOT))

try:
    from fp4forge.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"build.py: the Python package {error.name} is missing; run 'make setup' once")

if __name__ == "__main__":
    try:
        main()
    finally:
        gc.freeze()  # else Python's last collections search all that was imported, for 35 ms
