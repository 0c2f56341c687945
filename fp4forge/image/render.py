"""Dockerfiles and pages from templates.

A release has one Dockerfile for each strategy, committed under ``dockerfiles/``: the build's own
input. Build arguments carry what differs between GPUs, variants, bases and sources.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.core.errors import DriftError
from fp4forge.core.paths import DOCKERFILES, RELEASES, ROOT, STATE, TEMPLATES
from fp4forge.core.platform import host_platform
from fp4forge.core.text import block
from fp4forge.inputs import image_extras, modelopt, patches
from fp4forge.inputs import release as releases
from fp4forge.inputs.broken_releases import Failures
from fp4forge.inputs.locks import LAYERS
from fp4forge.inputs.modelopt import ModelOptRelease
from fp4forge.inputs.patches import PatchSeries, patched_files
from fp4forge.inputs.release import Release
from fp4forge.plan.plan import Plan

UID = 2000


@functools.cache
def _jinja_environment(*, escape: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from fp4forge.image.template_cache import CheckedTemplateCache

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        bytecode_cache=CheckedTemplateCache(STATE / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=escape,  # noqa: S701 - not for Dockerfiles: what users give is validated
    )
    environment.filters["quoted"] = _yaml_quoted
    return environment


def _yaml_quoted(text: str) -> str:
    """A YAML scalar in single quotes, on one line."""
    return "'" + " ".join(text.split()).replace("'", "''") + "'"


@dataclass(frozen=True)
class Variant:
    """What a variant adds to the installed packages."""

    name: str
    layers: tuple[str, ...]  # a thin one for each folder that has patched files
    environment: dict[str, str]


def name(plan: Plan) -> str:
    """A plan's Dockerfile under ``dockerfiles/``."""
    return _dockerfile_name(plan.release, plan.strategy, cross=plan.cross is not None)


def arguments(plan: Plan) -> dict[str, str]:
    """The build arguments that make a plan of its Dockerfile: what differs between its plans."""
    found = {
        "SOURCE_DATE_EPOCH": str(plan.epoch),
        "BASE": plan.base_image,
        "BUILD_BASE": plan.inputs.base.reference(host_platform()),
        "PYTHON": plan.python,
        "ARCH": plan.arch,
        "VARIANT": plan.variant,
        "MAX_JIT_JOBS": str(plan.max_jit_jobs),
        "EXTRAS": ",".join(plan.extras),
    }
    if not plan.serves:
        return found
    found |= {_argument(n): "with" if n in plan.extras else "none" for n in image_extras.table()}
    if plan.cross:
        found |= {
            "DEBIAN": plan.cross.debian,
            "TRIPLET": plan.cross.triplet,
            "CUDA_TARGET": plan.cross.cuda,
            "PROCESSOR": plan.cross.processor,
        }
    else:
        found["AOT"] = "none" if plan.aot.name == "none" else "modules"
    if plan.strategy == "source":
        for external in plan.inputs.release.externals:
            source = plan.sources.get(external)
            provider = source.provider if source and source.provider != "local" else "none"
            found[_argument(external)] = provider
    return found


def _argument(name: str) -> str:
    """The build argument that chooses an external source's provider, or an extra."""
    return name.upper().replace("-", "_")


def dockerfile(plan: Plan) -> str:
    """The Dockerfile of a plan: the committed one, byte for byte.

    Releases and patches outside the checkout (``FP4FORGE_RELEASES``, ``FP4FORGE_PATCHES``) have
    no committed one; theirs is rendered.

    Raises:
        DriftError: the committed file is not what templates, release and patches give.
    """
    inputs, cross = plan.inputs, plan.cross is not None
    if isinstance(inputs.release, ModelOptRelease):
        text = _render_quantiser(inputs.release)
    else:
        text = _render_dockerfile(inputs.release, inputs.series, plan.strategy, cross=cross)
    if RELEASES.is_relative_to(ROOT) and inputs.series.folder.is_relative_to(ROOT):
        path = DOCKERFILES / name(plan)
        if not path.is_file() or path.read_text() != text:
            raise DriftError(
                f"dockerfiles/{name(plan)} is not what its sources give",
                rule="the image is built from the committed Dockerfile",
                remedy="build.py render, then look at the difference",
            )
    return text


