"""What an image consists of, as far as advisories name it.

That is Python packages of its plan, its distribution's packages, and what its SBOM adds: sources of
other projects that are compiled in, which no lock names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fp4forge.advisories import osv
from fp4forge.advisories.osv import GIT, PYPI, OsvPackage
from fp4forge.core import reading
from fp4forge.core.errors import BinaryError, UsageError
from fp4forge.core.platform import PLATFORMS
from fp4forge.core.text import shown
from fp4forge.inputs import bases, image_extras, locks, modelopt
from fp4forge.inputs.locks import LockName
from fp4forge.inputs.release import Release
from fp4forge.kernels.base import Progress
from fp4forge.oci import acquire, engine
from fp4forge.sbom.components import SbomComponent

DPKG_STATUS = "/var/lib/dpkg/status"
OS_RELEASE = "/usr/lib/os-release"
VLLM = "vllm"
# Distributions by os-release(5)'s ID, with the form of their ecosystems in OSV.
_DISTRIBUTIONS = {"debian": "Debian", "ubuntu": "Ubuntu"}


@dataclass(frozen=True)
class AuditedPackages:
    """What an image, or every image of a release, consists of."""

    release: str  # empty for an image without a plan
    components: tuple[OsvPackage, ...]
    left_out: tuple[str, ...] = ()  # what could not be audited, and why
    # Of a release: packages that only images with an extra have, and the extra (--with).
    optional: Mapping[OsvPackage, str] = field(default_factory=dict)


def of_packages(packages: Mapping[str, str], vllm: str) -> set[OsvPackage]:
    """Python packages by name and version; vLLM is in no lock of an image that compiles it.

    Args:
        packages: versions by name, of locks.
        vllm: its version; empty for an image without it.
    """
    found = {OsvPackage(PYPI, name, version) for name, version in packages.items()}
    return found | ({OsvPackage(PYPI, VLLM, vllm)} if vllm else set())


def of_release(name: str) -> AuditedPackages:
    """The Python packages of all images of a release: of every strategy, platform and Python.

    Raises:
        UsageError: there is no such release.
        DriftError: one of its locks was never made.
    """
    what = modelopt.of_either_kind(name)
    vllm = what.vllm_version if isinstance(what, Release) else ""
    extras = image_extras.locked() if vllm else ()
    pythons = sorted({bases.load(base).python for base in bases.names()})
    found: dict[str, set[OsvPackage]] = {extra: set() for extra in ("", *extras)}
    for strategy, platform, python in itertools.product(what.strategies, PLATFORMS, pythons):
        for extra in found:
            lock = locks.read(LockName(what.release, strategy, platform, python, extra))
            pins = dict(locks.pin(block) for block in lock.values())
            found[extra] |= of_packages(pins, vllm)
    optional = {one: extra for extra in extras for one in found[extra] - found[""]}
    every = set.union(*found.values())
    return AuditedPackages(what.release, tuple(sorted(every)), optional=optional)


def of_image(
    image: str, listed: Iterable[SbomComponent] | None, report: Progress
) -> AuditedPackages:
    """The packages of an image's plan and of its dpkg, and what else its SBOM lists.

    An SBOM only adds to what the image itself says, so a forged one hides no package of a lock.
    The image is not started, so it may be of any platform. It is pulled if the engine lacks it.

    Args:
        image: its reference.
        listed: its SBOM; None if it has none.
        report: called with progress.

    Raises:
        UsageError: it is not one of this project's images: it has no plan.
        BinaryError: its dpkg's status cannot be read.
        RegistryError: it is not here and cannot be pulled.
    """
    client = engine.connect()
    engine.have(client, image, None, report)
    plan = acquire.records(client, image).plan
    if not plan.release:
        raise UsageError(
            f"{shown(image, 200)} has no plan in {acquire.FOLDER}",
            rule="an image is audited by the packages that its plan and its dpkg name",
            remedy="give an image of this project, or --release",
        )
    files = acquire.files(client, image, (DPKG_STATUS, OS_RELEASE))
    found = of_packages(plan.packages, plan.vllm_version)
    found |= set(of_dpkg(files.get(DPKG_STATUS, b""), files.get(OS_RELEASE, b"")))
    more, left_out = of_sbom(listed)
    known = {_without_local(one) for one in found}
    found |= {one for one in more if _without_local(one) not in known}
    return AuditedPackages(plan.release, tuple(sorted(found)), left_out)


def of_sbom(listed: Iterable[SbomComponent] | None) -> tuple[set[OsvPackage], tuple[str, ...]]:
    """What an SBOM lists, as advisories name it; and what of it they cannot name.

    Args:
        listed: its components; None for an image without one.
    """
    if listed is None:
        return set(), ("sources that are compiled in: the image has no SBOM",)
    found, left_out = set(), []
    for one in listed:
        if one.ecosystem == GIT and not one.version:
            left_out.append(f"{one.name}: its commit is in neither the image nor the release")
        elif one.ecosystem == GIT:
            found.add(OsvPackage(GIT, osv.canonical(GIT, one.source), one.version))
        elif one.ecosystem == PYPI:
            found.add(OsvPackage(PYPI, one.name, one.version))
        else:
            source = one.source or one.name, one.source_version or one.version
            found.add(OsvPackage(one.ecosystem, *source))
    return found, tuple(sorted(left_out))


def _without_local(one: OsvPackage) -> OsvPackage:
    """A Python package without its version's local part, which a lock may not have (PEP 440)."""
    if one.ecosystem != PYPI:
        return one
    name = osv.canonical(PYPI, one.name)
    return OsvPackage(PYPI, name, one.version.partition("+")[0])


