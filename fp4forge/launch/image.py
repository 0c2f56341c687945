"""Which image serves: the one that was named, one of a registry, or one that the engine has."""

from __future__ import annotations

from typing import Any

from fp4forge.bench import identity
from fp4forge.core.errors import PlatformError
from fp4forge.kernels.gpus import TARGETS
from fp4forge.oci import engine, reference, registry
from fp4forge.publish import verified


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


def local(client: Any, archs: list[str], repo: str, labels: dict[str, str]) -> tuple[str, str]:
    """An image that the engine has, by digest, whose checks passed here; else both are empty.

    Args:
        client: docker SDK client.
        archs: values of --arch, the best first.
        repo: the end of the repository's name.
        labels: what the image must say of itself.
    """
    wanted = [f"{name}={value}" for name, value in labels.items()]
    found: dict[str, str] = {}
    for image in engine.images(client, wanted):
        arch = (image.get("Labels") or {}).get("io.fp4forge.arch", "")
        for named in reference.listed(image.get("RepoDigests")):
            ours = f"/{named.repository}".endswith(f"/{repo}")
            if ours and verified.here(named.repository, named.digest):
                found.setdefault(arch, str(named))
    return next(((arch, found[arch]) for arch in archs if arch in found), ("", ""))


def labels(image: str, platform: str) -> dict[str, str]:
    """The labels of an image, which is not pulled for that.

    Args:
        image: by digest.
        platform: that it must be for.

    Raises:
        PlatformError: it is for another one.
        RegistryError: neither the engine nor its registry has it.
    """
    if engine.present(image):
        here = identity.image(image)
        found = {here.platform: here.labels}
    else:
        named = reference.parse(image)
        every = registry.image_labels(named.repository, named.digest)
        found = {each["platform"]: each for each in every}
    if platform not in found:
        raise PlatformError(
            f"{image} is for {', '.join(sorted(found))}, not for {platform}",
            rule="an image serves on the platform that it is for",
        )
    return found[platform]
