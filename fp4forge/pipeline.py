"""The main job: plan -> context -> base -> build -> push by digest -> verify -> tags."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fp4forge import base as bases
from fp4forge import builder, engine, registry, verify
from fp4forge import ledger as ledgers
from fp4forge import plan as planning
from fp4forge.builder import Options
from fp4forge.console import Console, Report, Step
from fp4forge.errors import CoverageError, PlatformError, UsageError
from fp4forge.gpu import host_platform
from fp4forge.image.build import jobs
from fp4forge.paths import STATE
from fp4forge.plan import Plan, Request

# GB that a build needs free: cold, it writes package cache, build cache, unpacked image, compressed
# layers and a registry (45 GB measured for blackwell, all on one disk); warm, when the engine has
# the base, little more.
COLD_GB = 46.0
WARM_GB = 8.0


@dataclass(frozen=True)
class Destination:
    """Where the image goes; a part of an image index gets no tag but its own immutable one."""

    repository: str
    push: bool
    tags: tuple[str, ...] = ()
    part: bool = False


@dataclass
class Outcome:
    """What came of it; JSON on request."""

    plan: dict[str, Any]
    image: str = ""
    digest: str = ""
    tags: list[str] = field(default_factory=list)
    verified_before: bool = False  # by the build that made the immutable tag
    unpacked_bytes: int = 0
    compressed_bytes: int = 0
    compiled: dict[str, Any] = field(default_factory=dict)  # of a source build, by object
    checks: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)


def prepare(request: Request) -> tuple[Plan, dict[str, bytes]]:
    """The identified plan and its files; touches neither engine nor network."""
    return planning.identify(planning.resolve(request))


def run(request: Request, destination: Destination, options: Options, console: Console) -> Outcome:
    """Builds, checks and publishes.

    Raises:
        ForgeError: one of its classes, whatever step failed; no tag was moved then.
    """
    pool = ThreadPoolExecutor(1)
    try:
        with console.step("plan") as step:
            plan = planning.resolve(request)
            lacking = pool.submit(_lacking, plan)  # docker looks while the files are rendered
            plan, files = planning.identify(plan)
            step.detail = f"{plan.id}: {plan.immutable_tag}"
        return _make(plan, files, destination, options, console, pool, lacking)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_all(
    requests: list[Request], destination: Destination, options: Options, console: Console
) -> tuple[list[Outcome], Index]:
    """Builds, checks and pushes one image for each platform, then names them all by one index.

    Raises:
        ForgeError: one platform failed; no tag was moved then.
        UsageError: the index cannot be left in the engine.
    """
    if not destination.push:
        raise UsageError(
            "several platforms make an image index, which only a registry can name",
            rule="--platform A,B goes with --push",
        )
    part = replace(destination, part=True)
    outcomes = [run(request, part, options, console) for request in requests]
    with console.step("index") as step:
        index = _index(outcomes, destination, step.report)
        step.detail = ", ".join(index.tags)
    return outcomes, index


@dataclass(frozen=True)
class Index:
    """The image index that names one verified image for each platform."""

    image: str
    digest: str
    tags: tuple[str, ...]
    platforms: dict[str, str]  # platform -> digest of that platform's own index


def _index(outcomes: list[Outcome], destination: Destination, report: Report) -> Index:
    repository = destination.repository
    digests = {outcome.plan["platform"]: outcome.digest for outcome in outcomes}
    moving = outcomes[0].plan["tags"][1]
    joined = "".join(outcome.plan["id"] for outcome in outcomes)
    name = f"{moving}-{hashlib.sha256(joined.encode()).hexdigest()[:12]}"
    manifests = set().union(*(registry.images_of(repository, d) for d in digests.values()))
    immutable, known = registry.immutable(repository, name, manifests)
    report(immutable)
    digest = known or registry.combine(repository, list(digests.values()), immutable, manifests)
    for tag in (moving, *destination.tags):
        report(tag)
        registry.tag(repository, digest, tag)
    tags = (immutable, moving, *destination.tags)
    return Index(f"{repository}@{digest}", digest, tags, digests)


def _lacking(plan: Plan) -> list[str]:
    """The platforms whose base the engine does not have yet."""
    base, needed = bases.load(plan.base), dict.fromkeys((host_platform(), plan.platform))
    return [platform for platform in needed if not bases.present(base, platform)]


def _check(plan: Plan, destination: Destination, options: Options, warm: bool) -> Step:
    """Whether engine, platform, disk and registry allow the build; the step for the table."""
    start = time.monotonic()
    info = engine.connect().info()
    engine.check_store(info, options.builder)
    if plan.compiles and options.builder is None:
        _check_compilers(plan)
    engine.check_platform(info, plan.platform, options.builder)
    least = float(os.environ.get("FP4FORGE_MIN_FREE_GB", 0)) or (WARM_GB if warm else COLD_GB)
    engine.check_disk(info, least)
    detail = f"engine {info['ServerVersion']}"
    if destination.push:
        registry.reach(destination.repository)
        detail += f", registry {destination.repository.split('/')[0]}"
    return Step("check", time.monotonic() - start, detail)


def _check_compilers(plan: Plan) -> None:
    """Whether this machine can run the plan's compilers, which no emulation is fast enough for."""
    here = host_platform()
    needed = plan.cross.build if plan.cross else plan.platform
    if here == needed:
        return
    if plan.cross:
        raise PlatformError(
            f"--cross compiles on {needed}, and this machine is {here}",
            remedy=f"leave --cross out: {plan.platform} is compiled here as it is",
        )
    raise PlatformError(
        f"{plan.platform} is compiled on {plan.platform}, and this machine is {here}",
        rule="compilers run natively",
        remedy="--cross (with --aot none), --builder with such a machine, or --from wheel"
        if plan.strategy == "source"
        else "--aot none, or --builder with such a machine",
    )


