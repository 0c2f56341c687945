"""Commands about servers that run on this machine: status, logs, stop, restart, upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fp4forge.cli.bringing_up import bring_up, log_in
from fp4forge.cli.options import json_option, trust_options
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import ServingError, UsageError

if TYPE_CHECKING:
    from fp4forge.launch.deployment import Deployment

_NAME = click.argument("name", required=False)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=30,
    show_default=True,
    help="Minutes until the server must be ready.",
)
smoke_option = click.option("--no-smoke", is_flag=True, help="Ask the ready server no question.")


def state(made: Deployment) -> str:
    """The container's state; ``gone`` if there is none, ``partial`` if several differ."""
    from fp4forge.oci import engine

    running = [engine.find_container(name) for name in made.containers]
    found = {str(one.status) if one else "gone" for one in running}
    return found.pop() if len(found) == 1 else "partial"


@click.command()
@json_option
def status(as_json: bool) -> None:
    """List the servers that were started here: state, health, model, image, URL."""
    from fp4forge.launch import deployment
    from fp4forge.serve import client

    rows = []
    for name in deployment.names():
        try:
            made = deployment.load(name)
        except ServingError as error:  # the others are listed
            click.echo(f"{name}: {error.message}; {error.remedy}", err=True)
            continue
        now = state(made)
        health = "" if now != "running" else client.unreachable(made.url, 2, made.health) or "ready"
        rows.append(
            {
                "name": name,
                "state": now,
                "health": health,
                "model": ", ".join(made.models),
                "image": made.image,
                "release": made.release,
                "url": made.url,
                "started": made.started,
            }
        )
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no server was started here; build.py serve up MODEL starts one")
        return
    print_rows(
        (
            row["name"],
            f"{row['state']}{', ' + row['health'] if row['health'] else ''}; {row['model']} at"
            f" {row['url']}, since {row['started']}\n{row['image']}",
        )
        for row in rows
    )


@click.command("logs")
@_NAME
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@click.option("--tail", type=click.IntRange(0), default=100, show_default=True, help="Lines.")
def logs(name: str | None, follow: bool, tail: int) -> None:
    """Print what a server logged."""
    from fp4forge.core.text import shown
    from fp4forge.launch import deployment
    from fp4forge.oci import dockercli, process

    made = deployment.load(name)
    if state(made) == "gone":
        raise ServingError(
            f"{made.name} has no container any more", remedy=f"build.py serve restart {made.name}"
        )
    words = ["logs", "--tail", str(tail), *(["--follow"] if follow else [])]
    # Of several servers, each line begins with its container's name.
    line = made.compose(*words) if made.servers else dockercli.line(*words, made.name)
    silence = 10**9 if follow else 60
    process.follow(line, lambda text: click.echo(shown(text.rstrip("\n"))), silence)


@click.command()
@_NAME
@click.option("--forget", is_flag=True, help="Remove its files and its cache too.")
def stop(name: str | None, forget: bool) -> None:
    """Stop a server; its files and its cache of compiled kernels stay."""
    from fp4forge.launch import deployment

    made = deployment.load(name)
    console = Console()
    with console.step("stop") as step:
        made.run("down", *(["--volumes"] if forget else []), seconds=300)
        step.detail = made.name
    if forget:
        made.remove()


@click.command()
@_NAME
@timeout_option
@smoke_option
@json_option
def restart(name: str | None, timeout: float, no_smoke: bool, as_json: bool) -> None:
    """Restart a server from its files, and wait for its answer."""
    from fp4forge.launch import deployment

    made = deployment.load(name)
    bring_up(made, Console(), timeout * 60, smoke=not no_smoke, as_json=as_json)


@click.command()
@_NAME
@click.option("--image", required=True, help="The new image.")
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=60,
    show_default=True,
    help="Seconds to wait for requests in flight.",
)
@trust_options
@timeout_option
@smoke_option
@json_option
def upgrade(
    name: str | None,
    image: str,
    drain: float,
    timeout: float,
    no_smoke: bool,
    as_json: bool,
    **demanded: str | None,
) -> None:
    """Serve the same model with another image; go back to the old one if that does not answer."""
    import msgspec

    from fp4forge.cli.wanted_server import checked_image
    from fp4forge.core.platform import host_platform
    from fp4forge.launch import deployment, upgrading
    from fp4forge.oci import engine

    made = deployment.load(name)
    if made.servers:
        raise UsageError(
            f"{made.name} has {len(made.servers)} servers",
            rule="upgrade replaces the image of one server",
            remedy=f"build.py serve stop {made.name}; then serve up with the new --image",
        )
    console = Console()
    new = msgspec.structs.replace(made, image=checked_image(image, demanded), seconds={})
    if new.image == made.image:
        raise UsageError(
            f"{made.name} runs {made.image} already", rule="upgrade takes another image"
        )
    with console.step("pull") as step:  # before the old server goes
        step.detail = engine.have(engine.connect(), new.image, host_platform(), step.report)
    log_in(made)
    with console.step("drain") as step:
        step.detail = upgrading.drain(made, drain, step.report)
    upgrading.switch(made, new)
    try:
        bring_up(new, console, timeout * 60, smoke=not no_smoke, as_json=as_json)
    except BaseException:
        console.say(f"  back  {made.name} returns to {made.image}")
        upgrading.switch(new, made)
        bring_up(made, console, timeout * 60, smoke=not no_smoke, as_json=False, show=False)
        raise


COMMANDS = (status, logs, stop, restart, upgrade)
