"""The plan: a release and a GPU, completely resolved.

A plan is computed without an engine and without the network, so that ``--dry-run`` reports
everything that a build would do. It nests the inputs that it was made from; no later step loads
them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from fp4forge.inputs.bases import Base
from fp4forge.inputs.modelopt import ModelOptRelease
from fp4forge.inputs.patches import PatchSeries
from fp4forge.inputs.release import LeaveOut, Release
from fp4forge.plan import aot, cross_toolchain, tags
from fp4forge.plan.vllm_components import ExternalSource


@dataclass(frozen=True)
class PlanInputs:
    """What a plan was made from."""

    release: Release | ModelOptRelease
    base: Base
    series: PatchSeries


@dataclass(frozen=True)
class Plan:
    """Everything that decides what is in the image. JSON: ``as_json``."""

    release: str
    vllm_version: str
    torch: str
    cuda: str
    transformers: str
    flashinfer: str
    arch: str
    gpus: tuple[str, ...]
    capabilities: tuple[str, ...]
    arch_list: str
    predicted: dict[str, list[str]]  # targets of the ledger's groups
    backends: dict[str, dict[str, dict[str, str]]]  # what vLLM selects, by GPU, family and layer
    allow_missing: tuple[str, ...]  # GPUs that may go without FP4, on request
    allow_vulnerable: tuple[str, ...]  # advisories that a person accepts, by identifier
    variant: str
    strategy: str
    base: str
    base_image: str
    platform: str
    python: str
    environment: dict[str, str]
    max_jit_jobs: int
    patches: tuple[str, ...]
    patched_files: dict[str, str]  # path relative to dist-packages -> SHA-256
    leave_out: tuple[LeaveOut, ...]
    unpacked_gb: float
    epoch: int
    extras: dict[str, tuple[str, ...]] = field(default_factory=dict)  # libraries, by --with's name
    programs: tuple[str, ...] = ()  # that --with adds
    aot: aot.AotModules = field(default_factory=aot.AotModules)  # FlashInfer's modules in the image
    components: tuple[str, ...] = ()  # compiled ones, of a source build
    components_left_out: dict[str, str] = field(default_factory=dict)  # with NOT_ASKED or NO_CODE
    sources: dict[str, ExternalSource] = field(default_factory=dict)  # external ones
    cross: cross_toolchain.CrossToolchain | None = None
    packages: dict[str, str] = field(default_factory=dict)  # locked version of each
    # Where each backend's kernels come from, by GPU and kind; what each run-time compiler lacks.
    backend_kernels: dict[str, Any] = field(default_factory=dict)
    packages_overridden: tuple[str, ...] = ()  # by the release, against other packages' wishes
    revision: str = ""  # commit of the inputs, for the image's label
    checks: str = ""  # SHA-256 over the image tests: other tests, another verification
    context: dict[str, str] = field(default_factory=dict)  # file -> SHA-256, the build's input
    id: str = ""
    inputs: PlanInputs = field(repr=False, kw_only=True)  # loaded once; not part of the JSON

    @property
    def serves(self) -> bool:
        """Whether the image has vLLM; if not, it has ModelOpt, and quantises."""
        return bool(self.vllm_version)

    @property
    def compiles(self) -> bool:
        """Whether the build runs nvcc."""
        return self.strategy == "source" or self.aot.name != "none"

    @property
    def index_tag(self) -> str:
        """The moving tag of the index of several platforms."""
        return tags.index(
            self.release, self.arch, self.variant, self.strategy, self._base_and_extras
        )

    @property
    def _base_and_extras(self) -> str:
        """What moving tags say of the distribution: the base, and what was added to it."""
        return "-".join((self.inputs.base.slug, *self.extras))

    @property
    def moving_tag(self) -> str:
        """The tag that follows the newest verified image of this kind and platform."""
        return tags.moving(
            self.release,
            self.arch,
            self.variant,
            self.strategy,
            self._base_and_extras,
            self.platform,
        )

    @property
    def immutable_tag(self) -> str:
        """The tag that names this plan's image and never another."""
        return tags.immutable(self.release, self.arch, self.variant, self.id)

    def values(self) -> dict[str, Any]:
        """What the plan decides, as JSON; what it was decided from is left out."""
        names = (entry.name for entry in fields(self) if entry.name != "inputs")
        return {name: msgspec.to_builtins(getattr(self, name)) for name in names}

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON, tags included."""
        return self.values() | {"tags": [self.immutable_tag, self.moving_tag]}
