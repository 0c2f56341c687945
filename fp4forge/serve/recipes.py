"""Recipes of vllm-project/recipes (``models/ORG/REPOSITORY.yaml``) as flags of a server.

The form is that repository's "Recipe YAML schema". A recipe's flags come in layers: the model's,
the variant's, those of the hardware, then each feature's. If a flag comes twice,
the last counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from packaging.version import InvalidVersion, Version

from fp4forge.core.errors import UsageError
from fp4forge.core.text import shown
from fp4forge.inputs import switches
from fp4forge.inputs.reader import InputFormat
from fp4forge.kernels.gpus import PRODUCTS
from fp4forge.models import family
from fp4forge.serve.layer_state import KV_BYTES
from fp4forge.serve.memory import SHARE_RULE, is_share
from fp4forge.serve.setting import ServerSetting
from fp4forge.serve.settings import ServerSettings

_Line = Annotated[str, Meta(pattern=r"^[^\n]*\Z", description="text of one line")]
_Words = tuple[_Line, ...]
_Variables = dict[Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_]*\Z")], _Line]


class _Override(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a hardware changes of a variant or a feature."""

    extra_args: _Words = ()
    extra_env: _Variables = {}
    args: _Words | None = None
    env: _Variables | None = None
    docker_image: str = ""
    docker_serve_command: str = ""
    install: Any = None
    tp: int | None = None


