"""Commands about models that run over several machines: status, logs, doctor, stop."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fp4forge.cli.options import json_option
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import TransferError

if TYPE_CHECKING:
    from fp4forge.launch.cluster.lifecycle import Cluster

_NAME = click.argument("name", required=False)


def diagnose(made: Cluster, *, as_json: bool) -> None:
    """Prints the doctor's verdict on each machine, and which of them differ."""
    from fp4forge.launch.cluster import doctor, lifecycle

    texts = {host: "\n".join(lines) for host, lines in lifecycle.tail(made, 2000).items()}
    seen = doctor.look(texts)
    differ = doctor.odd(seen)
    if as_json:
        print_json({"machines": [asdict(one) for one in seen], "odd": differ})
        return
    rows = []
    for one in seen:
        lines = [f"{f.severity}: {f.id}: {f.cause}; fix: {f.fix}" for f in one.findings]
        rows.append((f"{one.host}: {one.verdict}", "\n".join([one.why, *lines, one.alive])))
    rows += [("differs", line) for line in differ]
    print_rows(rows)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """List the clusters that were started from here, with each machine's state."""
    from fp4forge.launch.cluster import lifecycle
    from fp4forge.serve import client

    rows, states = [], {}
    for name in lifecycle.names():
        made = lifecycle.load(name)
        try:
            found = dict(zip(made.hosts, lifecycle.states(made), strict=True))
        except TransferError as error:
            found = {"": error.message}
        health = client.unreachable(made.url, 2) or "ready"
        rows.append({"name": name, "url": made.url, "health": health, "machines": found})
        lines = "\n".join(f"{host}: {state}" for host, state in found.items())
        states[name] = f"{health} at {made.url}\n{lines}"
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("no cluster was started from here")
    else:
        print_rows(states.items())


@click.command()
@_NAME
@click.option("--tail", type=click.IntRange(1), default=100, show_default=True, help="Lines.")
def logs(name: str | None, tail: int) -> None:
    """Print each machine's log, with the machine's name before each line."""
    from fp4forge.launch.cluster import lifecycle

    for host, lines in lifecycle.tail(lifecycle.load(name), tail).items():
        for line in lines:
            click.echo(f"{host}  {line}")


@click.command()
@_NAME
@json_option
def doctor(name: str | None, as_json: bool) -> None:
    """Examine each machine's log, and name the one that differs."""
    from fp4forge.launch.cluster import lifecycle

    diagnose(lifecycle.load(name), as_json=as_json)


@click.command()
@_NAME
@click.option("--forget", is_flag=True, help="Remove the record here too.")
def stop(name: str | None, forget: bool) -> None:
    """Stop the model on every machine."""
    from fp4forge.launch.cluster import lifecycle

    made = lifecycle.load(name)
    console = Console()
    with console.step("stop") as step:
        lifecycle.stop(made)
        step.detail = f"{made.name} on {', '.join(made.hosts)}"
    if forget:
        shutil.rmtree(made.folder, ignore_errors=True)


COMMANDS = (status, logs, doctor, stop)
