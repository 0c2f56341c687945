"""Model families: how vLLM serves each, read from ``models/families/<name>.yaml``.

A statement about a family has its source and what proved it. A model that no file covers is served
with neutral flags and a note that says so.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from packaging.version import Version

from fp4forge.core.errors import CheckpointError, ReleaseError
from fp4forge.core.paths import FAMILIES
from fp4forge.inputs.reader import BrokenField, InputFormat, one_of
from fp4forge.kernels.gpus import GPUS

STATES = ("full", "sliding", "chunked", "latent", "gated-delta-net", "mamba2", "none")
PROOFS = ("cpu", "hopper", "blackwell", "upstream")
DRAFTERS = ("separate", "checkpoint", "none")
SPECULATIVE = ("mtp", "eagle3", "dflash", "ngram")

_Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_.*-]+$")]
_Text = Annotated[str, Meta(min_length=10, description="a sentence of at least 10 characters")]
_Vllm = Annotated[
    str, Meta(pattern=r"^([0-9]+\.[0-9][a-z0-9.]*)?$", description="a version of vLLM; empty: any")
]
State = Annotated[str, one_of(STATES, "how a layer keeps state")]


class FamilyStatement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something said of a family, with where it is from and what proved it."""

    why: _Text
    source: _Text
    verified: Annotated[str, one_of(PROOFS, "what proved it")]
    since: _Vllm = ""
    until: Annotated[
        _Vllm, Meta(description="the first version of vLLM that it does not apply to")
    ] = ""

    def holds(self, version: str) -> bool:
        """Whether it is said of that version of vLLM."""
        wanted = Version(version)
        return not (
            (self.since and wanted < Version(self.since))
            or (self.until and wanted >= Version(self.until))
        )


