"""Where backends' kernels come from in an image, as its plan records it and its checks compared."""

from __future__ import annotations

from pathlib import Path

from fp4forge.oci import acquire
from fp4forge.oci.acquire import RecordedKernels


def of(target: str) -> RecordedKernels:
    """What an image or a container of this project records; empty for anything else.

    Args:
        target: as ``build.py ledger`` takes it; a file or folder has no plan.

    Raises:
        BinaryError: the image's plan.json is malformed.
    """
    if Path(target).exists():
        return RecordedKernels()
    from fp4forge.oci import engine

    running = engine.find_container(target)
    found = acquire.records_of(running) if running else acquire.records(engine.connect(), target)
    return found.plan.backend_kernels
