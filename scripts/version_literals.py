"""Finds versions of vLLM in code: they belong in releases/, models/ and patches/.

Docstrings and comments may name the version that a fact was read in.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("build.py", "fp4forge", "scripts", "benchmarks", "tests/image")
VERSION = re.compile(r"\b0\.(?:1[0-9]|[2-9][0-9])\.[0-9]+")


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string that names a version and is not a docstring."""
    nodes = list(ast.walk(ast.parse(source)))
    said = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if not isinstance(node, ast.Constant) or id(node) in said:
            continue
        if isinstance(node.value, str) and VERSION.search(node.value):
            yield node.lineno, node.value


def main() -> None:
    """Command line."""
    listed = subprocess.run(
        ["git", "ls-files", *CODE], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = [
        f"{name}:{line}: {text[:80]!r} names a version of vLLM"
        for name in listed.stdout.split()
        if name.endswith(".py")
        for line, text in literals((ROOT / name).read_text())
    ]
    for line in found:
        sys.stderr.write(line + "\n")
    if found:
        sys.exit("versions belong in releases/, models/ or patches/")


if __name__ == "__main__":
    main()
