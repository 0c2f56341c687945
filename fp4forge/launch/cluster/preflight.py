"""What must hold of machines before they serve one model together; each failure with its fix."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fp4forge.doctor import smi
from fp4forge.launch.cluster.hosts import PROBE, ClusterHost, ProbedHost, each

CLOCK_SECONDS = 17.0  # 2 of a clock, 15 for an ssh that connects slowly
MEMLOCK = -1  # unlimited: RDMA registers what it sends
_LISTEN_SECONDS = 20


@dataclass(frozen=True)
class PreflightItem:
    """One thing that was looked at; ``fix`` is empty if it is right."""

    name: str
    host: str
    seen: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is right."""
        return not self.fix


@dataclass(frozen=True, kw_only=True)
class ClusterNeeds:
    """What the machines are to have."""

    model: str
    image: str
    digest: str
    ports: tuple[int, ...]  # of vLLM's processes among themselves, and the server's
    interface: str = ""
    weights: int = 0  # bytes of one machine's part
    gpus: bool = True  # False: a CPU engine, in tests


def look(hosts: list[ClusterHost], wanted: ClusterNeeds) -> list[ProbedHost]:
    """What every machine has.

    Raises:
        TransferError: one cannot be reached, or has no Python.
    """
    names = [host.address.rpartition("@")[2] for host in hosts]

    def one(host: ClusterHost) -> ProbedHost:
        own = host.address.rpartition("@")[2]
        request: dict[str, Any] = {
            "peers": [peer for peer in names if peer != own],
            "model": wanted.model,
            "image": wanted.image,
            "ports": list(wanted.ports),
            "interface": wanted.interface,
        }
        return host.probe(request, ProbedHost)

    return each(hosts, one)


def judge(
    hosts: list[ClusterHost], found: list[ProbedHost], wanted: ClusterNeeds
) -> list[PreflightItem]:
    """Everything that was looked at, machine by machine, then what must be alike."""
    items = [
        item
        for host, one in zip(hosts, found, strict=True)
        for item in _preflight_of_host(host.address, one, wanted)
    ]
    names = [host.address for host in hosts]
    items += _alike_items(
        names, "GPU and driver", [_gpu_seen(one) for one in found], "install the same driver"
    )
    items += _alike_items(
        names,
        "model's files",
        [_model_seen(one) for one in found],
        f"copy the model again: rsync -a --checksum {wanted.model}/ HOST:{wanted.model}/",
    )
    items += _alike_items(
        names,
        "MTU of the link",
        [f"{one.interface} {one.link.mtu}".strip() for one in found],
        "ip link set dev INTERFACE mtu 9000 on each",
        key=lambda text: text.rpartition(" ")[2],
    )
    items += _alike_items(
        names,
        "RDMA devices",
        [f"{len(one.rdma)}: {', '.join(one.rdma)}" for one in found],
        "ibstat shows why a port is down; without RDMA on all of them NCCL uses sockets on all",
        key=lambda text: text.partition(":")[0],
    )
    first = found[0].time
    items += [
        PreflightItem(
            "clock",
            name,
            f"{one.time - first:+.1f} s against {names[0]}",
            ""
            if abs(one.time - first) < CLOCK_SECONDS
            else "set the clocks: timedatectl set-ntp true",
        )
        for name, one in zip(names, found, strict=True)
    ]
    return items


