"""What changed between two images: kernels, packages, patched files, size by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from fp4forge.checks import ledgers
from fp4forge.core import reading
from fp4forge.core.errors import RegistryError, UsageError
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.oci import acquire, engine


@dataclass(frozen=True)
class ImageDescription:
    """What an image says of itself; an image of others has a ledger and layers only."""

    image: str
    targets: dict[str, list[str]]  # ledger group -> architectures
    gpus: dict[str, dict[str, Any]]
    packages: dict[str, str]
    patched: dict[str, str]  # path -> SHA-256
    layers: list[tuple[str, int]]  # command that made it, unpacked bytes


class _HistoryStep(Struct, frozen=True):
    """One entry of the engine's GET /images/NAME/history."""

    CreatedBy: str | None = None
    Size: int = 0


def describe(image: str, report: Progress) -> ImageDescription:
    """Reads an image without starting it; pulls it when the engine does not have it.

    Raises:
        UsageError: no such image exists.
        BinaryError: it has no vLLM.
    """
    from docker.errors import APIError, ImageNotFound

    client = engine.connect()
    try:
        try:
            found = client.images.get(image)
        except ImageNotFound:
            report(f"pulling {image}")
            engine.pull(client, image, None, report)
            found = client.images.get(image)
        history = reading.shaped(
            found.history(), list[_HistoryStep], f"history of {image}", RegistryError
        )
    except (APIError, RegistryError) as error:
        why = getattr(error, "message", error)
        raise UsageError(f"{shown(image)!r} is not an image here", rule=shown(why, 160)) from None
    layers = [
        ((step.CreatedBy or "").removesuffix(" # buildkit"), step.Size)
        for step in reversed(history)
        if step.Size
    ]
    own = acquire.records(client, image)
    gpus: dict[str, dict[str, Any]]
    if own.ledger:
        groups, gpus = own.ledger.groups, dict(own.ledger.gpus)
    else:
        read = ledgers.read(image, report)
        groups, gpus = read.targets(), read.gpus
    return ImageDescription(
        image,
        groups,
        gpus,
        own.plan.packages,
        {path: hashes.after for path, hashes in own.patches.files.items()},
        layers,
    )


def differences(old: ImageDescription, new: ImageDescription) -> dict[str, list[dict[str, Any]]]:
    """Every change as ``{"what", "old", "new"}``, by section; an empty section is unchanged."""
    kernels = _kernel_changes(
        {k: " ".join(v) for k, v in old.targets.items()},
        {k: " ".join(v) for k, v in new.targets.items()},
    )
    verdicts = _kernel_changes(_flat_kernels(old.gpus), _flat_kernels(new.gpus))
    layers: list[dict[str, Any]] = []
    for place in range(max(len(old.layers), len(new.layers))):
        before = old.layers[place] if place < len(old.layers) else ("", 0)
        after = new.layers[place] if place < len(new.layers) else ("", 0)
        if before != after:
            what = f"{place + 1}: {(after[0] or before[0])[:60]}"
            layers.append({"what": what, "old": before[1], "new": after[1]})
    return {
        "kernels": kernels,
        "verdicts": verdicts,
        "packages": _kernel_changes(old.packages, new.packages),
        "patched files": _kernel_changes(old.patched, new.patched),
        "layers": layers,
    }


def _flat_kernels(gpus: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {
        f"{gpu} {group}": str(word) for gpu, all_ in gpus.items() for group, word in all_.items()
    }


def _kernel_changes(old: dict[str, str], new: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"what": name, "old": old.get(name), "new": new.get(name)}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
