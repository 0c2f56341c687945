"""Commands about serving: doctor, quality and smoke here; compose, fit and up have own files."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fp4forge.cli import servers
from fp4forge.cli.cluster import cluster
from fp4forge.cli.compose import compose
from fp4forge.cli.fit import fit
from fp4forge.cli.options import CommandGroup
from fp4forge.cli.up import up
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import ServingError, UsageError

_JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
_URL = click.option(
    "--url",
    required=True,
    help="The server's root, such as http://127.0.0.1:8000; OPENAI_API_KEY is its key, if it"
    " wants one.",
)


@click.group(cls=CommandGroup)
def serve() -> None:
    """Run, configure, size and diagnose a server."""


for command in (up, *servers.COMMANDS, cluster, compose, fit):
    serve.add_command(command)


@serve.command()
@click.option("--container", help="A container of this engine, running or not.")
@click.option(
    "--inspect",
    "inspection",
    type=click.Path(path_type=Path, exists=True),
    help="Saved JSON of docker inspect or podman inspect, or kubectl describe pod.",
)
@click.option("--compose", "compose_file", type=click.Path(path_type=Path, exists=True))
@click.option("--url", help="A live server; OPENAI_API_KEY is its key, if it wants one.")
@click.option("--logs", type=click.Path(path_type=Path, exists=True), help="A saved log.")
@click.option(
    "--nvidia-smi",
    "smi",
    type=click.Path(path_type=Path, exists=True),
    help="What nvidia-smi printed: its table, -q, -x, or CSV.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A bundle to read; with other evidence, the bundle to write from it.",
)
@click.option(
    "--soak",
    type=click.FloatRange(0.01, 10_080),
    is_flag=False,
    flag_value=60.0,
    metavar="[MINUTES]",
    help="Keep asking a live server for this long (an hour by default), to find what fails only"
    " after a while. Ctrl-C ends it with the verdict so far.",
)
@click.option("--quick", is_flag=True, help="Ask a live server for France's capital alone.")
@_JSON
def doctor(
    as_json: bool, bundle: Path | None, soak: float | None, quick: bool, **given: Any
) -> None:
    """Find what is wrong with a server, from its container, compose file, log or URL.

    A live server is asked for France's capital, a tool call (at once and as a stream) and a number
    hidden in 8,192 and 32,768 tokens, as far as its context goes; its metrics are read.

    Exit code 0 if the server is healthy, 20 if it is ill (each finding has its cause), 26 if the
    evidence shows neither.
    """
    from fp4forge.core.text import shown
    from fp4forge.doctor import evidence_bundle, gather, report
    from fp4forge.doctor import examine as doctors

    handed = gather.EvidenceSources(**given)
    if not bundle and not handed.anything:
        raise UsageError(
            "what to examine? nothing is given",
            rule="--container, --inspect, --compose, --url, --logs or --bundle",
        )
    if bundle and not handed.anything and not handed.smi:
        found = evidence_bundle.read(bundle)
    else:
        if soak and not (handed.url or handed.container):
            raise UsageError("--soak asks a live server", rule="--soak with --url or --container")
        found = _ask_live_server(handed, soak, quick)
        if bundle:
            evidence_bundle.write(bundle, handed, found)
            click.echo(f"bundle: {shown(bundle, 300)}", err=True)
    findings = doctors.examine(found)
    verdict = doctors.judge(found, findings)
    if as_json:
        print_json(report.data(found, findings, verdict))
    else:
        print_rows(report.rows(found, findings, verdict))
    if failure := report.failure(findings, verdict):
        if as_json:
            sys.exit(failure.exit_code)
        raise failure


def _ask_live_server(handed: Any, minutes: float | None, quick: bool) -> Any:
    """The evidence; a live server is asked more, unless ``quick``, and for some minutes."""
    from fp4forge.doctor import gather, live

    if not (handed.url or handed.container):
        return gather.evidence(handed)
    console = Console()
    with console.step("ask") as step:
        step.report("health, and France's capital")
        found = gather.evidence(handed)
        if found.live and found.answered and not quick:
            live.more(found.live, found.url, step.report)
    if found.live and found.answered and minutes:
        with console.step("soak") as step:
            live.soak(found.live, found.url, minutes * 60, step.report)
            step.detail = step.note if step.note == "interrupted" else ""
    return found


@serve.command()
@_URL
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["text", "vision", "reasoning", "tool"]),
    help="Kinds of prompts; all by default.",
)
@click.option("--stream", is_flag=True, help="Stream the answers.")
@click.option("--timeout", type=click.FloatRange(1, 3600), default=120, show_default=True)
@_JSON
def quality(url: str, only: tuple[str, ...], stream: bool, timeout: float, as_json: bool) -> None:
    """Ask the reference card's prompts and check the answers."""
    _ask_url(url, as_json, timeout, stream, kinds=only or ("text", "vision", "reasoning", "tool"))


@serve.command()
@_URL
@click.option("--timeout", type=click.FloatRange(1, 3600), default=120, show_default=True)
@_JSON
def smoke(url: str, timeout: float, as_json: bool) -> None:
    """Ask the first of the prompts: does the server know France's capital?"""
    _ask_url(url, as_json, timeout, False, names=("capital",))


def _ask_url(url: str, as_json: bool, timeout: float, stream: bool, **chosen: Any) -> None:
    from fp4forge.serve import client
    from fp4forge.serve import quality as questions

    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {url!r}", rule="http://HOST:PORT or https://HOST")
    if reason := client.unreachable(url):
        raise ServingError(
            f"no server answers at {url}: {reason}",
            rule="GET /health",
            remedy="build.py serve doctor --container NAME says why",
        )
    console = Console()
    with console.step("ask") as step:
        asked = questions.examine(url, step.report, stream=stream, timeout=timeout, **chosen)
        verdicts = list(asked)
        outcomes = [v.outcome for v in verdicts]
        step.detail = f"{outcomes.count('ok')} of {len(outcomes)} answers are right"
        if unjudged := outcomes.count("not judged"):
            step.detail += f", {unjudged} not judged"
    if as_json:
        print_json([asdict(v) for v in verdicts])
    else:
        print_rows(
            [
                (f"{v.outcome}: {v.name}", v.answer[:300] + (f"\n{v.problem}" if v.problem else ""))
                for v in verdicts
            ]
        )
    wrong = [f"{v.name}: {v.problem}" for v in verdicts if v.outcome == "wrong"]
    if wrong and as_json:
        sys.exit(ServingError.exit_code)
    if wrong:
        raise ServingError(
            "\n".join(wrong),
            rule="the reference card's answers at temperature 0",
            remedy="build.py serve doctor finds the cause",
        )
