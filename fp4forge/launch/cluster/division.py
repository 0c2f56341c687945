"""How a model is divided over machines, and what each of them is started with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fp4forge.core.errors import FitError, UsageError
from fp4forge.kernels.gpus import Product
from fp4forge.launch.cluster.hosts import ProbedHost
from fp4forge.serve import link, placing, ray
from fp4forge.serve.link import LinkSpeed
from fp4forge.serve.model_sizes import ModelSizes
from fp4forge.serve.setting import ServerSetting
from fp4forge.serve.settings import ServerSettings
from fp4forge.serve.split import GpuSplit, choices

MP, RAY = BACKENDS = ("mp", "ray")
MASTER_PORT = 29501
# RoCE v2 over IPv4 on ConnectX: the GID that NCCL must take (NVIDIA's DGX Spark playbooks).
_GID = "3"


@dataclass(frozen=True, kw_only=True)
class ClusterOption:
    """A way to divide the model, whether each GPU holds its part, and how fast it can be."""

    split: GpuSplit
    fits: bool
    sequences: int  # of the wanted context
    rate: float  # tokens a second of one stream, at most
    link_bytes: int  # that a GPU sends for each token
    weights: int  # bytes on the fullest GPU


def options(
    model: ModelSizes,
    product: Product,
    machines: int,
    wanted: placing.WantedCapacity,
    found: LinkSpeed,
    ranks: int = 1,
) -> list[ClusterOption]:
    """Every way that uses one GPU of each machine, the best first: it fits, then by speed.

    Args:
        ranks: of data parallelism. It is not chosen by itself: it serves more requests, and each
            of them no faster.
    """
    out = []
    for split in choices(model, machines, data=ranks > 1):
        if split.gpus != machines or split.data != ranks:
            continue
        placed = placing.on(model, product, split, wanted)
        out.append(
            ClusterOption(
                split=split,
                fits=placed.fit.fits and placed.sequences >= wanted.sequences,
                sequences=placed.sequences,
                rate=link.decode_rate(model, product, split, found, 1024),
                link_bytes=link.bytes_per_token(model, split),
                weights=placed.model.weights,
            )
        )
    return sorted(out, key=lambda one: (not one.fits, -one.rate))


def choose(found: list[ClusterOption], product: Product, machines: int) -> ClusterOption:
    """The best option that fits.

    Raises:
        FitError: none does, with what each lacks.
    """
    if not found:
        raise FitError(
            f"this model's widths cannot be divided over {machines} GPUs",
            rule="tensor, expert and pipeline parallelism divide heads, widths and layers",
            remedy="build.py serve fit lists the splits that are possible",
        )
    if not found[0].fits:
        lines = "; ".join(f"{one.split.text}: {one.sequences} sequences" for one in found)
        raise FitError(
            f"{machines} x {product.title} do not hold this model with that context ({lines})",
            rule="a server holds at least one sequence of --max-model-len",
            remedy="more machines, or a workload with a shorter context",
        )
    return found[0]


@dataclass(frozen=True, kw_only=True)
class ClusterRank:
    """A machine's place: its number, and how it reaches the others."""

    number: int
    of: int
    master: str  # address of rank 0
    address: str
    interface: str
    rdma: tuple[str, ...] = ()


def ranks(found: list[ProbedHost]) -> list[ClusterRank]:
    """The machines in their order; RDMA only if every one has it."""
    everywhere = all(one.rdma for one in found)
    return [
        ClusterRank(
            number=number,
            of=len(found),
            master=found[0].address,
            address=one.address,
            interface=one.interface,
            rdma=tuple(one.rdma) if everywhere else (),
        )
        for number, one in enumerate(found)
    ]


def check_port(backend: str, port: int) -> None:
    """Refuses a server's port that the processes of the cluster use among themselves.

    Raises:
        UsageError: it is one of theirs.
    """
    own = (MASTER_PORT, MASTER_PORT + 1) if backend == MP else ray.PORTS
    low, high = ray.WORKER_PORTS
    if port in own or (backend == RAY and low <= port <= high):
        taken = ", ".join(map(str, own)) + (f", {low} to {high}" if backend == RAY else "")
        raise UsageError(
            f"--port {port} is a port of the cluster itself",
            rule=f"--backend {backend} uses {taken} on every machine",
            remedy="give another --port",
        )