class FamilyParser(FamilyStatement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parser of vLLM's, by the name its flag takes."""

    name: _Name


class FamilySetting(FamilyStatement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A flag or an environment variable that the family needs."""

    flag: Annotated[str, Meta(pattern="^--[a-z0-9-]+$")] = ""
    variable: Annotated[str, Meta(pattern="^([A-Z][A-Z0-9_]*)?$")] = ""
    value: str = ""
    experts: Annotated[bool, Meta(description="only if the model has experts")] = False
    quantised: Annotated[bool, Meta(description="only if its weights are NVFP4")] = False
    gpus: Annotated[
        tuple[Annotated[str, one_of(GPUS, "GPUs that fp4forge knows")], ...],
        Meta(description="only on these; none: on every GPU"),
    ] = ()

    def __post_init__(self) -> None:
        """Checks that it is one of the two."""
        if bool(self.flag) == bool(self.variable):
            raise BrokenField(
                "flag", "and variable do not go together", "each entry has one of them"
            )


class FamilySpeculation(FamilyStatement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A speculative mode: whether it works, and where its drafter comes from."""

    mode: Annotated[str, one_of(SPECULATIVE, "a speculative mode")]
    works: bool
    drafter: Annotated[str, one_of(DRAFTERS, "where the drafter is")] = "separate"
    moe_backends: Annotated[
        dict[Annotated[str, one_of(GPUS, "GPUs that fp4forge knows")], str],
        Meta(description="the drafter's --moe-backend by GPU, if auto is wrong there"),
    ] = {}
    method: Annotated[str, Meta(description="vLLM's name of it; empty: the mode's")] = ""
    tokens: Annotated[int, Meta(ge=1, le=32, description="drafted tokens a step")] = 3


class FamilyQuirk(FamilyStatement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that users of the family meet."""

    id: Annotated[str, Meta(pattern="^[a-z0-9-]+$")]
    text: _Text
    fix: str = ""


class UnquantisedModules(FamilyStatement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Modules that stay in BF16 when the model is quantised."""

    pattern: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_.*?-]+$", description="of their names, with * and ?")
    ]


class FamilyExample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published model of the family: its configuration, and what its layers keep."""

    config: Annotated[
        dict[str, Any],
        Meta(description="config.json, cut down to what sizes, layers and routing need"),
    ]
    token_bytes: Annotated[int, Meta(ge=0, description="KV cache of a token in FP8")]
    state_mb: Annotated[float, Meta(ge=0, description="fixed state of a sequence, MB")] = 0.0


# What Hugging Face's configurations call the kinds.
_KINDS = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
}


class FamilyLayers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the configuration says what kind each layer is, and how each kind keeps state."""

    kinds: Annotated[
        dict[str, State], Meta(description="entries of the configuration's list, and their state")
    ] = msgspec.field(default_factory=lambda: dict(_KINDS))
    field: Annotated[_Name, Meta(description="a list or text with an entry for each layer")] = (
        "layer_types"
    )
    interval: Annotated[
        str,
        Meta(description="without that list: the field whose n-th layers are full attention"),
    ] = ""
    every: Annotated[int, Meta(ge=0, description="the interval, if the field is not there")] = 0
    between: Annotated[State, Meta(description="the state of the layers between")] = "full"
    otherwise: Annotated[State, Meta(description="the state of every layer, without either")] = (
        "full"
    )


class Family(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model family."""

    title: Annotated[str, Meta(min_length=3)]
    model_types: Annotated[
        tuple[_Name, ...], Meta(description="model_type of config.json, or of its text_config")
    ]
    architectures: Annotated[
        tuple[_Name, ...], Meta(description="only these, if several families share a model_type")
    ] = ()
    match: Annotated[
        dict[str, int], Meta(description="sizes of the configuration that only this family has")
    ] = {}
    examples: Annotated[
        dict[str, FamilyExample],
        Meta(min_length=1, description="published models by name; the tests size each"),
    ]
    names: Annotated[
        str, Meta(description="regular expression of the names that its checkpoints usually have")
    ] = ""
    layers: FamilyLayers = FamilyLayers()
    defaults: Annotated[
        dict[str, int],
        Meta(description="sizes that transformers supplies if config.json does not have them"),
    ] = {}
    activation: Annotated[str, Meta(description="of the experts or the MLP, as vLLM names it")] = ""
    tool_parser: FamilyParser | None = None
    reasoning_parser: FamilyParser | None = None
    chat_template: Annotated[
        str, Meta(description="what tool calls need of the chat template; a manifest notes it")
    ] = ""
    multimodal: Annotated[tuple[str, ...], Meta(description="inputs beside text")] = ()
    modules: Annotated[
        str, Meta(description="regular expression of the tensors of multimodal parts")
    ] = ""
    tensors: Annotated[
        tuple[_Name, ...],
        Meta(description="layouts of models/tensors.yaml; none: tensors are not compared"),
    ] = ()
    keep: Annotated[
        tuple[UnquantisedModules, ...],
        Meta(description="what quantising leaves in BF16, beyond releases/quantise's list"),
    ] = ()
    settings: tuple[FamilySetting, ...] = ()
    speculative: tuple[FamilySpeculation, ...] = ()
    quirks: tuple[FamilyQuirk, ...] = ()
    prompts: Annotated[
        dict[str, Any], Meta(description="chat_template_kwargs that switch thinking off")
    ] = {}


FORMAT = InputFormat(Family, "family", ReleaseError)
# What is said of a model that no file covers: nothing.
UNKNOWN = Family(title="unknown", model_types=(), examples={})
# Tensors of multimodal parts, of a family whose file does not say.
MODULES = "(vision|visual|image|audio|multi_modal_projector|mm_projector)"


@cache
def table() -> dict[str, Family]:
    """Every family by its file's name.

    Raises:
        ReleaseError: a file cannot be read, or is malformed.
    """
    return {path.stem: load(path) for path in sorted(FAMILIES.glob("*.yaml"))}


def examples() -> dict[str, FamilyExample]:
    """The published models of every family by their names.

    Raises:
        ReleaseError: as ``table``.
    """
    return {
        name: one for family in table().values() for name, one in sorted(family.examples.items())
    }


def load(path: Path) -> Family:
    """A family's file.

    Raises:
        ReleaseError: it cannot be read, or is malformed.
    """
    return FORMAT.read(path, f"models/families/{path.name}")


def of(model_types: tuple[str, ...], architectures: tuple[str, ...], sizes: dict[str, Any]) -> str:
    """The name of the family that covers a configuration; empty if none does.

    Args:
        model_types: ``model_type`` of config.json and of its text_config.
        architectures: its ``architectures``.
        sizes: the fields of the language model.
    """
    for name, family in table().items():
        if not set(family.model_types) & set(model_types):
            continue
        if family.architectures and not set(family.architectures) & set(architectures):
            continue
        if all(sizes.get(field) == value for field, value in family.match.items()):
            return name
    return ""


def by_architecture(architecture: str) -> str:
    """The name of the family that a class of vLLM's serves; empty if none, or several, do.

    vLLM names its classes after ``model_type``: Qwen3MoeForCausalLM serves qwen3_moe.
    """
    stem = _bare_model_type(
        re.sub(r"For(Causal|Conditional|Token|Image|Sequence)\w*$", "", architecture)
    )
    fitting = [
        name
        for name, family in table().items()
        if architecture in family.architectures
        or (
            not family.architectures
            and not family.match
            and stem in {_bare_model_type(kind) for kind in family.model_types}
        )
    ]
    return fitting[0] if len(fitting) == 1 else ""


def by_name(model: str) -> str:
    """The name of the family that a checkpoint's name hints at; empty if none, or several, do."""
    found = [
        name
        for name, family in table().items()
        if family.names and re.search(family.names, model, re.I)
    ]
    return found[0] if len(found) == 1 else ""


def _bare_model_type(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def get(name: str) -> Family:
    """A family by name; ``UNKNOWN`` for the empty name.

    Raises:
        CheckpointError: there is no such family.
    """
    if not name:
        return UNKNOWN
    if name not in table():
        raise CheckpointError(f"no model family {name!r}", rule="one of " + ", ".join(table()))
    return table()[name]
