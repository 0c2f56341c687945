"""A model over several GPUs: which splits its widths allow, and what each GPU holds of it.

Tensor parallelism cuts heads and widths (vllm/model_executor/layers/linear.py), pipeline
parallelism cuts the list of layers, expert parallelism gives each GPU whole experts
(vllm/model_executor/layers/fused_moe/layer.py). With data parallelism each rank has its own KV
cache and its own copy of everything but the experts, which are divided over all ranks
(FusedMoEParallelConfig.make in vllm/model_executor/layers/fused_moe/config.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fp4forge.kernels.gpus import Product
from fp4forge.serve.model_sizes import ModelSizes

WAYS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class GpuSplit:
    """How many ways each kind of parallelism divides the model."""

    tensor: int = 1
    pipeline: int = 1
    experts: bool = False  # whole experts to each GPU
    data: int = 1  # ranks that answer requests of their own

    @property
    def gpus(self) -> int:
        """GPUs of one server."""
        return self.tensor * self.pipeline * self.data

    @property
    def over_experts(self) -> int:
        """GPUs that a layer's experts are divided over."""
        return self.tensor * self.data

    @property
    def text(self) -> str:
        """As people write it: TP 2, PP 2, EP."""
        parts = [f"TP {self.tensor}"] if self.tensor > 1 else []
        parts += [f"PP {self.pipeline}"] if self.pipeline > 1 else []
        parts += [f"DP {self.data}"] if self.data > 1 else []
        parts += ["EP"] if self.experts else []
        return ", ".join(parts) or "one GPU"

    @property
    def flags(self) -> str:
        """As the command line takes it."""
        parts = [f"--tensor-parallel {self.tensor}"] if self.tensor > 1 else []
        parts += [f"--pipeline-parallel {self.pipeline}"] if self.pipeline > 1 else []
        parts += [f"--data-parallel {self.data}"] if self.data > 1 else []
        parts += ["--expert-parallel"] if self.experts else []
        return " ".join(parts)


ONE = GpuSplit()


def problems(model: ModelSizes, split: GpuSplit) -> list[str]:
    """Why the model's widths do not allow a split; empty if they do."""
    ways, found = split.tensor, []
    if model.heads % ways:
        found.append(f"{model.heads} attention heads cannot be divided by {ways}")
    for kind in model.attention:
        heads = kind.kv_heads
        if kind.token_bytes and heads > 1 and heads % ways and ways % heads:
            found.append(f"{heads} KV heads do not go over {ways} GPUs")
    over = split.over_experts
    if (
        model.num_experts
        and not split.experts
        and over > 1
        and model.expert_width % (over * model.expert_multiple)
    ):
        found.append(
            f"experts {model.expert_width:,} wide cannot be cut {over} ways: kernels want"
            f" multiples of {model.expert_multiple}"
        )
    if split.experts and not model.num_experts:
        found.append("this model has no experts")
    elif split.experts and model.num_experts < over:
        found.append(f"{model.num_experts} experts are fewer than {over} GPUs")
    if split.pipeline > model.num_layers:
        found.append(f"{model.num_layers} layers are fewer than {split.pipeline} stages")
    return list(dict.fromkeys(found))


def shard(model: ModelSizes, split: GpuSplit) -> ModelSizes:
    """What the fullest GPU holds: an upper bound.

    Args:
        split: one that ``problems`` has nothing against.

    Returns:
        A model whose sizes are one GPU's. The multimodal part and what is replicated count whole.
    """
    if split == ONE:
        return model
    ways, stages, over = split.tensor, split.pipeline, split.over_experts
    whole = model.multimodal + model.replicated
    ends = model.embeddings + model.lookups + model.output
    rest = model.weights - model.experts - whole - ends
    per_stage = -(-model.num_layers // stages) / model.num_layers
    experts = int(model.experts * per_stage) // over
    held_ends = ends // ways if stages == 1 else max(ends - model.output, model.output) // ways
    held_whole = model.multimodal + int(model.replicated * per_stage)
    return replace(
        model,
        weights=experts + held_ends + held_whole + int(rest * per_stage) // ways,
        experts=experts,
        embeddings=model.embeddings // ways,
        lookups=model.lookups // ways,
        output=model.output // ways,
        replicated=int(model.replicated * per_stage),
        drafter=model.drafter // ways,
        vocabulary=-(-model.vocabulary // ways),
        expert_width=model.expert_width if split.experts else -(-model.expert_width // over),
        expert_ranks=split.data,
        num_layers=-(-model.num_layers // stages),
        attention=tuple(
            replace(kind.divided(ways), count=-(-kind.count // stages)) for kind in model.attention
        ),
    )


def choices(model: ModelSizes, most: int, data: bool = False) -> Iterator[GpuSplit]:
    """Splits that the model's widths allow, fewest GPUs first, tensor parallelism first.

    Args:
        data: with data parallelism too, of models with experts: of others the ranks are copies.
    """
    for gpus in WAYS:
        if gpus > most:
            return
        for ranks in WAYS if data and model.num_experts else (1,):
            if gpus % ranks:
                continue
            group = gpus // ranks
            pairs = [(group // stages, stages) for stages in WAYS if group % stages == 0]
            for tensor, pipeline in pairs:
                over = tensor * ranks
                for experts in (False, True) if model.num_experts and over > 1 else (False,):
                    split = GpuSplit(tensor, pipeline, experts, ranks)
                    if not problems(model, split):
                        yield split


def machines(product: Product, split: GpuSplit) -> int:
    """Machines that so many GPUs are in: a unified one has a single GPU."""
    return -(-split.gpus // product.per_machine)
