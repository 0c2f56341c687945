"""Commands about releases: add, follow, switches, list, show, remove, diff, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fp4forge.cli import checkout
from fp4forge.cli.options import CommandGroup, registry_option, repo_option, resolve_registry
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.text import block
from fp4forge.inputs import defaults, patches, policy
from fp4forge.inputs import release as releases


@click.group(cls=CommandGroup)
def release() -> None:
    """Add, list, show, compare and remove releases of vLLM."""


@release.command()
@click.argument("version")
@click.option("--dry-run", is_flag=True, help="Print the release file and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@checkout.required
def add(version: str, dry_run: bool, as_json: bool) -> None:
    """Add vLLM VERSION (or newest): pins, CMake rules, patches and locks from its own files.

    The report lists what was found and what a person must still write. Variants that wait for
    a patch cannot be built; plain can.
    """
    from fp4forge.cli.files import generate
    from fp4forge.maintain import adding, index

    console = Console()
    with console.step("find") as step:
        version = index.newest() if version == "newest" else version
        found = adding.draft(version, step.report)
        step.detail = f"vLLM {version}: {found.report.found['cuda']}"
    report = found.report
    if dry_run:
        if not as_json:
            click.echo(found.text)
    else:
        with console.step("write") as step:
            report = adding.write(found, step.report)
            generate()
            step.detail = f"{len(report.written)} files"
    if as_json:
        print_json(report.as_json())
        return
    print_rows(
        [
            *((name, _value_text(value)) for name, value in report.found.items()),
            *((f"patch {name}", state) for name, state in report.patches.items()),
        ]
    )
    for line in report.person:
        click.echo(f"for a person: {line}")
    if not dry_run:
        built = ", ".join(patches.load("vllm", version).variants)
        click.echo(f"can be built: {built}; build.py --release {version} --from wheel --arch sm121")


@release.command()
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the text of a pull request, in Markdown; written only if there is news.",
)
@click.option("--no-build", is_flag=True, help="Add the release; build no image of it.")
@registry_option
@repo_option
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@checkout.required
def follow(report: Path | None, no_build: bool, as_json: bool, **o: Any) -> None:
    """Add the newest vLLM if it is not here, build its images, and report what changes."""
    from fp4forge.cli.files import generate
    from fp4forge.core import files
    from fp4forge.maintain import adding, following, index
    from fp4forge.maintain import releases as kept

    console = Console()
    with console.step("find") as step:
        version, old = index.newest(), releases.names()[-1]
        step.detail = f"vLLM {version}"
    if version in releases.names():
        click.echo(f"vLLM {version} is the newest, and it is here", err=as_json)
        if as_json:
            print_json({"version": version, "new": False})
        return
    with console.step("add") as step:
        added = adding.write(adding.draft(version, step.report), step.report)
        generate()
        step.detail = f"{len(added.written)} files, {len(added.person)} things for a person"
    usual = defaults.table().image
    waits = patches.load("vllm", version).conflicts
    built = [] if no_build else [_built_image(version, v, o, console) for v in _variants(version)]
    found = following.kernels(old, version, usual.arch, usual.base)
    found += kept.differences(old, version)
    notes = [f"awq waits for {conflict.id}: {conflict.why}" for conflict in waits]
    text = following.markdown(added, old, found, built, notes)
    if report:
        files.replace(report, text)
    if as_json:
        print_json({"version": version, "new": True} | added.as_json() | {"built": built})
    elif not report:
        click.echo(text)


def _variants(version: str) -> list[str]:
    """Plain first: it shows whether upstream's own packages make an image."""
    return sorted(patches.load("vllm", version).variants, key=lambda name: name != "plain")


def _built_image(version: str, variant: str, o: dict[str, Any], console: Console) -> dict[str, Any]:
    """What became of an image, as JSON; a failure is reported and does not stop the others."""
    from dataclasses import asdict

    from fp4forge.core.errors import ForgeError
    from fp4forge.oci import reference
    from fp4forge.oci.buildkit import BuildOptions
    from fp4forge.plan.request import ImageRequest
    from fp4forge.publish import destination, pipeline

    usual = defaults.table().image
    registry = resolve_registry(o["registry"])
    repository = reference.repository(registry, o["repo"])
    where = destination.checked(repository, bool(registry), not registry, ())
    request = ImageRequest(
        usual.arch, version, variant=variant, strategy="wheel", base=usual.base, aot="none"
    )
    try:
        return asdict(pipeline.run(request, where, BuildOptions(), console))
    except ForgeError as error:
        console.say(f"  {variant} was not built: {error.message}")
        return error.as_json() | {"variant": variant}


