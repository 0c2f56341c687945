"""What watches a server: the files of Prometheus and Grafana beside its compose file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from fp4forge.core import files, reading
from fp4forge.core.errors import UsageError
from fp4forge.core.paths import TEMPLATES
from fp4forge.serve.settings import LOOPBACK, PORT

SOURCE = TEMPLATES / "serve" / "monitoring"
PROFILE = "monitoring"  # of the compose file, and the value of --with
TARGET = f"vllm:{PORT}"  # the compose file's server
GRAFANA = f"http://{LOOPBACK}:3000"
PROMETHEUS = f"http://{LOOPBACK}:9090"


def folder(parent: Path, server: str) -> Path:
    """The folder beside a compose file that it mounts, for a server of some name."""
    return parent / f"{server}-monitoring"


def password_file(parent: Path, server: str) -> Path:
    """The file with the password of Grafana's user admin."""
    return folder(parent, server) / "grafana-password"


def check_port(port: int) -> None:
    """Refuses a server's port that Prometheus or Grafana has by default.

    Raises:
        UsageError: it is one of them.
    """
    for title, address in (("Grafana", GRAFANA), ("Prometheus", PROMETHEUS)):
        if address.endswith(f":{port}"):
            raise UsageError(
                f"--port {port} is {title}'s with --with monitoring",
                rule="a port is published once",
                remedy="give another --port",
            )


def _password_of(path: Path) -> str:
    """A password that is there; empty if there is none."""
    if not os.path.lexists(path):
        return ""
    try:
        return reading.text(path, UsageError).strip()
    except UsageError as error:
        error.remedy = f"remove {path}, and a new password is written"
        raise


def write(parent: Path, server: str, targets: Sequence[str] = (TARGET,)) -> Path:
    """Writes the files; a password that is there already stays, because Grafana keeps its first.
    An empty one is replaced.

    Other users of this machine cannot enter the folder. What is in it can be read by any user,
    because the containers do not run as root.

    Args:
        parent: the compose file's folder.
        server: the server's name.
        targets: HOST:PORT of what is scraped, as the compose file's network knows it.

    Returns:
        The folder.

    Raises:
        OSError: it cannot be written.
        UsageError: what has the password's name is not a file.
    """
    target, password = folder(parent, server), password_file(parent, server)
    known = _password_of(password)
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o700)
    for source in sorted(SOURCE.rglob("*")):
        path = target / source.relative_to(SOURCE)
        if source.is_dir():
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        else:
            text = source.read_text(encoding="utf-8")
            text = text.replace(json.dumps([TARGET]), json.dumps(list(targets)))
            files.replace(path, text, 0o644)
    if not known:
        files.replace(password, secrets.token_urlsafe(24), 0o644)
    return target
