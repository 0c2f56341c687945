"""Files out of images and containers that are not started, and the parts of what they hold."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

from fp4forge.oci import engine


def records(client: Any, image: str) -> dict[str, Any]:
    """plan.json, ledger.json and patches.json of one of our images; empty for others.

    Args:
        client: docker SDK client.
        image: reference of an image that the engine has.
    """
    from docker.errors import APIError

    made = client.containers.create(
        image, command=["none"], network_mode="none", labels={engine.ROLE: "records"}
    )
    try:
        stream, _ = made.get_archive("/opt/fp4forge")
        found = {}
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            for name in ("plan", "ledger", "patches"):
                content = archive.extractfile(f"fp4forge/{name}.json")
                found[name] = json.load(content) if content else {}
        return found
    except (APIError, KeyError):
        return {}
    finally:
        made.remove(force=True)