def ports(backend: str, port: int) -> tuple[int, ...]:
    """Ports that must be free on the machines: of the processes among themselves, the server's."""
    return (*((MASTER_PORT,) if backend == MP else ray.PORTS), port)


def server(
    whole: ServerSettings, rank: ClusterRank, backend: str = MP, token: str = ""
) -> ServerSettings:
    """What one machine is started with.

    Source: vllm/engine/arg_utils.py (--nnodes, --node-rank, --master-addr, --master-port) and
    vllm/entrypoints/cli/serve.py (--headless) of 0.20.2 and 0.33.0; with Ray: ``serve.ray``.

    Args:
        whole: what is served.
        rank: the machine's place.
        backend: one of BACKENDS.
        token: Ray's, as in ``ray.settings``.
    """
    flags = [flag for flag in whole.flags if flag.name not in ("--host", "--port")]
    if whole.data_parallel > 1:
        flags += _data_parallel(rank)
    elif backend == MP:
        flags += [
            ServerSetting("--nnodes", str(rank.of), "machines that serve this model together"),
            ServerSetting("--node-rank", str(rank.number), "this machine's number"),
            ServerSetting("--master-addr", rank.master, "where the processes meet"),
            ServerSetting("--master-port", str(MASTER_PORT), "the same on all machines"),
        ]
    if not rank.number:
        flags += [
            ServerSetting("--host", whole.listen, "the network is the machine's own"),
            ServerSetting("--port", str(whole.port), "the network is the machine's own"),
        ]
    elif backend == MP:
        flags.append(ServerSetting("--headless", "", "only the first machine answers requests"))
    variables = environment(rank)
    if backend == RAY and rank.number:
        variables.append(ServerSetting("RAY_HEAD", rank.master, "where Ray's machines meet"))
    made = replace(
        whole,
        flags=tuple(flags),
        environment=(*whole.environment, *variables),
        gpus=1,
        multi_node=True,
        rdma=bool(rank.rdma),
        headless=rank.number > 0,
    )
    if backend == RAY:
        return ray.settings(made, ray.WORKER if rank.number else ray.HEAD, token)
    return made


def _data_parallel(rank: ClusterRank) -> list[ServerSetting]:
    """Flags of a data-parallel rank on a machine of its own.

    Source: "Internal Load Balancing" in docs/serving/data_parallel_deployment.md of 0.33.0;
    vllm/engine/arg_utils.py: only a headless machine names its first rank.
    """
    out = [
        ServerSetting("--data-parallel-size-local", "1", "one GPU in each machine"),
        ServerSetting("--data-parallel-address", rank.master, "where the ranks meet"),
        ServerSetting("--data-parallel-rpc-port", str(MASTER_PORT), "the same on all machines"),
    ]
    if rank.number:
        first = ServerSetting("--data-parallel-start-rank", str(rank.number), "this machine's")
        out.append(first)
    return out


def environment(rank: ClusterRank) -> list[ServerSetting]:
    """Variables by which a machine's processes find each other."""
    found = [ServerSetting("VLLM_HOST_IP", rank.address, "this machine's address on the link")]
    for name in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        found.append(ServerSetting(name, rank.interface, "the interface of that address"))
    if rank.rdma:
        devices = "=" + ",".join(rank.rdma)
        why = "every RDMA port that is up: a Spark's one cable has two"
        found.append(ServerSetting("NCCL_IB_HCA", devices, why))
        found.append(ServerSetting("NCCL_IB_GID_INDEX", _GID, "RoCE v2 over IPv4"))
    else:
        found.append(
            ServerSetting("NCCL_IB_DISABLE", "1", "no RDMA on all machines: NCCL uses sockets")
        )
    return found
