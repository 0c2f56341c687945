"""Checks of how a server was set up: image, patch files, environment and flags."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fp4forge.core.text import shown
from fp4forge.doctor import evidence as evidences
from fp4forge.doctor import facts
from fp4forge.doctor.diagnosis import ERROR, NOTE, WARNING, Diagnosis, check, failed_line
from fp4forge.doctor.evidence import Evidence
from fp4forge.doctor.variables import UNKNOWN
from fp4forge.inputs import switches
from fp4forge.models import family
from fp4forge.models import switch_history as history

_PACKAGES = re.compile(r"(?:dist|site)-packages/(vllm/.*)")


@check
def image(found: Evidence) -> Iterator[Diagnosis]:
    """Another image, or the variant without patches."""
    if not found.image:
        return
    variant = found.labels.get("io.fp4forge.variant")
    if variant == "plain" or (
        variant is None and re.search(r"vllm-spark-gemma4-nvfp4(?!-awq)(?=[:@]|$)", found.image)
    ):
        # Which patches a model needs is known of its family only.
        patched = [q for q in _model_family(found).quirks if q.id == "unpatched"]
        yield Diagnosis(
            "variant",
            ERROR if patched and not found.ready else WARNING,
            f"image {found.image}: no patches in it",
            patched[0].text if patched else "it has the faults that the patches fix",
            "use the awq variant of the same release",
        )
    elif variant is None and found.labels:
        yield Diagnosis(
            "image",
            WARNING,
            f"image {found.image} has no io.fp4forge labels",
            "not an image of fp4forge: what is in it is not known",
            "build.py ledger IMAGE shows its kernels; build.py --push makes a verified image",
        )


def _model_family(found: Evidence) -> family.Family:
    """The model's family; the image's name says it, too."""
    known = facts.family_of(found)
    named = family.by_name(found.image)
    return known if known.model_types or not named else family.get(named)


@check
def patch_mounts(found: Evidence) -> Iterator[Diagnosis]:
    """A file mounted over one that the image's patches made, or any over vLLM's code."""
    files = found.records.patches.files
    said = False
    for mount in found.mounts:
        place = _PACKAGES.search(mount.target)
        if not place:
            continue
        hashes, there = files.get(place[1]), evidences.digest(mount.source)
        if hashes and there == hashes.after:
            continue
        seen = f"{mount.source} is mounted over {mount.target}"
        if hashes and there:
            seen += f" (SHA-256 {there[:12]}, the image's is {hashes.after[:12]})"
        said = True
        yield Diagnosis(
            "patch-mount",
            WARNING if found.ready and not hashes else ERROR,
            seen,
            "an old patch over a baked one inverts scales twice, or does not fit this vLLM",
            f"remove the mount that ends in :{mount.target}",
        )
    # Without the mounts, as from a saved log, the entrypoint's own words are the evidence.
    line = failed_line(found, r"fp4forge: error: .* is not the file that this image's patches made")
    if line and not said:
        yield Diagnosis(
            "patch-mount",
            ERROR,
            line,
            "the image refused to start with a replaced file",
            "remove the mount that the message names",
        )


@check
def removed_switches(found: Evidence) -> Iterator[Diagnosis]:
    """Switches that this release does not read."""
    if not found.version:
        return
    names = {*found.environment, *(w.split("=")[0] for w in found.command if w.startswith("--"))}
    for name in sorted(names & set(history.known())):
        switch = history.known()[name]
        if not switch.known(found.version):
            yield Diagnosis(
                "removed-switch",
                WARNING,
                f"{name} is set; vLLM {found.version} does not read it",
                f"known from {switch.since}" + (f" until {switch.gone}" if switch.gone else ""),
                f"use {switch.successor}" if switch.successor else "remove it",
            )


@check
def unknown_switches(found: Evidence) -> Iterator[Diagnosis]:
    """Flags and parsers that this release's command line does not take."""
    known = switches.load(found.version) if found.version else None
    if known is None or found.ready or not found.serves:
        return
    # Another build of the same version may know more.
    severity = ERROR if "io.fp4forge.release" in found.labels else WARNING
    names = {word.split("=")[0] for word in found.command if re.match("--[a-z]", word)}
    for name in sorted(names - set(history.known()) - {"--help", "--model"}):
        if not known.flag(name):
            yield Diagnosis(
                "unknown-flag",
                severity,
                shown(name, 100),
                f"vLLM {found.version} does not take this flag and ends",
                "remove it, or use a release that has it",
                f"releases/switches/{found.version}.json",
            )
    for flag, parsers in (
        ("--tool-call-parser", known.tool_parsers),
        ("--reasoning-parser", known.reasoning_parsers),
    ):
        chosen = found.flag(flag)
        plugin = found.flag("--tool-parser-plugin") or found.flag("--reasoning-parser-plugin")
        if chosen and UNKNOWN not in chosen and chosen not in parsers and not plugin:
            yield Diagnosis(
                "unknown-parser",
                severity,
                f"{flag} {shown(chosen, 100)}",
                f"vLLM {found.version} has no such parser",
                f"one of {', '.join(parsers)}",
                f"releases/switches/{found.version}.json",
            )


@check
def kv_cache(found: Evidence) -> Iterator[Diagnosis]:
    """The KV cache's format by its short name."""
    if found.flag("--kv-cache-dtype") == "fp8":
        yield Diagnosis(
            "kv-cache-dtype",
            NOTE,
            "--kv-cache-dtype fp8",
            "the same as fp8_e4m3 today; a release may choose another one by that name",
            "--kv-cache-dtype fp8_e4m3",
        )
