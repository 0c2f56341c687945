"""Commands about servers that run on this machine: status, logs, stop, restart, upgrade."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp4forge.cli.options import json_option, trust_options
from fp4forge.core import reading
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import ServingError, UsageError

if TYPE_CHECKING:
    from fp4forge.launch.deployment import Deployment
    from fp4forge.launch.phases import StartTracker

_NAME = click.argument("name", required=False)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=30,
    show_default=True,
    help="Minutes until the server must be ready.",
)
smoke_option = click.option("--no-smoke", is_flag=True, help="Ask the ready server no question.")


def reached_address(listen: str) -> str:
    """The address at which this machine reaches a server that listens there."""
    return "127.0.0.1" if listen == "0.0.0.0" else f"[{listen}]" if ":" in listen else listen  # noqa: S104


def bring_up(
    made: Deployment,
    console: Console,
    seconds: float,
    *,
    smoke: bool,
    as_json: bool,
    show: bool = True,
) -> None:
    """Starts it, waits, asks; prints how to use it (if ``show``), or the doctor's report."""
    from fp4forge.core.platform import host_platform
    from fp4forge.launch import starting
    from fp4forge.oci import engine

    client = engine.connect()
    with console.step("pull") as step:
        step.detail = engine.have(client, made.image, host_platform(), step.report)
    start = _start_several if made.servers else _start_one
    try:
        done, why, container = start(made, console, seconds)
        for index, model in enumerate(made.models):
            if smoke and not why and (why := _smoke(made, model, console)):
                container = made.containers[index]
    except KeyboardInterrupt as error:
        error.add_note(_interrupted(made))
        raise
    if why:
        with console.step("doctor"):
            failed = starting.failed(made, why, container)
        if as_json:
            print_json({"failed": why} | failed.data)
            sys.exit(failed.error.exit_code)
        print_rows(failed.rows)
        raise failed.error
    done.save()
    if show:
        _show_deployment(done, as_json)


def _start_one(made: Deployment, console: Console, seconds: float) -> tuple[Deployment, str, str]:
    """The deployment with the times of its start, why it does not answer, and which container."""
    import msgspec

    from fp4forge.launch import starting
    from fp4forge.launch.phases import StartTracker

    tracker = StartTracker(made.weights, made.seconds)
    with console.step("start") as step:
        starting.start(made, step.report)
        step.detail = made.name
    why = _follow("ready", made.name, partial(_answers, made), tracker, seconds, console)
    return msgspec.structs.replace(made, seconds=tracker.seconds), why, made.name


def _start_several(
    made: Deployment, console: Console, seconds: float
) -> tuple[Deployment, str, str]:
    """The same for several servers: each starts when the one before it answers, the gateway last.

    Raises:
        ServingError: the gateway does not answer.
    """
    import msgspec

    from fp4forge.launch import starting
    from fp4forge.launch.phases import StartTracker

    with console.step("create") as step:
        starting.create(made, step.report)
        step.detail = made.name
    done = []
    for server in made.servers:
        tracker = StartTracker(server.weights, server.seconds)
        starting.start(made, lambda line: None, server.service)
        ready = partial(starting.healthy, server.container)
        why = _follow(server.served_name, server.container, ready, tracker, seconds, console)
        if why:
            return made, why, server.container
        done.append(msgspec.structs.replace(server, seconds=tracker.seconds))
    starting.start(made, lambda line: None, *made.last_services)
    ready = partial(_answers, made)
    if why := _follow("gateway", made.gateway, ready, StartTracker(), seconds, console):
        raise starting.gateway_failed(made, why)
    return msgspec.structs.replace(made, servers=done), "", ""


def _answers(made: Deployment) -> bool:
    from fp4forge.serve import client

    return not client.unreachable(made.url, 2, made.health)


