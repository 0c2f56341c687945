"""Switches that vLLM's releases gained and lost, read from ``models/switches.yaml``."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from msgspec import Meta, Struct
from packaging.version import Version

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import MODELS
from fp4forge.inputs.reader import InputFormat

_Version = Annotated[str, Meta(pattern=r"^[0-9]+\.[0-9]+(\.[0-9]+)?$")]
_Text = Annotated[str, Meta(min_length=10)]


class VllmSwitch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An option or environment variable of vLLM."""

    name: Annotated[str, Meta(pattern="^(VLLM_[A-Z0-9_]+|--[a-z0-9-]+)$")]
    since: Annotated[_Version, Meta(description="the first vLLM that reads it")]
    gone: Annotated[_Version | None, Meta(description="the first that no longer does")] = None
    successor: Annotated[str, Meta(description="what took its place")] = ""
    note: Annotated[_Text, Meta(description="what it does")]

    def known(self, version: str) -> bool:
        """Whether that vLLM release reads it."""
        there = Version(version) >= Version(self.since)
        return there and (self.gone is None or Version(version) < Version(self.gone))


class SwitchHistory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of vLLM's switches."""

    switches: tuple[VllmSwitch, ...]
    left_out: Annotated[
        dict[str, _Text], Meta(description="settings of the reference card that no manifest has")
    ]


FORMAT = InputFormat(SwitchHistory, "switches", ReleaseError)


@cache
def _history_file() -> SwitchHistory:
    return FORMAT.read(MODELS / "switches.yaml", f"{MODELS.name}/switches.yaml")


@cache
def known() -> dict[str, VllmSwitch]:
    """Every switch by its name.

    Raises:
        ReleaseError: ``models/switches.yaml`` cannot be read, or is malformed.
    """
    return {switch.name: switch for switch in _history_file().switches}


def left_out() -> dict[str, str]:
    """The reference card's settings that no manifest has, and why."""
    return _history_file().left_out
