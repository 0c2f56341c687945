"""Commands about one image: build (the default action), context and verify."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fp4forge.advisories import audit
from fp4forge.cli import checkout, planned, summary
from fp4forge.cli.options import (
    given_options,
    plan_options,
    reports_option,
    resolve_registry,
    signer_of,
    trust_of,
    trust_options,
)
from fp4forge.core.console import Console, print_json
from fp4forge.core.errors import UsageError
from fp4forge.core.text import block
from fp4forge.kernels.gpus import TARGETS
from fp4forge.oci import reference
from fp4forge.oci.buildkit import BuildOptions
from fp4forge.plan import vllm_components
from fp4forge.plan.image_kinds import QUANTISE, REPOSITORIES, SERVE
from fp4forge.plan.request import ImageRequest
from fp4forge.publish import destination, distro_packages, pipeline


def build(**o: Any) -> None:
    """The default action; options as in ``fp4forge.cli``."""
    requests = _image_requests(o)
    if o["moved_packages"] == distro_packages.RECORD:
        checkout.require("--moved-packages record")
    if o["allow_vulnerable"] and not o["advisories"]:
        raise UsageError(
            "--allow-vulnerable without --advisories",
            rule="--allow-vulnerable accepts an advisory that --advisories finds",
            remedy="--advisories FOLDER or ADDRESS",
        )
    registry = resolve_registry(o["registry"]) if o["push"] else o["registry"] or None
    if o["push"] and not registry and not o["dry_run"]:
        raise UsageError(
            "--push needs a registry",
            rule="--registry HOST[:PORT][/PATH] or REGISTRY in the environment",
            remedy="make setup starts one on loopback, and --push then needs no name",
        )
    repository = reference.repository(registry, o["repo"] or REPOSITORIES[o["kind"]])
    signer = None if o["dry_run"] else signer_of(o)
    where = destination.checked(
        repository,
        o["push"],
        o["load"],
        o["tags"],
        advisories=o["advisories"] or "",
        moved_packages=o["moved_packages"],
        signer=signer,
    )
    console = Console()
    if o["dry_run"]:
        plans = [pipeline.prepare(request).plan for request in requests]
        if o["as_json"]:
            found = [prepared.as_json() for prepared in plans]
            print_json(found if len(found) > 1 else found[0])
            return
        for prepared in plans:
            click.echo(block("\n".join(planned.lines(prepared, o["verbose"])), 1 << 20))
        if unused := given_options(("advisories", "sign_key", "sign_keyless")):
            console.say(f"a dry run does not try {', '.join(unused)}")
        return
    trees = vllm_components.local_trees(o["sources"])
    options = BuildOptions(
        builder=o["builder"],
        no_cache=o["no_cache"],
        jobs=o["jobs"],
        sources=trees,
        cache_from=o["cache_from"],
        cache_to=o["cache_to"],
        gpu=o["gpu"],
        reports=o["reports"],
    )
    if len(requests) == 1:
        outcome = pipeline.run(requests[0], where, options, console)
        if o["as_json"]:
            print_json(asdict(outcome))
        console.say(summary.lines([outcome], verbose=o["verbose"]))
        return
    outcomes, index = pipeline.run_all(requests, where, options, console)
    if o["as_json"]:
        print_json({"index": asdict(index), "images": [asdict(outcome) for outcome in outcomes]})
    console.say(summary.lines(outcomes, index, verbose=o["verbose"]))


def _image_requests(o: dict[str, Any]) -> list[ImageRequest]:
    """What the plan's options ask for, one for each platform."""
    if o["kind"] == QUANTISE:
        _refuse_vllm_options()
    elif not o["arch"]:
        raise UsageError(
            "--arch is missing: which GPU is the image for?",
            rule="one of " + ", ".join(TARGETS),
            remedy="build.py --arch sm121 --push; build.py --help shows all options",
        )
    if o["allow_vulnerable"]:
        audit.check_allowed(o["allow_vulnerable"])
    platforms = dict.fromkeys((o["platform"] or "").split(","))
    return [
        ImageRequest(
            arch=o["arch"] or "",
            release=o["release"],
            variant=o["variant"],
            strategy=o["strategy"],
            base=o["base"],
            platform=platform or None,
            arch_list=o["arch_list"],
            allow_missing=o["allow_missing"],
            allow_vulnerable=o["allow_vulnerable"],
            components=o["components"],
            sources=o["sources"],
            aot=o["aot"],
            cross=o["cross"],
            extras=o["extras"],
            kind=o["kind"],
        )
        for platform in platforms
    ]


