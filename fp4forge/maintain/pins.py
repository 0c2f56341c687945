"""Digests of the images that come from a hub: bases, and what runs beside servers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from msgspec import structs

from fp4forge.core import files
from fp4forge.core.errors import ForgeError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import bases, service_images
from fp4forge.oci import reference, registry


def pin() -> dict[str, str]:
    """Writes the digest of every hub image whose registry answers into the file that names it.

    Returns:
        For each hub image what came of it; a digest that cannot be read is left as it is, never
        invented.
    """
    said: dict[str, str] = {}
    for file, name, image in _hub_images():
        path = RELEASES / file
        try:
            named = reference.parse(image)
            found = registry.resolve(named.repository, named.tag or "latest")
        except (ForgeError, subprocess.TimeoutExpired, FileNotFoundError) as error:
            said[name] = f"not pinned: {getattr(error, 'message', error)}"
            continue
        if found is None:
            said[name] = f"not pinned: the registry has no {image}"
            continue
        digest = found[0]
        pattern = rf'(?m)(^  {re.escape(name)}:\n(?:    .*\n)*?    digest: )".*"'
        files.replace(path, re.sub(pattern, rf'\1"{digest}"', path.read_text(encoding="utf-8")))
        said[name] = digest
    return said


def _hub_images() -> Iterator[tuple[str, str, str]]:
    """Each hub image: its file under ``releases/``, its name there, and the image."""
    for name, entry in bases.table().items():
        if entry.image:
            yield "bases.yaml", name, entry.image
    beside = structs.asdict(service_images.images())
    yield from (("services.yaml", name, pinned.image) for name, pinned in beside.items())
