"""A plan's builds: the image, and the stages that hold its ledger and what compiling took."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fp4forge.core import reading
from fp4forge.core.errors import BuildError
from fp4forge.core.limits import RECORD_BYTES
from fp4forge.core.paths import OCI, STATE
from fp4forge.image import render
from fp4forge.kernels.base import Progress
from fp4forge.oci import dockercli
from fp4forge.oci.acquire import RecordedLedger
from fp4forge.oci.buildkit import COMPRESSION, BuildOptions, build, secrets
from fp4forge.oci.layout import OciLayout
from fp4forge.plan.plan import Plan

# This checkout's layout; builds of one checkout wait for each other.
LAYOUT = OciLayout(OCI)


def command(
    plan: Plan,
    context: Path,
    outputs: list[str],
    options: BuildOptions,
    ledger: str = "",
    target: str = "",
) -> list[str]:
    """The buildx command line of a plan.

    Args:
        ledger: SHA-256 for the image's label.
        target: a stage to build instead of the image; it gets no provenance.
    """
    flags = [
        f"--file={context / 'Dockerfile'}",
        f"--platform={plan.platform}",
        *[f"--build-arg={name}={value}" for name, value in render.arguments(plan).items()],
        f"--build-arg=PLAN_ID={plan.id}",
        f"--build-arg=REVISION={plan.revision}",
        f"--build-arg=LEDGER={ledger}",
        f"--target={target}" if target else "--provenance=mode=max",
        *secrets(),
        *[f"--output={output}" for output in outputs],
    ]
    if plan.strategy == "source":
        flags += [f"--build-context=source-{n}={path}" for n, path in options.sources.items()]
    flags += [f"--builder={options.builder}"] if options.builder else []
    flags += ["--no-cache"] if options.no_cache else []
    flags += [f"--cache-from={place}" for place in options.cache_from]
    flags += [f"--cache-to={place}" for place in options.cache_to]
    return dockercli.line("buildx", "build", *flags, str(context))


def by_hand(plan: Plan, context: Path, sources: dict[str, Path], image: str) -> list[str]:
    """The command line that leaves a plan's image in the engine, with no check run on it.

    Args:
        context: folder of the written build context.
        sources: local trees of external sources, by name.
        image: the name that it gets.
    """
    output = [f"type=image,name={image},{COMPRESSION}"]
    return command(plan, context, output, BuildOptions(sources=sources), target="image")


def ledger(
    plan: Plan,
    context: Path,
    options: BuildOptions,
    report: Progress,
    checked: Future[Any] | None = None,
) -> bytes:
    """Builds as far as the ledger and returns its JSON; a plan's ledger is kept, it cannot change.

    Raises:
        As ``build``.
    """
    kept = STATE / "ledgers" / f"{plan.id}.json"
    if kept.is_file() and not options.no_cache:
        content = reading.content(kept, BuildError, RECORD_BYTES)
        try:
            reading.json(content, RecordedLedger, str(kept), BuildError)
            return content
        except BuildError as error:
            report(f"{error.message}: making it again")
    kept.parent.mkdir(parents=True, exist_ok=True)
    _export_stage("ledger-file", "ledger.json", kept, plan, context, options, report, checked)
    return reading.content(kept, BuildError, RECORD_BYTES)


def compile_record(
    plan: Plan, context: Path, options: BuildOptions, report: Progress
) -> dict[str, Any]:
    """What compiling took (``image/stages/compile.py``), after the build; seconds by object.

    Raises:
        As ``build``.
    """
    kept = STATE / "compiled" / f"{plan.id}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    _export_stage("compile-record", "compile.json", kept, plan, context, options, report)
    content = reading.content(kept, BuildError, RECORD_BYTES)
    return reading.json(content, dict[str, Any], str(kept), BuildError)


def _export_stage(
    target: str,
    name: str,
    kept: Path,
    plan: Plan,
    context: Path,
    options: BuildOptions,
    report: Progress,
    checked: Future[Any] | None = None,
) -> None:
    """Builds a stage that holds one file, and keeps the file."""
    folder = context.with_name(f"{plan.id}.{target}")
    line = command(plan, context, [f"type=local,dest={folder}"], options, target=target)
    build(line, report, options, checked)
    (folder / name).replace(kept)
    shutil.rmtree(folder, ignore_errors=True)
