"""Reads from vLLM's sources which backends its selection code names for NVFP4 on CUDA."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

from fp4forge.core.errors import ReleaseError
from fp4forge.models import backend_kernels

_LINEAR = ("vllm/model_executor/kernels/linear/__init__.py", "_POSSIBLE_NVFP4_KERNELS")
_EXPERTS = ("vllm/model_executor/layers/fused_moe/oracle/nvfp4.py", "NvFp4MoeBackend")
_ATTENTION = ("vllm/platforms/cuda.py", "_get_backend_priorities")


def extract(tree: Path) -> list[tuple[str, str]]:
    """Kind and name of each backend, as ``inside/ask.py`` gets them from a running vLLM.

    Args:
        tree: the unpacked source distribution.

    Raises:
        ReleaseError: a file is missing, or does not have what it is read for.
    """
    return [
        *(("linear", name) for name in _found(tree, *_LINEAR, _cuda_list)),
        *(("experts", name) for name in _found(tree, *_EXPERTS, _members)),
        *(("attention", name) for name in _found(tree, *_ATTENTION, _attributes)),
    ]


def check(tree: Path) -> None:
    """Checks that ``models/backend_kernels.yaml`` has every backend of a source tree.

    Raises:
        ReleaseError: it lacks some, or they cannot be read; the message names them and the file.
    """
    if lacking := backend_kernels.missing(extract(tree)):
        raise backend_kernels.unknown(lacking)


def _found(
    tree: Path, file: str, name: str, read: Callable[[ast.Module, str], Iterator[str]]
) -> list[str]:
    path = tree / file
    try:
        parsed = ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError):
        parsed = ast.Module([], [])
    found = list(dict.fromkeys(read(parsed, name)))
    if not found:
        raise ReleaseError(
            f"{file} has no {name} with names of backends",
            rule="the backends of a release are read from its sources",
            remedy="see where the release selects them, and correct maintain/read_backends.py",
        )
    return found


def _cuda_list(parsed: ast.Module, name: str) -> Iterator[str]:
    """The classes under PlatformEnum.CUDA of a dictionary."""
    for node in ast.walk(parsed):
        match node:
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.Dict() as table):
                pass
            case _:
                continue
        for key, value in zip(table.keys, table.values, strict=True) if found == name else ():
            if isinstance(key, ast.Attribute) and key.attr == "CUDA":
                yield from (one.id for one in ast.walk(value) if isinstance(one, ast.Name))


def _members(parsed: ast.Module, name: str) -> Iterator[str]:
    """The values of an enumeration's members."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.ClassDef) and node.name == name:
            for entry in node.body:
                if isinstance(entry, ast.Assign) and isinstance(entry.value, ast.Constant):
                    yield str(entry.value.value)


def _attributes(parsed: ast.Module, name: str) -> Iterator[str]:
    """The members of AttentionBackendEnum that a function uses."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            for inner in ast.walk(node):
                match inner:
                    case ast.Attribute(value=ast.Name(id="AttentionBackendEnum"), attr=member):
                        yield member
