"""The main job: plan -> context -> base -> build -> push by digest -> verify -> tags."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fp4forge.checks import runner
from fp4forge.checks.check import ImageCheck, summary
from fp4forge.core import reading
from fp4forge.core.console import Console, PipelineStep
from fp4forge.core.errors import BuildError, CoverageError, RegistryError, UsageError
from fp4forge.core.paths import STATE
from fp4forge.image import context as contexts
from fp4forge.image.context import Context
from fp4forge.inputs import policy
from fp4forge.kernels import ledger as ledgers
from fp4forge.oci import buildkit, copying, engine, registry_tags
from fp4forge.oci.acquire import RecordedLedger
from fp4forge.oci.buildkit import COMPRESSION, BuildOptions
from fp4forge.plan.plan import Plan
from fp4forge.plan.request import ImageRequest
from fp4forge.plan.resolve import resolve
from fp4forge.publish import (
    base_images,
    build,
    build_machine,
    distro_packages,
    gate,
    image_sbom,
    platform_index,
    tagging,
    verified,
)
from fp4forge.publish.build import LAYOUT
from fp4forge.publish.destination import Destination
from fp4forge.publish.image_sbom import ImageWithSbom
from fp4forge.publish.platform_index import PublishedIndex


@dataclass(frozen=True)
class VerifiedImage:
    """An image that passed its checks, and its names."""

    image: str
    digest: str
    tags: tuple[str, ...]
    verified_before: bool = False  # by the build that made the immutable tag
    compressed_bytes: int = 0
    checks: tuple[ImageCheck, ...] = ()


@dataclass(frozen=True)
class PublishOutcome:
    """What came of it; JSON on request."""

    plan: dict[str, Any]
    image: str
    digest: str
    tags: tuple[str, ...]
    verified_before: bool
    unpacked_bytes: int
    compressed_bytes: int
    compiled: dict[str, Any] = field(default_factory=dict)  # of a source build, by object
    checks: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _PublishJob:
    """What every step of one build has at hand."""

    context: Context
    folder: Path
    destination: Destination
    options: BuildOptions
    console: Console
    checked: Future[PipelineStep]  # the machine's checks, which run beside the build and stop it

    @property
    def plan(self) -> Plan:
        return self.context.plan


def prepare(request: ImageRequest) -> Context:
    """The identified plan and its files; touches neither engine nor network."""
    return contexts.assemble(resolve(request))


def run(
    request: ImageRequest, where: Destination, options: BuildOptions, console: Console
) -> PublishOutcome:
    """Builds, checks and publishes.

    Raises:
        ForgeError: one of its classes, whatever step failed. No tag was moved then, unless the
            message says which.
    """
    pool = ThreadPoolExecutor(1)
    try:
        with console.step("plan") as step:
            plan = resolve(request)
            # docker looks while the files are rendered
            lacking = pool.submit(build_machine.lacking, plan)
            context = contexts.assemble(plan)
            step.detail = f"{context.plan.id}: {context.plan.immutable_tag}"
        if plan.serves and (notice := policy.notice(plan.release)):
            console.say(f"  note  {notice}")
        if where.advisories:
            with console.step("audit") as step:
                step.detail = gate.lock(context.plan, where.advisories, step.report)
        with _one_build_at_a_time(console):
            return _run_pipeline(context, where, options, console, pool, lacking)
    except RegistryError as error:
        if not getattr(error, "__notes__", None):  # else tagging reported what each tag names now
            error.message += "\nno tag was moved"
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _run_pipeline(
    context: Context,
    where: Destination,
    options: BuildOptions,
    console: Console,
    pool: ThreadPoolExecutor,
    lacking: Future[list[str]],
) -> PublishOutcome:
    plan, folder = context.plan, contexts.stage(context)
    place = len(console.steps)
    with console.step("base") as step:
        step.report(f"{plan.base} for {plan.platform}")
        base = plan.inputs.base
        step.detail = base.reference(plan.platform)
        repository = where.repository if where.push else ""
        # The checks take as long as a build that changes nothing: they run beside it, and stop it.
        checked = pool.submit(build_machine.check, plan, repository, options, not lacking.result())
        for platform in lacking.result():
            checked.result()  # making or fetching one takes long: nothing starts in vain
            base_images.ensure(base, platform, step.report)
    job = _PublishJob(context, folder, where, options, console, checked)
    ledger = _extension_ledger(job) if plan.serves else ""
    compiled = _compile_record(job) if plan.strategy == "source" else {}
    made = _push_image(job, ledger) if where.push else _load_image(job, ledger)
    console.steps.insert(place, checked.result())
    facts = {name: value for check in made.checks for name, value in check.facts.items()}
    return PublishOutcome(
        plan=plan.as_json(),
        image=made.image,
        digest=made.digest,
        tags=made.tags,
        verified_before=made.verified_before,
        unpacked_bytes=facts.get("unpacked_bytes", 0),
        compressed_bytes=made.compressed_bytes,
        compiled=compiled,
        checks=[asdict(check) for check in made.checks],
        steps=[
            {
                "name": s.name,
                "seconds": round(s.seconds, 2),
                "verdict": s.verdict,
                "detail": s.detail,
            }
            for s in console.steps
        ],
    )


def run_all(
    requests: list[ImageRequest], where: Destination, options: BuildOptions, console: Console
) -> tuple[list[PublishOutcome], PublishedIndex]:
    """Builds, checks and pushes one image for each platform, then names them all by one index.

    Raises:
        ForgeError: one platform failed; no moving tag was moved then.
        UsageError: the index cannot be left in the engine.
    """
    if not where.push:
        raise UsageError(
            "several platforms make an image index, which only a registry can name",
            rule="--platform A,B goes with --push",
        )
    part = replace(where, part=True)
    outcomes = [run(request, part, options, console) for request in requests]
    with console.step("index") as step:
        digests = {outcome.plan["platform"]: outcome.digest for outcome in outcomes}
        moving = resolve(requests[0]).index_tag
        plans = [outcome.plan for outcome in outcomes]
        index = platform_index.publish(plans, digests, moving, where, step.report)
        step.detail = ", ".join(index.tags)
    return outcomes, index


def _extension_ledger(job: _PublishJob) -> str:
    """Builds the extensions, compares their ledger with the plan; returns its SHA-256."""
    plan = job.plan
    with job.console.step("ledger") as step:
        content = build.ledger(plan, job.folder, job.options, step.report, job.checked)
        found = reading.json(content, RecordedLedger, "the build's ledger", BuildError)
        lines = ledgers.differences(plan.predicted, found.groups)
        if lines:
            raise CoverageError(
                "the kernels are not the predicted ones:\n  " + "\n  ".join(lines),
                rule=f"vLLM {plan.vllm_version}'s CMake rules for {plan.arch_list}",
                remedy="build.py ledger shows every cubin; nothing was published",
            )
        lost = [
            gpu
            for gpu in plan.gpus
            if not found.gpus.get(gpu, {}).get("ok") and gpu not in plan.allow_missing
        ]
        if lost:
            raise CoverageError(
                f"no native or family NVFP4 kernels for {', '.join(lost)} in the built extensions",
                remedy="--allow-missing GPU builds without it",
            )
        fp4 = {gpu: found.gpus.get(gpu, {}).get("nvfp4_gemm") for gpu in plan.gpus}
        step.detail = "as predicted; NVFP4 " + ", ".join(f"{g} {w}" for g, w in fp4.items())
        return "sha256:" + hashlib.sha256(content).hexdigest()


def _compile_record(job: _PublishJob) -> dict[str, Any]:
    with job.console.step("compiled") as step:
        found = build.compile_record(job.plan, job.folder, job.options, step.report)
        slowest = list(found["objects"].items())[:10]
        step.detail = f"{len(found['objects'])} objects; slowest " + ", ".join(
            f"{name.rsplit('/', 1)[-1]} {seconds:.0f} s" for name, seconds in slowest
        )
    return found


def _build_image(job: _PublishJob, output: str, ledger: str) -> str:
    """Builds the image; its digest."""
    with job.console.step("build") as step:
        line = build.command(job.plan, job.folder, [output], job.options, ledger)
        built = buildkit.build(line, step.report, job.options, job.checked)
        step.detail = f"{built.steps} steps, {built.cached} cached"
    return built.digest


def _push_image(job: _PublishJob, ledger: str) -> VerifiedImage:
    plan, console, options = job.plan, job.console, job.options
    repository = job.destination.repository
    output = f"type=oci,tar=false,dest={LAYOUT.folder},{COMPRESSION}"
    own = _build_image(job, output, ledger)
    if cut := LAYOUT.drop_cut(own):
        console.say(f"  {LAYOUT.folder}: {len(cut)} blobs were cut short; they are exported again")
        own = _build_image(job, output, ledger)
    LAYOUT.name_only(own)
    index = LAYOUT.document(own)
    immutable, known = registry_tags.immutable(repository, plan.immutable_tag, index, own)
    digest = known or own  # known: the same image, with its first attestation
    image = f"{repository}@{digest}"
    if not known:
        with console.step("push") as step:
            copying.push(LAYOUT.folder, repository, digest, step.report)
            step.detail = f"{digest[:19]} by digest"
    trusted = known is not None and verified.here(repository, digest)
    checks: tuple[ImageCheck, ...] = ()
    if not trusted or options.reports:
        with console.step("pull") as step:
            step.report("as a user would, by digest")
            engine.pull(engine.connect(), image, plan.platform, step.report)
            step.detail = "stock docker pull"
        checks = _verify_image(job, image)
        verified.record(repository, digest)
    _compare_packages(job, image)
    signer = job.destination.signer
    listed = image_sbom.put(console, repository, digest, plan, signer)
    audited = _audit_image(job, image, listed)
    image_sbom.sign(console, repository, digest, plan, listed, signer)
    with console.step("publish") as step:
        moving = () if job.destination.part else (plan.moving_tag, *job.destination.tags)
        tagging.check_further(repository, digest, job.destination.tags)
        with tagging.turn(repository):
            # Looked up again, at the last moment: another publisher may have taken it meanwhile.
            immutable, now = registry_tags.immutable(repository, plan.immutable_tag, index, own)
            if now not in (known, digest):
                raise RegistryError(
                    f"another publisher pushed {repository}:{immutable} meanwhile",
                    rule="a tag only names what was checked here",
                    remedy="run again; the command then checks that image",
                )
            names = (immutable, *moving)
            verdict = (summary(checks) if checks else "verified before") + audited
            lost = tagging.give(
                repository,
                digest,
                names,
                step.report,
                fixed=immutable,
                verdict=verdict,
                by=signer,
            )
        step.detail = ", ".join(names)
        if lost:
            console.say(f"  the registry has no record of it, or no signed one: {lost}")
        if not known:
            same = {
                "io.fp4forge.arch": plan.arch,
                "io.fp4forge.variant": plan.variant,
                "io.fp4forge.platform": plan.platform,
            }
            engine.retire(engine.connect(), repository, digest, same)
    return VerifiedImage(
        image, digest, names, trusted, sum(layer.size for layer in LAYOUT.layers(own)), checks
    )


def _load_image(job: _PublishJob, ledger: str) -> VerifiedImage:
    plan, where, client = job.plan, job.destination, engine.connect()
    candidate = f"{where.repository}:unverified-{plan.id}"
    kind = "docker" if job.options.builder else "image"
    output = f"type={kind},name={candidate}" + (f",{COMPRESSION}" if kind == "image" else "")
    digest = _build_image(job, output, ledger)
    try:
        checks = _verify_image(job, candidate)
        _compare_packages(job, candidate)
        _audit_image(job, candidate)
        with job.console.step("name") as step:
            names = (plan.immutable_tag, plan.moving_tag, *where.tags)
            for name in names:
                engine.name(client, candidate, where.repository, name)
            step.detail = "in the engine: " + ", ".join(names)
    finally:
        engine.forget(client, candidate)
    return VerifiedImage(f"{where.repository}:{plan.immutable_tag}", digest, names, checks=checks)


def _verify_image(job: _PublishJob, image: str) -> tuple[ImageCheck, ...]:
    with job.console.step("verify") as step:
        checks = runner.run(
            image, job.plan.as_json(), step.report, job.options.reports, gpu=job.options.gpu
        )
        step.detail = summary(checks)
        runner.demand(checks)
    return checks


def _compare_packages(job: _PublishJob, image: str) -> None:
    """Says which of the distribution's packages moved; an image that is not here was compared."""
    plan, choice = job.plan, job.destination.moved_packages
    if choice == distro_packages.SAY and not engine.present(image):
        return
    with job.console.step("packages") as step:
        engine.have(engine.connect(), image, plan.platform, step.report)
        found = distro_packages.check(image, plan.base, plan.platform, choice, plan.extras)
        step.detail, *moved = found.splitlines()
    for line in moved:
        job.console.say(f"  {line}")


def _audit_image(job: _PublishJob, image: str, listed: ImageWithSbom | None = None) -> str:
    """Audits the image; returns what its record says of that, empty if nothing was looked at.

    An image that stays in the engine has no SBOM beside it: it is read for the audit.
    """
    data = job.destination.advisories
    if not data:
        job.console.say(f"  {gate.NOT_LOOKED_AT}")
        return ""
    with job.console.step("audit") as step:
        components = (
            listed.components
            if listed
            else image_sbom.components_of(engine.connect(), image, job.plan, step.report)
        )
        step.detail = gate.image(job.plan, image, components, data, step.report)
    return f"; {step.detail}"


@contextlib.contextmanager
def _one_build_at_a_time(console: Console) -> Iterator[None]:
    """One build at a time per checkout: they share the OCI layout."""
    from filelock import FileLock, Timeout

    STATE.mkdir(parents=True, exist_ok=True)
    lock = FileLock(STATE / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.say("another build runs in this checkout; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
