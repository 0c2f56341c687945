"""vLLM on Ray: what the machines run, so that Ray places vLLM's workers on them."""

from __future__ import annotations

from dataclasses import replace

from packaging.version import Version

from fp4forge.core.errors import UsageError
from fp4forge.models import switch_history
from fp4forge.serve.setting import ServerSetting
from fp4forge.serve.settings import ServerSettings

HEAD, WORKER = "head", "worker"
# The head's meeting point, and three ports on each machine; Ray would choose the others at random.
GCS_PORT, NODE_PORT, OBJECT_PORT, AGENT_PORT = 6379, 6380, 6381, 6382
PORTS = (GCS_PORT, NODE_PORT, OBJECT_PORT, AGENT_PORT)
WORKER_PORTS = (10002, 10999)
# vLLM's workers talk through NCCL and ZeroMQ; of Ray's object store they need next to nothing, and
# Ray would reserve 30 % of the memory.
_STORE_BYTES = 512 << 20
# The executor without Ray's compiled graphs, which need CuPy. Later vLLMs have no other one.
_EXECUTOR = "VLLM_USE_RAY_V2_EXECUTOR_BACKEND"
_NODE = (
    f'--node-ip-address="$VLLM_HOST_IP" --node-manager-port={NODE_PORT}'
    f" --object-manager-port={OBJECT_PORT} --runtime-env-agent-port={AGENT_PORT}"
    f" --min-worker-port={WORKER_PORTS[0]} --max-worker-port={WORKER_PORTS[1]}"
    f" --num-gpus=1 --object-store-memory={_STORE_BYTES} --disable-usage-stats"
)
# Shell scripts: nothing of a user is in them. The server's arguments follow as "$@", and the
# addresses are in variables. A worker waits for its head, whichever of them starts first.
SCRIPTS = {
    HEAD: f'ray start --head --port={GCS_PORT} --include-dashboard=false {_NODE} && exec vllm "$@"',
    WORKER: f'until ray health-check --address "$RAY_HEAD:{GCS_PORT}" >/dev/null 2>&1; do'
    ' echo "waiting for Ray on $RAY_HEAD"; sleep 5; done;'
    f' exec ray start --block --address="$RAY_HEAD:{GCS_PORT}" {_NODE}',
}


def check(version: str) -> None:
    """Refuses a vLLM whose only executor on Ray needs what the image lacks.

    Raises:
        UsageError: it is too old.
    """
    known = switch_history.known()[_EXECUTOR]
    if Version(version) < Version(known.since):
        raise UsageError(
            f"vLLM {version} runs on Ray only with Ray's compiled graphs, which need CuPy",
            rule=f"Ray goes with vLLM {known.since} and later",
            remedy="--backend mp, or --release with a newer one",
        )


def settings(whole: ServerSettings, role: str, token: str = "") -> ServerSettings:
    """A server's settings as the head or as a worker.

    Source: vllm/v1/executor/ray_utils.py and ray_executor_v2.py of 0.20.2 and 0.33.0: the head
    waits half an hour for as many GPUs as the split needs, and a worker's own variables win over
    those that vLLM copies from the head.

    Args:
        whole: what is served.
        role: HEAD or WORKER.
        token: what Ray asks of everyone who reaches its ports (Ray 2.52 and later); empty: nothing.
    """
    flags = [*whole.flags] if role == HEAD else []
    if role == HEAD:
        backend = ServerSetting(
            "--distributed-executor-backend", "ray", "Ray places the workers on the machines"
        )
        flags.append(backend)
    return replace(
        whole,
        flags=tuple(flags),
        environment=(*whole.environment, *_environment(whole.version, token)),
        ray=role,
        headless=role == WORKER,
        gpus=1,
    )


def _environment(version: str, token: str) -> list[ServerSetting]:
    found = [
        ServerSetting("RAY_USAGE_STATS_ENABLED", "0", "Ray reports nothing to its makers"),
        ServerSetting(
            "RAY_memory_monitor_refresh_ms",
            "0",
            "at 95 % of the memory Ray would end vLLM, which takes that much on unified memory",
        ),
    ]
    if token:
        found += [
            ServerSetting(
                "RAY_AUTH_MODE",
                "token",
                "anyone who reaches Ray's ports could otherwise run code here",
            ),
            ServerSetting("RAY_AUTH_TOKEN", token, "the same on all machines, new for each start"),
        ]
    # An image whose version is not known ("0", of another maker) is left to its own default.
    if version and switch_history.known()[_EXECUTOR].known(version):
        found.append(ServerSetting(_EXECUTOR, "1", "the executor that needs no CuPy"))
    return found
