"""Commands about what a registry holds: images, rollback, prune."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp4forge.cli.options import (
    json_option,
    registry_option,
    repo_option,
    resolve_registry,
    trust_of,
    trust_options,
)
from fp4forge.core.console import Console, print_json, print_rows
from fp4forge.core.errors import UsageError

if TYPE_CHECKING:
    from fp4forge.publish.listing import ListedImage

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would change, and stop.")


def _repository(given: str | None, repo: str) -> str:
    from fp4forge.oci import reference

    registry = resolve_registry(given)
    if not registry:
        raise UsageError(
            "which registry?",
            rule="--registry HOST[:PORT][/PATH] or REGISTRY in the environment",
            remedy="make setup starts one on loopback, which then needs no name",
        )
    return reference.repository(registry, repo)


@click.command()
@registry_option
@repo_option
@json_option
def images(registry: str | None, repo: str, as_json: bool) -> None:
    """List what a registry holds: tags, digest, release, age, size; the newest first.

    verified: a record in the registry says that the image's checks passed. signed: a signature is
    kept beside it; whether it is valid is not checked. The verdicts on known vulnerabilities are
    those of its release (releases/vex); build.py audit looks for new vulnerabilities.
    """
    from fp4forge.publish import listing

    repository, console = _repository(registry, repo), Console()
    with console.step("images") as step:
        found = listing.images(repository, step.report)
        step.detail = f"{repository}: {len(found)}"
    if as_json:
        print_json([asdict(image) for image in found])
        return
    print_rows((_tags(image), _image_facts(image)) for image in found)


def _tags(image: ListedImage) -> str:
    return "\n".join([*image.tags, image.digest])


def _image_facts(image: ListedImage) -> str:
    if image.problem:
        return f"cannot be read: {image.problem}"
    words = [
        f"release {image.release}" if image.release else "no release",
        ", ".join(image.platforms),
        "verified" if image.verified else "not verified here",
        "a signature" if image.signed else "no signature",
        ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in image.verdicts.items()),
        _age(image.published),
        f"{image.bytes / 1e9:.2f} GB",
    ]
    return "\n".join(word for word in words if word)


def _age(published: str) -> str:
    try:
        then = datetime.fromisoformat(published)
        seconds = (datetime.now(UTC) - then.astimezone(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return "no record of its age"
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} old"
    return "new"


@click.command()
@click.argument("tag")
@click.option("--to", metavar="DIGEST", help="The image; by default the verified one before.")
@registry_option
@repo_option
@trust_options
@_DRY_RUN
@json_option
def rollback(
    tag: str,
    to: str | None,
    registry: str | None,
    repo: str,
    dry_run: bool,
    as_json: bool,
    **demanded: str | None,
) -> None:
    """Move TAG, a moving tag, back to the verified image that it named before.

    Refused unless a record in this registry says that the checks of the image passed; with --key
    (or --identity and --issuer), the record and the image must have that signature. The
    tag is read back, and the move is recorded. A second rollback goes further back; --to goes to
    any verified image.
    """
    from fp4forge.publish import rollback as rolling
    from fp4forge.publish import signing

    trust = trust_of(demanded["key"], demanded["identity"], demanded["issuer"])
    repository, console = _repository(registry, repo), Console()
    with console.step("choose") as step:
        chosen = rolling.choose(repository, tag, to, trust)
        step.detail = f"{chosen.after[:19]}: {chosen.verdict}"
    if trust:
        with console.step("signed") as step:
            step.detail = signing.check(repository, chosen.after, trust, step.report).text()
    for digest, why in chosen.passed_over.items():
        console.say(f"  passed over {digest[:19]}: {why}")
    if not dry_run:
        with console.step("move") as step:
            lost = rolling.move(repository, chosen, step.report)
            step.detail = f"{tag}: {chosen.before[:19]} -> {chosen.after[:19]}"
        if lost:
            console.say(f"  no record is kept in the registry: {lost}")
    if as_json:
        print_json({**asdict(chosen), "repository": repository, "moved": not dry_run})
    elif dry_run:
        click.echo(f"{repository}:{tag} would name {chosen.after}, verified {chosen.verified}")
    else:
        click.echo(f"{repository}:{tag} names {chosen.after}")


@click.command()
@click.option(
    "--keep",
    type=click.IntRange(1, 1000),
    required=True,
    help="Images of each kind (release, GPU, variant, strategy, base, platform) that stay.",
)
@click.option(
    "--locks",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Locks of serve compose --lock; what they name stays.",
)
@registry_option
@repo_option
@_DRY_RUN
@json_option
def prune(
    keep: int,
    locks: tuple[Path, ...],
    registry: str | None,
    repo: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove old images from a registry, with their immutable tags and records.

    An image stays if a moving tag or a lock from --locks names it, if it is among the newest --keep
    of its kind, if it cannot be read, or if no record gives its age. The registry frees the
    layers when it collects garbage.
    """
    from fp4forge.publish import listing, pruning

    repository, console = _repository(registry, repo), Console()
    named = pruning.locked(locks)
    with console.step("prune") as step:
        if dry_run:
            found = listing.images(repository, step.report)
            fates, count = pruning.choose(found, keep, named), 0
        else:
            fates, count = pruning.remove(repository, keep, named, step.report)
        going = [fate.image for fate in fates if not fate.kept]
        step.detail = f"{len(going)} of {len(fates)} images go, {count} manifests removed"
    if as_json:
        rows = [{"digest": f.image.digest, "tags": f.image.tags, "kept": f.kept} for f in fates]
        print_json({"repository": repository, "removed": not dry_run, "images": rows})
        return
    word = "would go" if dry_run else "removed"
    print_rows((_tags(f.image), f"stays: {f.kept}" if f.kept else word) for f in fates)