def _make(
    plan: Plan, files: dict[str, bytes], destination: Destination, options: Options,
    console: Console, pool: ThreadPoolExecutor, lacking: Future[list[str]],
) -> Outcome:  # fmt: skip
    outcome = Outcome(plan.as_json())
    with _alone(console):
        context = planning.stage(plan, files)
        with console.step("base") as step:
            step.report(f"{plan.base} for {plan.platform}")
            base = bases.load(plan.base)
            step.detail = base.reference(plan.platform)
            # The checks take as long as a build that changes nothing: they run beside it, and
            # stop it.
            checked = pool.submit(_check, plan, destination, options, not lacking.result())
            for platform in lacking.result():
                checked.result()  # making or fetching one is long: nothing starts in vain
                bases.ensure(base, platform, step.report)
        digest = _ledger(plan, context, options, console, checked)
        if plan.strategy == "source":
            _compiled(plan, context, options, console, outcome)
        make = _push if destination.push else _load
        make(plan, context, destination, options, console, outcome, checked, digest)
    console.add(checked.result())
    outcome.steps = [
        {"name": s.name, "seconds": round(s.seconds, 2), "verdict": s.verdict, "detail": s.detail}
        for s in console.steps
    ]
    return outcome


def _ledger(
    plan: Plan, context: Path, options: Options, console: Console, checked: Future[Step]
) -> str:
    """Builds the extensions, compares their ledger with the plan; returns its SHA-256."""
    with console.step("ledger") as step:
        content = builder.ledger(plan, context, options, step.report, checked)
        found = json.loads(content)
        lines = ledgers.differences(plan.predicted, found["groups"])
        if lines:
            raise CoverageError(
                "the kernels are not the predicted ones:\n  " + "\n  ".join(lines),
                rule=f"vLLM {plan.vllm_version}'s CMake rules for {plan.arch_list}",
                remedy="build.py ledger shows every cubin; nothing was published",
            )
        lost = [
            gpu
            for gpu in plan.gpus
            if not found["gpus"][gpu]["ok"] and gpu not in plan.allow_missing
        ]
        if lost:
            raise CoverageError(
                f"no native or family NVFP4 kernels for {', '.join(lost)} in the built extensions",
                remedy="--allow-missing GPU builds without it",
            )
        fp4 = {gpu: found["gpus"][gpu]["nvfp4_gemm"] for gpu in plan.gpus}
        step.detail = "as predicted; NVFP4 " + ", ".join(f"{g} {w}" for g, w in fp4.items())
        return "sha256:" + hashlib.sha256(content).hexdigest()


def _compiled(
    plan: Plan, context: Path, options: Options, console: Console, outcome: Outcome
) -> None:
    with console.step("compiled") as step:
        found = builder.compile_record(plan, context, options, step.report)
        outcome.compiled = found
        slowest = list(found["objects"].items())[:10]
        step.detail = f"{len(found['objects'])} objects; slowest " + ", ".join(
            f"{name.rsplit('/', 1)[-1]} {seconds:.0f} s" for name, seconds in slowest
        )


