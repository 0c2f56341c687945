"""What a machine has, as one line of JSON; ``python3 -`` runs it there, with its own library alone.

The request is the first argument, JSON: ``peers`` (addresses or names of the other machines),
``model`` (a folder), ``image`` (a reference), ``ports``, ``interface`` (empty: that of the route);
or ``listen`` (a port, for ``seconds``); or ``connect`` (an address and a port).
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
GPU = "--query-gpu=name,compute_cap,driver_version,memory.total"


def said(*line: str) -> str:
    """What a program prints; empty if it fails or is not there."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def read(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def route(peer: str) -> dict[str, str]:
    """Interface and own address on the way to a peer."""
    try:
        address = str(socket.getaddrinfo(peer, None, socket.AF_INET)[0][4][0])
    except OSError:
        return {"error": f"the name {peer} has no address here"}
    text = said("ip", "-o", "route", "get", address)
    device, source = re.search(r" dev (\S+)", text), re.search(r" src (\S+)", text)
    if not device or not source:
        return {"error": f"no route to {peer} ({address})"}
    return {"peer": peer, "to": address, "interface": device[1], "address": source[1]}


def own_address(interface: str) -> str:
    """The first IPv4 address of an interface."""
    text = said("ip", "-o", "-4", "addr", "show", "dev", interface)
    found = re.search(r" inet ([0-9.]+)/", text)
    return found[1] if found else ""


def link(interface: str) -> dict[str, Any]:
    """MTU, speed in Mbit/s (0: unknown) and state of an interface (sysfs-class-net)."""
    place = Path("/sys/class/net", interface)
    speed = read(place / "speed")
    return {
        "mtu": int(read(place / "mtu") or 0),
        "speed": int(speed) if speed.isdigit() else 0,
        "state": read(place / "operstate"),
    }


def rdma() -> dict[str, list[str]]:
    """RDMA devices whose first port is up, with their interfaces (sysfs-class-infiniband)."""
    return {
        place.name: sorted(entry.name for entry in (place / "device/net").glob("*"))
        for place in sorted(Path("/sys/class/infiniband").glob("*"))
        if "ACTIVE" in read(place / "ports/1/state")
    }


def model(folder: Path) -> dict[str, tuple[int, str]]:
    """Size of every file, and a hash of its first and last mebibyte."""
    out = {}
    for path in sorted(folder.glob("*")):
        if path.is_file() and not path.name.startswith("."):
            size, digest = path.stat().st_size, hashlib.sha256()
            with path.open("rb") as file:
                digest.update(file.read(CHUNK))
                file.seek(max(file.tell(), size - CHUNK))
                digest.update(file.read(CHUNK))
            out[path.name] = (size, digest.hexdigest())
    return out


def memory() -> list[int]:
    """MemTotal and MemAvailable in bytes (proc(5))."""
    found = dict(re.findall(r"(\w+): +([0-9]+) kB", read(Path("/proc/meminfo"))))
    return [int(found.get(name, 0)) << 10 for name in ("MemTotal", "MemAvailable")]


def taken(ports: list[int]) -> list[int]:
    """Ports that another program listens on."""
    out = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                out.append(port)
    return out


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Everything about this machine."""
    routes = [route(peer) for peer in request["peers"]]
    ways = [found["interface"] for found in routes if "error" not in found]
    interface = request["interface"] or (ways[0] if ways else "")
    digests = "{{.Id}} {{range .RepoDigests}}{{.}} {{end}}"
    compose = (("docker", "compose"), ("docker-compose",))
    return {
        "name": socket.gethostname(),
        "time": time.time(),
        "docker": said("docker", "version", "--format", "{{.Server.Version}}"),
        "compose": next((v for c in compose if (v := said(*c, "version", "--short"))), ""),
        "gpus": said("nvidia-smi", GPU, "--format=csv"),
        "routes": routes,
        "interface": interface,
        "address": own_address(interface) if interface else "",
        "link": link(interface) if interface else {},
        "rdma": rdma(),
        "image": said("docker", "image", "inspect", "--format", digests, request["image"]).split(),
        "model": model(Path(request["model"])),
        "memory": memory(),
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
        "taken": taken(request["ports"]),
    }


def listen(port: int, seconds: float) -> dict[str, Any]:
    """Takes one connection; says when it listens."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen()
        server.settimeout(seconds)
        print("listening", flush=True)
        try:
            server.accept()[0].close()
        except OSError:
            return {"reached": False}
        return {"reached": True}


def connect(address: str, port: int) -> dict[str, Any]:
    """Why a port cannot be reached; empty if it can."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return {"error": str(error)}
    return {"error": ""}


def main() -> None:
    """Command line."""
    request = json.loads(sys.argv[1])
    if "listen" in request:
        found = listen(request["listen"], request["seconds"])
    elif "connect" in request:
        found = connect(*request["connect"])
    else:
        found = look(request)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
