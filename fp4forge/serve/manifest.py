"""Settings as a file that starts the server: compose, docker run, systemd, Kubernetes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shlex
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp4forge.core.errors import ServingError, UsageError
from fp4forge.core.paths import TEMPLATES
from fp4forge.core.text import shown
from fp4forge.image.render import UID
from fp4forge.oci import dockercli, process, reference
from fp4forge.serve import lora, ray
from fp4forge.serve.settings import (
    CACHE_DIR,
    KEY_FILE,
    MODEL_DIR,
    PORT,
    ServerSettings,
    published,
)
from fp4forge.serve.speculation import DRAFT_DIR

if TYPE_CHECKING:
    from jinja2 import Template

    from fp4forge.inputs.service_images import ServiceImages

FORMATS = {
    "compose": "compose.yaml.j2",
    "run": "run.sh.j2",
    "systemd": "vllm.service.j2",
    "k8s": "k8s.yaml.j2",
    "lws": "lws.yaml.j2",
    "kuberay": "kuberay.yaml.j2",
}
# What a read-only root leaves to write to: PyTorch and Triton load what they compiled in /tmp.
TMPFS = {
    "/tmp": "exec,mode=1777",
    "/run": "mode=755",
    "/home/vllm": f"exec,uid={UID},gid={UID},mode=700",
}
# Reports whether a server answers, in the image.
HEALTHCHECK = "/opt/fp4forge/bin/healthcheck"
_GROUP = "fp4forge"  # the name of several servers together begins with it
_TOGETHER_NAME = 60  # characters that the name has at most
# After a reboot Docker starts all containers at once, whatever depends_on says. It ends on SIGTERM,
# which a container's first process ignores otherwise.
_AFTER = f"""\
import os, signal, sys, time
from http.client import HTTPConnection, HTTPException
def ready(host):
    try:
        asked = HTTPConnection(host, {PORT}, timeout=4)
        asked.request("GET", "/health")
        return asked.getresponse().status == 200
    except (OSError, HTTPException):
        return False
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
while not ready(sys.argv[1]):
    time.sleep(2)
os.execvp("vllm", ["vllm", *sys.argv[2:]])
"""
# Its pods have labels of at most 63 characters: the name, "-0" and "-" with a hash of 10 digits
# (Kubernetes, StatefulSetRevisionLabel).
# KubeRay shortens names of more than 50 characters from the front: the name and "-head-svc"
# (ray-project/kuberay, utils.CheckName).
_NAME_LENGTHS = {"lws": 50, "kuberay": 41}


def _yaml(value: object) -> str:
    """A YAML scalar: JSON is YAML."""
    return json.dumps(str(value), ensure_ascii=False)


def _compose_scalar(value: object) -> str:
    """The same for compose files, which expand dollar signs."""
    return _yaml(value).replace("$", "$$")


def _systemd_word(value: object) -> str:
    """A word of a systemd command line (systemd.service(5), "Command lines")."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    text = re.sub("[\x00-\x1f]", lambda match: f"\\x{ord(match[0]):02x}", text)
    return '"' + text.replace("%", "%%").replace("$", "$$") + '"'


def _mount_option(kind: str, source: str, target: str, *flags: str) -> str:
    """The value of ``docker run --mount``: one CSV record, so quotes and commas are quoted."""
    record = io.StringIO()
    fields = [f"type={kind}", f"source={source}", f"target={target}", *flags]
    csv.writer(record, lineterminator="").writerow(fields)
    return record.getvalue()


def _kubernetes_scalar(value: object) -> str:
    """The same for arguments and variables of a container.

    Kubernetes expands $(NAME) in them, and makes $$ one dollar sign.
    """
    return _yaml(value).replace("$", "$$")


def render(server: ServerSettings, kind: str, **more: object) -> str:
    """The manifest's text.

    Args:
        server: from ``settings.server``.
        kind: one of FORMATS.
        more: what the template of that kind needs beside the server; of a compose file
            ``monitoring``, the images that watch the server (their files: ``monitoring.write``).
    """
    if length := _NAME_LENGTHS.get(kind):
        server = replace(server, name=server.name[:length].rstrip("-"))
    part = _compose_part(server, "vllm", "cache", published(server.listen, server.port))
    binds = list(part["binds"])
    binds += [(server.key_file, KEY_FILE)] if server.key_file and kind != "compose" else []
    return _template(FORMATS[kind]).render(
        s=server,
        name=server.name,
        part=part,
        model_dir=part["model_dir"],
        cache_dir=CACHE_DIR,
        healthcheck=HEALTHCHECK,
        uid=UID,
        cache=part["cache_name"],
        binds=binds,
        mounts=[
            *(_mount_option("bind", source, target, "readonly") for source, target in binds),
            _mount_option("volume", part["cache_name"], CACHE_DIR),
        ],
        tmpfs=TMPFS,
        published=part["published"],
        flags=part["flags"],
        ray_scripts=ray.SCRIPTS,
        ray_head=f"{server.name}-head-svc",
        ray_node_port=ray.NODE_PORT,
        ray_secret=f"{server.name}-ray",
        **({"monitoring": None} | more),
    )


