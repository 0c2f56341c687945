"""The plan: a release and a GPU, completely resolved, with a content-addressed id.

A plan is computed without an engine and without the network, so that ``--dry-run`` tells
everything that a build would do.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fp4forge import aot, archs, components, cross, ledger, lock, release, series
from fp4forge import base as bases
from fp4forge.components import Source
from fp4forge.errors import CoverageError, UsageError
from fp4forge.gpu import GPUS, host_platform, platform_for, target
from fp4forge.paths import IMAGE_FILES, IMAGE_TESTS, ROOT, STATE
from fp4forge.release import STRATEGIES, VARIANTS, LeaveOut
from fp4forge.series import Patch, Series

# What the ledger's stage in the build imports.
LEDGER_MODULES = (
    "__init__", "archs", "console", "cubins", "errors", "gpu", "ledger", "paths", "tar",
)  # fmt: skip
# The csrc patch that lets FP8 kernels run on all of SM12x.
FP8_FAMILY = "fp8-sm12x-family"
# The Python patch without which vLLM on a GPU imports FlashAttention's extension, or ends.
FLASH_ATTN_OPTIONAL = "flash-attn-optional"
# Where the plan lies in the build context: the tree that the image gets as it is.
PLAN_FILE = "image/runtime/opt/fp4forge/plan.json"

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_REGISTRY = re.compile(r"[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Request:
    """What a user asks for, as given on the command line."""

    arch: str
    release: str = "0.19.1"
    variant: str = "awq"
    strategy: str = "source"
    base: str = "ubuntu:24.04"
    platform: str | None = None
    arch_list: str | None = None
    allow_missing: tuple[str, ...] = ()
    components: str = "all"
    sources: tuple[str, ...] = ()  # NAME=git|pypi|DIR
    aot: str | None = None  # FlashInfer's modules; None: gemma4 where the host can compile them
    cross: bool = False  # compile on another platform than the image's


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
    allow_missing: tuple[str, ...]  # GPUs that may go without FP4, on request
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
    aot: aot.Choice = field(default_factory=aot.Choice)  # FlashInfer's modules in the image
    components: tuple[str, ...] = ()  # compiled ones, of a source build
    components_left_out: dict[str, str] = field(default_factory=dict)  # with the reason
    sources: dict[str, Source] = field(default_factory=dict)  # external ones
    cross: cross.Toolchain | None = None
    packages: dict[str, str] = field(default_factory=dict)  # locked version of each
    packages_overridden: tuple[str, ...] = ()  # by the release, against other packages' wishes
    revision: str = ""  # commit of the inputs, for the image's label
    checks: str = ""  # SHA-256 over the image tests: other tests, another verification
    context: dict[str, str] = field(default_factory=dict)  # file -> SHA-256, the build's input
    id: str = ""

    @property
    def site(self) -> str:
        """The folder of installed packages, without leading slash."""
        return f"usr/local/lib/python{self.python}/dist-packages"

    @property
    def compiles(self) -> bool:
        """Whether the build runs nvcc."""
        return self.strategy == "source" or self.aot.name != "none"

    @property
    def patch_layers(self) -> tuple[str, ...]:
        """One thin layer for each folder that has patched files."""
        folders = {path.rsplit("/", 1)[0] for path in self.patched_files}
        return tuple(sorted(folder.replace("/", "-") for folder in folders))

    @property
    def moving_tag(self) -> str:
        """The tag that follows the newest verified image."""
        return f"{self.release}-{self.arch}-{self.variant}"

    @property
    def immutable_tag(self) -> str:
        """The tag that names this plan's image and never another."""
        return f"{self.moving_tag}-{self.id}"

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON, tags included."""
        return asdict(self) | {"tags": [self.immutable_tag, self.moving_tag]}


def resolve(request: Request) -> Plan:
    """Resolves a request; the plan has no id before ``stage`` has seen its files.

    Raises:
        UsageError: an unknown arch, release, variant, strategy, base or platform.
        ReleaseError, PatchError: the release's files are malformed.
    """
    _one_of("--variant", request.variant, VARIANTS)
    _one_of("--from", request.strategy, STRATEGIES)
    for gpu in request.allow_missing:
        _one_of("--allow-missing", gpu, tuple(GPUS))
    chosen = target(request.arch)
    what = release.load(request.release)
    what.strategy(request.strategy)
    base = bases.load(request.base)
    platform = platform_for(chosen, request.platform)
    if request.strategy == "wheel" and platform not in what.wheels:
        raise UsageError(
            f"release {what.release} has no published wheel for {platform}",
            rule="wheels exist for " + ", ".join(what.wheels),
            remedy="--from source",
        )
    gpus = tuple(gpu.name for gpu in chosen.gpus)
    arch_list = _arch_list(request, what, platform)
    prediction = archs.predict(arch_list, what.vllm_version, what.cuda)
    _check_coverage(request, prediction, gpus)
    sequence = series.load("vllm", what.vllm_version)
    patches = sequence.for_variant(request.variant)
    csrc: tuple[Patch, ...] = ()
    choice = components.Choice()
    if request.strategy == "source":
        csrc = sequence.for_variant(request.variant, "csrc")
        choice = components.choose(
            request.components, request.sources, what, prediction.groups, gpus
        )
        if not {"fa2", "fa3"} & set(choice.names) and FLASH_ATTN_OPTIONAL not in {
            patch.id for patch in patches
        }:
            raise UsageError(
                f"vLLM {what.vllm_version} does not start on a GPU without FlashAttention",
                rule=f"components without fa2 need the patch {FLASH_ATTN_OPTIONAL}",
                remedy="--variant awq, or --components core,fa2",
            )
    elif request.components != "all" or request.sources:
        raise UsageError(
            "--components and --source go with --from source",
            rule="a published wheel is compiled already",
        )
    ahead = _ahead(request, platform, gpus)
    toolchain = (
        cross.choose(request.strategy, platform, base.suite, ahead.name) if request.cross else None
    )
    predicted = ledger.expected(prediction.groups, FP8_FAMILY in {p.id for p in csrc})
    return Plan(
        release=what.release,
        vllm_version=what.vllm_version,
        torch=what.torch,
        cuda=what.cuda,
        transformers=what.transformers,
        flashinfer=what.flashinfer,
        arch=chosen.name,
        gpus=gpus,
        capabilities=tuple(gpu.label for gpu in chosen.gpus),
        arch_list=arch_list,
        predicted=predicted | aot.expected(ahead, gpus),
        allow_missing=request.allow_missing,
        variant=request.variant,
        strategy=request.strategy,
        base=base.name,
        base_image=base.reference(platform),
        platform=platform,
        python=base.python,
        environment=what.environment.get(request.variant, {}),
        max_jit_jobs=chosen.max_jit_jobs,
        patches=tuple(patch.id for patch in (*patches, *csrc)),
        patched_files=series.patched_files(patches),
        leave_out=tuple(rule for rule in what.leave_out if not set(rule.unless) & set(gpus)),
        unpacked_gb=what.unpacked_gb[chosen.name]
        + (what.aot_all_gb * len(gpus) if ahead.name == "all" else 0),
        epoch=what.epoch,
        packages_overridden=tuple(
            re.split("[<=>!~]", text)[0] for text in what.strategy(request.strategy).overrides
        ),
        aot=ahead,
        components=choice.names,
        components_left_out=choice.left_out,
        sources=choice.sources,
        cross=toolchain,
    )


def _ahead(request: Request, platform: str, gpus: tuple[str, ...]) -> aot.Choice:
    """FlashInfer's modules: compiled by the build platform's nvcc for its own kind of host."""
    name = request.aot or ("gemma4" if platform == host_platform() else "none")
    _one_of("--aot", name, aot.CHOICES)
    return aot.choose(name, gpus)


def _arch_list(request: Request, what: release.Release, platform: str) -> str:
    if request.strategy == "wheel":
        if request.arch_list:
            raise UsageError(
                "--arch-list goes with --from source",
                rule="a published wheel is compiled already",
                remedy="--from source, or leave --arch-list out",
            )
        return what.wheel_arch_lists[platform]
    chosen = target(request.arch)
    return request.arch_list or (what.arch_list if chosen.name == "blackwell" else chosen.arch_list)


def _check_coverage(request: Request, prediction: archs.Prediction, gpus: tuple[str, ...]) -> None:
    lost = {g: why for g, why in prediction.lost(gpus).items() if g not in request.allow_missing}
    if lost:
        raise CoverageError(
            "\n".join(f"{gpu} would get no FP4: {why}" for gpu, why in lost.items()),
            rule=f"every GPU of --arch {request.arch} is served by {prediction.list!r}",
            remedy="build.py arch explain shows what a list gives;"
            f" --allow-missing {next(iter(lost))} builds without it",
        )


def context_files(plan: Plan) -> dict[str, bytes]:
    """Every file of the build context with its content; the Dockerfile is one of them.

    Raises:
        DriftError: there is no lock for the plan.
    """
    from fp4forge.render import dockerfile

    sequence = series.load("vllm", plan.vllm_version)
    files = {
        "Dockerfile": dockerfile(plan).encode(),
        "leave-out.json": _json([asdict(rule) for rule in plan.leave_out]),
        **_series(sequence, plan.variant, "python", "patches"),
    }
    if plan.strategy == "source":
        choice = components.Choice(plan.components, plan.components_left_out, plan.sources)
        crossing = {"cross": asdict(plan.cross)} if plan.cross else {}
        files["compile.json"] = _json(
            choice.instructions(plan.arch_list, plan.predicted) | crossing
        )
        files |= _series(sequence, plan.variant, "csrc", "csrc")
    if plan.aot.name != "none":
        files["aot.json"] = _json(plan.aot.instructions())
    files |= {f"locks/{name}.txt": text.encode() for name, text in lock.layers(plan).items()}
    for name in LEDGER_MODULES:
        files[f"ledger/fp4forge/{name}.py"] = (ROOT / "fp4forge" / f"{name}.py").read_bytes()
    for path in sorted(IMAGE_FILES.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files["image/" + path.relative_to(IMAGE_FILES).as_posix()] = path.read_bytes()
    return files


def _series(sequence: Series, variant: str, tier: str, folder: str) -> dict[str, bytes]:
    """A tier's patches in the build context: series.json and the diffs."""
    patches = sequence.for_variant(variant, tier)
    record = {
        "package": sequence.package,
        "version": sequence.version,
        "patches": [asdict(patch) for patch in patches],
    }
    diffs = {f"{folder}/{p.file}": (sequence.folder / p.file).read_bytes() for p in patches}
    return {f"{folder}/series.json": _json(record)} | diffs


