"""Brings a published image to machines that reach no registry: docker pull through ssh tunnels.

Each node's own engine pulls by digest from this machine's loopback registry, through a port that
ssh forwards. So the engine itself sees which layers it has, checks every digest on arrival and
goes on where it stopped; nothing is written to a temporary archive. The tag is set last.
"""

from __future__ import annotations

import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fp4forge.core.errors import RegistryError, TransferError, UsageError
from fp4forge.core.text import shown
from fp4forge.kernels.base import Progress
from fp4forge.oci import registry
from fp4forge.oci.reference import parse

NODE = r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*"  # ssh takes no option for it
_ALLOCATED = re.compile(r"Allocated port ([0-9]{1,5}) for remote forward")
_EXIT = re.compile(r"fp4forge: exit ([0-9]{1,3})")
_REASON = re.compile(r"(?i)error|fail|denied|refused|no space|not found|no docker|timed out|lost")
_LAYER = re.compile(r"([0-9a-f]{12}): (.+)")

# Runs on the node. What it needs comes by standard input: nothing is quoted into it.
# Its exit code is said, too: ssh itself stays for as long as the engine keeps its connection to
# the registry open.
_SCRIPT = r"""
set -eu
exec 2>&1
trap 'echo "fp4forge: exit $?"' EXIT
read -r port; read -r repository; read -r digest; read -r name
command -v docker >/dev/null || { echo "no docker on this machine" >&2; exit 127; }
pulled="127.0.0.1:$port/$repository@$digest"
docker pull "$pulled" </dev/null
docker image inspect --format '{{json .RepoDigests}}' "$pulled" | grep -q "$digest"
docker tag "$pulled" "$name"
docker rmi "$pulled" >/dev/null
"""


@dataclass
class ReceivingNode:
    """One machine and what came of it; bytes are those of the compressed layers sent."""

    address: str
    layers: int = 0
    sent_layers: int = 0
    sent_bytes: int = 0
    error: str = ""
    note: str = "connecting"

    def text(self) -> str:
        """One line of progress."""
        return f"{self.address}: {self.error or self.note}"


def parse_nodes(text: str, flag: str = "--to") -> list[str]:
    """The nodes of an option.

    Raises:
        UsageError: an entry is not [USER@]HOST.
    """
    found = [entry.strip() for entry in text.split(",")]
    for entry in found:
        if not re.fullmatch(NODE, entry):
            raise UsageError(
                f"{flag} {entry!r} is not [USER@]HOST",
                rule="names separated by commas; ports and keys belong in ~/.ssh/config",
            )
    return list(dict.fromkeys(found))


def distribute(
    image: str, nodes: list[str], name: str | None, ssh_config: Path | None, report: Progress
) -> list[ReceivingNode]:
    """Brings an image to nodes, side by side.

    Args:
        image: in a registry on this machine's loopback, by tag or digest.
        nodes: addresses for ssh.
        name: tag on the nodes; by default the image's own reference.
        ssh_config: another file than ssh's own.
        report: called with one line of progress.

    Returns:
        A node each, in the order given.

    Raises:
        UsageError: the image is not in a loopback registry, or has no tag to be named by.
        RegistryError: the registry does not have it.
        TransferError: at least one node does not have it now; the others do.
    """
    host, repository, digest, tag = _image_parts(image)
    final = name or (f"{host}/{repository}:{tag}" if tag else "")
    if not final:
        raise UsageError("an image given by digest needs --name", rule="REPOSITORY:TAG")
    sizes = registry.layer_sizes(f"{host}/{repository}", digest)
    found = [ReceivingNode(address) for address in nodes]

    def bring(node: ReceivingNode) -> None:
        _bring_to_node(node, (host, repository, digest, final), ssh_config, sizes)

    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            report("; ".join(node.text() for node in found))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with ThreadPoolExecutor(len(found)) as pool:
            list(pool.map(bring, found))
    finally:
        stop.set()
        watcher.join()
    lost = [node for node in found if node.error]
    if lost:
        raise TransferError(
            "\n".join(node.text() for node in lost),
            rule=f"{len(found) - len(lost)} of {len(found)} nodes have {final}",
            remedy="running again sends only what a node still lacks",
        )
    return found


def _image_parts(image: str) -> tuple[str, str, str, str]:
    """Host, repository, digest and tag (or nothing) of an image in a loopback registry."""
    reference = parse(image)
    if not reference.loopback:
        raise UsageError(
            f"{image} is not in a registry on this machine's loopback",
            rule="nodes pull through a tunnel, where another registry's certificate would not fit",
            remedy="scripts/registry.sh starts one; skopeo copy --all docker://IMAGE"
            " docker://127.0.0.1:5000/NAME:TAG --dest-tls-verify=false copies the image there",
        )
    host, repository = reference.host, reference.path
    if reference.digest:
        return host, repository, reference.digest, ""
    tag = reference.tag or "latest"
    found = registry.resolve(reference.repository, tag)
    if found is None:
        raise RegistryError(f"{host} has no {repository}:{tag}")
    return host, repository, found[0], tag


def _bring_to_node(
    node: ReceivingNode, what: tuple[str, str, str, str], config: Path | None, sizes: dict[str, int]
) -> None:
    host, repository, digest, name = what
    line = ["ssh", *(["-F", str(config)] if config else []), "-o", "BatchMode=yes"]
    line += ["-o", "ExitOnForwardFailure=yes", "-o", "ConnectTimeout=15"]
    line += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    line += ["-R", f"127.0.0.1:0:{host}", node.address, _SCRIPT]
    process = subprocess.Popen(
        line,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdin is not None and process.stdout is not None
    said: list[str] = []
    try:
        for text in process.stdout:
            if match := _ALLOCATED.search(text):
                process.stdin.write(f"{match[1]}\n{repository}\n{digest}\n{name}\n")
                process.stdin.flush()
            elif match := _EXIT.match(text):
                code = int(match[1])
                break
            elif match := _LAYER.match(text):
                _count_layer(node, match[1], match[2], sizes)
            elif text.strip():
                said.append(shown(text, 300))
                del said[:-200]
        else:
            code = process.wait()
    except OSError as error:
        code, said = 1, [str(error)]
    finally:
        process.kill()
        process.wait()
    if code != 0:
        lost = "the connection was lost" if code == 255 else "the node refused"
        # The reason is not always the last line.
        reasons = [text for text in said if _REASON.search(text)] or said or ["no reason given"]
        node.error = f"{lost}: {reasons[-1]}"
        return
    node.note = f"{node.sent_layers} of {node.layers} layers, {node.sent_bytes / 1e6:.1f} MB"


def _count_layer(node: ReceivingNode, layer: str, status: str, sizes: dict[str, int]) -> None:
    """Takes in one line of docker pull's output."""
    size = next((size for digest, size in sizes.items() if digest[7:19] == layer), None)
    if size is None:
        return
    if status.startswith(("Already exists", "Download complete")):
        node.layers += 1
    if status.startswith("Download complete"):
        node.sent_layers += 1
        node.sent_bytes += size
    node.note = f"{layer} {shown(status, 60)}, {node.sent_bytes / 1e6:.1f} MB sent"
