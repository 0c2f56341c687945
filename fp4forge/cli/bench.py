"""The commands that measure a server, and compare what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fp4forge.cli import results_shown
from fp4forge.cli.bench_images import images
from fp4forge.cli.options import CommandGroup, Function, json_option, runs_itself
from fp4forge.core.errors import RegressionError, UsageError

_PATH = click.Path(path_type=Path, exists=True)

_SERVER = (
    click.option("--url", help="The server's root, such as http://127.0.0.1:8000"),
    click.option(
        "--out", type=click.Path(path_type=Path), help="Folder; one with a run resumes it."
    ),
    click.option(
        "--image", help="Image whose vllm bench serve sends the load; by default the server's."
    ),
    click.option(
        "--container", help="The server's container; by default the one with the URL's port."
    ),
    click.option(
        "--network", default="host", show_default=True, help="Docker network of the client."
    ),
    click.option("--model", help="By default the first that the server lists."),
    click.option(
        "--allow-empty", is_flag=True, help="Accept answers without text (random weights)."
    ),
    json_option,
)


def _server_options(function: Function) -> Function:
    """Options that say which server is measured, and with what."""
    for option in reversed(_SERVER):
        function = option(function)
    return function


@click.group(cls=CommandGroup, invoke_without_command=True)
@_server_options
@click.option(
    "--suite",
    default="quick",
    show_default=True,
    metavar="NAME|FILE",
    help="card, quick, regression, or a YAML file.",
)
@click.option("--only", multiple=True, metavar="TABLE", help="Only these tables of the suite.")
@click.option("--max-context", type=click.IntRange(1), help="Leave out points with more tokens.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The model's folder: its hash is kept, and the roofline drawn with --gpu.",
)
@click.option("--gpu", help="GPU of the roofline, as serve fit names them.")
@click.pass_context
def bench(ctx: click.Context, /, **options: Any) -> None:
    """Measure a server: throughput, latency, and what the reference card's tables show.

    Sends its load with vllm bench serve, in a container of --image. Exit code 24 if any request
    failed, was cut, empty or shorter than asked.
    """
    if runs_itself(ctx):
        result = _measure_suite(**options)
        results_shown.refuse_faults(result, options["as_json"])


def _measure_suite(
    as_json: bool, out: Path | None, hours: float = 0, only: tuple[str, ...] = (), **options: Any
) -> Any:
    """Runs a suite and shows its result; a run of some hours checks answers on the way."""
    from fp4forge.bench import opening, tables
    from fp4forge.bench import suite as suites
    from fp4forge.bench.server import checked_url
    from fp4forge.core.console import Console, print_json

    url = checked_url(options.pop("url") or "")
    suite = suites.load(options.pop("suite"), only)
    folder = out or _result_folder(suite.name)
    given = {name: value for name, value in options.items() if value is not None}
    console = Console()
    with console.step("bench") as step, results_shown.hold_result_folder(folder):
        runner = opening.start(
            opening.BenchRequest(url=url, suite=suite, folder=folder, **given), step.report
        )
        if hours:
            _begin_soak(runner, hours)
        try:
            runner.run()
        except KeyboardInterrupt as stopped:
            stopped.add_note(f"what was measured is kept; --out {folder} resumes it")
            raise
        finally:
            if runner.result.tables:
                results_shown.write_report(runner.result, folder)
        step.detail = f"{len(tables.tables(runner.result))} tables in {folder}"
    if as_json:
        print_json(tables.as_data(runner.result))
    else:
        results_shown.show_result(runner.result)
    return runner.result


def _begin_soak(runner: Any, hours: float) -> None:
    import time

    from fp4forge.bench import soak

    checks = soak.SoakChecks(runner.server)
    runner.report("asking what the model knows")
    checks.begin(soak.questions(runner.suite.suite.seed))
    for name, why in checks.left_out.items():
        runner.result.left_out[f"question {name}"] = f"wrong before any load: {why}"
    runner.between, runner.until = checks.problems, time.monotonic() + hours * 3600


def _result_folder(suite: str) -> Path:
    """A folder of its own for each run."""
    from datetime import UTC, datetime

    from fp4forge.core.paths import STATE

    return STATE / "bench" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{suite}"


bench.add_command(images)


@bench.command("soak")
@_server_options
@click.option("--hours", type=click.FloatRange(0.001, 1000), required=True)
def soak_(hours: float, as_json: bool, **options: Any) -> None:
    """Load a server for hours, check its answers each minute, and look for drift.

    Exit code 23 if it became slower, 24 if a request failed or an answer became wrong.
    """
    from fp4forge.bench import soak

    result = _measure_suite(as_json=as_json, suite="soak", hours=hours, **options)
    results_shown.refuse_faults(result, as_json)
    worse = list(soak.drifts(result))
    if worse and as_json:
        sys.exit(RegressionError.exit_code)
    if worse:
        raise RegressionError(
            "\n".join(worse),
            rule="the last third of the trials is as fast as the first",
            remedy="the server's log, its preemptions and its KV cache (result.json) say more",
        )


@bench.command()
@click.argument("result", type=_PATH)
@json_option
def show(result: Path, as_json: bool) -> None:
    """Show a result again, and rewrite its page."""
    from fp4forge.bench import result as results
    from fp4forge.bench import tables
    from fp4forge.core.console import print_json

    found = results.load(result)
    results_shown.write_report(found, result if result.is_dir() else result.parent)
    if as_json:
        print_json(tables.as_data(found))
    else:
        results_shown.show_result(found)
    results_shown.refuse_faults(found, as_json)


@bench.command()
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH, required=False)
@click.option("--card", is_flag=True, help="Show the reference card's figures too.")
@click.option(
    "--threshold",
    type=click.FloatRange(0.001, 0.9),
    help="A difference beyond it is a regression; by default the suite's.",
)
@json_option
def compare(
    old: Path, new: Path | None, card: bool, threshold: float | None, as_json: bool
) -> None:
    """Compare two results, or one with the reference card's figures (--card).

    Exit code 23 if a figure is worse by more than the threshold, with 95 % confidence.
    """
    from dataclasses import asdict

    from fp4forge.bench import compare as comparing
    from fp4forge.bench import result as results
    from fp4forge.core.console import print_json

    if new is None and not card:
        raise UsageError("compare with what?", rule="a second result, or --card")
    first = results.load(old)
    if new is None:
        found = comparing.against_card(first)
        if as_json:
            print_json([asdict(each) for each in found])
        else:
            results_shown.print_ratios(found, "card", "here")
            results_shown.print_caveats()
        return
    results_shown.compare(first, results.load(new), threshold, as_json, card=card)
