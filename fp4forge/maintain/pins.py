"""Digests of the bases that come from a hub."""

from __future__ import annotations

import re
import subprocess

from fp4forge.core import files
from fp4forge.core.errors import ForgeError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs import bases
from fp4forge.oci import reference, registry


def pin() -> dict[str, str]:
    """Writes the digest of every hub base whose registry answers into releases/bases.yaml.

    Returns:
        For each hub base what came of it; a digest that cannot be read is left as it is, never
        invented.
    """
    path = RELEASES / "bases.yaml"
    said: dict[str, str] = {}
    for name, entry in bases.table().items():
        if not entry.image:
            continue
        try:
            named = reference.parse(entry.image)
            found = registry.resolve(named.repository, named.tag or "latest")
        except (ForgeError, subprocess.TimeoutExpired, FileNotFoundError) as error:
            said[name] = f"not pinned: {getattr(error, 'message', error)}"
            continue
        if found is None:
            said[name] = f"not pinned: the registry has no {entry.image}"
            continue
        digest = found[0]
        pattern = rf'(?m)(^  {re.escape(name)}:\n(?:    .*\n)*?    digest: )".*"'
        files.replace(path, re.sub(pattern, rf'\1"{digest}"', path.read_text(encoding="utf-8")))
        said[name] = digest
    return said