def identify(plan: Plan) -> tuple[Plan, dict[str, bytes]]:
    """The plan with its id, and the files that the id stands for.

    The id is the first 12 hex digits of a SHA-256 over the plan and its files' hashes.
    """
    files = context_files(plan)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    packages = lock.versions(plan)
    plain = replace(
        plan, packages=packages, context=hashes, checks=_image_tests(), revision=_revision()
    )
    identity = hashlib.sha256(_json(asdict(plain))).hexdigest()[:12]
    complete = replace(plain, id=identity)
    return complete, files | {PLAN_FILE: _json(complete.as_json())}


def _revision() -> str:
    """The last commit that changed an image's inputs; ``-dirty`` when files differ from it.

    Part of the plan: it is in the image's configuration, and one id never names two images.
    """
    inputs = ["releases", "templates", "patches", "fp4forge/image"]
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "log", "-1", "--format=%H", "--", *inputs], capture_output=True, text=True
    )
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", *inputs], capture_output=True, text=True
    )
    if not commit.stdout.strip():
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def _image_tests() -> str:
    digest = hashlib.sha256()
    for path in sorted(IMAGE_TESTS.rglob("*.py")):
        digest.update(path.relative_to(IMAGE_TESTS).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def stage(plan: Plan, files: dict[str, bytes]) -> Path:
    """Writes the build context; times are the release's and modes fixed, so that layers repeat."""
    import os

    folder = STATE / "context" / plan.id
    if folder.exists():
        shutil.rmtree(folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if "/bin/" in name else 0o644)
    for entry in [*folder.rglob("*"), folder]:
        if entry.is_dir():
            entry.chmod(0o755)  # the image gets them as they are here, under whatever umask
        os.utime(entry, (plan.epoch, plan.epoch))
    return folder


def repository(registry: str | None, repo: str) -> str:
    """``registry/repo`` after validation.

    Raises:
        UsageError: either is not of the form that the distribution spec allows.
    """
    if not _REPOSITORY.fullmatch(repo):
        raise UsageError(
            f"--repo {repo!r} is not a repository name",
            rule="lower-case letters, digits and . _ - / as the OCI distribution spec has it",
        )
    if registry is None:
        return repo
    if not _REGISTRY.fullmatch(registry.split("/", 1)[0]) or (
        "/" in registry and not _REPOSITORY.fullmatch(registry.split("/", 1)[1])
    ):
        raise UsageError(
            f"--registry {registry!r} is not a registry", rule="HOST, HOST:PORT or HOST/PATH"
        )
    return f"{registry}/{repo}"


def check_tag(tag: str) -> str:
    """The tag, when it is one.

    Raises:
        UsageError: it is not.
    """
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"--tag {tag!r} is not a tag",
            rule="at most 128 letters, digits and . _ -, not starting with . or -",
        )
    return tag


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{flag} {value!r} does not exist", rule="one of " + ", ".join(allowed))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
