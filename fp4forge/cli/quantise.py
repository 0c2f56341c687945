"""The command that makes an NVFP4 checkpoint from BF16 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fp4forge.cli.options import json_option
from fp4forge.core.console import Console, print_json, print_rows


def _batch_option(_: click.Context, __: click.Parameter, value: str) -> int:
    if value == "auto":
        return 0
    if value.isdigit() and 1 <= int(value) <= 4096:
        return int(value)
    raise click.BadParameter("auto, or a number from 1 to 4096")


def _patterns(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    import re

    for value in values:
        if not re.fullmatch(r"[A-Za-z0-9_.*?-]+", value):
            raise click.BadParameter(f"{value!r}: letters, digits, _ . - and the wildcards * ?")
    return values


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    default="nvfp4",
    show_default=True,
    help="nvfp4, w4a16_nvfp4 (weights only), nvfp4_awq (dense models) or mixed (FP8 attention).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The checkpoint's folder.",
)
@click.option("--release", help="ModelOpt's version in releases/quantise; by default the newest.")
@click.option(
    "--calibration",
    default="builtin",
    show_default=True,
    metavar="FILE|builtin",
    help="Text (.txt: documents between empty lines; .jsonl), or the short text that ships.",
)
@click.option(
    "--samples",
    type=click.IntRange(1, 1_000_000),
    help="By default 512, or all of the builtin text.",
)
@click.option(
    "--sequence-length",
    "length",
    type=click.IntRange(8, 1 << 20),
    help="By default 4096; 256 with the builtin text.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--batch",
    default="auto",
    show_default=True,
    callback=_batch_option,
    metavar="auto|N",
    help="Samples at once; auto: as many as fit, by probing memory.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    callback=_patterns,
    help="More modules that stay in BF16, such as '*self_attn*'.",
)
@click.option(
    "--python",
    default="python3",
    show_default=True,
    metavar="PATH",
    help="A Python with ModelOpt, torch and transformers; with --image, the one in it.",
)
@click.option("--image", default="", help="Run in an image with such a Python, without a network.")
@click.option("--report", is_flag=True, help="Compare with BF16 on held-out text.")
@click.option("--allow-cpu", is_flag=True, help="Quantise a large model without a GPU.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan and stop.")
@json_option
def quantise(
    model: Path, kind: str, python: str, image: str, dry_run: bool, as_json: bool, **o: Any
) -> None:
    """Make a checked NVFP4 checkpoint from the BF16 MODEL with ModelOpt; resumes after a kill."""
    from fp4forge.inputs import modelopt
    from fp4forge.quantise import job, model_card
    from fp4forge.quantise.program import PythonPlace

    console = Console()
    chosen = modelopt.load(o.pop("release"))
    asked = job.QuantiseRequest(model=model, format=kind, **o)
    plan = job.plan(asked, chosen, console)
    if dry_run:
        if as_json:
            print_json(plan.as_json())
        else:
            print_rows([(name, _cell_text(value)) for name, value in plan.as_json().items()])
        return
    figures = job.quantise(plan, PythonPlace(python, image), console)
    if as_json:
        print_json(figures)
        return
    found = model_card.rows(figures)
    if errors := figures.get("errors"):
        worst = "\n".join(f"{error:.4f}  {name}" for name, error in model_card.worst(errors))
        found.append(("worst layers", worst))
    if quality := figures.get("quality"):
        found.append(("quality", model_card.judgement(quality)))
    print_rows(found)


def _cell_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
