"""build.py ledger: what a binary, wheel, container or image can do, and for which GPU."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fp4forge.checks import ledgers as reading
from fp4forge.checks import recorded_kernels
from fp4forge.cli import origins
from fp4forge.core import files
from fp4forge.core.console import Console, print_json, rich, table
from fp4forge.core.errors import CoverageError
from fp4forge.kernels import groups
from fp4forge.kernels import ledger as ledgers
from fp4forge.kernels.gpus import GPUS
from fp4forge.oci.acquire import RecordedKernels


@click.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, every cubin and kernel.")
@click.option(
    "--require",
    multiple=True,
    type=click.Choice(list(GPUS)),
    help="Fail (exit code 3) if this GPU lacks NVFP4 GEMM or quantise.",
)
@click.option("--html", type=click.Path(path_type=Path), help="Also write an HTML page.")
def ledger(target: str, as_json: bool, require: tuple[str, ...], html: Path | None) -> None:
    """Show which GPUs TARGET's FP4 kernels run on, as read from the binaries.

    TARGET is a shared object, a wheel, a folder, a container, or an image (not started). Of an
    image of this project, also where each backend's kernels come from: ahead of time, or by
    which compiler at run time.
    """
    console = Console()
    with console.step("ledger") as step:
        found = reading.read(target, step.report)
        step.detail = f"{len(found.files)} files with device code"
    if html:
        from fp4forge.checks.image_page import ledger_page

        files.replace(html, ledger_page(found))
    kernels = recorded_kernels.of(target)
    if as_json:
        print_json(found.as_json() | {"backend_kernels": origins.as_json(kernels)})
    else:
        _show_ledger(found)
        _show_origins(kernels)
    lacking = ledgers.lost(found, require)
    if lacking:
        raise CoverageError(
            "; ".join(f"{gpu} lacks {groups}" for gpu, groups in lacking.items()),
            rule=f"--require {' '.join(require)}: native or family kernels",
            remedy="build.py arch explain LIST shows which list gives them",
        )


def file_rows(files: tuple[ledgers.File, ...]) -> list[tuple[str, ...]]:
    """A table's rows: path, cubins' architectures, PTX's, FP4 MMA and conversions.

    More than three files of one package without FP4 and with the same architectures are one row:
    of FlashInfer's modules there may be seven hundred.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for file in files:
        kernels = [k for c in file.code.cubins for k in c.kernels]
        mma, cvt = sum(k.fp4_mma for k in kernels), sum(k.fp4_cvt for k in kernels)
        archs = (
            " ".join(sorted({entry.arch.removeprefix("sm_") for entry in entries}))
            for entries in (file.code.cubins, file.code.ptx)
        )
        package = file.path if mma or cvt else file.path.split("/")[0]
        alike.setdefault((package, *archs, str(mma), str(cvt)), []).append(file.path)
    rows: list[tuple[str, ...]] = []
    for (_, *values), paths in alike.items():
        if len(paths) > 3:
            paths = [f"{os.path.commonpath(paths)}/ ({len(paths)} files)"]
        rows += [(path, *values) for path in paths]
    return sorted(rows)


def _show_ledger(found: ledgers.Ledger) -> None:
    verdicts = list(found.gpus.values())
    rows = [(group, *(verdict[group] for verdict in verdicts)) for group in groups.GROUPS]
    rows.append(("NVFP4 served", *("yes" if verdict["ok"] else "NO" for verdict in verdicts)))
    rich().print(
        table(("file", "cubins", "PTX", "FP4\nMMA", "FP4\nconvert"), file_rows(found.files)),
        table(("kernel group", *GPUS), rows),
    )


def _show_origins(kernels: RecordedKernels) -> None:
    """Where each backend's kernels come from, if the image records it."""
    if not kernels.gpus:
        return
    made = table(("kind", "kernels of backend", *kernels.gpus), origins.rows(kernels))
    rich().print(made, f"compilers: {origins.compilers(kernels)}")


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def compare(old: str, new: str, as_json: bool) -> None:
    """Show what changed from image OLD to image NEW: kernels, packages, patched files, layers."""
    from fp4forge.publish import image_diff as comparing

    console = Console()
    with console.step("compare") as step:
        first = comparing.describe(old, step.report)
        second = comparing.describe(new, step.report)
        changed = comparing.differences(first, second)
        step.detail = f"{sum(map(len, changed.values()))} differences"
    if as_json:
        print_json({"old": old, "new": new, "changed": changed})
        return
    for section, rows in changed.items():
        cells = ((row["what"], str(row["old"] or "-"), str(row["new"] or "-")) for row in rows)
        shown = table((section, "old", "new"), cells)
        rich().print(shown if rows else f"{section}: unchanged")
