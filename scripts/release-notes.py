#!/usr/bin/env python3
"""Prints one version's section of CHANGELOG.md: release-notes.py VERSION [FILE].

Exits with 2 if the changelog has no such section or the section is empty.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"
_HEADING = re.compile(r"^## \[?([^\]\s]+)\]?.*$", re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    """Each version's text without its heading, in the order of the file."""
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {
        heading[1]: text[heading.end() : end].strip()
        for heading, end in zip(headings, ends, strict=True)
    }


def main(arguments: list[str]) -> int:
    """Prints the notes, or an error; returns the exit code."""
    if not 1 <= len(arguments) <= 2:
        print("usage: release-notes.py VERSION [FILE]", file=sys.stderr)
        return 2
    version = arguments[0]
    path = Path(arguments[1]) if len(arguments) == 2 else CHANGELOG
    found = sections(path.read_text(encoding="utf-8"))
    if version not in found:
        known = ", ".join(found) or "none"
        print(f"{path}: no section '## [{version}]' (sections: {known})", file=sys.stderr)
        return 2
    if not found[version]:
        print(f"{path}: the section '## [{version}]' is empty", file=sys.stderr)
        return 2
    print(found[version])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