def group_name(servers: list[ServerSettings]) -> str:
    """The name of several servers together: their containers, volumes and folders begin with it.

    Other models make another name, so two such compose files can share a folder and a machine.
    """
    models = [server.name.removeprefix("vllm-") for server in servers]  # none has a "_"
    name = "_".join([_GROUP, *models])
    if len(name) <= _TOGETHER_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _TOGETHER_NAME - 9]}-{digest}"


def container_of(group: str, service: str) -> str:
    """The container's name of one service of several servers' compose file."""
    return f"{group}-{service}"


def render_together(
    servers: list[ServerSettings], gateway: str, monitoring: ServiceImages | None = None
) -> str:
    """A compose file of several servers on one GPU, behind a gateway at the first one's address.

    They start one after the other: vLLM counts what others allocate while it measures its own
    memory as its own (vllm/v1/worker/gpu_worker.py, ``determine_available_memory``). Compose keeps
    that order when it starts them; in the containers, a server waits for the one before it.

    Args:
        servers: with names of their own; their key is one file.
        gateway: the gateway's image; its file: ``gateway.write``.
        monitoring: what watches the servers.
    """
    name, first = group_name(servers), servers[0]
    parts = [_compose_part(server, server.name, f"{server.name}-cache", "") for server in servers]
    for part in parts:
        part["container"] = container_of(name, part["service"])
        part["cache_name"] = f"{part['container']}-cache"
    for before, part in pairwise(parts):
        part["after"] = before["service"]
        part["entrypoint"] = ["python3", "-ISc", _AFTER, before["service"]]
    return _template("together.yaml.j2").render(
        parts=parts,
        name=name,
        published=published(first.listen, first.port),
        key_file=first.key_file,
        key_target=KEY_FILE,
        gateway=gateway,
        monitoring=monitoring,
        cache_dir=CACHE_DIR,
        healthcheck=HEALTHCHECK,
        tmpfs=TMPFS,
    )


def _template(name: str) -> Template:
    """A template of ``templates/serve``; every value in it goes through one of these filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES / "serve"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - not HTML; every value goes through a filter below
    )
    environment.filters |= {
        "yaml": _yaml,
        "compose": _compose_scalar,
        "k8s": _kubernetes_scalar,
        "shell": lambda v: shlex.quote(str(v)),
        "unit": _systemd_word,
        "comment": shown,  # a line break would end it, and what follows would be run
    }
    return environment.get_template(name)


def _compose_part(
    server: ServerSettings, service: str, cache: str, published: str
) -> dict[str, Any]:
    """What ``service.yaml.j2`` needs: a server, and its names in the compose file."""
    model_dir = f"{MODEL_DIR}/{server.served_name}"
    binds = [(server.model, model_dir)]
    binds += [(server.drafter, DRAFT_DIR)] if server.drafter else []
    binds += [(path, f"{lora.FOLDER}/{name}") for name, path in server.adapters.items()]
    return {
        "server": server,
        "service": service,
        "container": server.name,
        "entrypoint": [],
        "cache": cache,
        "cache_name": f"{server.name}-cache",
        "published": published,
        "after": "",
        "model_dir": model_dir,
        "binds": binds,
        "flags": list(zip_arguments(server)),
    }


def zip_arguments(server: ServerSettings) -> list[tuple[list[str], str]]:
    """Each flag's words with its reason."""
    return [(flag.words, flag.why) for flag in server.flags]


def validate(text: str) -> str:
    """Has ``docker compose config`` read a compose file.

    Returns:
        Which program checked it; empty if compose is not installed.

    Raises:
        ServingError: compose refuses it.
    """
    line = dockercli.compose()
    if not line:
        return ""
    with tempfile.TemporaryDirectory(prefix="fp4forge-compose-") as folder:
        file = Path(folder, "compose.yaml")
        file.write_text(text)
        done = process.run([*line, "-f", str(file), "config", "--quiet"], kind=ServingError)
    if done.returncode != 0:
        raise ServingError(
            f"docker compose refuses the file: {shown(done.stderr, 500)}",
            rule="the Compose specification",
        )
    return " ".join(line)


def is_digest(image: str) -> bool:
    """Whether an image is named by digest, in the form that manifests have."""
    try:
        return bool(reference.parse(image).digest)
    except UsageError:
        return False


def by_digest(image: str) -> str:
    """The image by digest: as given, or as the registry knows the tag.

    Raises:
        UsageError: not an image reference.
        RegistryError: the registry does not answer.
    """
    named = reference.parse(image, "--image")
    if named.digest:
        return image
    from fp4forge.oci import registry

    name, tag = named.repository, named.tag or "latest"
    found = registry.resolve(name, tag)
    if found is None:
        raise UsageError(
            f"{name} has no tag {tag}",
            rule="a manifest names its image by digest, so that every node runs the same bytes",
            remedy="push the image, or give --image NAME@sha256:...",
        )
    return f"{name}@{found[0]}"
