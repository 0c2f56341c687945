"""Commands that write the project's own files, which an installed package has only to read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

from fp4forge.core import paths
from fp4forge.core.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def require(command: str) -> None:
    """Refuses a command that works on the project's own files, outside a clone of the repository.

    Args:
        command: as it is called, such as ``release add``.

    Raises:
        UsageError: fp4forge runs as an installed package.
    """
    if not paths.CHECKOUT:
        raise UsageError(
            f"{command} needs a clone of the fp4forge repository; this is an installed package",
            rule="releases, patches, dockerfiles and docs are changed in the repository, never in"
            " the package's copy",
            remedy=f"clone the repository, and run build.py {command} there",
        )


def required(function: Callable[P, R]) -> Callable[P, R]:
    """The function of a command that needs a clone."""

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        require(click.get_current_context().command_path.partition(" ")[2])
        return function(*args, **options)

    return run
