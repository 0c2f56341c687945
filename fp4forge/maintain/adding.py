"""Adds a release of vLLM: everything that its own files and the package index say.

Nothing is decided by hand. What cannot be found out becomes a line for a person in the report.
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from fp4forge.checks import ledgers
from fp4forge.core import files
from fp4forge.core.errors import ArtefactError, CoverageError, ReleaseError, UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.core.platform import AMD64, PLATFORMS
from fp4forge.image import render
from fp4forge.inputs import arch_rules as arch_inputs
from fp4forge.inputs import bases, defaults, locks, release
from fp4forge.inputs.locks import LockName, entries
from fp4forge.inputs.release import Artefact, LeaveOut, Release
from fp4forge.kernels.base import Progress
from fp4forge.kernels.ledger import Ledger, differences, expected
from fp4forge.maintain import (
    externals,
    index,
    locking,
    porting,
    read_backends,
    read_switches,
    sources,
    write_arch_rules,
)
from fp4forge.maintain.porting import SeriesPort
from fp4forge.plan import prediction

# Files uploaded later than that after vLLM were never tested with it.
_DAYS = 4
# Unpacked bytes for each byte of a wheel with native code: 2.2 for 0.20.2's image.
_UNPACKED = 2.2
# What FlashInfer and Triton need to compile at run time, from the CUDA that torch was built with.
_COMPILERS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl")


@dataclass
class AddedRelease:
    """What adding a release found; ``person`` names each file to be written by hand, and why."""

    version: str
    found: dict[str, Any] = field(default_factory=dict)
    patches: dict[str, str] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    person: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as ``release add --json`` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class ReleaseDraft:
    """A release that is not written yet."""

    version: str
    text: str  # of releases/<version>.yaml
    archs: dict[str, str]  # files under releases/archs
    switches: dict[str, list[str]]
    patches: SeriesPort
    report: AddedRelease


def draft(version: str, report: Progress) -> ReleaseDraft:
    """Everything that a release needs, from the index, its sources and its wheels.

    Args:
        version: of vLLM.
        report: called with progress.

    Raises:
        UsageError: the release is there already.
        ArtefactError: the index does not have it, or does not answer.
        ReleaseError: its requirements, CMake files or wheels are not of a form that is known, or
            its selection code names a backend that ``models/backend_kernels.yaml`` lacks.
        CoverageError: its wheels hold other kernels than its CMake rules predict.
    """
    version = release.check_version(version)
    if version in release.names():
        raise UsageError(
            f"release {version} is there already",
            remedy=f"build.py release show {version}, or release remove {version} first",
        )
    before = _earlier_release(version)
    notes = AddedRelease(version)
    report("the package index")
    sdist, wheels, uploaded = files_of(version)
    last = uploaded + timedelta(days=_DAYS)
    report("uv resolves its requirements")
    pins, cuda = _resolved_pins(version, last)
    size = _grown_budget(pins, before)
    report("the source distribution")
    tree = sources.tree_of(sdist)
    read_backends.check(tree)
    report("the patches")
    ported = porting.port(version)
    report("CMake's rules, for some thousand arch lists")  # last: it takes a minute
    archs = write_arch_rules.extract(tree, version)
    known = read_switches.extract(tree)
    values: dict[str, Any] = {
        "version": version,
        "uploaded": uploaded.isoformat(),
        "sdist": sdist,
        "wheels": wheels,
        "pins": pins,
        "compilers": _COMPILERS,
        "cuda": cuda,
        "days": _DAYS,
        "resolve_before": last.isoformat(),
        "arch_list": before.arch_list,
        "externals": externals.read(tree, before.externals),
        "environment": _kept_environment(before, tree, notes),
        "leave_out": _leave_out(before),
        "aot_all_gb": before.aot_all_gb,
        "unpacked_gb": size,
        "budget": f"that of {before.release}, grown as the packages did; measure the first image",
    }
    rules = arch_inputs.parse(archs[f"{version}.json"], f"releases/archs/{version}.json")
    lists = {}
    for platform, wheel in wheels.items():
        lists[platform] = _wheel_arch_list(wheel, rules, version, cuda, report)
    text = render.plain("release.yaml.j2", **values, arch_lists=lists)
    release.parse(text, f"releases/{version}.yaml")
    notes.found = {
        "uploaded": values["uploaded"],
        "resolve_before": values["resolve_before"],
        "cuda": cuda,
        **{name: pins[name] for name in ("torch", "transformers", "flashinfer-python")},
        "wheel_arch_lists": lists,
        "externals": list(values["externals"]),
    }
    notes.patches = {state.id: state.state for state in ported.states}
    for state in ported.conflicts:
        notes.person.append(
            f"patches/vllm/{version}/{state.id}.patch: {state.detail}; "
            f"build.py patch drift --vllm {version} --merge shows it"
        )
    notes.person.append(
        f"releases/{version}.yaml: unpacked_gb is an estimate until an image is built"
    )
    return ReleaseDraft(version, text, archs, known, ported, notes)


def write(made: ReleaseDraft, report: Progress) -> AddedRelease:
    """Writes a draft: rules, patches, the release file, then locks and generated files.

    Raises:
        ReleaseError: a lock cannot be resolved; the release file is there then, and running
            ``build.py lock`` goes on.
    """
    notes = made.report
    for name, text in made.archs.items():
        files.replace(RELEASES / "archs" / name, text)
        notes.written.append(f"releases/archs/{name}")
    read_switches.write(made.version, made.switches)
    notes.written.append(f"releases/switches/{made.version}.json")
    porting.write(made.patches)
    notes.written += [f"patches/vllm/{made.version}/{name}" for name in made.patches.files]
    files.replace(RELEASES / f"{made.version}.yaml", made.text)
    notes.written.append(f"releases/{made.version}.yaml")
    report("uv resolves the locks")
    notes.written += [f"releases/locks/{name}" for name in locking.write(made.version)]
    return notes


def _earlier_release(version: str) -> Release:
    from packaging.version import Version

    older = [name for name in release.names() if Version(name) < Version(version)]
    return release.load(older[-1] if older else release.names()[0])


def files_of(version: str) -> tuple[Artefact, dict[str, Artefact], date]:
    """The sdist, the wheel for each platform, and the day of the last upload.

    Raises:
        ArtefactError: the index lacks one of them, or does not answer.
    """
    listed = index.listing("vllm")
    names = {"sdist": re.compile(rf"vllm-{re.escape(version)}\.tar\.gz")}
    for platform, known in PLATFORMS.items():
        machine = re.escape(known.machine)
        names[platform] = re.compile(
            rf"vllm-{re.escape(version)}-cp\w+-abi3-manylinux\w*_{machine}\.whl"
        )
    found, days = {}, []
    for entry in listed:
        for what, name in names.items():
            if name.fullmatch(entry.filename):
                found[what] = Artefact(entry.filename, entry.hashes.sha256)
                days.append(_upload_day(entry.upload_time))
    if "sdist" not in found:
        raise ArtefactError(
            f"the package index has no vLLM {version}", rule=f"a file vllm-{version}.tar.gz"
        )
    sdist = found.pop("sdist")
    if not found:
        raise ArtefactError(
            f"the package index has no wheel of vLLM {version} for {', '.join(PLATFORMS)}",
            remedy="a release without wheels is written by hand; CONTRIBUTING.md describes it",
        )
    if not all(days):
        raise ArtefactError(
            "the package index does not say when files were uploaded",
            rule="locks end a few days after vLLM's upload (PEP 700)",
            remedy="use an index that does",
        )
    return sdist, found, max(day for day in days if day)


def _upload_day(text: str) -> date | None:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).date()
    except ValueError:
        return None


def _resolved_pins(version: str, last: date) -> tuple[dict[str, str], str]:
    """What the requirements resolve to, with the compilers of torch's CUDA; that CUDA."""
    first = _resolve_requirements([f"vllm=={version}"], last)
    toolkit = first.get("cuda-toolkit") or first.get("nvidia-cuda-runtime", "")
    cuda = ".".join(toolkit.split(".")[:2])
    if not re.fullmatch(r"1[3-9]\.[0-9]", cuda):
        found = f"CUDA {cuda}" if cuda else "a CUDA before 13"
        raise ReleaseError(
            f"the wheels of vLLM {version} are for torch {first.get('torch', '?')} with {found}",
            rule="images have CUDA 13: GB10 needs it, and one CUDA serves all",
            remedy="compile it (--from source): write its release file by hand, like that of"
            f" {defaults.table().reference.release}",
        )
    # Other packages ask for newer compilers than torch's toolkit, which would not go with it.
    pinned = _resolve_requirements(
        [f"vllm=={version}", *(f"{name}=={cuda}.*" for name in _COMPILERS)], last
    )
    return pinned, cuda


