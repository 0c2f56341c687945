"""The command that says which GPUs a model needs, and what fits on them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fp4forge.cli.options import json_option, model_option, split_of, split_options
from fp4forge.core.console import print_json, rich, table
from fp4forge.core.errors import FitError
from fp4forge.kernels import gpus as gpu


@click.command()
@model_option
@click.option(
    "--gpu",
    "products",
    multiple=True,
    default=tuple(gpu.PRODUCTS),
    help=f"{', '.join(gpu.PRODUCTS)}; all by default.",
)
@split_options
@click.option("--utilization", type=click.FloatRange(0.1, 0.98), default=0.85, show_default=True)
@click.option(
    "--context",
    type=click.IntRange(1),
    default=65536,
    show_default=True,
    help="Tokens; prints how many sequences of that length fit.",
)
@click.option(
    "--sequences",
    type=click.IntRange(1, 4096),
    default=4,
    show_default=True,
    help="Prints the largest context that fits this many sequences.",
)
@click.option(
    "--kv-cache-dtype",
    default="fp8_e4m3",
    show_default=True,
    type=click.Choice(["fp8_e4m3", "fp8", "fp8_e5m2", "auto", "bfloat16", "float16", "nvfp4"]),
)
@click.option("--batched-tokens", type=click.IntRange(1), help="--max-num-batched-tokens.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Context against concurrency, as SVG, PNG or PDF.",
)
@json_option
def fit(model: Path, products: tuple[str, ...], as_json: bool, plot: Path | None, **o: Any) -> None:
    """Show which GPUs a model needs, how many, and what fits: context, sequences, decode rate."""
    from fp4forge.models import reference_model
    from fp4forge.serve import card_comparison, kv_cache, placing
    from fp4forge.serve import model_sizes as models
    from fp4forge.serve import split as splitting

    described = models.read(model, o["kv_cache_dtype"])
    chosen = [gpu.product(name) for name in products]
    wanted = placing.WantedCapacity(
        context=o["context"],
        sequences=o["sequences"],
        utilization=o["utilization"],
        batched_tokens=o["batched_tokens"],
    )
    asked = split_of(o)
    if wrong := splitting.problems(described, asked):
        raise FitError(
            f"{asked.text} is not possible: {'; '.join(wrong)}",
            rule="a split divides heads, experts' widths and layers",
            remedy=_splits_allowed(described),
        )
    rows = [_fit_row(described, product, wanted, asked) for product in chosen]
    within, beyond = kv_cache.kv_bytes_per_token(described)
    data: dict[str, Any] = {
        "model": str(model),
        "family": described.family,
        "assumed": described.assumed,
        "weights": described.weights,
        "kv_cache_dtype": o["kv_cache_dtype"],
        "kv_bytes_per_token": within,
        "kv_bytes_per_token_beyond_window": beyond,
        "state_bytes_per_sequence": kv_cache.state_bytes_per_sequence(described),
        "layers": [asdict(kind) for kind in described.attention],
        "read_per_token": described.read_per_token(),
        "gpus": rows,
    }
    machine = reference_model.load().machine
    if card_comparison.applies(described) and machine in products and asked == splitting.ONE:
        data["card"] = card_comparison.rows(described)
    if plot:
        from fp4forge.serve.plot import context_plot

        context_plot(described, chosen, o["utilization"], o["batched_tokens"], plot)
    if as_json:
        print_json(data)
    else:
        _show_fit(data, o)


def _splits_allowed(model: Any) -> str:
    from fp4forge.serve import split as splitting

    splits = list(splitting.choices(model, splitting.WAYS[-1]))
    return "possible: " + "; ".join(s.text for s in splits[:12])


def _fit_row(described: Any, product: Any, wanted: Any, asked: Any) -> dict[str, Any]:
    """A product's row: as asked, or on the fewest GPUs that hold one sequence of the context."""
    from fp4forge.serve import memory, placing
    from fp4forge.serve import split as splitting

    found = placing.on(described, product, asked, wanted)
    if asked == splitting.ONE and not (found.fit.fits and found.sequences):
        found = placing.smallest(described, product, wanted) or found
    return {
        "gpu": product.name,
        "title": product.title,
        "fits": found.fit.fits,
        "number": found.split.gpus,
        "machines": found.machines,
        "split": asdict(found.split),
        "split_text": found.split.text,
        **asdict(found.fit),
        "batched_tokens": found.batched_tokens,
        "tokens": found.fit.tokens_reported,
        "sequences_at_context": found.sequences,
        "context_at_sequences": found.context,
        # A token passes the pipeline's stages one after the other.
        "decode_tokens_per_second": memory.decode_rate(found.model, product, 1, 1024)
        / found.split.pipeline,
        "remedies": []
        if found.fit.fits and found.sequences
        else placing.remedies(described, product, wanted, found.split),
    }


def _show_fit(data: dict[str, Any], o: dict[str, Any]) -> None:
    terminal = rich()
    within, beyond = data["kv_bytes_per_token"], data["kv_bytes_per_token_beyond_window"]
    cache = f"{within:,} bytes a token"
    if beyond != within:
        cache += f" within the sliding windows, {beyond:,} beyond"
    if data["state_bytes_per_sequence"]:
        cache += f", and {data['state_bytes_per_sequence'] / 1e6:,.0f} MB a sequence"
    terminal.print(
        f"{data['family'] or 'no known family'}: weights {data['weights'] / 1e9:.2f} GB; KV cache"
        f" ({data['kv_cache_dtype']}) {cache}; one decode step reads"
        f" {data['read_per_token'] / 1e9:.2f} GB"
    )
    if data["assumed"]:
        terminal.print(f"note: {data['assumed']}", markup=False)
    figures = (
        "usable\nGB",
        "overhead\nGB",
        "cache\nGB",
        f"sequences\nof {o['context']:,}",
        f"context\nof {o['sequences']}",
        "tokens/s\nat most",
    )
    rows = map(_fit_cells, data["gpus"])
    terminal.print(table(("GPU", "number", *figures), rows, right=figures, whole=figures))
    for row in data["gpus"]:
        for remedy in row["remedies"]:
            terminal.print(remedy)
    if "card" in data:
        heads = ("figure", "card", "here", "why they differ")
        card = ([row[key] for key in ("figure", "card", "ours", "why")] for row in data["card"])
        terminal.print(table(heads, card, title="Against the reference card"))


def _fit_cells(row: dict[str, Any]) -> tuple[str, ...]:
    overhead = row["activations"] + row["graphs"] + row["context_overhead"]
    number = row["split_text"] if row["number"] == 1 else f"{row['number']}: {row['split_text']}"
    if row["machines"] > 1:
        number += f", {row['machines']} machines"
    return (
        row["title"],
        number,
        f"{row['usable'] / 1e9:.1f}",
        f"{overhead / 1e9:.1f}",
        f"{row['cache'] / 1e9:.1f}" if row["fits"] else "no room",
        f"{row['sequences_at_context']:,}",
        f"{row['context_at_sequences']:,}",
        f"{row['decode_tokens_per_second']:,.0f}" if row["fits"] else "",
    )
