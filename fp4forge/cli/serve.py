"""Commands about serving: compose, fit, doctor, quality and smoke."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fp4forge.cli.options import registry_option, resolve_registry
from fp4forge.core import files
from fp4forge.core.console import Console, print_json, print_rows, rich
from fp4forge.core.errors import ServingError, UsageError
from fp4forge.kernels import gpus as gpu

_MODEL = click.option(
    "--model", type=click.Path(path_type=Path), required=True, help="The checkpoint's folder."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
_URL = click.option("--url", required=True, help="The server's root, such as http://127.0.0.1:8000")


@click.group()
def serve() -> None:
    """Configure, size and diagnose a server."""


def _published(o: dict[str, Any]) -> tuple[str, str]:
    """The moving tag of the image that the options name, and its vLLM version."""
    from fp4forge.inputs import bases, defaults, release
    from fp4forge.plan import tags
    from fp4forge.plan.request import Request, decide

    usual = defaults.table().image
    chosen = decide(
        Request(
            arch=o["arch"],
            release=o["release"],
            variant=o["variant"] or usual.variant,
            strategy=o["strategy"] or usual.strategy,
            base=o["base"] or usual.base,
            platform=o["platform"],
        )
    )
    tag = tags.moving(
        chosen.release,
        o["arch"],
        chosen.variant,
        chosen.strategy,
        bases.load(chosen.base).slug,
        chosen.platform,
    )
    return tag, release.load(chosen.release).vllm_version


@serve.command()
@_MODEL
@click.option("--arch", default="sm121", show_default=True, help="GPU of the image.")
@click.option(
    "--workload",
    default="interactive",
    show_default=True,
    help="interactive, balanced, throughput or long-context.",
)
@click.option("--release", help="Release of the image; by default the newest that has a wheel.")
@click.option("--variant", help="awq (all patches; the default) or plain.")
@click.option("--from", "strategy", help="How the image was built: wheel (the default) or source.")
@click.option("--base", help="Base of the image; by default that of make image.")
@click.option("--platform", help="Platform of the image; by default the GPU's.")
@click.option("--image", help="Image; by default the release's moving tag in --registry.")
@registry_option
@click.option("--repo", default="fp4forge/vllm", show_default=True)
@click.option(
    "--format",
    "kind",
    default="compose",
    show_default=True,
    type=click.Choice(["compose", "run", "systemd", "k8s"]),
)
@click.option("--name", help="The model's name in the API; by default the folder's.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--utilization", type=float, default=0.85, show_default=True)
@click.option("--explain", is_flag=True, help="Print every setting and its reason.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False))
@_JSON
def compose(as_json: bool, explain: bool, output: Path | None, kind: str, **o: Any) -> None:
    """Write a compose file (or another manifest) that serves MODEL."""
    from fp4forge.oci import reference
    from fp4forge.serve import manifest, settings

    found_tag, version = _published(o)
    registry = None if o["image"] else resolve_registry(o["registry"])
    repository = reference.repository(registry, o["repo"])
    if not o["image"] and not registry:
        raise UsageError(
            "which image? neither --image nor --registry is given",
            rule="the manifest names the image by digest",
            remedy=f"--registry HOST:PORT looks up {o['repo']}:{found_tag} there",
        )
    image = manifest.by_digest(o["image"] or f"{repository}:{found_tag}")
    found = settings.server(
        o["model"],
        o["workload"],
        version,
        image,
        utilization=o["utilization"],
        port=o["port"],
        served_name=o["name"],
    )
    if as_json:
        print_json(found.as_json())
        return
    if explain:
        print_rows(
            [(f"{s.name} {s.value}".strip(), s.why) for s in (*found.flags, *found.environment)]
        )
        print_rows([(f"not written: {name}", why) for name, why in settings.LEFT_OUT.items()])
        return
    text = manifest.render(found, kind)
    if kind == "compose":
        checked = manifest.validate(text)
        note = f"{checked} config has read it" if checked else "no docker compose here to check it"
        click.echo(f"compose: {note}", err=True)
    if output:
        files.replace(output, text, 0o755 if kind == "run" else 0o644)
    else:
        click.echo(text, nl=False)


@serve.command()
@_MODEL
@click.option(
    "--gpu",
    "products",
    multiple=True,
    default=tuple(gpu.PRODUCTS),
    help="gb10, rtx5090, rtxpro6000, b200, gb200; all by default.",
)
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
    type=click.Choice(["fp8_e4m3", "fp8", "auto", "bfloat16"]),
)
@click.option("--batched-tokens", type=click.IntRange(1), help="--max-num-batched-tokens.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Context against concurrency, as SVG, PNG or PDF.",
)
@_JSON
def fit(model: Path, products: tuple[str, ...], as_json: bool, plot: Path | None, **o: Any) -> None:
    """Show what fits on each GPU: weights, KV cache, context, sequences, decode rate."""
    from fp4forge.checkpoint import tensors
    from fp4forge.serve import memory

    described = memory.describe(tensors.read(model), o["kv_cache_dtype"])
    chosen = [gpu.product(name) for name in products]
    rows = []
    for product in chosen:
        batched = o["batched_tokens"] or memory.default_batched_tokens(product)
        found = memory.fit(described, product, o["utilization"], o["sequences"], batched)
        rows.append(
            {
                "gpu": product.name,
                "title": product.title,
                "fits": found.fits,
                **asdict(found),
                "batched_tokens": batched,
                "tokens": found.tokens_reported,
                "sequences_at_context": memory.sequences_for(
                    described, found, o["context"], batched
                ),
                "context_at_sequences": memory.context_for(
                    described, found, o["sequences"], batched
                ),
                "decode_tokens_per_second": memory.decode_rate(described, product, 1, 1024),
            }
        )
    within, beyond = memory.kv_bytes_per_token(described)
    reference = memory.is_reference(described) and "gb10" in products
    data: dict[str, Any] = {
        "model": str(model),
        "weights": described.weights,
        "kv_cache_dtype": o["kv_cache_dtype"],
        "kv_bytes_per_token": within,
        "kv_bytes_per_token_beyond_window": beyond,
        "read_per_token": described.read_per_token(),
        "gpus": rows,
    }
    if reference:
        spark = memory.fit(described, gpu.product("gb10"), 0.85, 4, 8192)
        data["card"] = memory.against_card(described, spark)
    if plot:
        from fp4forge.serve.plot import context_plot

        context_plot(described, chosen, o["utilization"], o["batched_tokens"], plot)
    if as_json:
        print_json(data)
        return
    _show_fit(data, o)


def _show_fit(data: dict[str, Any], o: dict[str, Any]) -> None:
    from rich.table import Table

    terminal = rich()
    terminal.print(
        f"weights {data['weights'] / 1e9:.2f} GB; KV cache ({data['kv_cache_dtype']})"
        f" {data['kv_bytes_per_token']:,} bytes a token within the sliding windows,"
        f" {data['kv_bytes_per_token_beyond_window']:,} beyond; one decode step reads"
        f" {data['read_per_token'] / 1e9:.2f} GB"
    )
    table = Table()
    context, sequences = o["context"], o["sequences"]
    for head in (
        "GPU",
        "usable",
        "overhead",
        "KV cache",
        f"sequences of {context:,}",
        f"context of {sequences}",
        "decode at most",
    ):
        table.add_column(head, justify="left" if head == "GPU" else "right")
    for row in data["gpus"]:
        overhead = row["activations"] + row["graphs"] + row["context_overhead"]
        table.add_row(
            row["title"],
            f"{row['usable'] / 1e9:.1f} GB",
            f"{overhead / 1e9:.1f} GB",
            f"{row['cache'] / 1e9:.1f} GB" if row["fits"] else "does not fit",
            f"{row['sequences_at_context']:,}",
            f"{row['context_at_sequences']:,}",
            f"{row['decode_tokens_per_second']:.0f} tok/s",
        )
    terminal.print(table)
    if "card" in data:
        card = Table(title="Against the reference card", title_justify="left")
        for head in ("figure", "card", "here", "why they differ"):
            card.add_column(head)
        for row in data["card"]:
            card.add_row(row["figure"], row["card"], row["ours"], row["why"])
        terminal.print(card)


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
@_JSON
def doctor(as_json: bool, bundle: Path | None, **given: Any) -> None:
    """Find what is wrong with a server, from its container, compose file, log or URL.

    Exit code 0 if the server is healthy, 20 if it is ill (each finding has its cause), 26 if the
    evidence shows neither.
    """
    from fp4forge.doctor import examine as doctors
    from fp4forge.doctor import gather, packing, report

    handed = gather.Handed(**given)
    if not bundle and not handed.anything:
        raise UsageError(
            "what to examine? nothing is given",
            rule="--container, --inspect, --compose, --url, --logs or --bundle",
        )
    if bundle and not handed.anything and not handed.smi:
        found = packing.read(bundle)
    else:
        found = gather.evidence(handed)
        if bundle:
            packing.write(bundle, handed, found)
            click.echo(f"bundle: {bundle}", err=True)
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
