"""Which of this project's releases load a checkpoint: its format, and its model's class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.version import Version as Ordered

from fp4forge.checkpoint.declared import UNKNOWN
from fp4forge.checkpoint.findings import CollectedFindings
from fp4forge.checkpoint.schemes import Parts, QuantisationScheme
from fp4forge.core.errors import ForgeError
from fp4forge.core.text import shown
from fp4forge.inputs import defaults, switches
from fp4forge.inputs import patches as series
from fp4forge.inputs import release as inputs
from fp4forge.models import formats

# No release of vLLM loads what has one of these findings.
_NEVER = {"unknown-format", "wrong-strategy", "unknown-architecture"}


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded: vLLM's flag, its oldest release, the patch, the releases here."""

    release: str
    flag: str = ""
    since: str = ""
    patch: str = ""
    releases: tuple[str, ...] = ()


def loading(
    format_: str,
    judged: Mapping[str, tuple[Parts, QuantisationScheme]],
    promised: Iterable[QuantisationScheme],
    architectures: tuple[str, ...],
    release: str | None,
    seen: CollectedFindings,
) -> Loading:
    """Looks a format and a model's class up, and reports what a release does not load.

    Args:
        format_: as models/formats.yaml names it.
        judged: the quantised layers with their schemes.
        promised: schemes that the configuration names, whether layers have them or not.
        architectures: config.json's names of the model's class; vLLM takes the first it has.
        release: a release of this project; None: that of the image that ``serve compose`` takes.
        seen: findings are added to it.

    Raises:
        UsageError: there is no such release.
        ReleaseError: a file of models/ or releases/ cannot be read.
    """
    release = release or defaults.image_release()
    version = inputs.load(release).vllm_version
    versions = {name: found for name in inputs.names() if (found := _vllm_of_release(name))}
    having = _releases_with_class(architectures, versions)
    named = ", ".join(shown(name, 100) for name in architectures)
    if not having:
        seen.add("unknown-architecture", f"{named}: not in vLLM {', '.join(versions.values())}")
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
    have = tuple(name for name in having if _loads(versions[name], since, entry.patch))
    here = f"; releases here: {', '.join(have)}" if have else "; no release here has it"
    if release not in having:
        said = f"{named} is in vLLM {', '.join(versions[name] for name in having)}"
        seen.add("needs-newer-vllm", f"release {release} has vLLM {version}; {said}{here}")
    elif not _loads(version, since, entry.patch):
        said = f"format {format_} loads from vLLM {since} on" if since else "no vLLM release does"
        seen.add("needs-newer-vllm", f"release {release} has vLLM {version}; {said}{here}")
    oldest = next(iter(versions), "")
    first = versions[having[0]] if having[0] != oldest else ""
    since = max(filter(None, (since, first)), key=Ordered, default="") if since else ""
    return Loading(release, entry.flag, since, entry.patch, have)


def _releases_with_class(
    architectures: tuple[str, ...], versions: Mapping[str, str]
) -> tuple[str, ...]:
    """The releases that have a class for a model; all if it does not name one."""

    def has(version: str) -> bool:
        known = switches.load(version)
        return known is None or any(map(known.architecture, architectures))

    # Without architectures vLLM takes transformers' class for the model_type.
    return tuple(name for name in versions if not architectures or has(versions[name]))


def _vllm_of_release(release: str) -> str:
    """A release's vLLM; empty if its file is broken, which is no matter for the others."""
    try:
        return inputs.load(release).vllm_version
    except ForgeError:
        return ""


def _loads(version: str, since: str, patch: str) -> bool:
    if since:
        return Ordered(version) >= Ordered(since)
    return bool(patch) and any(one.id == patch for one in series.load("vllm", version).patches)
