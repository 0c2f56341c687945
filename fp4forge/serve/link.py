"""What crosses the link between GPUs for each token, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from fp4forge.kernels.gpus import Product
from fp4forge.serve import memory
from fp4forge.serve.model_sizes import ModelSizes
from fp4forge.serve.split import GpuSplit, shard

_BYTES = 2  # of an activation: bfloat16


@dataclass(frozen=True)
class LinkSpeed:
    """A link between machines: bytes a second in one direction, seconds of one exchange."""

    bandwidth: float
    latency: float


# A DGX Spark's two RoCE ports share one ConnectX-7 at 200 Gbit/s; 20 us is what NCCL takes for a
# small all-reduce over RoCE (an estimate; no Spark was measured here).
ROCE = LinkSpeed(25e9, 20e-6)


def bytes_per_token(model: ModelSizes, split: GpuSplit) -> int:
    """Bytes that one GPU sends for each token while decoding.

    Tensor parallelism reduces the hidden state over its group twice in each layer (after attention
    and after the MLP or experts: RowParallelLinear, vllm/model_executor/layers/linear.py); a ring
    sends 2 (n - 1) / n of it. Each pipeline stage hands the hidden state and the residual on. With
    data parallelism every rank gets every token's hidden state before the experts, and each
    token's rank their sum (AgRsAll2AllManager, vllm/distributed/device_communicators/all2all.py).
    """
    hidden = model.hidden * _BYTES
    stage = -(-model.num_layers // split.pipeline)
    reduced = 2 * stage * hidden * 2 * (split.tensor - 1) // split.tensor
    gathered = 2 * stage * hidden * (split.data - 1)
    return reduced + gathered + (2 * hidden if split.pipeline > 1 else 0)


def exchanges(model: ModelSizes, split: GpuSplit) -> int:
    """Exchanges that one token waits for, one after the other."""
    reductions = 2 * model.num_layers * ((split.tensor > 1) + (split.data > 1))
    return reductions + split.pipeline - 1


def decode_rate(
    model: ModelSizes, product: Product, split: GpuSplit, link: LinkSpeed, context: int
) -> float:
    """Tokens a second of one sequence at most: memory and link, one after the other."""
    part = shard(model, split)
    seconds = split.pipeline / memory.decode_rate(part, product, 1, context)
    seconds += split.pipeline * bytes_per_token(model, split) / link.bandwidth
    return 1 / (seconds + exchanges(model, split) * link.latency)
