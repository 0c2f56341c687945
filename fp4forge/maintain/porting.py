"""Carries a series of patches to another version of vLLM, as far as no person is needed."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from fp4forge.core import files
from fp4forge.core.errors import PatchError
from fp4forge.core.paths import PATCHES
from fp4forge.image import render
from fp4forge.inputs.patches import Patch, PatchSeries
from fp4forge.maintain import patching
from fp4forge.maintain.patching import PatchState


@dataclass(frozen=True)
class SeriesPort:
    """A series for another version: what came of each patch, and the files to write."""

    version: str
    base: str  # the version whose series was carried over
    states: tuple[PatchState, ...]
    files: dict[str, str]  # under patches/vllm/<version>

    @property
    def conflicts(self) -> tuple[PatchState, ...]:
        """The patches that a person must write."""
        return tuple(state for state in self.states if state.state == patching.DRIFTED)


def port(version: str) -> SeriesPort:
    """The newest earlier series as it fits a version; nothing is written.

    Raises:
        ArtefactError: a source cannot be obtained.
        UsageError: no series is that old.
        PatchError: a record of that series cannot be found in its text.
    """
    old = patching.base_of(version)
    states = patching.drift(version)
    diffs = {f"{state.id}.patch": state.diff for state in states if state.diff}
    return SeriesPort(
        version,
        old.version,
        tuple(states),
        diffs | {"series.yaml": _series_text(old, states, version)},
    )


def write(found: SeriesPort) -> None:
    """Writes the series, then records files and hashes (``patch refresh``).

    Raises:
        PatchError: a ported patch does not apply to its own source; nothing stays then.
    """
    folder = PATCHES / "vllm" / found.version
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, text in found.files.items():
            files.replace(folder / name, text)
        patching.refresh(found.version)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _series_text(old: PatchSeries, states: list[PatchState], version: str) -> str:
    """The text of the new series.yaml: records keep their words; hashes come from a refresh."""
    text = (old.folder / "series.yaml").read_text(encoding="utf-8")
    by_id = {patch.id: patch for patch in old.patches}
    carried, conflicts = [], []
    upstream = [_patch_block(text, fix.id) for fix in old.already_upstream]
    for state in states:
        patch = by_id[state.id]
        if state.state == patching.UPSTREAM:
            upstream.append(_upstreamed_block(patch, _patch_block(text, patch.id), version))
        elif state.state == patching.DRIFTED:
            conflicts.append((state, patch))
        else:
            # Its files and hashes are those of another source.
            files_ = re.compile(r"^    files:.*\n(?:      .*\n)*", re.M)
            carried.append(files_.sub("    files: {}\n", _patch_block(text, patch.id), count=1))
    return render.plain(
        "series.yaml.j2",
        version=version,
        of=old.version,
        carried=carried,
        upstream=upstream,
        conflicts=conflicts,
    )


def _upstreamed_block(patch: Patch, block: str, version: str) -> str:
    """A patch's record as that of a fix that the version has itself."""
    detect = re.search(r"^    detect:\n(?:      .*\n)*", block, re.M)
    assert detect  # a record without it is refused
    return f"  - id: {patch.id}\n    fixed_in: {patch.fixed_in or version}\n{detect[0]}"


def _patch_block(text: str, id_: str) -> str:
    found = re.search(rf"^  - id: {re.escape(id_)}\n(?:    .*\n)*", text, re.M)
    if not found:
        raise PatchError(
            f"series.yaml: the record of {id_} cannot be copied",
            rule="each record starts with id, indented by two",
        )
    return found[0]
