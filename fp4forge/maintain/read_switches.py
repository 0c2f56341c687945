"""Reads from vLLM's sources which flags, variables, parsers, models and metrics a release has."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from fp4forge.core import files
from fp4forge.core.errors import DriftError, ReleaseError
from fp4forge.inputs.switches import FOLDER

_Node = TypeVar("_Node", bound=ast.expr)
# The registries that vLLM fills from a dictionary of names, by the file that has it.
_REGISTRIES = {
    "tool_parsers": ("vllm/tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning_parsers": ("vllm/reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER"),
    "architectures": ("vllm/model_executor/models/registry.py", "_VLLM_MODELS"),
}
_CACHE = ("vllm/config/cache.py", "CacheDType")
# Every server registers the first file's metrics, one that speculates the second's too.
_METRICS = ("vllm/v1/metrics/loggers.py", "vllm/v1/spec_decode/metrics.py")
_METRIC = re.compile("vllm:[a-z0-9_]+")
# What the Prometheus client exports for each of its classes; a counter's name ends in _total once.
_SERIES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def extract(tree: Path) -> dict[str, list[str]]:
    """What a source tree's release knows, sorted.

    Raises:
        ReleaseError: a file is missing, or does not have what it is read for.
    """
    found = {"flags": sorted(set(_engine_flags(tree)))}
    variables = _keys(tree, "vllm/envs.py", "environment_variables")
    found["environment"] = sorted(set(variables))
    for kind, (file, name) in _REGISTRIES.items():
        found[kind] = sorted(set(_keys(tree, file, name)))
    found["kv_cache_types"] = sorted(set(_literal(tree, *_CACHE)))
    found["metrics"] = sorted({name for file in _METRICS for name in _metrics(tree, file)})
    return found


def _engine_flags(tree: Path) -> Iterator[str]:
    """Flags of the engine, and of the server: its dataclass's fields are flags too."""
    frontends = sorted(tree.glob("vllm/entrypoints/*/cli_args.py"))
    if not frontends:
        raise ReleaseError(
            "vllm/entrypoints has no cli_args.py",
            rule="the server's flags are read from its dataclass",
            remedy="see where the release has FrontendArgs, and correct maintain/read_switches.py",
        )
    for path in (tree / "vllm/engine/arg_utils.py", *frontends):
        for node in ast.walk(_parsed(path, tree)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and str(argument.value).startswith("-"):
                        yield str(argument.value)
            if isinstance(node, ast.ClassDef) and node.name.endswith("FrontendArgs"):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        yield "--" + field.target.id.replace("_", "-")


def _keys(tree: Path, file: str, name: str) -> list[str]:
    """Keys of a dictionary that a module assigns to a name, and of those spread into it.

    Raises:
        ReleaseError: it has no such dictionary.
    """
    module = _parsed(tree / file, tree)
    return list(_keys_of(module, _assigned(module, file, name, ast.Dict), file))


def _keys_of(module: ast.Module, found: ast.Dict, file: str) -> Iterator[str]:
    for key, value in zip(found.keys, found.values, strict=True):
        if isinstance(key, ast.Constant):
            yield str(key.value)
        elif key is None and isinstance(value, ast.Name):  # **NAME
            yield from _keys_of(module, _assigned(module, file, value.id, ast.Dict), file)


def _metrics(tree: Path, file: str) -> Iterator[str]:
    """Names of the time series that a module's metrics have in /metrics.

    A metric is a call of a class whose name ends in gauge, counter or histogram, with ``name``.
    If that is a variable, it takes every name that its function has beside the others.

    Raises:
        ReleaseError: the module makes no metric.
    """
    found: dict[str, str] = {}
    module = _parsed(tree / file, tree)
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef):
            continue
        variable = ""
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (kind := _metric_kind(node.func)):
                name = next((word.value for word in node.keywords if word.arg == "name"), None)
                if isinstance(name, ast.Constant):
                    found[str(name.value)] = kind
                elif isinstance(name, ast.Name):
                    variable = kind
        if variable:
            for node in ast.walk(function):
                if isinstance(node, ast.Constant) and _METRIC.fullmatch(str(node.value)):
                    found.setdefault(str(node.value), variable)
    if not found:
        raise ReleaseError(
            f"{file} makes no metrics",
            rule="the names that dashboards and alerts use are read from it",
            remedy="see where the release has them now, and correct maintain/read_switches.py",
        )
    for metric, kind in found.items():
        stem = metric.removesuffix("_total") if kind == "counter" else metric
        yield from (stem + ending for ending in _SERIES[kind])


def _metric_kind(function: ast.expr) -> str:
    """The kind of metric that a call makes, by the name of what it calls; empty: none."""
    called = str(getattr(function, "attr", getattr(function, "id", ""))).lower()
    plain = called.strip("_").removesuffix("_cls")
    return plain if plain in _SERIES else ""


def _literal(tree: Path, file: str, name: str) -> list[str]:
    """The values of a ``Literal`` that a module assigns to a name.

    Raises:
        ReleaseError: it has no such type.
    """
    found = _assigned(_parsed(tree / file, tree), file, name, ast.Subscript)
    return [str(node.value) for node in ast.walk(found) if isinstance(node, ast.Constant)]


def _assigned(module: ast.Module, file: str, name: str, kind: type[_Node]) -> _Node:
    for node in ast.walk(module):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(value, kind):
            return value
    raise ReleaseError(
        f"{file} has no {name} of the expected form",
        rule="the names that a release knows are read from it",
        remedy="see where the release has it now, and correct maintain/read_switches.py",
    )


def _parsed(path: Path, tree: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError) as error:
        raise ReleaseError(
            f"{path.relative_to(tree)} cannot be read: {error}", rule="it is vLLM's source"
        ) from None


def write(version: str, found: dict[str, list[str]], check: bool = False) -> Path:
    """Writes ``releases/switches/VERSION.json``, or compares it.

    Raises:
        DriftError: with ``check``, the file differs.
    """
    path, text = FOLDER / f"{version}.json", json.dumps(found, indent=1) + "\n"
    if check and (not path.is_file() or path.read_text() != text):
        raise DriftError(
            f"releases/switches/{version}.json is not what the sources say",
            rule="build.py release switches wrote it",
            remedy=f"build.py release switches {version}, and read the difference",
        )
    if not check:
        path.parent.mkdir(exist_ok=True)
        files.replace(path, text)
    return path
