"""Writes an image's ledger; runs in a build stage, beside copies of fp4forge's modules.

What was read of a file stays in a cache mount by the file's hash: an interrupted reading goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".build/ledger"
sys.path.insert(0, str(HERE))

from fp4forge.kernels import ledger  # noqa: E402
from fp4forge.kernels.base import ForgeError  # noqa: E402


def main() -> None:
    """Command line of the build stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, nargs="+", help="folders of installed packages")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        found = ledger.packages(
            # An image without FlashInfer's modules has no folder of them.
            [folder for folder in args.packages if folder.is_dir()],
            CACHE,
            lambda text: print(f"fp4forge: progress {text}", flush=True),
        )
    except ForgeError as error:
        raise SystemExit(f"fp4forge: {error.message}") from None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found.as_json(details=False), indent=1) + "\n")
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    for path in [args.out, *list(args.out.parents)[:3]]:
        os.utime(path, (epoch, epoch))


if __name__ == "__main__":
    main()