def _preflight_of_host(name: str, one: ProbedHost, wanted: ClusterNeeds) -> Iterator[PreflightItem]:
    yield PreflightItem(
        "engine", name, one.docker or "none", "" if one.docker else "install Docker"
    )
    yield PreflightItem(
        "Compose",
        name,
        one.compose or "none",
        "" if one.compose else "install Docker's compose plugin",
    )
    if wanted.gpus:
        seen = ", ".join(gpu.name for gpu in smi.gpus(one.gpus))
        yield PreflightItem("GPU", name, seen or "none", "" if seen else "install NVIDIA's driver")
    yield PreflightItem(
        "image",
        name,
        wanted.digest[:19] if any(wanted.digest in entry for entry in one.image) else "not there",
        ""
        if any(wanted.digest in entry for entry in one.image)
        else f"build.py distribute IMAGE --to {name}",
    )
    yield PreflightItem(
        "model",
        name,
        f"{len(one.model)} files",
        "" if "config.json" in one.model else f"copy it to {wanted.model} (--copy does)",
    )
    broken = [] if wanted.interface else [route.error for route in one.routes if route.error]
    yield PreflightItem(
        "route",
        name,
        "; ".join(broken) or f"{one.interface}, {one.address}",
        "name the machines in /etc/hosts by their addresses on the fast link" if broken else "",
    )
    ways = {route.interface for route in one.routes if route.interface}
    several = set() if wanted.interface else ways
    yield PreflightItem(
        "interface",
        name,
        f"{one.interface or 'none'} {one.address}".strip(),
        ""
        if one.address and len(several) <= 1
        else "--interface NAME: one interface that has an address and reaches all the others",
    )
    speed = f"{one.link.speed / 1000:g} Gbit/s" if one.link.speed else "unknown speed"
    yield PreflightItem("link", name, f"{one.link.state or 'unknown'}, {speed}", "")
    free = one.memory[1]
    yield PreflightItem(
        "free memory",
        name,
        f"{free / 1e9:.1f} GB",
        "" if free > wanted.weights else f"{wanted.weights / 1e9:.1f} GB of weights go there",
    )
    if one.rdma:
        limit = "unlimited" if one.memlock == MEMLOCK else f"{one.memlock} bytes"
        yield PreflightItem("memlock", name, f"{limit}; the container sets its own")
    yield PreflightItem(
        "ports",
        name,
        f"{', '.join(map(str, one.taken))} taken" if one.taken else "free",
        f"stop what listens on {', '.join(map(str, one.taken))}" if one.taken else "",
    )


def _gpu_seen(one: ProbedHost) -> str:
    return ", ".join(f"{gpu.name} {gpu.driver}" for gpu in smi.gpus(one.gpus)) or "none"


def _model_seen(one: ProbedHost) -> str:
    total = sum(size for size, _ in one.model.values())
    listed = json.dumps(sorted((name, *value) for name, value in one.model.items()))
    mark = hashlib.sha256(listed.encode()).hexdigest()[:8]
    return f"{len(one.model)} files, {total:,} bytes, {mark}"


def _alike_items(
    names: list[str], what: str, values: list[str], fix: str, key: Any = lambda text: text
) -> Iterator[PreflightItem]:
    """An item for each machine; those that differ from most others have the fix."""
    keys = [key(value) for value in values]
    usual = max(keys, key=keys.count)
    alike = keys.count(usual) == len(keys)
    for name, value, one in zip(names, values, keys, strict=True):
        odd = not alike and (one != usual or keys.count(usual) * 2 <= len(keys))
        yield PreflightItem(f"{what} alike", name, value, fix if odd else "")


def connections(
    hosts: list[ClusterHost], found: list[ProbedHost], port: int
) -> list[PreflightItem]:
    """A real connection from each machine to each other one, on a port that is free."""
    items = []
    for target, there in zip(hosts, found, strict=True):
        for source in hosts:
            if source != target:
                why = _connection(source, target, there.address, port)
                items.append(
                    PreflightItem(
                        f"port {port} of {target.address}",
                        source.address,
                        why or "reached",
                        f"open ports {port} and above between the machines in their firewall"
                        if why
                        else "",
                    )
                )
    return items


def _connection(source: ClusterHost, target: ClusterHost, address: str, port: int) -> str:
    """Why one machine does not reach another; empty if it does."""
    request = json.dumps({"listen": port, "seconds": _LISTEN_SECONDS})
    line = target.line("python3", "-", request)
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as listening:
        assert listening.stdin and listening.stdout
        try:
            listening.stdin.write(PROBE.read_text())
            listening.stdin.close()
            if not listening.stdout.readline().startswith("listening"):
                return f"nothing can listen on port {port} there"
            return source.reaches(address, port)
        finally:
            listening.kill()
