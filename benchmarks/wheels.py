"""What the ledger of a published wheel costs: cubins chosen by name, against all of Blackwell.

Before, every cubin of an exact or family target of Blackwell was disassembled. The two are measured
one after the other on the same unpacked wheel, nothing cached; each CPU time has the programs'.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from fp4forge.checks import ledgers
from fp4forge.core import paths
from fp4forge.inputs import release
from fp4forge.kernels import groups
from fp4forge.kernels.ledger import Ledger
from fp4forge.maintain import sources


def ledger_wheels() -> dict[str, Any]:
    """Seconds of each wheel that a release installs, from the packed file to the verdicts."""
    found = {}
    for name in release.names():
        what = release.load(name)
        for platform, artefact in what.wheels.items() if "wheel" in what.strategies else ():
            wheel = sources.fetch(artefact)
            ours, chosen = _read(wheel)
            with mock.patch.object(groups, "to_read", lambda _, names: names):
                every, all_ = _read(wheel)
            assert chosen.targets() == all_.targets()
            found[f"{name} {platform}"] = {
                **ours,
                **{f"every_{key}": value for key, value in every.items()},
                "ratio": ours["s"] / every["s"],
                "cpu_ratio": ours["cpu_s"] / every["cpu_s"],
            }
    return found


def _read(wheel: Path) -> tuple[dict[str, float], Ledger]:
    with (
        tempfile.TemporaryDirectory(dir=paths.STATE) as cache,
        mock.patch.object(ledgers, "CACHE", Path(cache)),
    ):
        start, before = time.monotonic(), _cpu()
        ledger = ledgers.read(str(wheel), lambda _: None)
        took, cpu = time.monotonic() - start, _cpu() - before
    cubins = [cubin for file in ledger.files for cubin in file.code.cubins]
    return {
        "s": took,
        "cpu_s": cpu,
        "cubins": len(cubins),
        "disassembled": sum(cubin.disassembled for cubin in cubins),
    }, ledger


def _cpu() -> float:
    """CPU seconds of this process and of its programs that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
