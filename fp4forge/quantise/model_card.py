"""The checkpoint's README.md: how it was made, as a table, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from humanize import naturalsize

from fp4forge.core import files
from fp4forge.core.text import shown

# This project's own measure; a worse model is reported as such, not refused.
_PERPLEXITY = 1.1  # of BF16's
_AGREEMENT = 0.9
_WORST = 5


def write(folder: Path, figures: dict[str, Any]) -> None:
    """Writes README.md; the model's own one is kept as README.original.md.

    Args:
        folder: the checkpoint's.
        figures: what ``job.quantise`` found.
    """
    own = folder / "README.md"
    if own.is_file():
        own.rename(folder / "README.original.md")
    if "quality" in figures:
        _plot_errors(folder / "quality.svg", figures["quality"])
    files.replace(own, markdown(figures))


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The table of the reference card, with this checkpoint's figures."""
    plan, versions = figures["plan"], figures["versions"]
    covered = figures["coverage"]
    found = [
        ("Tool", f"NVIDIA ModelOpt {versions['nvidia-modelopt']}"),
        ("Config", f"{plan['config']} (--format {plan['format']})"),
        ("Versions", ", ".join(f"{n} {v}" for n, v in versions.items() if n != "nvidia-modelopt")),
    ]
    if covered or figures["batch"]:
        found += [
            ("Calibration text", plan["calibration"]),
            ("Calibration samples", f"{figures['samples']:,}"),
            ("Sequence length", f"{plan['sequence_length']:,} tokens, no padding"),
            ("Seed", str(plan["seed"])),
            ("Batch size", _batch_text(figures)),
            ("Calibration wall-clock", f"{figures['calibration_seconds']:.1f} s"),
        ]
    if covered.get("experts"):
        first = figures["coverage_first"]
        found.append(
            (
                "Experts reached",
                f"{first['experts'] - first['unreached']:,} of {first['experts']:,} by routing,"
                f" {covered['experts'] - covered['unreached']:,} after the second pass;"
                f" tokens {first['fewest']:,} / {first['median']:,} / {first['most']:,}"
                " (fewest, median, most)",
            )
        )
    repaired = figures["repaired"]
    found += [
        ("Hardware", figures["device"]),
        ("Peak memory", naturalsize(figures["peak_bytes"])),
        ("Whole run", f"{figures['seconds']:.1f} s"),
        (
            "Statistics repaired",
            f"{repaired['scalar']} to one number, {len(repaired['substituted'])} from siblings,"
            f" {len(repaired['zero_weights'])} layers of zeros",
        ),
        ("Excluded from quantisation", ", ".join(figures["excluded"]) or "nothing"),
        ("Asked to keep in BF16", ", ".join(plan["keep"])),
        ("Size", f"{naturalsize(figures['bytes'])}, from {naturalsize(plan['weight_bytes'])}"),
        ("checkpoint inspect", figures["verdict"]),
    ]
    return found


def worst(errors: dict[str, float]) -> list[tuple[str, float]]:
    """The layers with the largest relative error."""
    return sorted(errors.items(), key=lambda item: -item[1])[:_WORST]


def judgement(quality: dict[str, Any]) -> str:
    """Whether the answers are good enough to serve, by this project's measure."""
    ratio = quality["perplexity_nvfp4"] / quality["perplexity_bf16"]
    good = ratio <= _PERPLEXITY and quality["agreement"] >= _AGREEMENT
    said = "within" if good else "**too bad to serve:** beyond"
    return (
        f"{said} the limits: perplexity {ratio:.3f} times BF16's (at most {_PERPLEXITY}), top-1"
        f" agreement {quality['agreement']:.3f} (at least {_AGREEMENT})"
    )


def markdown(figures: dict[str, Any]) -> str:
    """The whole text."""
    plan = figures["plan"]
    lines = [f"# {shown(Path(plan['output']).name, 200)}", "", "| Parameter | Value |", "|---|---|"]
    lines += [f"| {name} | {_card_cell(value)} |" for name, value in rows(figures)]
    if errors := figures.get("errors"):
        mean = sum(errors.values()) / len(errors)
        lines += [
            "",
            "## Error by layer",
            "",
            "Dequantised weights against BF16: norm of the difference over norm of the weights."
            f" Mean of {len(errors):,} layers: {mean:.4f}. The worst:",
            "",
            "| Layer | Error |",
            "|---|---|",
            *(f"| {_card_cell(name)} | {error:.4f} |" for name, error in worst(errors)),
        ]
    if quality := figures.get("quality"):
        lines += [
            "",
            "## Quality on held-out text",
            "",
            f"{quality['samples']} samples. Perplexity {quality['perplexity_bf16']:.3f} in BF16,"
            f" {quality['perplexity_nvfp4']:.3f} in {plan['format']}; KL divergence"
            f" {quality['kl']:.4f} nats; top-1 agreement {quality['agreement']:.3f}."
            f" {judgement(quality)}.",
            "",
            "![KL divergence and top-1 agreement by position](quality.svg)",
        ]
    return "\n".join(lines) + "\n"


def _batch_text(figures: dict[str, Any]) -> str:
    probes = figures["probes"]
    if not probes:
        return str(figures["batch"])
    return (
        f"{figures['batch']} (probed: {naturalsize(probes['one'])} for one,"
        f" {naturalsize(probes['two'])} for two, {naturalsize(probes['free'])} free)"
    )


def _card_cell(value: str) -> str:
    return shown(value).replace("|", "\\|").replace("\n", " ")


def _plot_errors(path: Path, quality: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name, title in zip(
        axes, ("kl", "agreement"), ("KL divergence (nats)", "top-1 agreement"), strict=True
    ):
        places, values = zip(*quality[f"{name}_by_position"], strict=True)
        axis.plot(places, values, marker="o", markersize=3)
        axis.set_xlabel("position (tokens)")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
