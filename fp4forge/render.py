"""Dockerfiles from templates; every supported plan's is committed under ``dockerfiles/``."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from fp4forge import base as bases
from fp4forge import release
from fp4forge.cross import TOOLCHAINS
from fp4forge.gpu import TARGETS
from fp4forge.lock import GROUPS
from fp4forge.paths import DOCKERFILES, STATE, TEMPLATES
from fp4forge.release import STRATEGIES, VARIANTS

if TYPE_CHECKING:
    from fp4forge.ledger import Ledger
    from fp4forge.plan import Plan

UID = 2000


@cache
def _environment(*, escape: bool) -> Any:
    from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined

    compiled = STATE / "templates"
    compiled.mkdir(parents=True, exist_ok=True)
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        bytecode_cache=FileSystemBytecodeCache(str(compiled)),
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
        groups=GROUPS,
        uid=UID,
        m=macros,
        base_image=plan.base_image,
    )
    return text


def html(template: str, **values: Any) -> str:
    """A self-contained HTML page; names from binaries and images are escaped."""
    text: str = _environment(escape=True).get_template(template).render(**values)
    return text


def ledger_page(found: Ledger) -> str:
    """A ledger as one HTML page."""
    from fp4forge.gpu import GPUS
    from fp4forge.ledger import GROUPS as LEDGER_GROUPS

    return html(
        "ledger.html.j2",
        ledger=found,
        groups=LEDGER_GROUPS,
        targets=found.targets(),
        products={name: ", ".join(gpu.products) for name, gpu in GPUS.items()},
    )


def supported() -> dict[str, Plan]:
    """File name under ``dockerfiles/`` and plan, for everything that can be built."""
    from fp4forge.plan import Request, resolve

    plans: dict[str, Plan] = {}
    for name, strategy, base in itertools.product(release.names(), STRATEGIES, bases.names()):
        if strategy not in release.load(name).strategies:
            continue
        for arch, variant in itertools.product(TARGETS, VARIANTS):
            platform = TARGETS[arch].default_platform or "linux/amd64"
            request = Request(arch, name, variant, strategy, base, platform, aot="gemma4")
            file = f"{name}/{strategy}-{bases.load(base).slug}/{arch}-{variant}"
            plans[f"{file}.Dockerfile"] = resolve(request)
            if strategy == "source" and platform in TOOLCHAINS and bases.load(base).suite:
                crossing = replace(request, aot="none", cross=True)
                plans[f"{file}-cross.Dockerfile"] = resolve(crossing)
    return plans


def matrix() -> list[dict[str, Any]]:
    """A row for a workflow's matrix for everything that can be built, but for bases made locally.

    A source build runs on a self-hosted runner with the GPU it is for, and is tested on it; an
    image from a wheel for all of Blackwell is built by a hosted runner, without GPU.
    """
    rows: list[dict[str, Any]] = []
    for plan in supported().values():
        hosted = plan.arch == "blackwell"
        if bases.load(plan.base).suite or hosted != (plan.strategy == "wheel"):
            continue
        machine = "ARM64" if plan.platform == "linux/arm64" else "X64"
        labels = ["self-hosted", "linux", machine, "blackwell", plan.arch]
        rows.append(
            {
                "release": plan.release,
                "arch": plan.arch,
                "variant": plan.variant,
                "from": plan.strategy,
                "base": plan.base,
                "platform": plan.platform,
                "runner": "hosted" if hosted else "self-hosted",
                "gpu": not hosted,
                "runs-on": ["ubuntu-24.04"] if hosted else labels,
            }
        )
    return rows


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
