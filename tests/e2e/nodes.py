"""Machines of a small network on this one: a namespace each, with its own sshd and engine.

And what is sent to them: two versions of an image in the real one's shape.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fp4forge.core.platform import host_platform
from fp4forge.inputs import bases as base
from fp4forge.publish import base_images as publishing
from tests.e2e.conftest import shell

DAEMON = '{"features": {"containerd-snapshotter": true}}'


@dataclass
class Node:
    """One machine: an address on a link to this one, engine and sshd inside its namespace."""

    name: str
    number: int
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"fp4forge-{self.name}"

    @property
    def link(self) -> str:
        return f"fp4f{self.number}"

    @property
    def address(self) -> str:
        return f"10.213.{self.number}.2"

    @property
    def socket(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    def docker(self, *arguments: str, check: bool = True) -> str:
        return shell("docker", "--host", self.socket, *arguments, check=check).stdout.strip()

    def received(self) -> int:
        """Bytes that this machine sent over the link so far."""
        return int(Path(f"/sys/class/net/{self.link}/statistics/tx_bytes").read_text())

    def start(self, key: Path, disk_mb: int = 0) -> None:
        """Link, engine and sshd; with disk_mb the engine's disk is that small."""
        inside = [
            "nsenter",
            f"--net=/run/netns/{self.namespace}",
        ]  # /sys stays: engines need cgroups
        shell("ip", "netns", "add", self.namespace)
        shell(
            "ip",
            "link",
            "add",
            self.link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace,
        )
        shell("ip", "addr", "add", f"10.213.{self.number}.1/24", "dev", self.link)
        shell("ip", "link", "set", self.link, "up")
        shell(*inside, "ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        shell(*inside, "ip", "link", "set", "eth0", "up")
        shell(*inside, "ip", "link", "set", "lo", "up")
        data = self.folder / "data"
        data.mkdir(parents=True)
        if disk_mb:
            shell("mount", "-t", "tmpfs", "-o", f"size={disk_mb}m", "tmpfs", str(data))
        (self.folder / "daemon.json").write_text(DAEMON)
        self._run(
            *inside,
            "dockerd",
            f"--data-root={data}",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/docker.pid",
            f"--host={self.socket}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            f"--config-file={self.folder}/daemon.json",
        )
        host = self.folder / "host_key"
        shell("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host))
        (self.folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {self.address}\nHostKey {host}\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nPermitRootLogin yes\nUsePAM no\n"
            f"SetEnv DOCKER_HOST={self.socket}\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        sshd = shutil.which("sshd", path="/usr/sbin:/sbin") or "sshd"
        self._run(*inside, sshd, "-D", "-e", "-f", str(self.folder / "sshd_config"))
        for _ in range(120):
            if shell("docker", "--host", self.socket, "version", check=False).returncode == 0:
                return
            time.sleep(0.5)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def _run(self, *line: str) -> None:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)

    def cut(self) -> None:
        """The link goes down, as when a cable is pulled."""
        shell("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        shell("ip", "link", "set", self.link, "up")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        shell("ip", "netns", "del", self.namespace, check=False)
        shell("ip", "link", "del", self.link, check=False)
        for mounted in ("data", "exec/netns/default"):
            shell("umount", str(self.folder / mounted), check=False)


def make_key(path: Path) -> Path:
    """A key pair whose public half every machine is started with."""
    shell("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    return path


def write_ssh_config(nodes: Iterable[Node], key: Path) -> Path:
    """ssh's configuration by which the machines' names are their addresses, beside the key."""
    path = key.with_name("config")
    path.write_text(
        "".join(f"Host {n.name}\n  HostName {n.address}\n  User root\n" for n in nodes)
        + f"Host *\n  IdentityFile {key}\n  UserKnownHostsFile {path}.hosts\n"
        "  StrictHostKeyChecking accept-new\n"
    )
    return path


def push_two_versions(repo: str, thick_mib: int, folder: Path) -> tuple[str, str]:
    """Pushes REPO:1 and REPO:2: a thick layer that does not compress, and a thin one that differs.

    Args:
        repo: with the registry's address.
        folder: becomes the build context.
    """
    (folder / "thick").write_bytes(os.urandom(thick_mib << 20))
    reference = publishing.ensure(base.load("bootstrap"), host_platform(), lambda _: None)
    (folder / "Dockerfile").write_text(
        f"FROM {reference}\nCOPY --link thick /thick\nCOPY --link thin /thin\n"
    )
    for number in (1, 2):
        (folder / "thin").write_text(f"patched {number}\n" * 100)
        line = ["docker", "buildx", "build", "-q", "--push", "-t", f"{repo}:{number}", str(folder)]
        shell(*line)
    return f"{repo}:1", f"{repo}:2"
