"""Which images passed their checks on this machine, by repository and digest."""

from __future__ import annotations

from pathlib import Path

from fp4forge.core import files
from fp4forge.core.paths import STATE


def here(repository: str, digest: str) -> bool:
    """Whether the checks passed here, on this registry, for this digest."""
    file = STATE / "verified" / digest.removeprefix("sha256:")
    return repository in _verified_repositories(file)


def record(repository: str, digest: str) -> None:
    """Notes that they did; something else of that name is removed."""
    if here(repository, digest):
        return
    file = STATE / "verified" / digest.removeprefix("sha256:")
    files.clear(file)
    files.replace(
        file, "".join(f"{name}\n" for name in [*_verified_repositories(file), repository])
    )


def _verified_repositories(file: Path) -> list[str]:
    if not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines()