def _follow(
    title: str,
    container: str,
    ready: Callable[[], bool],
    tracker: StartTracker,
    seconds: float,
    console: Console,
) -> str:
    """Shows a start until the container answers; why it does not, or nothing."""
    from fp4forge.launch import starting

    with console.step(title) as step:
        why = starting.wait(container, ready, tracker, seconds, step.report)
        step.detail = why or tracker.summary()
        step.verdict = "failed" if why else "ok"
    return why


def _interrupted(made: Deployment) -> str:
    """Stops the server or leaves it, as the user wishes."""
    try:
        stop = sys.stdin.isatty() and click.confirm("\nStop the server?", err=True)
    except click.Abort:
        stop = False
    if stop:
        made.run("down", seconds=120)
        return f"{made.name} was stopped"
    if made.servers:
        return (
            f"{made.name} was not started as a whole: build.py serve restart {made.name} starts it"
            f" anew, serve stop {made.name} stops it"
        )
    return f"{made.name} is still starting: build.py serve logs {made.name} shows it"


def _smoke(made: Deployment, model: str, console: Console) -> str:
    """What is wrong with a model's answer; empty if it is right."""
    from fp4forge.core.text import shown
    from fp4forge.serve import client

    _log_in(made)
    with console.step(f"smoke {model}" if made.servers else "smoke") as step:
        answer = client.paris(made.url, model=model if made.servers else "")
        step.detail = shown(answer.text or answer.reasoning or answer.problem, 120)
        if not answer.ok:
            step.verdict = "failed"
            said = answer.problem or f"it does not know France's capital: {step.detail!r}"
            return f"{model}: {said}" if made.servers else said
    return ""


def _log_in(made: Deployment) -> None:
    """Has this process ask with the server's own key."""
    if made.key_file and reading.is_file(Path(made.key_file)):
        os.environ["OPENAI_API_KEY"] = reading.text(Path(made.key_file), UsageError, 4096).strip()


def _show_deployment(made: Deployment, as_json: bool) -> None:
    import msgspec

    if as_json:
        print_json(msgspec.to_builtins(made))
        return
    key = f' -H "Authorization: Bearer $(cat {made.key_file})"' if made.key_file else ""
    body = (
        f'{{"model": "{made.served_name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    )
    rows = [
        ("server", f"{made.name} at {made.url}"),
        ("image", made.image),
        (
            "ask",
            f"curl {made.url}/v1/chat/completions{key} -H 'Content-Type: application/json'"
            f" -d '{body}'",
        ),
        ("key", made.key_file or "none is asked for"),
        *([("models", ", ".join(made.models))] if made.servers else []),
        *(
            ("expect" + f" {model}" * bool(made.servers), _rate(expected))
            for model, expected in zip(made.models, made.rates, strict=True)
        ),
        *_watched(made),
        ("files", str(made.folder)),
        ("stop", f"build.py serve stop {made.name}"),
    ]
    print_rows(rows)


def _rate(expected: float) -> str:
    if not expected:
        return "unknown"
    return f"at most {expected:.0f} tokens a second for one stream, by the memory's bandwidth"


def _watched(made: Deployment) -> list[tuple[str, str]]:
    """How to see what Prometheus and Grafana know of a server."""
    from fp4forge.serve import monitoring

    if not made.monitoring:
        return []
    password = monitoring.password_file(made.folder, made.name)
    return [
        ("dashboard", f"{monitoring.GRAFANA}, user admin, password in {password}"),
        ("alerts", f"{monitoring.PROMETHEUS}/alerts"),
    ]


def state(made: Deployment) -> str:
    """The container's state; ``gone`` if there is none, ``partial`` if several differ."""
    from docker.errors import NotFound

    from fp4forge.oci import engine

    found = set()
    for name in made.containers:
        try:
            found.add(str(engine.connect().containers.get(name).status))
        except NotFound:
            found.add("gone")
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

    from fp4forge.cli.compose import checked_image
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
    _log_in(made)
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
