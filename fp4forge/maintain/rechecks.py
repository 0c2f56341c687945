"""Known faults that somebody should look at again, because a release may have fixed them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.version import Version

from fp4forge.inputs import release as releases
from fp4forge.models import faults
from fp4forge.models.faults import KnownFault

# GitHub's longest names: without an end, a long word would be tried from each of its letters.
_REPOSITORY = r"[\w.-]{1,39}/[\w.-]{1,100}"
_ISSUE = re.compile(rf"({_REPOSITORY})?#([0-9]{{1,7}})\b")
_READ = re.compile(r"\bof (?:vLLM )?([0-9]+\.[0-9]+\.[0-9]+)(?: and ([0-9]+\.[0-9]+\.[0-9]+))?")
_LINK = re.compile(rf"github\.com/({_REPOSITORY})/(?:issues|pull)/([0-9]{{1,7}})\b")
_OWN = "vllm-project/vllm"


@dataclass(frozen=True)
class Recheck:
    """A fault, and why it is to be looked at."""

    id: str
    why: str


def due(notes: str = "", repository: str = _OWN) -> list[Recheck]:
    """What to look at: by the newest release here, and by a project's release notes.

    Args:
        notes: text of release notes; empty: none.
        repository: whose notes they are: a bare #123 in them is its own.
    """
    mentioned = _mentioned(notes, repository)
    newest = {name: max(found, key=Version) for name, found in _versions_here().items()}
    out = []
    for fault in faults.table().faults:
        why = _in_notes(fault, mentioned) or _by_release(fault, newest.get(fault.component, ""))
        out += [Recheck(fault.id, why)] if why else []
    return out


def _versions_here() -> dict[str, list[str]]:
    """The versions that the releases here have."""
    found = [releases.load(name) for name in releases.names()]
    return {
        "vllm": [one.vllm_version for one in found],
        "torch": [one.torch for one in found],
        "transformers": [one.transformers for one in found],
        "flashinfer": [one.flashinfer for one in found],
    }


def _in_notes(fault: KnownFault, mentioned: set[tuple[str, str]]) -> str:
    if fault.fixed_in:
        return ""
    named = [f"{owner}#{number}" for owner, number in issues(fault) if (owner, number) in mentioned]
    return f"the notes mention {', '.join(named)}: is it fixed in that release?" if named else ""


def _by_release(fault: KnownFault, newest: str) -> str:
    if not newest:
        return ""
    if fault.fixed_in:
        if Version(fault.fixed_in) > Version(newest):
            return f"fixed in {fault.fixed_in}, and the newest {fault.component} here is {newest}"
        return ""
    read = [v for match in _READ.finditer(fault.source) for v in match.groups() if v]
    if read and max(map(Version, read)) < Version(newest):
        return (
            f"read in {max(read, key=Version)}, and the newest {fault.component} here is {newest}"
        )
    return ""


def issues(fault: KnownFault) -> list[tuple[str, str]]:
    """The issues and pull requests that a fault's source names: repository and number.

    A bare number is of the repository before it, ``PR #1`` of vLLM if none stands before.
    """
    out, owner = [], _OWN
    for match in _ISSUE.finditer(fault.source):
        owner = match[1] or owner
        out.append((owner, match[2]))
    return out


def _mentioned(notes: str, repository: str) -> set[tuple[str, str]]:
    found = {(match[1], match[2]) for match in _LINK.finditer(notes)}
    return found | {(match[1] or repository, match[2]) for match in _ISSUE.finditer(notes)}
