"""A release's CMake rules: ``releases/archs/<vllm version>.json``, read from upstream's sources."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from fp4forge.core.errors import UsageError
from fp4forge.core.paths import RELEASES


@cache
def load(vllm: str) -> dict[str, Any]:
    """The extracted rules of a release (``kernels.cmake_rules.extract``).

    Raises:
        UsageError: none were extracted for it.
    """
    path = RELEASES / "archs" / f"{vllm}.json"
    if not re.fullmatch(r"[0-9][0-9a-z.]*", vllm) or not path.is_file():
        known = sorted(p.stem for p in (RELEASES / "archs").glob("*.json"))
        raise UsageError(
            f"--vllm {vllm!r}: its CMake rules are not known",
            rule="one of " + ", ".join(known),
            remedy="build.py arch extract TREE --vllm VERSION reads them from a source tree",
        )
    data: dict[str, Any] = json.loads(path.read_text())
    return data
