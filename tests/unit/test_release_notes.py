"""The release workflow publishes one version's notes, not the whole changelog."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2026-12-24

### Added

- `## [0.9.0]` in a sentence is not a heading.

## 0.1.0

- The first.
"""


def notes(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "release-notes.py", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def changelog(tmp_path: Path) -> str:
    path = tmp_path / "CHANGELOG.md"
    path.write_text(CHANGELOG)
    return str(path)


def test_prints_the_section_and_nothing_else(changelog: str) -> None:
    done = notes("0.2.0", changelog)
    assert done.returncode == 0
    assert done.stdout == "### Added\n\n- `## [0.9.0]` in a sentence is not a heading.\n"


def test_the_last_section_ends_with_the_file_and_needs_no_brackets(changelog: str) -> None:
    assert notes("0.1.0", changelog).stdout == "- The first.\n"


@pytest.mark.parametrize("version", ["0.9.0", "0.2", "v0.2.0", ""])
def test_an_unknown_version_fails_and_names_the_known_ones(changelog: str, version: str) -> None:
    done = notes(version, changelog)
    assert done.returncode == 2 and not done.stdout
    assert f"[{version}]" in done.stderr and "Unreleased, 0.2.0, 0.1.0" in done.stderr


def test_an_empty_section_fails(changelog: str) -> None:
    done = notes("Unreleased", changelog)
    assert done.returncode == 2 and "is empty" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("1", "2", "3")])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = notes(*arguments)
    assert done.returncode == 2 and "usage" in done.stderr


def test_this_repositorys_changelog_has_a_place_for_the_next_entry() -> None:
    assert "(sections: Unreleased" in notes("no-such-version").stderr
