"""Which image serves: the one that was named, one of a registry, or one that the engine has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fp4forge.kernels.gpus import TARGETS
from fp4forge.oci import registry


def targets(gpu: str, wanted: str | None) -> list[str]:
    """The values of --arch whose images run on a GPU, its own first.

    Args:
        gpu: one of ``kernels.gpus.GPUS``.
        wanted: --arch, if it was given.
    """
    if wanted:
        return [wanted]
    several = [
        t.name for t in TARGETS.values() if t.name != gpu and gpu in {g.name for g in t.gpus}
    ]
    return [gpu, *several]


def published(repository: str, tags: dict[str, str]) -> tuple[str, str]:
    """The first of the tags that a registry has.

    Args:
        repository: HOST/NAME.
        tags: a tag by --arch.

    Returns:
        Its --arch and the image by digest; both empty if there is none.

    Raises:
        RegistryError: the registry does not answer.
    """
    for arch, tag in tags.items():
        if found := registry.resolve(repository, tag):
            return arch, f"{repository}@{found[0]}"
    return "", ""


def local(client: Any, archs: list[str], platform: str, release: str) -> tuple[str, str]:
    """An image of this project that the engine has, by digest; both empty if there is none."""
    labels = [f"io.fp4forge.release={release}", f"io.fp4forge.platform={platform}"]
    found = dict(_local(client, labels))
    return next(((arch, found[arch]) for arch in archs if arch in found), ("", ""))


def _local(client: Any, labels: list[str]) -> Iterator[tuple[str, str]]:
    for image in client.api.images(filters={"label": labels}):
        arch = (image.get("Labels") or {}).get("io.fp4forge.arch", "")
        for digest in image.get("RepoDigests") or []:
            yield arch, digest