@release.command()
@click.argument("version")
@click.option("--check", is_flag=True, help="Write nothing; exit code 15 if the file would change.")
@checkout.required
def switches(version: str, check: bool) -> None:
    """Read from the sources which flags, variables, parsers and models vLLM VERSION knows."""
    from fp4forge.inputs.release import check_version
    from fp4forge.maintain import read_switches as reading
    from fp4forge.maintain import sources

    check_version(version)
    console = Console()
    with console.step("switches") as step:
        found = reading.extract(sources.source_tree(version))
        reading.write(version, found, check)
        counted = ", ".join(f"{len(names)} {kind}" for kind, names in found.items())
        step.detail = f"releases/switches/{version}.json: {counted.replace('_', ' ')}"


@release.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_(as_json: bool) -> None:
    """List the releases, oldest first."""
    rows = [_release_summary(name) for name in releases.names()]
    if as_json:
        print_json(rows)
        return
    print_rows(
        (
            row["release"],
            f"vLLM {row['vllm']}, torch {row['torch']}, CUDA {row['cuda']}, transformers"
            f" {row['transformers']}, FlashInfer {row['flashinfer']}; from"
            f" {', '.join(row['strategies'])}; {', '.join(row['variants'])}"
            + ("" if row["supported"] else "; no longer supported"),
        )
        for row in rows
    )


def _release_summary(name: str) -> dict[str, Any]:
    found = releases.load(name)
    return {
        "release": name,
        "supported": name in policy.supported(),
        "vllm": found.vllm_version,
        "torch": found.torch,
        "cuda": found.cuda,
        "transformers": found.transformers,
        "flashinfer": found.flashinfer,
        "resolve_before": found.resolve_before,
        "strategies": list(found.strategies),
        "platforms": list(found.wheels),
        "variants": list(patches.load("vllm", found.vllm_version).variants),
    }


@release.command()
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def show(version: str, as_json: bool) -> None:
    """Show a release: its pins, its patches, and what waits for a person."""
    series = patches.load("vllm", releases.load(version).vllm_version)
    found = _release_summary(version) | {
        "patches": [patch.id for patch in series.patches],
        "already_upstream": [fix.id for fix in series.already_upstream],
        "conflicts": {conflict.id: conflict.why for conflict in series.conflicts},
    }
    if as_json:
        print_json(found)
        return
    print_rows((name, _value_text(value)) for name, value in found.items())


def _value_text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {text}" for name, text in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


@release.command()
@click.argument("version")
@checkout.required
def remove(version: str) -> None:
    """Remove a release: its file, CMake rules, locks, patches and Dockerfiles."""
    from fp4forge.cli.files import generate
    from fp4forge.maintain import releases as kept

    gone = kept.remove(version)
    for name in gone:
        click.echo(f"removed {name}")
    click.echo(generate())


@release.command()
@click.argument("old")
@click.argument("new")
@click.option("--verbose", is_flag=True, help="List every backend and package.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def diff(old: str, new: str, verbose: bool, as_json: bool) -> None:
    """Show what differs between two releases: pins, packages of the locks, patches."""
    from fp4forge.cli import differences
    from fp4forge.maintain import releases as kept

    found = kept.differences(old, new)
    if as_json:
        print_json([dict(zip(("name", "old", "new"), row, strict=True)) for row in found])
        return
    click.echo(block("\n".join(differences.lines(found, verbose)), 1 << 20))


@release.command()
@click.option(
    "--notes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text of release notes: faults whose issues it mentions are listed.",
)
@click.option(
    "--repository",
    default="vllm-project/vllm",
    show_default=True,
    help="Whose notes they are: #123 in them is its own.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def faults(notes: Path | None, repository: str, as_json: bool) -> None:
    """List the doctor's known faults to look at again, because a release may have fixed them."""
    from dataclasses import asdict

    from fp4forge.core import reading
    from fp4forge.core.errors import UsageError
    from fp4forge.maintain import rechecks

    text = reading.text(notes, UsageError) if notes else ""
    found = rechecks.due(text, repository)
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        print_rows((one.id, one.why) for one in found)
    else:
        click.echo("no known fault needs another look")
