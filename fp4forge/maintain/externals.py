"""Reads which sources a vLLM release takes from elsewhere, out of its CMake files."""

from __future__ import annotations

import re
from pathlib import Path

from fp4forge.core.errors import ReleaseError
from fp4forge.inputs.release import External

_FILES = ("CMakeLists.txt", "cmake/external_projects/*.cmake")
_SET = re.compile(r'^\s*set\s*\(\s*(\w+)\s+"?([^\s")]+)"?', re.M | re.I)
_FETCH = re.compile(r"^\s*FetchContent_(?:Declare|Populate)\s*\(([^()]*)\)", re.M | re.I)


def read(tree: Path, known: dict[str, External]) -> dict[str, External]:
    """The external sources of a source tree by name.

    Args:
        tree: vLLM's sources.
        known: those of an earlier release: names stay, and so do commits of tags that are the same.

    Raises:
        ReleaseError: a pin or a variable is written in a way that this reader does not know.
    """
    names = {external.variable: name for name, external in known.items()}
    found: dict[str, External] = {}
    for path in sorted(path for pattern in _FILES for path in tree.glob(pattern)):
        text = re.sub(r"#[^\n]*", lambda match: " " * len(match[0]), path.read_text())
        values = dict(_SET.findall(text))
        for fetch in _FETCH.finditer(text):
            words = fetch[1].split()
            if "GIT_REPOSITORY" not in words or "GIT_TAG" not in words:
                continue  # a local tree
            place = f"{path.relative_to(tree)}:{text.count(chr(10), 0, fetch.start()) + 1}"
            git, pin = (
                _cmake_value(words, key, values, place) for key in ("GIT_REPOSITORY", "GIT_TAG")
            )
            variable = re.search(r"\b[A-Z0-9_]+_SRC_DIR\b", text)
            if not variable:
                raise ReleaseError(
                    f"{place}: no variable names a local tree of {words[0]}",
                    rule="each external source has a NAME_SRC_DIR",
                )
            name = names.get(variable[0], words[0].lower())
            found[name] = _external(git, pin, variable[0], known.get(name), place)
    return found


def _cmake_value(words: list[str], key: str, values: dict[str, str], place: str) -> str:
    word = words[words.index(key) + 1].strip('"')
    if match := re.fullmatch(r"\$\{(\w+)\}", word):
        word = values.get(match[1], word)
    if "$" in word:
        raise ReleaseError(f"{place}: {key} {word} cannot be read", rule="text, or a set variable")
    return word


def _external(git: str, pin: str, variable: str, known: External | None, place: str) -> External:
    tag = pin if re.fullmatch(r"v[0-9]+\.[0-9]+\.[0-9]+", pin) else ""
    if not tag and not re.fullmatch(r"[0-9a-f]{40}", pin):
        raise ReleaseError(f"{place}: GIT_TAG {pin} is neither a commit nor a version's tag")
    same = known is not None and tag and known.tag == tag
    return External(
        git=git if git.endswith(".git") else f"{git}.git",
        commit=known.commit if known is not None and same else pin,
        tag=tag,
        variable=variable,
        pypi=known.pypi if known is not None and same else (),
    )
