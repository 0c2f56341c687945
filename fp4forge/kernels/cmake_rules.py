"""Reads from a vLLM source tree which CUDA architectures each kernel group is compiled for.

The rules are vLLM's own (CMakeLists.txt, cmake/external_projects/*.cmake): calls of
``cuda_archs_loose_intersection`` and of ``set_gencode_flags_for_srcs``, with the conditions they
stand under. They are kept per release in ``releases/archs/<vllm version>.json`` and executed by
``archs.py``; nothing is known of groups beyond what the files say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp4forge.kernels.base import ReleaseError
from fp4forge.kernels.groups import group_name

_FILES = ("CMakeLists.txt", "cmake/external_projects/flashmla.cmake",
          "cmake/external_projects/qutlass.cmake")  # fmt: skip

# vllm-flash-attn's CMake is not in vLLM's sdist. Read from vllm-project/flash-attention at
# 01ed8aa91c9bd24cbc676037fe7b005d099b25c5; the wheels of 0.19.1 and 0.20.2 hold just that.
_FLASH_ATTENTION = (
    ("flash_attn_2", "8.0+PTX", "csrc/flash_attn/src/flash_fwd_*.cu"),
    ("flash_attn_3", "9.0a", "hopper/instantiations/flash_fwd_*_sm90.cu"),
)

_TOKEN = re.compile(
    r"""\#\[(=*)\[.*?\]\1\] | \#[^\n]* | "(?:\\.|[^"\\])*" | \( | \) | [^\s()"\#]+ """,
    re.VERBOSE | re.DOTALL,
)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Command invocations of a CMake file: name in lower case, and arguments unquoted.

    Grammar: cmake-language(7), "Command Invocations". Quotes are dropped; bracket arguments,
    which vLLM does not use, are not read.
    """
    tokens = [m[0] for m in _TOKEN.finditer(text) if not m[0].startswith("#")]
    position = 0
    while position < len(tokens) - 1:
        name = tokens[position]
        if tokens[position + 1] != "(":
            position += 1
            continue
        depth, position = 1, position + 2
        arguments: list[str] = []
        while position < len(tokens) and depth:
            token = tokens[position]
            depth += {"(": 1, ")": -1}.get(token, 0)
            if depth:
                arguments.append(token)
            position += 1
        yield name.lower(), arguments


def _plain(argument: str) -> str:
    return argument[1:-1] if argument.startswith('"') else argument


@dataclass
class _Reader:
    """Walks one file's commands with the stack of open if() blocks."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    conditions: list[list[list[str]]] = field(default_factory=list)  # per open if: seen branches
    lists: dict[str, list[str]] = field(default_factory=dict)
    extension: str = ""

    def guard(self) -> list[str]:
        """Conditions in force, each as written; ``!`` in front of one that is negated."""
        texts: list[str] = []
        for branches in self.conditions:
            texts += ["! " + " ".join(b) for b in branches[:-1]]
            if branches[-1] != ["ELSE"]:
                texts.append(" ".join(branches[-1]))
        return [text for text in texts if _matters(text)]

    def read(self, name: str, raw: list[str]) -> None:
        arguments = [_plain(a) for a in raw]
        if name == "if":
            self.conditions.append([arguments])
        elif name == "elseif":
            self.conditions[-1].append(arguments)
        elif name == "else":
            self.conditions[-1].append(["ELSE"])
        elif name == "endif":
            self.conditions.pop()
        elif name == "set" and len(arguments) > 1:
            self._set(arguments[0], arguments[1:])
        elif name == "list" and arguments[:1] == ["APPEND"] and len(arguments) > 2:
            self._append(arguments[1], arguments[2:])
        elif name == "file" and arguments[:1] == ["GLOB"]:
            self.lists[arguments[1]] = arguments[2:]
        elif name == "cuda_archs_loose_intersection":
            self._intersection(arguments)
        elif name == "set_gencode_flags_for_srcs":
            self._group(arguments)

    def _set(self, variable: str, values: list[str]) -> None:
        if variable == "CUDA_SUPPORTED_ARCHS":
            self.steps.append({"do": "supported", "archs": values[0], "if": self.guard()})
        elif variable.endswith("SUPPORT_ARCHS"):
            text = ";".join(values)
            self.steps.append({"do": "set", "var": variable, "archs": text, "if": self.guard()})
        else:
            self.lists[variable] = self._expand(values)

    def _append(self, variable: str, values: list[str]) -> None:
        if variable.endswith("SUPPORT_ARCHS"):
            text = ";".join(values)
            self.steps.append({"do": "append", "var": variable, "archs": text, "if": self.guard()})
        else:
            self.lists[variable] = self.lists.get(variable, []) + self._expand(values)

    def _expand(self, values: list[str]) -> list[str]:
        expanded: list[str] = []
        for value in values:
            match = re.fullmatch(r"\$\{(\w+)\}", value)
            expanded += self.lists.get(match[1], []) if match else [value]
        return expanded

    def _intersection(self, arguments: list[str]) -> None:
        out, source, target = arguments
        if target != "${CUDA_ARCHS}" or out == "CUDA_ARCHS":
            return
        self.steps.append({"do": "intersect", "var": out, "archs": source, "if": self.guard()})

    def _group(self, arguments: list[str]) -> None:
        where = arguments.index("CUDA_ARCHS")
        match = re.fullmatch(r"\$\{(\w+)\}", arguments[where + 1])
        assert match is not None
        sources = [s for s in self._expand(arguments[1:where]) if s.endswith((".cu", ".cpp"))]
        sources = [re.sub(r"\$\{\w+\}/", "", s) for s in sources]
        if not sources:
            return
        group = {"do": "group", "name": group_name(sources), "var": match[1]}
        self.steps.append({**group, "sources": sources, "if": self.guard()})


