"""The load generator's command lines: ``vllm bench serve`` in a container, never in a shell."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.bench.suite import TrialLoad
from fp4forge.core.errors import UsageError
from fp4forge.core.text import shown
from fp4forge.oci import dockercli, reference

ROLE = "io.fp4forge.role=bench"
WORK = "/work"  # the folder of all trials, in the container
INSIDE = Path(__file__).resolve().with_name("inside.py")
PROMPTS, RAW = "prompts.jsonl", "raw.json"
# A network's name, or container:NAME.
_NETWORK = re.compile(r"(container:)?[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# The client asks no hub, writes only to its work folder, and may not find its user's name.
_SETTINGS = {
    "HOME": "/tmp",
    "USER": "bench",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class LoadGenerator:
    """Where and with what the load generator runs.

    Raises:
        UsageError: the image or the network is not a name.
    """

    image: str
    network: str = "host"
    name: str = "fp4forge-bench"

    def __post_init__(self) -> None:
        reference.parse(self.image, "--image")  # an id, sha256:HEX, has the form of a tag
        if not _NETWORK.fullmatch(self.network):
            raise UsageError(f"--network {shown(self.network, 100)!r}", rule="a network's name")

    def line(self, folder: Path) -> list[str]:
        """``docker run``: no privileges, one folder to write to, and inside.py to run."""
        mounts = {folder.resolve(): WORK, INSIDE: f"/{INSIDE.name}"}
        if wrong := next((str(path) for path in mounts if "," in str(path)), ""):
            raise UsageError(  # docker's --mount separates by commas
                f"--out {shown(wrong, 200)!r}", rule="a path without commas"
            )
        line = dockercli.line("run", "--rm", "--interactive")
        line += [f"--name={self.name}", f"--label={ROLE}"]
        line += [f"--network={self.network}", f"--user={os.getuid()}:{os.getgid()}"]
        line += ["--read-only", "--tmpfs=/tmp:exec", "--cap-drop=ALL"]
        line += ["--security-opt=no-new-privileges", "--pull=never", "--entrypoint=python3"]
        line += [
            f"--mount=type=bind,source={source},target={target}"
            + (",readonly" if source == INSIDE else "")
            for source, target in mounts.items()
        ]
        line += [f"--env={name}={value}" for name, value in _SETTINGS.items()]
        if os.environ.get("OPENAI_API_KEY"):
            line.append("--env=OPENAI_API_KEY")  # its value is not on the command line
        return [*line, self.image, f"/{INSIDE.name}"]


def options(
    url: str, model: str, load: TrialLoad, folder: str, seed: int, body: dict[str, Any]
) -> list[str]:
    """Options of ``vllm bench serve`` for a trial, whose files are in a folder of WORK.

    The tool gets no tokenizer: the server counts. Then it would ask for one token each, so the
    request's body says how many; a body's fields replace the tool's own
    (vllm/benchmarks/lib/endpoint_request_func.py, ``_update_payload_common``).
    """
    named = {
        "backend": "openai-chat",
        "base-url": url,
        "endpoint": "/v1/chat/completions",
        "model": model,
        "served-model-name": model,
        "dataset-name": "custom",
        "dataset-path": f"{WORK}/{folder}/{PROMPTS}",
        "num-prompts": str(load.requests),
        "max-concurrency": str(load.concurrency),
        "request-rate": "inf",
        "temperature": f"{load.temperature:g}",
        "seed": str(seed),
        # A check, or a warm-up, would send the first prompt and so put it into the prefix cache.
        "ready-check-timeout-sec": "0",
        "num-warmups": "0",
        "extra-body": json.dumps({"max_completion_tokens": load.output} | body),
        "result-dir": f"{WORK}/{folder}",
        "result-filename": RAW,
    }
    switches = ["skip-tokenizer-init", "disable-shuffle", "no-oversample", "disable-tqdm"]
    switches += ["save-result", "save-detailed"]
    if load.eos == "ignore":
        switches.append("ignore-eos")
    return [f"--{name}={value}" for name, value in named.items()] + [
        f"--{name}" for name in switches
    ]
