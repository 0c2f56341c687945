"""Commands about serving: doctor, quality and smoke here, compose and fit in files of their own."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fp4forge.cli.compose import compose
from fp4forge.cli.fit import fit
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import ServingError, UsageError

_JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
_URL = click.option("--url", required=True, help="The server's root, such as http://127.0.0.1:8000")


@click.group()
def serve() -> None:
    """Configure, size and diagnose a server."""


serve.add_command(compose)
serve.add_command(fit)


@serve.command()
@click.option("--container", help="A container of this engine, running or not.")
@click.option(
    "--inspect",
    "inspection",
    type=click.Path(path_type=Path, exists=True),
    help="Saved JSON of docker inspect.",
)
@click.option("--compose", "compose_file", type=click.Path(path_type=Path, exists=True))
@click.option("--url", help="A live server.")
@click.option("--logs", type=click.Path(path_type=Path, exists=True), help="A saved log.")
@click.option(
    "--nvidia-smi",
    "smi",
    type=click.Path(path_type=Path, exists=True),
    help="Saved CSV of name,compute_cap,driver_version,memory.total.",
)
@_JSON
def doctor(as_json: bool, **given: Any) -> None:
    """Find what is wrong with a server, from its container, compose file, log or URL."""
    from fp4forge.doctor import described, diagnosis, evidence
    from fp4forge.doctor import examine as doctors

    container, inspection, compose_file = (
        given[name] for name in ("container", "inspection", "compose_file")
    )
    url, logs, smi = given["url"], given["logs"], given["smi"]
    if not (container or inspection or compose_file or url or logs):
        raise UsageError(
            "what to examine? nothing is given",
            rule="--container, --inspect, --compose, --url or --logs",
        )
    if container:
        found = described.container(container)
    elif inspection:
        found = described.read_inspect(inspection)
    elif compose_file:
        found = described.from_compose(compose_file)
    else:
        found = evidence.Evidence()
    if logs:
        found.log = evidence.read_log(logs)
        found.sources.append(f"log {logs}")
    if url:
        found.url = url
        found.sources.append(url)
    if smi:
        found.gpus = evidence.gpus(evidence.read_log(smi))
    elif container or url:
        evidence.host(found)
    findings = doctors.examine(found)
    if as_json:
        facts = asdict(diagnosis.read_log(found.log or ""))
        print_json(
            {"examined": found.sources, "log": facts, "findings": [asdict(f) for f in findings]}
        )
    else:
        print_rows(
            [
                (f"{f.severity}: {f.id}", f"{f.evidence}\ncause: {f.cause}\nfix: {f.fix}")
                for f in findings
            ]
            or [("healthy", "nothing wrong was found in " + ", ".join(found.sources))]
        )
    errors = [f.id for f in findings if f.severity == diagnosis.ERROR]
    if errors and as_json:
        sys.exit(ServingError.exit_code)
    if errors:
        raise ServingError(f"wrong: {', '.join(errors)}", remedy="each finding has its fix")


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
    _ask(url, as_json, timeout, stream, kinds=only or ("text", "vision", "reasoning", "tool"))


@serve.command()
@_URL
@click.option("--timeout", type=click.FloatRange(1, 3600), default=120, show_default=True)
@_JSON
def smoke(url: str, timeout: float, as_json: bool) -> None:
    """Ask the first of the prompts: does the server know France's capital?"""
    _ask(url, as_json, timeout, False, names=("capital",))


def _ask(url: str, as_json: bool, timeout: float, stream: bool, **chosen: Any) -> None:
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
