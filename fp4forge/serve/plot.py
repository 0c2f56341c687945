"""Context against concurrency, one line for each GPU."""

from __future__ import annotations

from pathlib import Path

from fp4forge.core.errors import UsageError
from fp4forge.kernels.gpus import Product
from fp4forge.serve import memory
from fp4forge.serve.model_sizes import ModelSizes

SUFFIXES = (".svg", ".png", ".pdf")


def context_plot(
    model: ModelSizes, products: list[Product], utilization: float, batched: int | None, path: Path
) -> None:
    """Writes the plot; both axes logarithmic.

    Raises:
        UsageError: the file's name does not end in one of SUFFIXES.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}", rule="a name that ends in " + ", ".join(SUFFIXES))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    contexts = [2**power for power in range(9, 19) if 2**power <= max(model.max_context, 512)]
    for product in products:
        tokens = batched or memory.default_batched_tokens(product)
        points = []
        for context in contexts:
            found = memory.fit(model, product, utilization, 64, tokens)
            count = memory.sequences_for(model, found, context, tokens)
            if count:
                points.append((context, count))
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=product.title)
        else:
            axes.plot([], [], label=f"{product.title}: does not fit")
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{c // 1024}K" if c >= 1024 else str(c) for c in contexts])
    axes.set_yscale("log")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("sequences at once")
    axes.set_title(f"What the KV cache holds at --gpu-memory-utilization {utilization:g}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
