"""Commands about a model's checkpoint: inspect and fetch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from fp4forge.cli.options import CommandGroup
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import CheckpointError


@click.group(cls=CommandGroup)
def checkpoint() -> None:
    """Inspect a model's checkpoint before serving it."""


@checkpoint.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--release", help="Release to serve it with; by default that of `serve compose`.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def inspect(folder: Path, release: str | None, as_json: bool) -> None:
    """Report whether the checkpoint in FOLDER can be served, with which flags and patches."""
    from fp4forge.checkpoint import inspect as inspecting

    console = Console()
    with console.step("inspect") as step:
        found = inspecting.inspect(folder, step.report, release)
        step.detail = f"{found.quantised_modules} quantised modules"
    if as_json:
        print_json(asdict(found))
    else:
        print_rows(inspecting.as_rows(found, lambda size: f"{size / 1e9:.2f} GB"))
    if not found.servable and as_json:
        sys.exit(CheckpointError.exit_code)
    if not found.servable:
        bad = [f.id for f in found.findings if f.severity == inspecting.ERROR]
        raise CheckpointError(
            f"{folder} cannot be served as it is: {', '.join(bad)}",
            rule="an image serves what its loader fills completely",
            remedy="each finding above says what to do",
        )


@checkpoint.command()
@click.argument("repository")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to download to.",
)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def fetch(repository: str, folder: Path, revision: str, as_json: bool) -> None:
    """Download REPOSITORY (OWNER/NAME) from a Hugging Face hub; resume, and check every hash."""
    from fp4forge.checkpoint import fetch as fetching

    console = Console()
    with console.step("fetch") as step:
        commit = fetching.fetch(repository, folder, revision, step.report)
        step.detail = f"{repository} at {commit[:12]}"
    if as_json:
        print_json({"repository": repository, "commit": commit, "folder": str(folder)})
