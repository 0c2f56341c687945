"""One address for several servers: the configuration of LiteLLM's proxy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp4forge.core import files
from fp4forge.core.text import as_json
from fp4forge.serve.settings import PORT, ServerSettings

HEALTH = "/health/liveliness"  # asks for no key, and no model
_KEY = "os.environ/LITELLM_MASTER_KEY"  # LiteLLM's way to name a variable


def configuration(servers: Sequence[ServerSettings]) -> str:
    """The proxy's config.yaml: each model's name leads to its server.

    Requests and answers, streamed ones too, keep what OpenAI's protocol does not know
    (``hosted_vllm``). The proxy and the servers ask for one key; without one nobody asks.
    """
    key = _KEY if servers[0].key_file else ""
    config: dict[str, Any] = {
        "model_list": [
            {
                "model_name": server.served_name,
                "litellm_params": {
                    "model": f"hosted_vllm/{server.served_name}",
                    "api_base": f"http://{server.name}:{PORT}/v1",
                    "api_key": key or "none",
                },
            }
            for server in servers
        ],
        # A question is asked once: the client decides whether it is asked again.
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    if key:
        config["general_settings"] = {"master_key": key}
    return "# Written by fp4forge.\n" + as_json(config) + "\n"  # JSON is YAML


def folder(parent: Path, group: str) -> Path:
    """The folder beside a compose file that the gateway of several servers mounts."""
    return parent / f"{group}-gateway"


def write(parent: Path, group: str, servers: Sequence[ServerSettings]) -> Path:
    """Writes the configuration beside a compose file; any user can read it, it has no key.

    Raises:
        OSError: it cannot be written.
    """
    target = folder(parent, group)
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o755)
    files.replace(target / "config.yaml", configuration(servers), 0o644)
    return target