def _resolve_requirements(requirements: list[str], last: date) -> dict[str, str]:
    python = max(bases.load(name).python for name in bases.names())
    text = locking.compile_(
        requirements,
        [],
        f"--python-platform={PLATFORMS[AMD64].wheel}",
        f"--python-version={python}",
        f"--exclude-newer={last}",
        "--only-binary=:all:",
    )
    return dict(map(locks.pin, entries(text).values()))


def _kept_environment(
    before: Release, tree: Path, notes: AddedRelease
) -> dict[str, dict[str, str]]:
    """The earlier release's defaults, as far as this vLLM reads them."""
    text = (tree / "vllm/envs.py").read_text()
    found: dict[str, dict[str, str]] = {}
    for variant, values in before.environment.items():
        found[variant] = {}
        for name, value in values.items():
            if not name.startswith("VLLM_") or f'"{name}"' in text:
                found[variant][name] = value
            else:
                notes.person.append(
                    f"releases/{notes.version}.yaml: environment.{variant} had {name}={value};"
                    " this vLLM does not read it any more"
                )
    return found


def _leave_out(before: Release) -> list[LeaveOut]:
    """The earlier release's, and the rules that name no file."""
    rules = {
        "foreign-processor": "it is compiled for another processor",
        "other-cuda": "the same is there for the image's own CUDA",
    }
    known = {entry.rule for entry in before.leave_out}
    new = [LeaveOut(rule=name, why=why) for name, why in rules.items() if name not in known]
    return [*new, *before.leave_out]


