"""What vLLM selects for a model on a GPU: answers of its own selection code, and the kept ones.

``releases/backends/VERSION.json`` keeps the answers of a release, so that a plan or a manifest can
use them without an image. ``build.py backends --all --write`` writes it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs

from fp4forge.core import files, reading
from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.limits import CONFIG_BYTES
from fp4forge.core.paths import RELEASES
from fp4forge.models import family

KINDS = ("linear", "experts", "attention")
FOLDER = RELEASES / "backends"
# vLLM's flags that leave no choice, by what they decide.
FLAGS = {
    "linear": "--linear-backend",
    "experts": "--moe-backend",
    "attention": "--attention-backend",
}


class BackendOption(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backend that a decision could fall on.

    reason: why vLLM refuses it, in vLLM's words; empty if it does not.
    kernel: the class that would run, if the backend has several.
    automatic: False if vLLM takes it only when asked for it.
    """

    name: str
    reason: str = ""
    kernel: str = ""
    automatic: bool = True

    @property
    def usable(self) -> bool:
        """Whether vLLM would run it on this GPU."""
        return not self.reason


class BackendDecision(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which backend vLLM selects for one kind of layer.

    layer: what the selection depends on, such as the activation or the head size.
    cache: data type of the KV cache, for attention.
    selected: what vLLM selects by itself; empty if nothing fits.
    image: what it selects with the variables that the image sets.
    demanded: the backend that vLLM's own rules for the model leave no choice but.
    refused: vLLM's message if nothing fits.
    options: in the order in which vLLM tries them.
    """

    kind: str
    layer: str
    cache: str = ""
    selected: str = ""
    image: str = ""
    demanded: str = ""
    refused: str = ""
    options: tuple[BackendOption, ...] = ()

    def option(self, name: str) -> BackendOption | None:
        """A backend by its name, or by the value of vLLM's flag for it."""
        wanted = (_backend_key(name), "VLLM" + _backend_key(name))
        return next(
            (option for option in self.options if _backend_key(option.name) in wanted), None
        )


def _backend_key(name: str) -> str:
    return re.sub("[-_]", "", name.upper()).removesuffix("NVFP4LINEARKERNEL")


class BackendAnswer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one release selects on one GPU for one model.

    environment: vLLM's variables that the image sets.
    problems: what could not be asked, and why.
    """

    vllm: str
    gpu: str
    capability: tuple[int, int]
    model: str
    family: str = ""  # empty: none covers it
    environment: dict[str, str] = {}
    decisions: tuple[BackendDecision, ...] = ()
    problems: tuple[str, ...] = ()

    def selections(self) -> dict[str, str]:
        """The backend for each kind of layer."""
        return {
            f"{one.kind}: {one.layer}{one.cache and f', KV cache {one.cache}'}": one.selected
            for one in self.decisions
        }

    def of(self, kind: str) -> tuple[BackendDecision, ...]:
        """The decisions of one of ``KINDS``."""
        return tuple(decision for decision in self.decisions if decision.kind == kind)


class _KeptAnswer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer whose decisions are numbers of the file's own list."""

    gpu: str
    capability: tuple[int, int]
    family: str
    model: str
    decisions: tuple[Annotated[int, Meta(ge=0)], ...]
    problems: tuple[str, ...] = ()


class _BackendsFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``releases/backends/VERSION.json``."""

    vllm: str
    environment: dict[str, str]
    decisions: tuple[BackendDecision, ...]
    answers: tuple[_KeptAnswer, ...]

    def __post_init__(self) -> None:
        """Checks that every number is that of a decision."""
        if any(max(kept.decisions, default=-1) >= len(self.decisions) for kept in self.answers):
            raise ValueError("an answer names a decision that is not there")


@cache
def load(vllm: str) -> tuple[BackendAnswer, ...]:
    """The kept answers of a vLLM version; none if the release was never asked.

    Raises:
        ReleaseError: the file is not what ``write`` writes.
    """
    kept_file = path(vllm)
    if not kept_file.is_file():
        return ()
    found = reading.json_file(kept_file, _BackendsFile, ReleaseError, CONFIG_BYTES)
    return tuple(
        BackendAnswer(
            vllm=found.vllm,
            gpu=kept.gpu,
            capability=kept.capability,
            family=kept.family,
            model=kept.model,
            environment=found.environment,
            decisions=tuple(found.decisions[number] for number in kept.decisions),
            problems=kept.problems,
        )
        for kept in found.answers
    )


def find(vllm: str, gpu: str, family: str) -> BackendAnswer | None:
    """The kept answer for a GPU and a model family, if there is one.

    Raises:
        ReleaseError: as ``load``.
    """
    fitting = (a for a in load(vllm) if (a.gpu, a.family) == (gpu, family))
    return next(fitting, None)


def selections(vllm: str, gpus: tuple[str, ...]) -> dict[str, dict[str, dict[str, str]]]:
    """What vLLM selects by GPU, family and layer, as a plan predicts it; empty if it is not known.

    Raises:
        ReleaseError: as ``load``.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for answer in load(vllm):
        if answer.gpu in gpus:
            found.setdefault(answer.gpu, {})[answer.family] = answer.selections()
    return found


def demands(name: str, vllm: str, gpu: str, kind: str) -> tuple[family.FamilySetting, ...]:
    """Settings of a family that leave vLLM no choice for a kind of layer.

    Raises:
        CheckpointError: there is no such family.
    """
    return tuple(
        setting
        for setting in family.get(name).settings
        if setting.flag == FLAGS[kind]
        and setting.holds(vllm)
        and (not setting.gpus or gpu in setting.gpus)
    )


def write(answers: tuple[BackendAnswer, ...]) -> Path:
    """Keeps a release's answers in place of those there were; equal decisions are kept once.

    Raises:
        UsageError: they are of several releases or images, or of models without a family.
    """
    sources = {(answer.vllm, tuple(sorted(answer.environment.items()))) for answer in answers}
    if len(sources) != 1 or not all(answer.family for answer in answers):
        raise UsageError(
            "these answers cannot be kept together",
            rule="a file has the answers of one image for model families",
            remedy="build.py backends --all --write --image IMAGE",
        )
    numbers: dict[BackendDecision, int] = {}
    kept = []
    for answer in answers:
        listed = [numbers.setdefault(one, len(numbers)) for one in answer.decisions]
        fields = {name: getattr(answer, name) for name in ("gpu", "capability", "family", "model")}
        kept.append(_KeptAnswer(**fields, decisions=tuple(listed), problems=answer.problems))
    target = path(answers[0].vllm)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {_json_line(decision)}" for decision in numbers)
    rows = ",\n".join(f"  {_json_line(answer)}" for answer in kept)
    vllm, environment = _json_line(answers[0].vllm), _json_line(answers[0].environment)
    head = f' "vllm": {vllm},\n "environment": {environment}'
    text = f'{{\n{head},\n "decisions": [\n{lines}\n ],\n "answers": [\n{rows}\n ]\n}}\n'
    files.replace(target, text)
    load.cache_clear()
    return target


def path(vllm: str) -> Path:
    """The file that keeps a version's answers; it need not be there."""
    return FOLDER / f"{vllm}.json"


def _json_line(value: object) -> str:
    """A value as JSON on one line; fields that have their default are left out."""
    return json.dumps(_without_defaults(value), ensure_ascii=True)


def _without_defaults(value: object) -> object:
    if isinstance(value, Struct):
        fields = structs.fields(value)
        given = {field.name: getattr(value, field.name) for field in fields}
        defaults = {field.name: field.default for field in fields}
        return {k: _without_defaults(v) for k, v in given.items() if v != defaults[k] and v != ()}
    if isinstance(value, tuple):
        return [_without_defaults(entry) for entry in value]
    return msgspec.to_builtins(value)