def of_dpkg(status: bytes, os_release: bytes) -> Iterator[OsvPackage]:
    """Source packages of what dpkg has installed (deb-status fields, Debian policy 5.3).

    Args:
        status: /var/lib/dpkg/status; nothing for an image without dpkg.
        os_release: /usr/lib/os-release (os-release(5)).

    Raises:
        BinaryError: it is not UTF-8, or the distribution is one that advisories do not name.
    """
    if not status:
        return
    ecosystem = ecosystem_of(os_release)
    for paragraph in installed(status):
        source, _, version = paragraph.get("Source", "").partition(" ")
        yield OsvPackage(
            ecosystem,
            source or paragraph["Package"],
            version.strip(" ()") or paragraph["Version"],
        )


def installed(status: bytes) -> Iterator[Mapping[str, str]]:
    """The paragraphs of packages that dpkg has installed.

    Raises:
        BinaryError: it is not UTF-8, or a package has neither name nor version.
    """
    from debian.deb822 import Deb822

    text = reading.utf8(status, DPKG_STATUS, BinaryError)
    for paragraph in Deb822.iter_paragraphs(text.splitlines(keepends=True), use_apt_pkg=False):
        if not paragraph.get("Status", "").endswith(" installed"):
            continue
        if not paragraph.get("Package") or not paragraph.get("Version"):
            raise BinaryError(
                f"{DPKG_STATUS} has a package without name or version",
                rule="Package and Version in each paragraph (deb-control(5))",
            )
        yield paragraph


def ecosystem_of(os_release: bytes) -> str:
    """OSV's ecosystem of a distribution: "Debian:13", "Ubuntu:24.04:LTS".

    Raises:
        BinaryError: os-release names another distribution, or none.
    """
    text = reading.utf8(os_release, OS_RELEASE, BinaryError)
    fields = dict(re.findall(r'(?m)^([A-Z_]+)="?([^"\n]*)"?$', text))
    name, version = fields.get("ID", ""), fields.get("VERSION_ID", "")
    if name not in _DISTRIBUTIONS or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", version):
        raise BinaryError(
            f"{OS_RELEASE} names the distribution {shown(name, 40)!r} {shown(version, 40)!r}",
            rule="advisories are read for " + " and ".join(_DISTRIBUTIONS.values()),
        )
    long_term = ":LTS" if name == "ubuntu" and "LTS" in fields.get("VERSION", "") else ""
    return f"{_DISTRIBUTIONS[name]}:{version}{long_term}"
