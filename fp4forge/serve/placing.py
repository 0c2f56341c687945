"""Which GPUs a model needs: the smallest split that holds what is wanted, and what to change."""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.core.errors import FitError
from fp4forge.kernels.gpus import Product
from fp4forge.serve import memory
from fp4forge.serve.memory import MemoryFit
from fp4forge.serve.model_sizes import ModelSizes
from fp4forge.serve.split import ONE, WAYS, GpuSplit, choices, machines, problems, shard


@dataclass(frozen=True, kw_only=True)
class WantedCapacity:
    """What a server is to hold: sequences of a context length, both in one cache."""

    context: int
    sequences: int
    utilization: float
    batched_tokens: int | None = None  # None: vLLM's default for the GPU

    def __post_init__(self) -> None:
        """Checks the share: NaN passes click's range."""
        memory.check_share(self.utilization)

    def batched(self, product: Product) -> int:
        """--max-num-batched-tokens on a GPU."""
        return self.batched_tokens or memory.default_batched_tokens(product)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A model on GPUs of one product: how it is split, what one GPU holds, and what fits."""

    product: Product
    split: GpuSplit
    machines: int
    model: ModelSizes  # the fullest GPU's part
    fit: MemoryFit
    batched_tokens: int
    sequences: int  # of the wanted context
    context: int  # for the wanted sequences


def on(model: ModelSizes, product: Product, split: GpuSplit, wanted: WantedCapacity) -> Placement:
    """A model on a product's GPUs, split in a given way.

    Args:
        model: the whole model.
        split: one that ``split.problems`` has nothing against.
    """
    part, batched = shard(model, split), wanted.batched(product)
    each = -(-wanted.sequences // split.data)  # every rank answers its share, from its own cache
    found = memory.fit(part, product, wanted.utilization, each, batched)
    context = min(wanted.context, model.max_context or wanted.context)
    return Placement(
        product=product,
        split=split,
        machines=machines(product, split),
        model=part,
        fit=found,
        batched_tokens=batched,
        sequences=memory.sequences_for(part, found, context, batched) * split.data,
        context=memory.context_for(part, found, each, batched),
    )


def smallest(
    model: ModelSizes, product: Product, wanted: WantedCapacity, sequences: int = 1
) -> Placement | None:
    """The placement on the fewest GPUs that holds so many sequences of the wanted context."""
    for split in choices(model, WAYS[-1], data=True):
        if split.data > 1 and machines(product, split) > 1:
            continue  # over machines only on request (serve cluster)
        found = on(model, product, split, wanted)
        if found.fit.fits and found.sequences >= sequences:
            return found
    return None


def remedies(
    model: ModelSizes, product: Product, wanted: WantedCapacity, split: GpuSplit = ONE
) -> list[str]:
    """What would make a model fit that does not, the nearest change first."""
    found, out = on(model, product, split, wanted), []
    if found.fit.fits and found.sequences:
        out.append(f"{found.sequences} sequences of {wanted.context:,} tokens (--max-num-seqs)")
    if found.fit.fits and found.context:
        count = "one sequence" if wanted.sequences == 1 else f"{wanted.sequences} sequences"
        out.append(f"{count} of {found.context:,} tokens (--max-model-len)")
    more = smallest(model, product, wanted, wanted.sequences)
    if more and more.split.gpus > split.gpus:
        where = f" in {more.machines} machines" if more.machines > 1 else ""
        out.append(f"{more.split.gpus} GPUs{where}: {more.split.flags}")
    return [f"{product.title}: {what}" for what in out]


def check(
    model: ModelSizes, products: list[Product], wanted: WantedCapacity, split: GpuSplit
) -> None:
    """Refuses a split that the model's widths do not allow, or that no product holds.

    Args:
        products: those that the server may run on; one that holds it is enough.
        wanted: what each must hold.

    Raises:
        FitError: neither holds it; the message has the nearest changes.
    """
    if wrong := problems(model, split):
        splits = "; ".join(s.text for s in list(choices(model, WAYS[-1]))[:8])
        raise FitError(
            f"{split.text} is not possible: {'; '.join(wrong)}",
            rule="a split divides heads, experts' widths and layers",
            remedy=f"possible: {splits}",
        )
    placed = [on(model, product, split, wanted) for product in products]
    able = [p for p in placed if p.fit.fits and p.sequences >= wanted.sequences]
    if not placed or any(p.machines == 1 for p in able):
        return
    if able:
        raise FitError(
            f"{split.text} takes {able[0].machines} machines of {able[0].product.title}",
            rule="a manifest is for one machine",
            remedy="docs/serving.md, Several machines, says how to start one by hand",
        )
    need = model.weights / split.gpus / 1e9
    lines = [
        f"{p.product.title} ({split.text}): {p.fit.usable / 1e9:.1f} GB usable, {need:.1f} GB of"
        f" weights, {p.fit.cache / 1e9:.1f} GB left for the KV cache"
        for p in placed
    ]
    helps = [r for p in products for r in remedies(model, p, wanted, split)]
    raise FitError(
        f"a context of {wanted.context:,} tokens does not fit\n" + "\n".join(lines),
        rule="a server holds at least one sequence of --max-model-len",
        remedy="; ".join(dict.fromkeys(helps))
        or f"no number of these GPUs up to {WAYS[-1]} holds it: take a larger product",
    )