def _push(
    plan: Plan, context: Any, destination: Destination, options: Options, console: Console,
    outcome: Outcome, checked: Future[Step], ledger: str,
) -> None:  # fmt: skip
    repository = destination.repository
    layout = f"type=oci,tar=false,dest={builder.OCI_LAYOUT},{builder.COMPRESSION}"
    with console.step("build") as step:
        line = builder.command(plan, context, [layout], options, ledger)
        built = builder.build(line, step.report, options, checked)
        builder.write_layout_index(built.digest)
        step.detail = f"{built.steps} steps, {built.cached} cached"
    outcome.compressed_bytes = sum(layer["size"] for layer in builder.layers(built.digest))
    manifests = registry.image_manifests(builder.blob(built.digest))
    immutable, known = registry.immutable(repository, plan.immutable_tag, manifests)
    digest = known or built.digest  # known: the same image, with its first attestation
    outcome.image, outcome.digest = f"{repository}@{digest}", digest
    outcome.verified_before = known is not None
    if not known:
        with console.step("push") as step:
            registry.push(builder.OCI_LAYOUT, repository, digest, step.report)
            step.detail = f"{digest[:19]} by digest"
    if not known or options.reports:
        with console.step("pull") as step:
            step.report("as a user would, by digest")
            engine.pull(engine.connect(), outcome.image, plan.platform, step.report)
            step.detail = "stock docker pull"
        _verify(plan, outcome.image, options, console, outcome)
    with console.step("publish") as step:
        moving = [] if destination.part else [plan.moving_tag, *destination.tags]
        outcome.tags = [immutable, *moving]
        for name in moving if known else outcome.tags:
            step.report(name)
            registry.tag(repository, digest, name)
        step.detail = ", ".join(outcome.tags)
        if known:
            return
        same = {
            "io.fp4forge.arch": plan.arch,
            "io.fp4forge.variant": plan.variant,
            "io.fp4forge.platform": plan.platform,
        }
        engine.retire(engine.connect(), repository, digest, same)


def _load(
    plan: Plan, context: Any, destination: Destination, options: Options, console: Console,
    outcome: Outcome, checked: Future[Step], ledger: str,
) -> None:  # fmt: skip
    client = engine.connect()
    candidate = f"{destination.repository}:unverified-{plan.id}"
    kind = "docker" if options.builder else "image"
    with console.step("build") as step:
        output = f"type={kind},name={candidate}"
        output += f",{builder.COMPRESSION}" if kind == "image" else ""
        line = builder.command(plan, context, [output], options, ledger)
        built = builder.build(line, step.report, options, checked)
        step.detail = f"{built.steps} steps, {built.cached} cached"
    try:
        outcome.image, outcome.digest = candidate, built.digest
        _verify(plan, candidate, options, console, outcome)
        with console.step("name") as step:
            outcome.tags = [plan.immutable_tag, plan.moving_tag, *destination.tags]
            for name in outcome.tags:
                client.images.get(candidate).tag(destination.repository, name)
            outcome.image = f"{destination.repository}:{plan.immutable_tag}"
            step.detail = "in the engine: " + ", ".join(outcome.tags)
    finally:
        with contextlib.suppress(Exception):
            client.images.remove(candidate)


def _verify(plan: Plan, image: str, options: Options, console: Console, outcome: Outcome) -> None:
    with console.step("verify") as step:
        checks = verify.run(image, plan.as_json(), step.report, options.reports, gpu=options.gpu)
        outcome.checks = [asdict(check) for check in checks]
        for check in checks:
            outcome.unpacked_bytes = check.facts.get("unpacked_bytes", outcome.unpacked_bytes)
        step.detail = verify.summary(checks)
        verify.demand(checks)


def _alone(console: Console) -> contextlib.AbstractContextManager[None]:
    """One build at a time per checkout: they share the OCI layout."""
    STATE.mkdir(parents=True, exist_ok=True)
    said = "another build runs in this checkout; waiting for it"
    return jobs.alone(STATE, lambda: console.say(said))


def destination(repository: str, push: bool, load: bool, tags: tuple[str, ...]) -> Destination:
    """Where to, after validation.

    Raises:
        UsageError: --push and --load together, or a tag that is none.
    """
    if push and load:
        raise UsageError("--push and --load exclude each other", remedy="give one of them")
    return Destination(repository, push, tuple(planning.check_tag(tag) for tag in tags))
