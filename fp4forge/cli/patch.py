"""Commands about patches: list, show, check, refresh, drift."""

from __future__ import annotations

import sys

import click

from fp4forge.cli import checkout
from fp4forge.cli.options import CommandGroup
from fp4forge.core.console import Console, fields, print_json, rich, table
from fp4forge.core.errors import DriftError, PatchError, UsageError
from fp4forge.core.text import block
from fp4forge.inputs import patches as series
from fp4forge.maintain import index, patching

_COLOURS = {patching.DRIFTED: "red", patching.UPSTREAM: "yellow", patching.OFFSET: "cyan"}


@click.group(cls=CommandGroup)
def patch() -> None:
    """List, show, check and rebase the patches to vLLM."""


def _vllm_versions(vllm: str | None) -> tuple[str, ...]:
    known = series.versions("vllm")
    if vllm is not None and vllm not in known:
        raise UsageError(f"--vllm {vllm!r} has no series", rule="one of " + ", ".join(known))
    return (vllm,) if vllm else known


@patch.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_(as_json: bool) -> None:
    """List all patches: what each does, for which vLLM, and which vLLM fixed it."""
    loaded = {version: series.load("vllm", version) for version in series.versions("vllm")}
    if as_json:
        print_json({v: [s.instructions(p) for p in s.patches] for v, s in loaded.items()})
        return
    by_name: dict[str, dict[str, series.Patch]] = {}
    for version, sequence in loaded.items():
        for p in sequence.patches:
            by_name.setdefault(p.id, {})[version] = p
    rows = []
    for name, found in by_name.items():
        p = next(iter(found.values()))
        fixed = f"; fixed in {p.fixed_in}" if p.fixed_in else ""
        rows.append((name, f"{p.title} ({p.tier}, for {', '.join(found)}{fixed})"))
    click.echo(block("\n".join(fields(rows, max(len(name) for name, _ in rows) + 2))))


@patch.command()
@click.argument("name")
@click.option("--vllm", help="Version of vLLM; by default the newest that has the patch.")
def show(name: str, vllm: str | None) -> None:
    """Show one patch: its record and its diff."""
    for version in reversed(_vllm_versions(vllm)):
        sequence = series.load("vllm", version)
        for p in sequence.patches:
            if p.id == name:
                click.echo(f"{p.id} for vLLM {version} ({p.tier}; {', '.join(p.variants)})")
                click.echo(f"  {p.title}\n  why: {p.why}\n  upstream: {p.upstream}")
                click.echo(f"  fixed in: {p.fixed_in or 'none'}\n  proof: {p.proof}")
                for path, hashes in p.files.items():
                    click.echo(f"  {path} {hashes.before[:12]} -> {hashes.after[:12]}")
                diff = sequence.diff(p)
                click.echo("\n" + block(diff, len(diff)), nl=False)
                return
    raise UsageError(
        f"patch {name!r} does not exist" + (f" for vLLM {vllm}" if vllm else ""),
        remedy="build.py patch list",
    )


@patch.command()
@click.option("--vllm", help="One version of vLLM; by default all that have a series.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def check(vllm: str | None, as_json: bool) -> None:
    """Check each patch against its pinned source; fail if one does not apply or is not needed."""
    found = {version: patching.check(version) for version in _vllm_versions(vllm)}
    _print_states(found, as_json)
    bad = []
    for version, states in found.items():
        upstream = {fix.id for fix in series.load("vllm", version).already_upstream}
        for state in states:
            wanted = patching.UPSTREAM if state.id in upstream else patching.APPLIES
            if state.state != wanted:
                bad.append(f"{version}: {state.id}: {state.detail}")
    if bad:
        if as_json:
            sys.exit(PatchError.exit_code)
        raise PatchError(
            "patches that do not fit their source:\n  " + "\n  ".join(bad),
            remedy="build.py patch refresh rebases; drop what upstream has",
        )


@patch.command()
@click.option("--vllm", help="One version of vLLM; by default all that have a series.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@checkout.required
def refresh(vllm: str | None, as_json: bool) -> None:
    """Rebase patches that apply with offsets and record all hashes again; never with fuzz."""
    _print_states({version: patching.refresh(version) for version in _vllm_versions(vllm)}, as_json)


@patch.command()
@click.option("--vllm", required=True, help="Any version of vLLM on the package index, or newest.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.option("--merge", is_flag=True, help="Print the conflicts as three-way diffs.")
def drift(vllm: str, as_json: bool, merge: bool) -> None:
    """Show what moving to another version of vLLM would need; exit 15 if patches conflict."""
    console = Console()
    with console.step("source") as step:
        step.report(f"vLLM {vllm}'s sdist")
        vllm = index.newest() if vllm == "newest" else vllm
        step.detail = f"vLLM {vllm}"
        states = patching.drift(vllm)
    _print_states({vllm: states}, as_json)
    if merge and not as_json:
        for state in states:
            if state.merge:
                click.echo(f"\n==== {state.id}\n{block(state.merge, 1 << 20)}")
    bad = [s.id for s in states if s.state == patching.DRIFTED]
    if bad:
        if as_json:
            sys.exit(DriftError.exit_code)
        raise DriftError(
            f"{len(bad)} of {len(states)} patches conflict with vLLM {vllm}: {', '.join(bad)}",
            remedy="--merge shows each conflict; nothing was changed",
        )


def _print_states(found: dict[str, list[patching.PatchState]], as_json: bool) -> None:
    if as_json:
        print_json({version: [s.as_json() for s in states] for version, states in found.items()})
        return
    rows = [[version, s.id, s.state, s.detail] for version, states in found.items() for s in states]
    _patch_rows(["vLLM", "patch", "state", "detail"], rows)


def _patch_rows(head: list[str], rows: list[list[str]]) -> None:
    from rich.text import Text

    cells = ([Text(cell, style=_COLOURS.get(cell, "")) for cell in row] for row in rows)
    rich().print(table(head, cells, whole=("patch",)))
