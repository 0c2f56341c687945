"""Which of this project's releases load a checkpoint's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fp4forge.checkpoint.declared import UNKNOWN
from fp4forge.checkpoint.findings import Collected
from fp4forge.checkpoint.schemes import Parts, Scheme
from fp4forge.core.errors import ForgeError
from fp4forge.inputs import patches as series
from fp4forge.inputs import release as inputs
from fp4forge.models import formats

# No release of vLLM loads what has one of these findings.
_NEVER = {"unknown-format", "wrong-strategy"}


@dataclass(frozen=True)
class Loading:
    """How a format is loaded: vLLM's flag, its oldest release, the patch, and the releases here."""

    release: str
    flag: str = ""
    since: str = ""
    patch: str = ""
    releases: tuple[str, ...] = ()


def loading(
    format_: str,
    judged: Mapping[str, tuple[Parts, Scheme]],
    promised: Iterable[Scheme],
    release: str | None,
    seen: Collected,
) -> Loading:
    """Looks a format up, and reports what a release does not load.

    Args:
        format_: as models/formats.yaml names it.
        judged: the quantised layers with their schemes.
        promised: schemes that the configuration names, whether layers have them or not.
        release: a release of this project; None: the newest.
        seen: findings are added to it.

    Raises:
        UsageError: there is no such release.
        ReleaseError: a file of models/ or releases/ cannot be read.
    """
    names = inputs.names()
    release = release or (names[-1] if names else "")
    if not release:
        return Loading("")
    version = inputs.load(release).vllm_version
    entry = formats.table().get(format_)
    if entry is None or format_ == UNKNOWN:
        return Loading(release)
    layers = {scheme.name for scheme in promised} & entry.layers.keys()
    for module, (_, scheme) in judged.items():
        output = module.rpartition(".")[2] == "lm_head" and formats.OUTPUT in entry.layers
        if scheme.name not in entry.layers:
            if scheme.name not in layers:
                seen.add("unknown-format", f"{module}: {scheme.name} in {format_}")
            continue
        layers |= {scheme.name, formats.OUTPUT} if output else {scheme.name}
    since = formats.since(entry, layers)
    if _NEVER & seen.places.keys():
        return Loading(release, entry.flag)
    have = tuple(name for name in names if _loads(_version(name), since, entry.patch))
    if not _loads(version, since, entry.patch):
        said = f"format {format_} loads from vLLM {since} on" if since else "no vLLM release does"
        here = f"; releases here: {', '.join(have)}" if have else "; no release here has it"
        seen.add("needs-newer-vllm", f"release {release} has vLLM {version}; {said}{here}")
    return Loading(release, entry.flag, since, entry.patch, have)


def _version(release: str) -> str:
    """A release's vLLM; empty if its file is broken, which is no matter for the others."""
    try:
        return inputs.load(release).vllm_version
    except ForgeError:
        return ""


def _loads(version: str, since: str, patch: str) -> bool:
    from packaging.version import Version

    if not version:
        return False
    if since:
        return Version(version) >= Version(since)
    return bool(patch) and any(one.id == patch for one in series.load("vllm", version).patches)