class _Mode(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several ways of a feature."""

    args: _Words = ()
    env: _Variables = {}
    label: str = ""
    description: str = ""
    variants: _Words = ()
    hardware: Any = None
    hardware_overrides: dict[str, _Override] = {}


class _Feature(_Mode, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be switched on."""

    modes: dict[str, _Mode] = {}
    default_mode: str = ""
    strategies: _Words = ()
    disables_features: _Words = ()


class _Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint of the model."""

    model_id: str = ""
    precision: str = ""
    label: str = ""
    description: str = ""
    vram_minimum_gb: float = 0
    min_vllm_version: str = ""
    supported_hardware: _Words = ()
    extra_args: _Words = ()
    extra_env: _Variables = {}
    hardware_overrides: dict[str, _Override] = {}


class _RecipeModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model itself."""

    model_id: str
    min_vllm_version: str = ""
    architecture: str = ""
    parameter_count: str = ""
    active_parameters: str = ""
    context_length: int = 0
    base_args: _Words = ()
    base_env: _Variables = {}
    docker_image: str = ""


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe's file; what this project does not read of it may be anything."""

    model: _RecipeModel
    variants: dict[str, _Variant]
    features: dict[str, _Feature] = {}
    opt_in_features: _Words = ()
    meta: Any = None
    dependencies: Any = None
    compatible_strategies: Any = None
    strategy_overrides: Any = None
    hardware_overrides: dict[str, _Override] = {}
    kv_cache_strategy_hardware: Any = None
    guide: str = ""


FORMAT = InputFormat(Recipe, "recipe", UsageError, blocks=True)
# Flags of a recipe that the manifest decides itself, by its options and after its checks.
_OURS = (
    "--host",
    "--port",
    "--served-model-name",
    "--model",
    "--trust-remote-code",
    "--api-key",
    "--quantization",
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--data-parallel-size",
    "--enable-expert-parallel",
    "--enable-lora",
    "--lora-modules",
    "--middleware",
)
_KEYS = re.compile("KEY|TOKEN|SECRET|PASSWORD")


@dataclass(frozen=True)
class RecipeSettings:
    """A recipe's settings for one variant, hardware and set of features."""

    model: str
    flags: tuple[ServerSetting, ...]
    environment: tuple[ServerSetting, ...]
    asks_for: str  # the recipe's min_vllm_version
    notes: tuple[str, ...]


def read(path: Path) -> Recipe:
    """A recipe's file.

    Raises:
        UsageError: it cannot be read, or is not a recipe; the message names the line.
    """
    return FORMAT.read(path, shown(path, 200))


def choose(
    recipe: Recipe, variant: str, features: tuple[str, ...], product: str | None
) -> RecipeSettings:
    """What a recipe says for a variant, with features switched on, on a product.

    Args:
        variant: a key of its variants; empty: the first whose precision is nvfp4, else the first.
        features: keys of its features, or FEATURE=MODE, beside those that are on by default.
        product: one of ``kernels.gpus.PRODUCTS``; None: no hardware.

    Raises:
        UsageError: the recipe has no such variant, feature or mode, or they do not go together.
    """
    name = variant or _usual_variant(recipe)
    if name not in recipe.variants:
        raise _unknown_choice("variant", name, recipe.variants)
    hardware = PRODUCTS[product].recipe if product else ""
    found = recipe.variants[name]
    words, variables, notes = list(recipe.model.base_args), dict(recipe.model.base_env), []
    words += found.extra_args
    variables |= found.extra_env
    if hardware and found.supported_hardware and hardware not in found.supported_hardware:
        notes.append(f"the recipe does not list {hardware} for its variant {name}")
    if hardware and isinstance(recipe.meta, dict):
        said = dict(recipe.meta.get("hardware") or {}).get(hardware, "nothing")
        notes.append(f"the recipe says {shown(said, 40)} of {hardware}")
    for overrides in (recipe.hardware_overrides, found.hardware_overrides):
        if special := overrides.get(hardware):
            words += special.extra_args
            variables |= special.extra_env
            if special.docker_image:
                image = shown(special.docker_image, 200)
                notes.append(f"the recipe would run the image {image}; this is another")
    for mode in _features(recipe, features, name):
        special = mode.hardware_overrides.get(hardware, _Override())
        words += mode.args if special.args is None else special.args
        variables |= mode.env if special.env is None else special.env
    why = f"the recipe, variant {name}" + (f" on {hardware}" if hardware else "")
    return RecipeSettings(
        model=found.model_id or recipe.model.model_id,
        flags=tuple(_flag_pairs(words, why)),
        environment=tuple(ServerSetting(key, value, why) for key, value in variables.items()),
        asks_for=found.min_vllm_version or recipe.model.min_vllm_version,
        notes=tuple(notes),
    )


def _usual_variant(recipe: Recipe) -> str:
    if not recipe.variants:
        raise UsageError("the recipe has no variants", rule="a recipe has one at least")
    quantised = [name for name, v in recipe.variants.items() if v.precision == "nvfp4"]
    return (quantised or list(recipe.variants))[0]


def _unknown_choice(what: str, name: str, known: Any) -> UsageError:
    return UsageError(
        f"the recipe has no {what} {shown(name, 60)!r}", rule="one of " + ", ".join(known)
    )


def _features(recipe: Recipe, asked: tuple[str, ...], variant: str) -> list[_Mode]:
    """The features that are on, each as one of its modes."""
    modes = dict(part.partition("=")[::2] for part in asked)
    for name in modes:
        if name not in recipe.features:
            raise _unknown_choice("feature", name, recipe.features)
    out: list[_Mode] = []
    for name, feature in recipe.features.items():
        if name not in modes and name in recipe.opt_in_features:
            continue
        if not feature.modes:
            if modes.get(name):
                raise UsageError(
                    f"the recipe's feature {name} has no modes", rule=f"--feature {name}"
                )
            out.append(feature)
            continue
        mode = modes.get(name) or feature.default_mode or next(iter(feature.modes))
        if mode not in feature.modes:
            raise _unknown_choice(f"mode of {name}", mode, feature.modes)
        chosen = feature.modes[mode]
        if chosen.variants and variant not in chosen.variants:
            raise UsageError(
                f"the recipe's mode {mode} of {name} is not for variant {variant}",
                rule="it is for " + ", ".join(chosen.variants),
            )
        out.append(chosen)
    return out


def _flag_pairs(words: list[str], why: str) -> list[ServerSetting]:
    """Flags with their values; the last of a flag counts.

    Raises:
        UsageError: a value stands before any flag.
    """
    found: dict[str, ServerSetting] = {}
    name = ""
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            name, _, value = word.partition("=")
            found.pop(name, None)
            found[name] = ServerSetting(name, value, why)
        elif not name:
            raise UsageError(
                f"the recipe's arguments begin with {shown(word, 60)!r}", rule="a flag comes first"
            )
        else:
            flag = found[name]
            if flag.value:
                found[name] = replace(flag, more=(*flag.more, word))
            else:
                found[name] = replace(flag, value=word)
    return list(found.values())


def apply(server: ServerSettings, chosen: RecipeSettings) -> ServerSettings:
    """A server with a recipe's settings over its own.

    Flags and variables that the image's release does not know are left out, with a note.
    """
    known = switches.load(server.version)
    notes = list(chosen.notes)
    if _older_version(server.version, chosen.asks_for):
        notes.append(f"the recipe asks for vLLM {chosen.asks_for}; this image has {server.version}")
    flags = {flag.name: flag for flag in server.flags}
    for flag in chosen.flags:
        if reason := _why_not_taken(flag, server, known):
            notes.append(f"{flag.name} of the recipe is left out: {reason}")
        else:
            flags[flag.name] = flag
    environment = {variable.name: variable for variable in server.environment}
    for variable in chosen.environment:
        name = variable.name
        if not name.startswith("VLLM_") or _KEYS.search(name):
            notes.append(f"{name} of the recipe is left out: it is not a setting of vLLM's")
        elif known and name not in known.environment:
            notes.append(f"{name} of the recipe is left out: vLLM {server.version} lacks it")
        else:
            environment[name] = variable
    return replace(
        server,
        flags=tuple(flags.values()),
        environment=tuple(environment.values()),
        notes=(*server.notes, *notes),
    )


def _why_not_taken(
    flag: ServerSetting, server: ServerSettings, known: switches.KnownSwitches | None
) -> str:
    """Why a recipe's flag is not taken over; empty if it is."""
    ours = next((f.value for f in server.flags if f.name == flag.name), "")
    if flag.name in _OURS:
        return "the manifest decides it"
    if known and not known.flag(flag.name):
        return f"vLLM {server.version} lacks it"
    match flag.name:
        case "--chat-template" if not flag.value.startswith("/"):
            return f"the image does not have {flag.value}"
        case "--max-model-len" if not _at_most(flag.value, ours):
            return f"{flag.value} is more than the {ours} that were found to fit (--workload)"
        case "--max-num-seqs" | "--max-num-batched-tokens" if not flag.value.isdigit():
            return f"{flag.value!r} is not a number"
        case "--gpu-memory-utilization" if not _is_share(flag.value):
            return f"{flag.value!r} is not {SHARE_RULE}"
        case "--kv-cache-dtype" if known and flag.value not in known.kv_cache_types:
            return f"vLLM {server.version} lacks {flag.value}"
        case "--kv-cache-dtype" if KV_BYTES.get(flag.value) != KV_BYTES.get(ours):
            return f"what fits was computed for {ours} (--kv-cache-dtype)"
        case "--speculative-config":
            return _speculation(flag, server, bool(ours))
    return ""


def _at_most(value: str, limit: str) -> bool:
    return value.isdigit() and (not limit or int(value) <= int(limit))


def _is_share(value: str) -> bool:
    try:
        return is_share(float(value))
    except ValueError:
        return False


def _speculation(flag: ServerSetting, server: ServerSettings, chosen: bool) -> str:
    """Why a recipe's speculation is not taken over: the family's file decides what works."""
    if chosen:
        return "--speculative chooses another"
    try:
        config = msgspec.json.decode(flag.value, type=dict[str, Any])
    except msgspec.DecodeError:
        return "its value is not JSON"
    if "model" in config:
        return "its drafter is not mounted; use --speculative and --draft"
    known = family.get(server.family)
    works = any(
        said.works
        and said.holds(server.version)
        and config.get("method") in (said.mode, said.method)
        for said in known.speculative
    )
    title = known.title if server.family else "this model"
    return "" if works else f"it is not known to work for {title} with vLLM {server.version}"


def _older_version(version: str, wanted: str) -> bool:
    try:
        return Version(version) < Version(wanted)
    except InvalidVersion:
        return False
