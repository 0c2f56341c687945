"""The state of patches against vLLM's sources: applies, already upstream, or drifted."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fp4forge.core import files
from fp4forge.core.errors import PatchError, UsageError
from fp4forge.core.text import text_sha256
from fp4forge.image.stages.apply_patches import Refused, apply_one, failed_hunks, gnu_patch
from fp4forge.inputs import patches as series
from fp4forge.inputs.patches import Patch, PatchSeries
from fp4forge.maintain import sources

APPLIES, OFFSET, UPSTREAM, DRIFTED = "applies", "applies with offsets", "upstream", "drifted"


@dataclass(frozen=True)
class PatchState:
    """How one patch stands against one source tree."""

    id: str
    state: str
    detail: str = ""
    merge: str = field(default="", repr=False)  # three-way diff of a drifted patch
    diff: str = field(default="", repr=False)  # of the patch as it fits the other version

    def as_json(self) -> dict[str, Any]:
        """The state as ``patch check --json`` prints it."""
        return asdict(self)


def has_fix(tree: Path, detect: dict[str, str]) -> bool:
    """Whether all patterns are found in their files, wherever those moved within ``vllm/``."""
    for name, pattern in detect.items():
        path = _moved_file(tree, name)
        if path is None or not re.search(pattern, path.read_text(), re.M):
            return False
    return True


def check(version: str) -> list[PatchState]:
    """Each patch of a version's series against that version's pinned source.

    Raises:
        PatchError: the series is malformed.
        ArtefactError: the source cannot be obtained.
    """
    sequence, tree = series.load("vllm", version), sources.source_tree(version)
    states = []
    with _touched_files(tree, sequence) as work:
        for patch in sequence.patches:
            if has_fix(work, patch.detect):
                states.append(
                    PatchState(patch.id, UPSTREAM, "the source has the fix: drop the patch")
                )
                continue
            try:
                apply_one(sequence.instructions(patch), sequence.folder / patch.file, work)
            except Refused as refusal:
                reason = str(refusal).removeprefix(f"patch {patch.id}: ")
                states.append(PatchState(patch.id, DRIFTED, reason))
                continue
            found = has_fix(work, patch.detect)
            states.append(
                PatchState(patch.id, APPLIES)
                if found
                else PatchState(
                    patch.id, DRIFTED, "its own result does not match its detect patterns"
                )
            )
    for fix in sequence.already_upstream:
        found = has_fix(tree, fix.detect)
        states.append(
            PatchState(fix.id, UPSTREAM, f"in vLLM since {fix.fixed_in}")
            if found
            else PatchState(fix.id, DRIFTED, "recorded as upstream, but not found in the source")
        )
    return states


def base_of(version: str) -> PatchSeries:
    """The series to start from for a version: the newest before it, or its own if it is the first.

    Raises:
        UsageError: no series is that old.
    """
    from packaging.version import InvalidVersion, Version

    try:
        known = [v for v in series.versions("vllm") if Version(v) <= Version(version)]
    except InvalidVersion:
        raise UsageError(f"--vllm {version!r} is not a version") from None
    if not known:
        raise UsageError(f"no series is as old as vLLM {version}")
    earlier = [name for name in known if name != version]
    return series.load("vllm", (earlier or known)[-1])


def drift(version: str) -> list[PatchState]:
    """What the series of ``base_of`` would need on a version.

    Raises:
        ArtefactError: the index has no such version.
        UsageError: no series is that old.
    """
    sequence = base_of(version)
    theirs, base = sources.source_tree(version), sources.source_tree(sequence.version)
    states = []
    merged: dict[str, str] = {}  # their files with the patches so far
    with _touched_files(base, sequence) as ours:
        for patch in sequence.patches:
            before = {path: (ours / path).read_text() for path in patch.files}
            apply_one(sequence.instructions(patch), sequence.folder / patch.file, ours)
            after = {path: (ours / path).read_text() for path in patch.files}
            states.append(_state_against(patch, before, after, theirs, merged))
    return states


def refresh(version: str) -> list[PatchState]:
    """Rebases a series onto its version's pinned source and records files and hashes; no fuzz.

    The record is written last. Until then, whenever this process is killed, the diffs that are new
    change the sources as the old ones do.

    Raises:
        PatchError: a patch does not apply, or a file was edited meanwhile; nothing is written then.
    """
    sequence, tree = series.load("vllm", version, chained=False), sources.source_tree(version)
    record = sequence.folder / "series.yaml"
    read = {
        p: p.read_bytes() for p in [record, *(sequence.folder / q.file for q in sequence.patches)]
    }
    states, diffs, text = [], {}, read[record].decode()
    with _touched_files(tree, sequence) as work:
        for patch in sequence.patches:
            paths = sequence.touched(patch)
            before = {path: _read_source(work, path, patch) for path in paths}
            offset = _apply(sequence.folder / patch.file, work)
            after = {path: (work / path).read_text() for path in paths}
            if offset:
                diffs[patch.file] = "".join(_diff(p, before[p], after[p]) for p in paths)
            hashes = {path: (text_sha256(before[path]), text_sha256(after[path])) for path in paths}
            text = _with_hashes(text, patch.id, hashes)
            states.append(PatchState(patch.id, OFFSET if offset else APPLIES, offset))
    for path, content in read.items():
        if path.read_bytes() != content:
            raise PatchError(
                f"{path.name} was edited while the series was refreshed",
                rule="an edit is never overwritten; nothing was written",
                remedy="run build.py patch refresh again",
            )
    for name, diff in diffs.items():
        files.replace(sequence.folder / name, diff)
    files.replace(record, text)
    return states


def _state_against(
    patch: Patch, before: dict[str, str], after: dict[str, str], tree: Path, merged: dict[str, str]
) -> PatchState:
    if has_fix(tree, patch.detect):
        return PatchState(patch.id, UPSTREAM, "the source has the fix: drop the patch")
    failed, merges, moved, results = [], [], [], {}
    for path, old in before.items():
        target = _moved_file(tree, path)
        if target is None:
            failed.append(f"{path} is gone")
            continue
        name = target.relative_to(tree).as_posix()
        moved += [f"{path} is now {name}"] if name != path else []
        result, conflicts = _merge(after[path], old, merged.get(path) or target.read_text())
        if conflicts:
            failed.append(f"{name}: {len(conflicts)} of its changes conflict")
            merges.append(f"--- {name}\n" + "\n".join(conflicts))
        else:
            results[path] = result
    if failed:
        return PatchState(patch.id, DRIFTED, "; ".join(failed + moved), "\n".join(merges))
    diff = "".join(
        _diff(target.relative_to(tree).as_posix(), merged.get(path) or target.read_text(), result)
        for path, result in sorted(results.items())
        if (target := _moved_file(tree, path))
    )
    merged |= results
    exact = not moved and all(results[p] == text for p, text in after.items())
    if exact:
        return PatchState(patch.id, APPLIES, diff=diff)
    said = "; ".join(moved) or "the lines around it are unchanged"
    return PatchState(patch.id, OFFSET, said, diff=diff)


def _merge(ours: str, base: str, theirs: str) -> tuple[str, list[str]]:
    """A three-way merge of texts: the result, and the conflicts in it."""
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for name, text in (("ours", ours), ("before", base), ("theirs", theirs)):
            (Path(folder) / name).write_text(text)
            names.append(str(Path(folder) / name))
        labels = ["-Lours", "-Lbefore", "-Ltheirs"]
        done = subprocess.run(
            ["git", "merge-file", "-p", "--diff3", *labels, *names], capture_output=True, text=True
        )
    return done.stdout, re.findall(r"^<<<<<<< .*?^>>>>>>> [^\n]*\n", done.stdout, re.M | re.S)


def _moved_file(tree: Path, name: str) -> Path | None:
    """A file of the tree; when it moved, the only one of its name."""
    if (tree / name).is_file():
        return tree / name
    root = name.split("/", 1)[0]
    found = list((tree / root).rglob(Path(name).name))
    return found[0] if len(found) == 1 else None


def _apply(diff: Path, tree: Path) -> str:
    """Applies a diff with zero fuzz; returns GNU patch's words where lines had moved."""
    done = gnu_patch(diff, tree)
    if done.returncode != 0:
        raise PatchError(
            f"{diff.name}: {failed_hunks(done.stdout)}",
            rule="patches apply without fuzz",
            remedy="build.py patch drift shows what changed; edit the diff by hand",
        )
    return "; ".join(re.findall(r"Hunk #.* at .*\(offset .*\)", done.stdout))


