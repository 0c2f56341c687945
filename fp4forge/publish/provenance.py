"""SLSA provenance 1.0 (https://slsa.dev/spec/v1.0/provenance) from what BuildKit attached.

BuildKit attaches version 0.2 by default until moby/buildkit#6526 (February 2026). The fields move
as in BuildKit's own ConvertSLSA02ToSLSA1 (solver/llbsolver/provenance/types); nothing is made up.
BuildKit lists what it fetched itself, such as the base; what the steps fetched is added
(``fetched``).
The names are the specification's (``invocationId``), with BuildKit's extensions. BuildKit
names a builder only if it is given one, and the specification demands one.
"""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec
from msgspec import Struct

from fp4forge.core import reading
from fp4forge.core.errors import RegistryError
from fp4forge.publish.fetched import ResolvedDependency

KIND = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
# A build on a machine that no build service vouches for: Build L1, whoever signs it.
LOCAL_BUILDER = "urn:fp4forge:builder:local"


class _Builder(Struct, frozen=True):
    id: str = ""


class _Invocation(Struct, frozen=True):
    configSource: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    environment: dict[str, Any] = {}


class _Material(Struct, frozen=True):
    uri: str = ""
    digest: dict[str, str] = {}


class _Complete(Struct, frozen=True):
    parameters: bool = False
    materials: bool = False


class _ProvenanceMetadata(Struct, frozen=True):
    buildInvocationID: str = ""
    buildStartedOn: str = ""
    buildFinishedOn: str = ""
    completeness: _Complete = _Complete()
    reproducible: bool = False


class _New(Struct, frozen=True):
    buildDefinition: dict[str, Any]


class _Listed(Struct, frozen=True):
    resolvedDependencies: list[Any] = []


class _Old(Struct, frozen=True):
    """A predicate of https://slsa.dev/provenance/v0.2, as BuildKit writes it."""

    buildType: str
    builder: _Builder = _Builder()
    invocation: _Invocation = _Invocation()
    materials: list[_Material] = []
    metadata: _ProvenanceMetadata = _ProvenanceMetadata()
    buildConfig: dict[str, Any] | None = None


def convert(predicate: dict[str, Any], fetched: list[ResolvedDependency]) -> bytes:
    """A predicate of version 1 as JSON; one that is of version 1 already only gets the fetches.

    Args:
        predicate: BuildKit's, of version 0.2 or 1.
        fetched: what the build's steps fetched, which BuildKit does not see.

    Raises:
        RegistryError: it has neither form.
    """
    own = msgspec.to_builtins(fetched)
    if "buildDefinition" in predicate:
        definition = reading.shaped(
            predicate, _New, "BuildKit's provenance", RegistryError
        ).buildDefinition
        listed = reading.shaped(
            definition, _Listed, "BuildKit's provenance", RegistryError
        ).resolvedDependencies
        more = {"resolvedDependencies": [*listed, *own]} if own else {}
        return _statement_bytes(predicate | {"buildDefinition": definition | more})
    old = reading.shaped(predicate, _Old, "BuildKit's provenance", RegistryError)
    source = old.invocation.configSource
    config = {"uri": source.get("uri"), "digest": source.get("digest")}
    config["path"] = source.get("entryPoint")
    internal = {
        "buildConfig": old.buildConfig,
        "builderPlatform": old.invocation.environment.get("platform"),
    }
    return _statement_bytes(
        {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "configSource": {name: value for name, value in config.items() if value},
                    "request": old.invocation.parameters,
                },
                "internalParameters": {name: value for name, value in internal.items() if value},
                "resolvedDependencies": [
                    *({"uri": one.uri, "digest": one.digest} for one in old.materials),
                    *own,
                ],
            },
            "runDetails": {
                "builder": {"id": old.builder.id or builder()},
                "metadata": {
                    "invocationId": old.metadata.buildInvocationID,
                    "startedOn": old.metadata.buildStartedOn,
                    "finishedOn": old.metadata.buildFinishedOn,
                    "buildkit_completeness": {
                        "request": old.metadata.completeness.parameters,
                        "resolvedDependencies": old.metadata.completeness.materials,
                    },
                    "buildkit_reproducible": old.metadata.reproducible,
                },
            },
        }
    )


def builder() -> str:
    """Who builds: the workflow that runs (its variables in GitHub's and GitLab's runners)."""
    workflow = os.environ.get("GITHUB_WORKFLOW_REF")
    if workflow:
        return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{workflow}"
    return os.environ.get("CI_CONFIG_REF_URI") or LOCAL_BUILDER


def _statement_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
