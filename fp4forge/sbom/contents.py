"""Reads a built image's inventory, and holds an SBOM to it: each file belongs to an entry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fp4forge.core.errors import VerifyError
from fp4forge.core.limits import INVENTORY_SECONDS
from fp4forge.core.text import shown
from fp4forge.inputs.sbom import SbomRules, site_of
from fp4forge.kernels.base import Progress
from fp4forge.oci import dockercli, engine
from fp4forge.sbom import inventory as program
from fp4forge.sbom.components import GIT, Inventory, SbomComponent, canonical, inventory_of

_SHOWN = 5  # faults of a kind that a message names


def read(
    client: Any, image: str, platform: str, python: str, table: SbomRules, report: Progress
) -> Inventory:
    """The inventory of an image that the engine has, from a container in which nothing runs.

    This machine's Python reads the container's files, as root beside the engine; elsewhere the
    image's own does.

    Raises:
        PlatformError: the engine does not have the image for the platform.
        VerifyError: the files cannot be read.
    """
    with engine.container(client, image, platform) as container:
        report("every file and the package that it belongs to")
        return read_running(client, container, python, table)


def read_running(client: Any, container: str, python: str, table: SbomRules) -> Inventory:
    """The inventory of a running container; what was written there since it started is in it.

    Raises:
        VerifyError: the files cannot be read.
    """
    root = f"/proc/{client.api.inspect_container(container)['State']['Pid']}/root"
    where = f"container {container[:12]}"
    if engine.is_here() and os.geteuid() == 0 and Path(root, "usr").is_dir():
        return read_root(root, python, table, where)
    words = ["exec", "--interactive", "--user=0", container, "python3", "-c", _inventory_source()]
    return _run_inventory(dockercli.line(*words), "/", python, table, where)


def read_root(root: str, python: str, table: SbomRules, where: str) -> Inventory:
    """The inventory of a root folder.

    Args:
        root: the folder.
        python: version of the Python whose packages are read, such as 3.13.
        table: rules and vendored sources.
        where: what it is, for messages.

    Raises:
        VerifyError: the files cannot be read.
    """
    return _run_inventory([sys.executable, "-c", _inventory_source()], root, python, table, where)


def _inventory_source() -> str:
    return Path(program.__file__).read_text(encoding="utf-8")


def _run_inventory(
    line: list[str], root: str, python: str, table: SbomRules, where: str
) -> Inventory:
    site = site_of(python)
    given = json.dumps([root, table.rules(site), table.sources(site)])
    try:
        done = subprocess.run(
            line, input=given.encode(), capture_output=True, timeout=INVENTORY_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise VerifyError(
            f"the files of {where} could not be read within {INVENTORY_SECONDS} s",
            remedy="check the engine's disk; running again resumes",
        ) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise VerifyError(f"the files of {where} cannot be read: {shown(''.join(said), 300)}")
    return inventory_of(done.stdout, where)


def faults(components: Iterable[SbomComponent], found: Inventory) -> list[str]:
    """What is wrong between an SBOM and an image, a line each; nothing if they agree.

    Args:
        components: the entries of the SBOM.
        found: what is in the image.
    """
    entries = {(c.name, c.version) for c in components if c.ecosystem != GIT}
    installed = {
        **{(deb.name, deb.version): deb.files for deb in found.debs},
        **{(canonical(wheel.name), wheel.version): wheel.files for wheel in found.wheels},
    }
    lines = _some_names("belong to no entry and no rule", found.unowned)
    lines += _some_names(
        "have files and no entry in the SBOM",
        [f"{n} {v} ({installed[n, v]} files)" for n, v in sorted(installed.keys() - entries)],
    )
    lines += _some_names(
        "have an entry in the SBOM and no file",
        [f"{n} {v}" for n, v in sorted(entries - installed.keys())] + found.empty,
    )
    return lines


def _some_names(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return [f"{what}: {shown(', '.join(names[:_SHOWN]), 600)}{more}"]


def demand(components: Iterable[SbomComponent], found: Inventory) -> None:
    """Refuses an SBOM that is not complete.

    Raises:
        VerifyError: a file belongs to no entry, or an entry has no file.
    """
    lines = faults(components, found)
    if lines:
        raise VerifyError(
            "the SBOM is not what is in the image:\n  " + "\n  ".join(lines),
            rule="every file belongs to an entry, or to a rule of releases/sbom.yaml",
            remedy="add a rule with its reason, or look where the file comes from",
        )