# Options that choose something of vLLM's image.
_OF_VLLM = (
    "arch",
    "arch_list",
    "allow_missing",
    "variant",
    "strategy",
    "components",
    "sources",
    "cross",
    "aot",
    "extras",
    "jobs",
)


def _refuse_vllm_options() -> None:
    """Refuses options that an image that quantises has no use for.

    Raises:
        UsageError: one of them was given.
    """
    for option in given_options(_OF_VLLM):
        raise UsageError(
            f"{option} does not go with --kind {QUANTISE}",
            rule="it chooses something of vLLM's image; one image quantises on every GPU",
            remedy=f"leave it out, or --kind {SERVE}",
        )


def _one_request(o: dict[str, Any], rule: str) -> ImageRequest:
    requests = _image_requests(o)
    if len(requests) > 1:
        raise UsageError(
            f"--platform {o['platform']} names {len(requests)} platforms",
            rule=rule,
            remedy="run the command once for each platform",
        )
    return requests[0]


@click.command()
@plan_options
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write; it must be empty or not exist.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def context(output: Path, as_json: bool, **o: Any) -> None:
    """Write a plan's build context, and print the command that builds it by hand.

    The command leaves an image in the engine that no check has verified.
    """
    from fp4forge.image import context as contexts
    from fp4forge.publish import build as building

    prepared = pipeline.prepare(_one_request(o, "a build context is for one platform"))
    # A folder for each plan: BuildKit takes a file of the same path, size and time for the one that
    # it got before, and the times of all contexts of a release are alike.
    folder = output / prepared.plan.id
    if output.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", rule="--output is a new or an empty folder")
    contexts.write(prepared, folder)
    image = f"{REPOSITORIES[o['kind']]}:unverified-{prepared.plan.id}"
    line = building.by_hand(prepared.plan, folder, vllm_components.local_trees(o["sources"]), image)
    if as_json:
        found = {"plan": prepared.plan.id, "context": str(folder), "image": image, "command": line}
        print_json(found)
        return
    click.echo(" \\\n  ".join(shlex.quote(word) for word in line))


@click.command()
@click.argument("image")
@plan_options
@trust_options
@click.option("--gpu", is_flag=True, help="Test on this machine's GPU too.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@reports_option
def verify(
    image: str,
    gpu: bool,
    as_json: bool,
    reports: Path | None,
    key: str | None,
    identity: str | None,
    issuer: str | None,
    **o: Any,
) -> None:
    """Run the image tests against IMAGE, from the engine or a registry.

    With --key (or --identity and --issuer), IMAGE must be in a registry and signed: its index,
    each platform's image, its provenance and its SBOM. With a key and without --arch (or --kind
    quantise), only that is checked. Without --gpu, checks that need a GPU are skipped, and the
    output says so.
    """
    from fp4forge.checks import check as checking
    from fp4forge.checks import runner as verifying
    from fp4forge.oci import engine

    console = Console()
    trust = trust_of(key, identity, issuer)
    if trust:
        from fp4forge.publish import signing

        with console.step("signed") as step:
            repository, digest = signing.locate(image)
            found = signing.check(repository, digest, trust, step.report, signing.KINDS)
            step.detail = found.text()
        image = found.image  # what was checked: the tag may move meanwhile
        if not o["arch"] and o["kind"] == SERVE:
            if as_json:
                print_json(asdict(found))
            return
    wanted = pipeline.prepare(_one_request(o, "an image is checked on one platform")).plan
    with console.step("pull") as step:
        step.detail = engine.have(engine.connect(), image, wanted.platform, step.report)
    with console.step("verify") as step:
        checks = verifying.run(image, wanted.as_json(), step.report, reports, gpu=gpu)
        step.detail = checking.summary(checks)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            console.say(f"  {check.outcome:<8} {check.name}")
    if not gpu:
        console.say("  NOT RUN: checks that need a GPU (--gpu)")
    verifying.demand(checks)
