"""Dockerfiles and pages from templates; supported plans' Dockerfiles are committed."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

from fp4forge.core.paths import DOCKERFILES, STATE, TEMPLATES
from fp4forge.core.text import block
from fp4forge.inputs.locks import LAYERS
from fp4forge.plan.plan import Plan
from fp4forge.plan.support import supported

UID = 2000


@functools.cache
def _environment(*, escape: bool) -> Any:
    from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined

    compiled = STATE / "templates"
    with contextlib.suppress(OSError):  # a read-only checkout renders without a cache
        compiled.mkdir(parents=True, exist_ok=True)
    cache = FileSystemBytecodeCache(str(compiled)) if os.access(compiled, os.W_OK) else None
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        bytecode_cache=cache,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=escape,  # noqa: S701 - not for Dockerfiles: what users give is validated
    )


def dockerfile(plan: Plan) -> str:
    """The Dockerfile of a plan."""
    environment = _environment(escape=False)
    macros = environment.get_template("macros.j2").module
    text: str = environment.get_template("Dockerfile.j2").render(
        plan=plan,
        site=plan.site,
        groups=LAYERS,
        uid=UID,
        m=macros,
        base_image=plan.base_image,
    )
    return text


def html(template: str, **values: Any) -> str:
    """A self-contained HTML page; names from binaries and images are escaped."""
    text: str = _environment(escape=True).get_template(template).render(**values)
    return block(text, len(text))


def differences() -> list[str]:
    """What ``dockerfiles/`` has that differs from what would be rendered, a line each."""
    wanted = {name: dockerfile(plan) for name, plan in supported().items()}
    have = {p.relative_to(DOCKERFILES).as_posix(): p for p in DOCKERFILES.rglob("*.Dockerfile")}
    lines = [f"missing: {name}" for name in sorted(wanted.keys() - have.keys())]
    lines += [f"not rendered from anything: {name}" for name in sorted(have.keys() - wanted.keys())]
    lines += [
        f"differs: {name}"
        for name in sorted(wanted.keys() & have.keys())
        if have[name].read_text() != wanted[name]
    ]
    return lines


def write() -> int:
    """Renders everything into ``dockerfiles/``; returns the number of files."""
    wanted = {name: dockerfile(plan) for name, plan in supported().items()}
    for path in DOCKERFILES.rglob("*.Dockerfile"):
        if path.relative_to(DOCKERFILES).as_posix() not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = DOCKERFILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return len(wanted)
