"""Room on the engine's disk: drops what no later test needs. Cache mounts stay.

Without it a run would fill the disk of a small machine: the engine has the published image's 8 GB
as outputs of stages, as layers built, and as layers pulled.
"""

from __future__ import annotations

import re

from tests.e2e.conftest import shell

Record = dict[str, str]


def records() -> list[Record]:
    """The build cache, record by record, in buildx's words."""
    said = shell("docker", "buildx", "du", "--verbose").stdout
    found = (dict(re.findall(r"(?m)^([\w ]+):\s+(.+)$", text)) for text in said.split("\n\n"))
    return [record for record in found if "ID" in record]


def drop(chosen: list[Record], among: list[Record]) -> None:
    """Drops records and, before them, those that were made upon them.

    Args:
        chosen: to be dropped.
        among: all records, to find the others by their parents.
    """
    children: dict[str, list[str]] = {}
    for record in among:
        for parent in re.findall(
            r"\w+", record.get("Parent", "") + " " + record.get("Parents", "")
        ):
            children.setdefault(parent, []).append(record["ID"])

    def drop_one(identity: str) -> None:
        for child in children.pop(identity, []):
            drop_one(child)
        shell("docker", "buildx", "prune", "--all", "--force", "--filter", f"id={identity}")

    for record in chosen:
        drop_one(record["ID"])


def drop_cache() -> None:
    """Drops the build cache."""
    shell("docker", "buildx", "prune", "--all", "--force", "--filter", "type=regular")


def drop_images() -> None:
    """Drops this project's images from the engine."""
    images = shell("docker", "images", "-q", "--filter", "label=io.fp4forge.plan").stdout
    for image in sorted(set(images.split())):
        shell("docker", "rmi", "--force", image, check=False)
