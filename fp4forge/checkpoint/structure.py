"""Whether a model has the tensors that its family says, in the sizes that config.json says.

A family's file names the layouts of models/tensors.yaml that its models have; a model of no known
family is not judged. vLLM compares what it loaded with what it has only for models that are not
quantised (load_weights in vllm/model_executor/model_loader/default_loader.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from fp4forge.checkpoint import kinds
from fp4forge.checkpoint.config import TextConfig
from fp4forge.checkpoint.findings import CollectedFindings
from fp4forge.checkpoint.schemes import Parts, QuantisationScheme, Shape
from fp4forge.checkpoint.tensors import Checkpoint
from fp4forge.models import family, tensor_layouts
from fp4forge.models.tensor_layouts import TensorLayout

_LAYER = re.compile(r"^(.*?\blayers)\.(\d{1,9})\.(.+)$")
_TOWER = re.compile(r"vision|visual|audio|encoder|mtp")
_EXPERTS = re.compile(r"(?:^|\.)experts\.")
_NUMBER = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")
_Names = Mapping[str, list[str]]  # short names, experts' numbers as "*", with the whole ones
# Drafters have layers of their own kind, and some take the target's embeddings.
_DRAFTER = re.compile(r"Eagle|MTP|NextN|DFlash|Medusa|Speculator|Draft|Assistant")
_OUTPUT = re.compile(r"(?:^|\.)lm_head$")
_GENERATES = re.compile(r"For(CausalLM|ConditionalGeneration)$")


@dataclass
class _ModelNames:
    """A model's names: outside its layers, and in each."""

    root: str  # before "layers."
    outside: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    layers: dict[int, dict[str, list[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )


@dataclass
class _Place:
    """One place where a layout should be: its path, the names there, the sizes that hold there."""

    path: str
    names: _Names
    sizes: Mapping[str, int]
    without: tuple[str, ...] = ()


def check(
    found: Checkpoint,
    modules: Mapping[str, Parts],
    judged: Mapping[str, tuple[Parts, QuantisationScheme]],
    seen: CollectedFindings,
) -> None:
    """Reports layers and tensors that are missing, and those of another size than config.json's.

    Raises:
        CheckpointError: config.json has a kind of layer that the family's file does not know.
    """
    text, known = found.config.complete, family.get(found.config.family)
    if any(map(_DRAFTER.search, found.config.architectures or ())):
        return
    count = text.num_hidden_layers or 0
    path, numbers = _layer_numbers(found.tensors)
    if numbers:
        for number in sorted(set(range(count)) - numbers):
            seen.add("missing-layer", f"{path}.{number}")
    elif known.tensors and count:
        seen.add("missing-layer", f"all {count}")
    if not known.tensors or not numbers:
        return
    model = _model_names(found, modules, path)
    shapes = _unpacked_shapes(found, modules, judged)
    states = kinds.of(found.config, count, found.folder)
    chosen = {name: tensor_layouts.layouts()[name] for name in known.tensors}
    routers = {
        name
        for layout in chosen.values()
        for name in layout.tensors
        if layout.within == "experts" and not layout.always and "*" not in name
    }
    absent: dict[str, list[str]] = {}
    for name, layout in chosen.items():
        places = list(_layout_places(text, model, states, layout, routers))
        lost, there = _lost_tensors(layout, places)
        for place in places:
            _sizes_there(layout, place, shapes, seen)
        if lost and not there and not layout.always:
            absent[name] = lost
        else:
            for one in lost:
                seen.add("missing-tensor", one)
    for lost in absent.values():  # several at once: nobody loses them by accident
        for one in lost:
            seen.add("missing-tensor" if len(absent) == 1 else "cut-down", one)
    _output_projection(found, modules, shapes, seen)


def _layer_numbers(names: Iterable[str]) -> tuple[str, set[int]]:
    """The path of the language model's layers, and their numbers."""
    there: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if (match := _LAYER.match(name)) and not _TOWER.search(match[1]):
            there[match[1]].add(int(match[2]))
    return max(there.items(), key=lambda item: len(item[1]), default=("", set()))


def _model_names(found: Checkpoint, modules: Mapping[str, Parts], path: str) -> _ModelNames:
    model = _ModelNames(path.removesuffix("layers"))
    others = (name for name in found.tensors if name.rpartition(".")[0] not in modules)
    for name in (*modules, *others):
        if not name.startswith(model.root):
            if not _TOWER.search(name) and ".layers." not in name:  # beside the language model
                model.outside[name.rpartition(".")[2]].append(name)
            continue
        short = _NUMBER.sub("*", name.removeprefix(model.root))
        if match := _LAYER.match(short):
            if match[1] == "layers":
                model.layers[int(match[2])][match[3]].append(name)
        else:
            model.outside[short].append(name)
    return model


def _unpacked_shapes(
    found: Checkpoint,
    modules: Mapping[str, Parts],
    judged: Mapping[str, tuple[Parts, QuantisationScheme]],
) -> dict[str, Shape]:
    """The sizes of layers' weights before packing, if they are known."""
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    for name, parts in modules.items():
        if name in judged:
            scheme = judged[name][1]
            weight = parts.get(scheme.weight)
            if weight and weight.shape and weight.dtype == scheme.dtype and not scheme.fused:
                shapes[name] = scheme.logical(weight)
        elif parts.keys() == {"weight"}:
            shapes[name] = parts["weight"].shape
    return shapes


def _layout_places(
    text: TextConfig, model: _ModelNames, states: list[str], layout: TensorLayout, routers: set[str]
) -> Iterator[_Place]:
    """Where a layout should be."""
    if layout.within == "model":
        yield _Place(model.root, model.outside, sizes(text, None, len(states)))
        return
    for number, state in enumerate(states):
        names = model.layers.get(number)
        if names is None or (layout.states and state not in layout.states):
            continue
        experts = any(map(_EXPERTS.search, names)) or bool(routers & names.keys())
        if layout.within == ("dense" if experts else "experts"):
            continue
        shares = number >= kinds.own(text, len(states))
        without = layout.shared if shares else ()
        here = sizes(text, number, len(states))
        yield _Place(f"{model.root}layers.{number}.", names, here, without)


def sizes(text: TextConfig, layer: int | None, layers: int) -> dict[str, int]:
    """Fields of config.json that have a size, at one layer."""
    found: dict[str, int] = {}
    for name, value in structs.asdict(text).items():
        if isinstance(value, list) and layer is not None and len(value) == layers:
            value = value[layer]
        if isinstance(value, int) and value:
            found[name] = value
    heads = found.get("num_attention_heads", 0)
    found.setdefault("experts", text.experts)
    if heads:
        found.setdefault("num_key_value_heads", heads)
        if "hidden_size" in found and found["hidden_size"] % heads == 0:
            found.setdefault("head_dim", found["hidden_size"] // heads)
    if text.use_double_wide_mlp and layer is not None and layer >= kinds.own(text, layers):
        found["intermediate_size"] = 2 * found.get("intermediate_size", 0)
    return {name: size for name, size in found.items() if size}


def _lost_tensors(layout: TensorLayout, places: list[_Place]) -> tuple[list[str], bool]:
    """Tensors that are not there, and whether any of the layout is."""
    lost, there = [], False
    for place in places:
        for name, dimensions in layout.tensors.items():
            first, *_ = others = name.split("|")
            if any(other in place.names for other in others):
                there = True
            elif (
                "*" not in name
                and first not in place.without
                and all(
                    one in place.sizes for size in dimensions for one in tensor_layouts.fields(size)
                )
            ):
                lost.append(place.path + first)
    return lost, there


def _sizes_there(
    layout: TensorLayout, place: _Place, shapes: Mapping[str, Shape], seen: CollectedFindings
) -> None:
    for name, dimensions in layout.tensors.items():
        wanted = [tensor_layouts.value(size, place.sizes) for size in dimensions]
        for whole in place.names.get(name.partition("|")[0], ()):
            _compare_shape(whole, shapes.get(whole), wanted, dimensions, seen)


def _compare_shape(
    name: str,
    shape: Shape | None,
    wanted: Sequence[int | None],
    sizes: Sequence[str],
    seen: CollectedFindings,
) -> None:
    if shape is None:
        return
    right = len(shape) == len(wanted) and all(
        size is None or size == one for one, size in zip(shape, wanted, strict=True)
    )
    if not right and any(wanted):
        said = ", ".join(
            f"{size or 'any'} ({one})" if one else "any"
            for one, size in zip(wanted, sizes, strict=True)
        )
        seen.add("wrong-size", f"{name}: {list(shape)}, config.json says {said}")


def _output_projection(
    found: Checkpoint,
    modules: Mapping[str, Parts],
    shapes: Mapping[str, Shape],
    seen: CollectedFindings,
) -> None:
    """The output projection, if config.json says that it is not the embeddings."""
    config, text = found.config, found.config.text
    outputs = [name for name in modules if _OUTPUT.search(name)]
    wanted = (text.vocab_size, text.hidden_size)
    for name in outputs:
        _compare_shape(name, shapes.get(name), wanted, ("vocab_size", "hidden_size"), seen)
    says = (config.tie_word_embeddings, text.tie_word_embeddings)
    untied = next((one for one in says if one is not None), None) is False
    if untied and not outputs and all(map(_GENERATES.search, config.architectures or ())):
        seen.add("missing-tensor", "lm_head")
