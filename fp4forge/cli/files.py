"""Commands about the repository's own files: lock, render, matrix, completion."""

from __future__ import annotations

import sys

import click

from fp4forge.cli import checkout
from fp4forge.core import files
from fp4forge.core.console import Console, print_json
from fp4forge.core.errors import BrokenReleasesError, DriftError


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a lock has drifted.")
@click.option(
    "--packages-of",
    "image",
    metavar="IMAGE",
    help="Make no locks: record the distribution packages of an image in the engine.",
)
@checkout.required
def lock(check: bool, image: str | None) -> None:
    """Resolve the hashed dependency locks, one per release, strategy, platform and Python."""
    if image is not None:
        _record_packages(image, check)
        return
    from fp4forge.inputs.broken_releases import Failures
    from fp4forge.maintain import locking

    console, failures = Console(), Failures()
    with console.step("lock") as step:
        step.report("uv resolves every release")
        if check:
            drifted = locking.drift(failures)
            step.detail = f"{len(drifted)} drifted"
        else:
            changed = locking.write_all(failures)
            step.detail = f"{len(changed)} changed"
    if not check:
        from fp4forge.maintain import pins

        for name, result in pins.pin().items():
            console.say(f"image {name}: {result}")
    if check and drifted:
        raise DriftError(
            "locks differ from what their releases give:\n  "
            + "\n  ".join(drifted + failures.lines),
            remedy="build.py lock, then look at the difference",
        )
    failures.check()


def _record_packages(image: str, check: bool) -> None:
    from fp4forge.core.errors import UsageError
    from fp4forge.oci import reference
    from fp4forge.publish import distro_packages

    reference.parse(image, "--packages-of")
    if check:
        raise UsageError(
            "--check with --packages-of", rule="a build compares: --moved-packages refuse"
        )
    console = Console()
    with console.step("packages") as step:
        path, moved = distro_packages.record_image(image, step.report)
        step.detail = f"releases/packages/{path.name}, {len(moved)} moved"
    for line in moved:
        click.echo(line)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a file differs.")
@checkout.required
def render(check: bool) -> None:
    """Render dockerfiles/ (every supported plan), schemas/, docs/cli.md and backend-kernels.md."""
    from fp4forge.cli import kernels_page, reference
    from fp4forge.image import render as rendering
    from fp4forge.inputs.broken_releases import Failures
    from fp4forge.maintain import schemas

    if not check:
        click.echo(generate())
        return
    failures = Failures()
    lines = rendering.differences(failures) + schemas.differences()
    if reference.PATH.read_text() != reference.text():
        lines.append("differs: docs/cli.md")
    if kernels_page.PATH.read_text() != kernels_page.text(failures) and not failures.found:
        lines.append("differs: docs/backend-kernels.md")
    if lines:
        raise DriftError(
            "generated files are not what their sources give:\n  "
            + "\n  ".join(lines + failures.lines),
            remedy="build.py render, then look at the difference",
        )
    failures.check()
    click.echo("dockerfiles/, schemas/ and the generated pages are what their sources give")


def generate() -> str:
    """Writes every generated file; returns what was written.

    Raises:
        BrokenReleasesError: some releases are broken; the others' files are written.
    """
    from fp4forge.cli import kernels_page, reference
    from fp4forge.image import render as rendering
    from fp4forge.inputs.broken_releases import Failures
    from fp4forge.maintain import schemas

    failures = Failures()
    files.replace(reference.PATH, reference.text())
    count = rendering.write(failures)
    page = kernels_page.text(failures)
    if not failures.found:  # a broken release has no table: the page stays as it is
        files.replace(kernels_page.PATH, page)
    said = f"{count} Dockerfiles, {schemas.write()} schemas and 2 pages rendered"
    failures.check()
    return said


@click.command()
@click.option("--release", "releases", multiple=True, help="Only these releases.")
@click.option(
    "--runner", type=click.Choice(["hosted", "self-hosted"]), help="Only what these runners build."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def matrix(releases: tuple[str, ...], runner: str | None, as_json: bool) -> None:
    """List everything that can be built, with the labels of its runner.

    Hosted runners build from published wheels. Compiling and testing on a GPU need a
    self-hosted machine with that GPU.
    """
    from fp4forge.inputs import modelopt
    from fp4forge.inputs.broken_releases import Failures
    from fp4forge.maintain import matrix as building
    from fp4forge.plan import quantiser
    from fp4forge.plan.support import supported

    wanted = {modelopt.of_either_kind(name).release for name in releases}
    failures = Failures()
    buildable = supported(failures)
    rows = [
        row
        for row in building.rows(buildable.plans + quantiser.supported(failures))
        if (not wanted or row["release"] in wanted) and runner in (None, row["runner"])
    ]
    for line in buildable.lines:
        click.echo(line, err=True)
    if as_json:
        print_json({"include": rows})
        for line in failures.lines:  # not the error's JSON: what is read is the matrix
            click.echo(line, err=True)
        sys.exit(BrokenReleasesError.exit_code if failures.lines else 0)
    names = ("release", "arch", "variant", "from", "base", "platform", "runner")
    table = [names, *(tuple(str(row[name]) for name in names) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
    failures.check()


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; eval it in the shell's start-up file."""
    from click.shell_completion import get_completion_class

    from fp4forge.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "build.py", "_BUILD_PY_COMPLETE").source())
