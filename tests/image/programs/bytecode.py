"""Bytecode and the source that it was compiled from."""

import importlib.util


def run(paths: list[str]) -> list[str]:
    """The modules whose bytecode is missing, stale, or not checked by hash (PEP 552)."""
    wrong = []
    for path in paths:
        try:
            with open(importlib.util.cache_from_source(path), "rb") as file:
                head = file.read(16)
            with open(path, "rb") as file:
                source = file.read()
        except OSError:
            wrong.append(path)
            continue
        if head[4] != 3 or head[8:] != importlib.util.source_hash(source):
            wrong.append(path)
    return wrong