def _diff(path: str, old: str, new: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}"
    )
    return "".join(lines)


def _read_source(tree: Path, path: str, patch: Patch) -> str:
    if not (tree / path).is_file():
        raise PatchError(
            f"{patch.file} changes {path}, which the source does not have",
            rule="a diff's paths start from the root of the source: a/vllm/...",
        )
    return (tree / path).read_text()


def _with_hashes(text: str, patch: str, hashes: dict[str, tuple[str, str]]) -> str:
    """series.yaml with another list of files in one record, and every comment where it was."""
    files = "".join(
        f"      {path}:\n        before: {before}\n        after: {after}\n"
        for path, (before, after) in hashes.items()
    )
    record = rf"(^  - id: {patch}\n(?:(?:    .*)?\n)*?)    files:.*\n(?:      .*\n)*"
    new = re.compile(record, re.M)
    text, found = new.subn(lambda match: f"{match[1]}    files:\n{files}", text, count=1)
    if not found:
        raise PatchError(
            f"series.yaml: {patch} has no list of files that can be replaced",
            rule="each record starts with id, indented by two, and has files: {} or a list",
        )
    return text


@contextmanager
def _touched_files(tree: Path, sequence: PatchSeries) -> Iterator[Path]:
    """A folder with the files that the series touches or looks at."""
    names = {name for patch in sequence.patches for name in sequence.touched(patch)}
    names |= {name for patch in sequence.patches for name in patch.detect}
    with tempfile.TemporaryDirectory(prefix="fp4forge-patch-") as folder:
        for name in names:
            if (tree / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tree / name, Path(folder) / name)
        yield Path(folder)