def _matters(condition: str) -> bool:
    """Whether a condition decides groups: the CUDA version, or whether a list is empty."""
    return bool(re.search(r"CMAKE_CUDA_COMPILER_VERSION|_ARCHS\b", condition))


def extract(tree: Path) -> dict[str, Any]:
    """The rules of a vLLM source tree.

    Returns:
        ``{"steps": [...], "sm120_only_fp8": bool}``. Steps are executed in order: ``supported``
        and ``set`` assign, ``append`` appends, ``intersect`` calls vLLM's function with the list
        in ``archs``, ``group`` compiles ``sources`` for what ``var`` holds then. ``if`` is a list
        of conditions that must all hold.

    Raises:
        ReleaseError: the tree has no CMakeLists.txt, or it names no FP4 group.
    """
    steps: list[dict[str, Any]] = []
    for name in _FILES:
        path = tree / name
        if not path.is_file():
            raise ReleaseError(f"{tree} has no {name}", rule="a vLLM source tree has it")
        reader = _Reader()
        for command, arguments in commands(path.read_text()):
            reader.read(command, arguments)
        steps += reader.steps
    if not any("nvfp4" in s for step in steps for s in step.get("sources", ())):
        raise ReleaseError(f"{tree}/CMakeLists.txt names no NVFP4 kernels")
    for name, archs, sources in _FLASH_ATTENTION:
        variable = f"{name.upper()}_ARCHS"
        steps.append({"do": "intersect", "var": variable, "archs": archs, "if": []})
        steps.append({"do": "group", "name": name, "var": variable, "sources": [sources], "if": []})
    dispatch = tree / "csrc/quantization/w8a8/cutlass/c3x"
    text = "".join(p.read_text() for p in sorted(tree.glob("csrc/**/scaled_mm*sm120*fp8*")))
    text += "".join(p.read_text() for p in sorted(dispatch.glob("scaled_mm.cuh")))
    return {"steps": steps, "sm120_only_fp8": "enable_sm120_only" in text}