def _dockerfile_name(release: str, strategy: str, *, cross: bool = False) -> str:
    return f"{release}/{strategy}{'-cross' if cross else ''}.Dockerfile"


def _render_dockerfile(release: Release, series: PatchSeries, strategy: str, *, cross: bool) -> str:
    return _image_template(
        "Dockerfile.j2",
        release=release,
        strategy=strategy,
        cross=cross,
        variants=[_variant(release, series, variant) for variant in series.variants],
        argument=_argument,
        extras=image_extras.table(),
    )


def _render_quantiser(release: ModelOptRelease) -> str:
    return _image_template("quantise.j2", release=release, strategy=modelopt.STRATEGY)


def _image_template(template: str, **values: Any) -> str:
    """A Dockerfile; all of them share layers, the user and the macros."""
    environment = _jinja_environment(escape=False)
    macros = environment.get_template("macros.j2").module
    text: str = environment.get_template(template).render(
        groups=LAYERS, uid=UID, m=macros, **values
    )
    return text


def _variant(release: Release, series: PatchSeries, name: str) -> Variant:
    files = patched_files(series.for_variant(name))
    layers = sorted({path.rsplit("/", 1)[0].replace("/", "-") for path in files})
    return Variant(name, tuple(layers), release.environment.get(name, {}))


def _all_dockerfiles(failures: Failures) -> dict[str, str]:
    """Every Dockerfile by its name, but those of broken releases."""
    found = {}
    for version in releases.names():
        with failures.of(version):
            release = releases.load(version)
            series = patches.load("vllm", release.vllm_version)
            for strategy in release.strategies:
                for cross in (False, True) if strategy == "source" else (False,):
                    text = _render_dockerfile(release, series, strategy, cross=cross)
                    found[_dockerfile_name(version, strategy, cross=cross)] = text
    for version in modelopt.release_names():
        with failures.of(version):
            text = _render_quantiser(modelopt.load(version))
            found[_dockerfile_name(version, modelopt.STRATEGY)] = text
    return found


def plain(template: str, **values: Any) -> str:
    """A file that is not HTML; YAML's values go through ``quoted``."""
    text: str = _jinja_environment(escape=False).get_template(template).render(**values)
    return text


def html(template: str, **values: Any) -> str:
    """A self-contained HTML page; names from binaries and images are escaped."""
    text: str = _jinja_environment(escape=True).get_template(template).render(**values)
    return block(text, len(text))


def differences(failures: Failures) -> list[str]:
    """What ``dockerfiles/`` has that differs from what would be rendered, a line each.

    Args:
        failures: gets what is wrong with releases; their Dockerfiles are left alone.
    """
    wanted, have = _all_dockerfiles(failures), _present_dockerfiles(failures)
    lines = [f"missing: {name}" for name in sorted(wanted.keys() - have.keys())]
    lines += [f"not rendered from anything: {name}" for name in sorted(have.keys() - wanted.keys())]
    lines += [
        f"differs: {name}"
        for name in sorted(wanted.keys() & have.keys())
        if have[name].read_text() != wanted[name]
    ]
    return lines


def write(failures: Failures) -> int:
    """Renders everything into ``dockerfiles/``; returns the number of files.

    Args:
        failures: gets what is wrong with releases; their Dockerfiles are left alone.
    """
    wanted = _all_dockerfiles(failures)
    for name, path in _present_dockerfiles(failures).items():
        if name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = DOCKERFILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return len(wanted)


def _present_dockerfiles(failures: Failures) -> dict[str, Path]:
    """The Dockerfiles that there are by their names, but those of broken releases."""
    paths = {p.relative_to(DOCKERFILES).as_posix(): p for p in DOCKERFILES.rglob("*.Dockerfile")}
    return {name: path for name, path in paths.items() if not failures.has(name)}