def _grown_budget(pins: dict[str, str], before: Release) -> float:
    """GB of an unpacked image: the earlier release's, grown as its wheels did, and a tenth."""
    pythons = sorted({bases.load(name).python for name in bases.names()})
    lock = locks.read(LockName(before.release, "wheel", AMD64, pythons[-1]))
    old = dict(map(locks.pin, lock.values()))
    changed = [(name, old.get(name), pins.get(name)) for name in sorted(old.keys() | pins.keys())]
    jobs = [
        (name, version, sign)
        for name, was, now in changed
        if was != now
        for version, sign in ((was, -1), (now, 1))
        if version
    ]
    with ThreadPoolExecutor(16) as pool:  # each waits on the index
        sizes = pool.map(lambda job: job[2] * index.wheel_size(job[0], job[1], AMD64), jobs)
        grown = sum(sizes) * _UNPACKED / 1e9
    return float(round((before.unpacked_gb + grown) * 1.1, 1))


def _wheel_arch_list(
    wheel: Artefact, rules: arch_inputs.ArchRules, version: str, cuda: str, report: Progress
) -> str:
    """What a wheel was compiled for; the prediction from it is what the wheel holds.

    Raises:
        CoverageError: no list gives what the wheel holds.
    """
    report(f"fetching {wheel.file}")
    found = ledgers.read(str(sources.fetch(wheel)), report)
    text = arch_list_of(found)
    made = prediction.by_rules(rules, text, version, cuda)
    wanted = expected(made.groups, made.fp8_guards)
    if lines := differences(wanted, found.targets()):
        raise CoverageError(
            f"{wheel.file} holds other kernels than its CMake rules predict for {text}:\n  "
            + "\n  ".join(lines),
            remedy="build.py ledger shows them",
        )
    return text


def arch_list_of(found: Ledger) -> str:
    """The architectures that most kernels are compiled for; the others have lists of their own."""
    counts: Counter[frozenset[str]] = Counter()
    for file in found.files:
        archs: dict[str, set[str]] = {}
        for cubin in file.code.cubins:
            for kernel in cubin.kernels:
                archs.setdefault(kernel.name, set()).add(cubin.target)
        counts.update(frozenset(targets) for targets in archs.values())
    targets = max(counts, key=lambda some: counts[some] * (len(some) > 1), default=frozenset())
    return ";".join(sorted(targets, key=lambda text: [int(part) for part in text.split(".")]))
