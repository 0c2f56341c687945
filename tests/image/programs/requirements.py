"""Installed packages and what they require."""

import importlib.metadata


def run() -> list[tuple[str, str, str]]:
    """Package, requirement and what is wrong, for each requirement that is not met."""
    from packaging.requirements import Requirement

    packages = list(importlib.metadata.distributions())
    have = {_canonical(package.metadata["Name"]): package.version for package in packages}
    wrong = []
    for package in packages:
        for text in package.requires or []:
            required = Requirement(text)
            name = _canonical(required.name)
            if required.marker and not required.marker.evaluate({"extra": ""}):
                continue
            if name not in have:
                wrong.append((package.metadata["Name"], name, "is missing"))
            elif not required.specifier.contains(have[name], prereleases=True):
                why = f"{have[name]} is not {required.specifier}"
                wrong.append((package.metadata["Name"], name, why))
    return wrong


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
