"""Reduces a source tree's CMake files to one script: what decides architectures, without the rest.

The commands that ``plan/stand_ins.cmake`` lets do nothing go, with comments, includes (their text
takes their place), functions that nobody calls, variables that nobody reads and blocks that became
empty. Nothing is rewritten: what stays is vLLM's text. ``maintain.write_arch_rules`` proves that
the script compiles the same as the tree.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fp4forge.core.errors import ReleaseError

# Grammar: cmake-language(7), "Command Invocations"; bracket arguments, which vLLM does not use, are
# not read.
_TOKEN = re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|[()]|[^\s()"#]+|\s+', re.DOTALL)
_INERT = re.compile(
    r"add_\w+|cmake_minimum_required|enable_language|find_\w+|include_directories|install|project"
    r"|set_source_files_properties|set_target_properties|target_\w+|fetchcontent_declare"
    r"|fetchcontent_getproperties|define_extension_target|get_torch_gpu_compiler_flags"
    r"|hipify_sources_target|vllm_finalize_hipify_target|warn_if_ptx_arch_requested"
)
_OPENS = {"if": "endif", "foreach": "endforeach", "function": "endfunction", "macro": "endmacro"}
_INCLUDE = re.compile(r"(?:\$\{CMAKE_CURRENT_LIST_DIR\}/)?([\w./-]+\.cmake)")


@dataclass(frozen=True)
class CmakeCommand:
    """One invocation: name in lower case, arguments as one text, and its place."""

    name: str
    text: str
    where: str  # file:line

    @property
    def first(self) -> str:
        """The first argument."""
        return self.text.split()[0] if self.text.split() else ""


def commands(text: str, file: str) -> list[CmakeCommand]:
    """The command invocations of a CMake file.

    Raises:
        ReleaseError: the file is not what CMake reads.
    """
    found: list[CmakeCommand] = []
    name, depth, start, line = "", 0, 0, 1
    parts: list[str] = []
    for match in _TOKEN.finditer(text):
        piece = match[0]
        at, line = line, line + piece.count("\n")
        if piece.startswith("#"):
            continue
        if depth == 0:
            if piece == "(" and name:
                depth, parts = 1, []
            elif not piece.isspace():
                name, start = piece, at
            continue
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if depth:
            parts.append(("\n" if "\n" in piece else " ") if piece.isspace() else piece)
        else:
            lines = [part.strip() for part in "".join(parts).split("\n")]
            arguments = "\n".join(part for part in lines if part)
            found.append(CmakeCommand(name.lower(), arguments, f"{file}:{start}"))
            name = ""
    if depth or name:
        raise ReleaseError(f"{file}:{start}: {name} is not closed", rule="NAME(ARGUMENTS)")
    return found


def included(tree: Path, name: str, hashes: dict[str, str]) -> list[CmakeCommand]:
    """A file's commands with those of the files that it includes in their place.

    Args:
        tree: root of the sources.
        name: the file, relative to it.
        hashes: gets the SHA-256 of every file that was read.

    Raises:
        ReleaseError: a file is missing, or is not what CMake reads.
    """
    path = tree / name
    if not path.is_file():
        raise ReleaseError(f"{tree} has no {name}", rule="a vLLM source tree has it")
    content = path.read_bytes()
    hashes[name] = hashlib.sha256(content).hexdigest()
    found: list[CmakeCommand] = []
    for command in commands(content.decode(), name):
        match = _INCLUDE.fullmatch(command.first) if command.name == "include" else None
        if match and "cpu_extension" not in match[1]:
            found += included(tree, match[1], hashes)
        elif command.name != "include":
            found.append(command)
    return found


def reduce(found: list[CmakeCommand]) -> list[CmakeCommand]:
    """The commands that can decide what is compiled for what."""
    kept = [
        c
        for c in found
        if not _INERT.fullmatch(c.name) and (c.name != "message" or c.first == "FATAL_ERROR")
    ]
    while True:
        fewer = _without_unread(_without_uncalled(_without_empty(kept)))
        if len(fewer) == len(kept):
            return kept
        kept = fewer


def text(found: list[CmakeCommand]) -> str:
    """The commands as a CMake script, indented by block."""
    lines, depth = [], 0
    for command in found:
        depth -= command.name in _OPENS.values()
        outer = command.name in ("else", "elseif")
        indent = "  " * (depth - outer)
        arguments = command.text.replace("\n", f"\n{indent}    ")
        lines.append(f"{indent}{command.name}({arguments})")
        depth += command.name in _OPENS
    return "\n".join(lines) + "\n"


def _blocks(found: list[CmakeCommand]) -> list[tuple[int, int]]:
    """Places of the commands that open and close each block."""
    opened: list[int] = []
    pairs = []
    for place, command in enumerate(found):
        if command.name in _OPENS:
            opened.append(place)
        elif command.name in _OPENS.values():
            pairs.append((opened.pop(), place))
    return pairs


def _without(found: list[CmakeCommand], places: set[int]) -> list[CmakeCommand]:
    return [command for place, command in enumerate(found) if place not in places]


def _without_empty(found: list[CmakeCommand]) -> list[CmakeCommand]:
    branches = {"if", "elseif", "else", "foreach"}
    gone: set[int] = set()
    for start, end in _blocks(found):
        if {c.name for c in found[start:end]} <= branches and found[start].name in branches:
            gone |= set(range(start, end + 1))
    return _without(found, gone)


def _without_uncalled(found: list[CmakeCommand]) -> list[CmakeCommand]:
    called = {c.name for c in found}
    gone: set[int] = set()
    for start, end in _blocks(found):
        if found[start].name in ("function", "macro") and found[start].first.lower() not in called:
            gone |= set(range(start, end + 1))
    return _without(found, gone)


def _without_unread(found: list[CmakeCommand]) -> list[CmakeCommand]:
    """Without ``set(X …)`` and ``list(APPEND X …)`` of an X that stands nowhere else."""
    read: set[str] = set()
    for command in found:
        read |= set(re.findall(r"\w+", command.text.replace(_variable_set(command), "", 1)))
    return [command for command in found if _variable_set(command) in read | {""}]


def _variable_set(command: CmakeCommand) -> str:
    """The variable that a command sets and does nothing else to; none if its name is computed."""
    words = command.text.split()
    if command.name == "set":
        words = words[:1]
    elif command.name == "list" and words[0] in ("APPEND", "PREPEND"):
        words = words[1:2]
    else:
        return ""
    return words[0] if re.fullmatch(r"\w+", words[0]) else ""
