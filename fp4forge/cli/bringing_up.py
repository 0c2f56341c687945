"""Brings servers of this machine up and shows how to reach them, for up, restart and warm."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp4forge.core import reading
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import UsageError

if TYPE_CHECKING:
    from fp4forge.launch.deployment import Deployment
    from fp4forge.launch.phases import StartTracker
    from fp4forge.serve.settings import ServerSettings


def reached_address(listen: str) -> str:
    """The address at which this machine reaches a server that listens there."""
    return "127.0.0.1" if listen == "0.0.0.0" else f"[{listen}]" if ":" in listen else listen  # noqa: S104


def deployment_of(server: ServerSettings, release: str, **more: Any) -> Deployment:
    """The record of a server that is to start; ``more`` adds fields, or replaces them."""
    from fp4forge.launch.deployment import Deployment

    fields = {
        "name": server.name,
        "model": server.model,
        "served_name": server.served_name,
        "image": server.image,
        "release": release,
        "url": f"http://{reached_address(server.listen)}:{server.port}",
        "key_file": server.key_file,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Deployment(**fields | more)


def bring_up(
    made: Deployment,
    console: Console,
    seconds: float,
    *,
    smoke: bool,
    as_json: bool,
    show: bool = True,
    may_stay: bool = True,
) -> None:
    """Starts it, waits, asks; prints how to use it (if ``show``), or the doctor's report.

    Args:
        made: what starts; its files are written.
        console: shows the steps.
        seconds: how long a start may take.
        smoke: whether each model is asked a question.
        as_json: whether to print JSON.
        show: whether to print how to use it.
        may_stay: whether it may go on if its start is interrupted.
    """
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
        if may_stay:
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

    log_in(made)
    with console.step(f"smoke {model}" if made.servers else "smoke") as step:
        answer = client.paris(made.url, model=model if made.servers else "")
        step.detail = shown(answer.text or answer.reasoning or answer.problem, 120)
        if not answer.ok:
            step.verdict = "failed"
            said = answer.problem or f"it does not know France's capital: {step.detail!r}"
            return f"{model}: {said}" if made.servers else said
    return ""


def log_in(made: Deployment) -> None:
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
        *watched(made),
        ("files", str(made.folder)),
        ("stop", f"build.py serve stop {made.name}"),
    ]
    print_rows(rows)


def _rate(expected: float) -> str:
    if not expected:
        return "unknown"
    return f"at most {expected:.0f} tokens a second for one stream, by the memory's bandwidth"


def watched(made: Deployment) -> list[tuple[str, str]]:
    """How to see what Prometheus and Grafana know of a server."""
    from fp4forge.serve import monitoring

    if not made.monitoring:
        return []
    password = monitoring.password_file(made.folder, made.name)
    return [
        ("dashboard", f"{monitoring.GRAFANA}, user admin, password in {password}"),
        ("alerts", f"{monitoring.PROMETHEUS}/alerts"),
    ]
