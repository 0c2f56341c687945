"""The image's configuration: user, entrypoint, health check, labels, environment, platform."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest


def test_entrypoint(config: dict[str, Any]) -> None:
    """the entrypoint is vllm"""
    assert config["Entrypoint"] == ["vllm"], f"entrypoint is {config['Entrypoint']}"


def test_user(config: dict[str, Any]) -> None:
    """the user is not root"""
    user = (config.get("User") or "root").split(":")[0]
    assert user not in ("root", "0", ""), f"the image runs as {user}"


def test_healthcheck(config: dict[str, Any]) -> None:
    """the health check's start period covers a 5-minute load"""
    check = config.get("Healthcheck") or {}
    assert check.get("Test"), "the image has no health check"
    assert check.get("StartPeriod", 0) >= 300e9, "its start period is under 5 minutes"


def test_port(config: dict[str, Any]) -> None:
    """port 8000 is exposed"""
    assert "8000/tcp" in (config.get("ExposedPorts") or {}), "port 8000 is not exposed"


def test_labels(config: dict[str, Any], plan: dict[str, Any]) -> None:
    """the labels name the release, arch, variant and plan"""
    labels = config.get("Labels") or {}
    wanted = {
        "io.fp4forge.release": plan["release"],
        "io.fp4forge.arch": plan["arch"],
        "io.fp4forge.variant": plan["variant"],
        "io.fp4forge.plan": plan["id"],
        "io.fp4forge.extras": ",".join(plan["extras"]),
        "org.opencontainers.image.version": plan["release"],
    }
    wrong = [f"{k}={labels.get(k)}, wanted {v}" for k, v in wanted.items() if labels.get(k) != v]
    assert not wrong, "; ".join(wrong)


def test_environment(config: dict[str, Any], plan: dict[str, Any]) -> None:
    """the environment has the release's defaults and the JIT cap"""
    have = dict(entry.split("=", 1) for entry in config.get("Env") or [])
    wanted = plan["environment"] | {
        "MAX_JOBS": str(plan["max_jit_jobs"]),
        "CUDA_HOME": "/usr/local/cuda",
        "TRITON_PTXAS_PATH": "/usr/local/cuda/bin/ptxas",
    }
    wrong = [f"{k}={have.get(k)}, wanted {v}" for k, v in wanted.items() if have.get(k) != v]
    assert not wrong, "; ".join(wrong)


def test_platform(image: dict[str, Any], plan: dict[str, Any]) -> None:
    """the platform is the plan's"""
    found = f"{image['Os']}/{image['Architecture']}"
    assert found == plan["platform"], f"the image is for {found}, wanted {plan['platform']}"


# Clocks of builder and verifier may differ by this much.
SKEW = datetime.timedelta(minutes=5)

SECRET = re.compile(
    r"(?i)\b[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)[A-Z0-9_]*\s*[=:]\s*\S+"
    r"|\b(?:hf|ghp|gho|glpat|sk)[-_][A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}|://[^/\s:@]+:[^/\s@]+@"
)


def when(text: str) -> datetime.datetime:
    """A time of the provenance (RFC 3339, nanoseconds, UTC)."""
    return datetime.datetime.fromisoformat(text[:19]).replace(tzinfo=datetime.UTC)


def test_provenance(request: pytest.FixtureRequest, plan: dict[str, Any]) -> None:
    """the provenance is this plan's, and the build machine's clock was correct"""

    reference = request.config.getoption("--image")
    if "@sha256:" not in reference:
        pytest.skip("not given by digest: provenance is in a registry, beside the image")
    from fp4forge.oci import copying

    found = copying.provenance(reference)
    assert found, "the image index has no provenance"
    released = datetime.datetime.fromtimestamp(plan["epoch"], datetime.UTC)
    for predicate in found.values():
        times = predicate["metadata"]
        started, finished = when(times["buildStartedOn"]), when(times["buildFinishedOn"])
        assert started <= finished, f"built until {finished}, before it began at {started}"
        assert finished <= datetime.datetime.now(datetime.UTC) + SKEW, (
            f"built at {finished}, to come"
        )
        assert started >= released, f"built at {started}, before its release was ({released})"
        arguments = predicate["invocation"]["parameters"]["args"]
        assert arguments.get("build-arg:PLAN_ID") == plan["id"], "it is another plan's provenance"


def test_layers(request: pytest.FixtureRequest) -> None:
    """no layer holds a credential, including deleted ones"""
    from fp4forge.checks import credentials as layers

    found = layers.credentials(request.config.getoption("--image"), lambda _: None)
    assert found, "the engine shows no layers"
    said = [f"{f.path} looks like {f.what}" for findings in found.values() for f in findings]
    assert not said, "; ".join(said[:5])


def test_secrets(config: dict[str, Any], history: list[tuple[int, str]]) -> None:
    """the environment, labels and history hold no token, password or key"""
    texts = [*(config.get("Env") or []), *(command for _, command in history)]
    texts += [f"{key}={value}" for key, value in (config.get("Labels") or {}).items()]
    # The name is shown, the value is not: this report may be public.
    found = {re.split("[=:]", m[0])[0][:40] for text in texts for m in SECRET.finditer(text)}
    assert not found, f"looks like a secret: {', '.join(sorted(found))}"
