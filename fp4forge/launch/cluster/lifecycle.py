"""Starts a model on several machines, follows it, stops it; a record of each cluster is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fp4forge.core import files, reading
from fp4forge.core.errors import ServingError, TransferError, UsageError
from fp4forge.core.limits import COPY_SILENCE_SECONDS
from fp4forge.core.paths import STATE
from fp4forge.core.text import shown
from fp4forge.doctor import logs
from fp4forge.kernels.base import Progress
from fp4forge.launch.cluster.hosts import ClusterHost, each
from fp4forge.oci import dockercli
from fp4forge.publish.distribute import NODE
from fp4forge.serve import client

FOLDER = STATE / "clusters"
Line = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]*\Z")]  # fit for a command line
REMOTE = ".local/state/fp4forge"  # on each machine, from the home folder
_FILE = "cluster.json"
_PAUSE = 2.0


class Cluster(Struct, frozen=True, kw_only=True):
    """A model over several machines.

    Attributes:
        name: of the container and Compose project on each machine.
        hosts: addresses for ssh, the first one answers requests.
        ssh_config: ssh's file, or empty.
        url: the server's root.
        image: as each machine names it.
        digest: of the image.
        model: the folder on each machine.
        split: as people write it.
    """

    name: Line
    hosts: Annotated[list[Annotated[str, Meta(pattern=rf"^{NODE}\Z")]], Meta(min_length=1)]
    ssh_config: Line
    url: Line
    image: Line
    digest: Line
    model: Line
    split: Line

    @property
    def machines(self) -> list[ClusterHost]:
        """The machines."""
        config = Path(self.ssh_config) if self.ssh_config else None
        return [ClusterHost(address, config) for address in self.hosts]

    @property
    def folder(self) -> Path:
        """Its files here."""
        return FOLDER / self.name

    def save(self) -> None:
        """Writes the record."""
        files.replace(self.folder / _FILE, msgspec.json.format(msgspec.json.encode(self)))


def names() -> list[str]:
    """Clusters that were started from here."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{_FILE}"))


def load(name: str | None) -> Cluster:
    """A cluster by its name; None: the only one.

    Raises:
        UsageError: there is none of that name, or there are several.
    """
    known = names()
    chosen = known[0] if name is None and len(known) == 1 else name
    if chosen not in known:
        raise UsageError(
            f"no cluster {shown(name, 100)!r}" if name else "which cluster?",
            rule=f"one of {', '.join(known) or 'none'}",
            remedy="build.py serve cluster --hosts A,B --model DIR starts one",
        )
    return reading.record(FOLDER / str(chosen) / _FILE, Cluster, ServingError)


def _cluster_folder(cluster: Cluster, host: ClusterHost) -> str:
    """A machine's folder, from the home folder, which the machines may share."""
    return f"{REMOTE}/{cluster.name}/{cluster.hosts.index(host.address)}"


def _compose_line(cluster: Cluster, host: ClusterHost, *words: str) -> list[str]:
    """A command line for a machine: Compose as a plugin or as a program of its own."""
    script = (
        'cd "$HOME/$1" || exit 1; shift; name=$1; shift\n'
        'if docker compose version >/dev/null 2>&1; then set -- docker compose -p "$name" "$@"\n'
        'else set -- docker-compose -p "$name" "$@"; fi\nexec "$@"'
    )
    return ["sh", "-c", script, "sh", _cluster_folder(cluster, host), cluster.name, *words]


def write(cluster: Cluster, texts: list[str], override: str = "") -> None:
    """Gives each machine its compose file; Compose merges an override by itself.

    Raises:
        TransferError: one cannot be reached or written to.
    """
    for host, text in zip(cluster.machines, texts, strict=True):
        home = host.ask("sh", "-c", 'printf %s "$HOME"').strip()
        folder = f"{home}/{_cluster_folder(cluster, host)}"
        host.write(f"{folder}/compose.yaml", text, "600")  # Ray's token is in it
        if override:
            host.write(f"{folder}/compose.override.yaml", override)
        else:
            host.ask("rm", "-f", f"{folder}/compose.override.yaml")


def start(cluster: Cluster, report: Progress) -> None:
    """Starts the machines that wait first, then the one that answers.

    Raises:
        TransferError: one cannot be reached, or refuses; those that were started are stopped.
    """
    started: list[ClusterHost] = []
    try:
        for host in reversed(cluster.machines):
            report(f"{host.address}: docker compose up")
            started.append(host)
            words = _compose_line(cluster, host, "up", "--detach", "--force-recreate")
            host.ask(*words, seconds=COPY_SILENCE_SECONDS, what="docker compose up")
    except TransferError:
        _stop_machines(cluster, started)
        raise


def _stop_machines(cluster: Cluster, machines: list[ClusterHost]) -> None:
    each(machines, lambda host: host.run(*_compose_line(cluster, host, "down"), seconds=300))


def stop(cluster: Cluster) -> None:
    """Stops it on every machine.

    Raises:
        TransferError: one cannot be reached.
    """
    _stop_machines(cluster, cluster.machines)


def states(cluster: Cluster) -> list[str]:
    """The container's state on each machine.

    Raises:
        TransferError: one cannot be reached.
    """
    form = "{{.State.Status}} {{.RestartCount}}"

    def one(host: ClusterHost) -> str:
        done = host.run(*dockercli.line("inspect", "--format", form, cluster.name))
        status, _, restarts = done.stdout.strip().partition(" ")
        if done.returncode != 0:
            return "gone"
        return f"{status}, restarted {restarts} times" if restarts not in ("", "0") else status

    return each(cluster.machines, one)


def wait(cluster: Cluster, seconds: float, report: Progress) -> str:
    """Waits until the first machine answers; returns why it does not, empty if it does.

    Raises:
        TransferError: a machine cannot be reached.
    """
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        found = dict(zip(cluster.hosts, states(cluster), strict=True))
        dead = [f"{host} is {state}" for host, state in found.items() if state != "running"]
        if dead:
            return "; ".join(dead)
        if not client.unreachable(cluster.url, timeout=5):
            return ""
        report("; ".join(f"{name}: {line}" for name, line in last_lines(cluster).items()))
        time.sleep(_PAUSE)
    return f"it is not ready after {seconds:.0f} s"


def tail(cluster: Cluster, lines: int) -> dict[str, list[str]]:
    """The last lines of each machine's log.

    Raises:
        TransferError: one cannot be reached.
    """

    def one(host: ClusterHost) -> list[str]:
        done = host.run(*dockercli.line("logs", "--tail", str(lines), cluster.name))
        return [shown(line, 500) for line in (done.stdout + done.stderr).splitlines()]

    return dict(zip(cluster.hosts, each(cluster.machines, one), strict=True))


def last_lines(cluster: Cluster) -> dict[str, str]:
    """The last line of each machine's log that shows work."""
    found = {}
    for host, lines in tail(cluster, 40).items():
        log = logs.parse("\n".join(lines))
        found[host] = log.excerpt(logs.alive(log))[:100]
    return found
