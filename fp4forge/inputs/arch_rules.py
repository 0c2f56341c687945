"""A release's CMake rules: ``releases/archs/<vllm version>.json``, read from upstream's sources."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, TypedDict, cast

import msgspec

from fp4forge.core import reading
from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.limits import INPUT_BYTES
from fp4forge.core.paths import RELEASES


class _Rules(TypedDict):
    """What ``kernels.cmake_rules.extract`` returns."""

    steps: list[dict[str, str | list[str]]]
    sm120_only_fp8: bool


@cache
def load(vllm: str) -> dict[str, Any]:
    """The extracted rules of a release (``kernels.cmake_rules.extract``).

    Raises:
        UsageError: none were extracted for it.
        ReleaseError: the file is not what ``arch extract`` writes.
    """
    path = RELEASES / "archs" / f"{vllm}.json"
    if not re.fullmatch(r"[0-9][0-9a-z.]*", vllm) or not path.exists():
        known = sorted(p.stem for p in (RELEASES / "archs").glob("*.json"))
        raise UsageError(
            f"--vllm {vllm!r}: its CMake rules are not known",
            rule="one of " + ", ".join(known),
            remedy="build.py arch extract TREE --vllm VERSION reads them from a source tree",
        )
    where = f"{RELEASES.name}/archs/{vllm}.json"
    text = reading.text(path, ReleaseError, INPUT_BYTES, where)
    try:
        return cast(dict[str, Any], msgspec.json.decode(text, type=_Rules))
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReleaseError(
            f"{where} does not hold CMake rules: {error}",
            rule="build.py arch extract writes it",
            remedy=f"build.py arch extract TREE --vllm {vllm}",
        ) from None
