"""Which images passed their checks on this machine, by repository and digest."""

from __future__ import annotations

from fp4forge.core.paths import STATE


def here(repository: str, digest: str) -> bool:
    """Whether the checks passed here, on this registry, for this digest."""
    file = STATE / "verified" / digest.removeprefix("sha256:")
    return file.is_file() and repository in file.read_text().splitlines()


def record(repository: str, digest: str) -> None:
    """Notes that they did."""
    if here(repository, digest):
        return
    file = STATE / "verified" / digest.removeprefix("sha256:")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as notes:
        notes.write(repository + "\n")
