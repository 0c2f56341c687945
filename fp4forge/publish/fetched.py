"""What a build fetched, each file with its hash: the log of its fetches, in its provenance.

Steps of a build have no network unless they fetch or compile (templates/), and what fetches Python
packages takes only files whose SHA-256 is in a lock. So the locks say what was fetched, as the log
of a proxy would. A lock allows several files of some packages (a wheel, its sources): one of them
was fetched. Distribution packages are checked by apt against its mirror's signed index; no record
of this project has the hash of their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import Struct

from fp4forge.advisories.osv import COMMIT
from fp4forge.core import reading
from fp4forge.core.errors import SignatureError
from fp4forge.core.text import shown
from fp4forge.inputs import locks
from fp4forge.plan import packages
from fp4forge.plan.plan import Plan
from fp4forge.sbom.components import GIT, PYPI, SbomComponent, canonical

_SHOWN = 5  # names in a message


class ResolvedDependency(Struct, frozen=True, omit_defaults=True):
    """A file or a tree that a build took (in-toto's ResourceDescriptor).

    Annotations are this project's: ``from`` names the record that allows it, ``one-of`` the number
    of files of which one was fetched.
    """

    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    annotations: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """One line: digest, name, address, and the record that allows it."""
        digest = ",".join(f"{kind}:{value}" for kind, value in self.digest.items()) or "-"
        record = self.annotations.get("from", "BuildKit")
        return "  ".join(map(shown, (digest, self.name or "-", self.uri, record)))


class _Definition(Struct, frozen=True):
    resolvedDependencies: list[ResolvedDependency] = []


class _Provenance(Struct, frozen=True):
    buildDefinition: _Definition = _Definition()


def of(plan: Plan, listed: Iterable[SbomComponent] = ()) -> list[ResolvedDependency]:
    """Every file that a plan's build may fetch, and the distribution packages of its image.

    The base image and sources from git that BuildKit fetched itself are in its own list.

    Args:
        plan: of the image.
        listed: its SBOM, for the distribution packages.
    """
    found = [one for layer, text in packages.layers(plan).items() for one in _of_lock(layer, text)]
    found += [_of_source(name, source.where) for name, source in plan.sources.items()]
    found += [
        ResolvedDependency(one.name, one.purl, {}, {"from": "the distribution's signed index"})
        for one in listed
        if one.ecosystem not in (PYPI, GIT)
    ]
    return list({one.text: one for one in found}.values())


def _of_lock(layer: str, text: str) -> Iterator[ResolvedDependency]:
    from packageurl import PackageURL

    for block in locks.entries(text).values():
        package, version = locks.pin(block)
        name = canonical(package)
        hashes = sorted(set(re.findall(r"--hash=sha256:([0-9a-f]{64})", block)))
        more = {"one-of": len(hashes)} if len(hashes) > 1 else {}
        uri = PackageURL("pypi", None, name, version).to_string()
        for digest in hashes:
            annotations = {"from": f"locks/{layer}.txt", **more}
            yield ResolvedDependency(f"{name} {version}", uri, {"sha256": digest}, annotations)


def _of_source(name: str, where: str) -> ResolvedDependency:
    """An external source: a repository at a commit or tag, wheels of a lock, or a local tree."""
    address, _, pin = where.partition("#")
    digest = {}
    if COMMIT.fullmatch(pin):
        digest = {"gitCommit": pin}
    elif where.startswith("sha256:"):  # of a local tree: no fetch, but part of the build
        address, digest = f"file:{name}", {"sha256": where.removeprefix("sha256:")}
    uri = f"git+{address}@{pin}" if pin else address
    return ResolvedDependency(name, uri, digest, {"from": "the release's externals"})


def read(provenance: bytes, where: str) -> list[ResolvedDependency]:
    """The list in a SLSA v1 predicate.

    Raises:
        SignatureError: it is not one.
    """
    found = reading.json(provenance, _Provenance, f"the provenance of {where}", SignatureError)
    return found.buildDefinition.resolvedDependencies


def demand(provenance: bytes, components: Iterable[SbomComponent], where: str) -> None:
    """Refuses provenance that does not list a wheel of the image.

    Args:
        provenance: a SLSA v1 predicate.
        components: of the image's SBOM.
        where: the image, for messages.

    Raises:
        SignatureError: a package has no file in the list, or the list cannot be read.
    """
    listed = {one.digest.get("sha256", "") for one in read(provenance, where)}
    lacking = [
        f"{one.name} {one.version}"
        for one in components
        if one.ecosystem == PYPI and one.sha256 and not listed & {*one.sha256}
    ]
    if lacking:
        more = f" and {len(lacking) - _SHOWN:,} more" if len(lacking) > _SHOWN else ""
        raise SignatureError(
            f"the provenance of {where} does not list what the build fetched:"
            f" {shown(', '.join(lacking[:_SHOWN]), 400)}{more}",
            rule="each wheel of the SBOM is in resolvedDependencies with its SHA-256",
            remedy="publish the image again, signed",
        )
