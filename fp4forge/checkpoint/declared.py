"""What a checkpoint's configuration declares: its format, and the scheme of each layer.

As vLLM resolves it: get_quant_method and _resolve_quant_algo in quantization/modelopt.py (an
excluded layer is plain, whatever else names it), compressed_tensors.py and fp8.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fp4forge.checkpoint import schemes
from fp4forge.checkpoint.config import (
    LayerScheme,
    Quantisation,
    QuantisationArgs,
    QuantisationGroup,
)
from fp4forge.checkpoint.patterns import ModulePatterns
from fp4forge.checkpoint.schemes import Parts, QuantisationScheme

MIXED = "MIXED_PRECISION"
UNKNOWN = "unknown"
PLAIN = "bf16"
_SET = re.compile(r"^(.+\.experts)\.")
# vLLM's names of fused layers, as quantized_layers may name them.
_FUSED = {
    name: fused
    for fused, names in {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }.items()
    for name in names
}


@dataclass
class Declaration:
    """A checkpoint's format as models/formats.yaml names it, and what makes it one."""

    format: str
    uniform: QuantisationScheme | None = None  # of every layer that is not excluded
    layers: _Layers | None = None  # of MIXED_PRECISION
    groups: _Groups | None = None  # of compressed-tensors
    excluded: ModulePatterns = field(default_factory=lambda: ModulePatterns((), False, ""))
    problems: list[tuple[str, str]] = field(default_factory=list)  # finding and place

    @property
    def promised(self) -> list[QuantisationScheme]:
        """The schemes of MIXED_PRECISION's layers."""
        found = self.layers.schemes.values() if self.layers else ()
        return [scheme for scheme in found if scheme]

    def scheme(self, module: str) -> QuantisationScheme | None:
        """The scheme that a layer is declared in, exclusions aside; None: it stays plain."""
        if self.layers:
            return self.layers.scheme(module)
        if self.groups:
            return self.groups.scheme(module)
        return self.uniform


def read(found: Quantisation, modules: Mapping[str, Parts]) -> Declaration:
    """The declaration of a configuration; of one without, what the tensors look like.

    Raises:
        CheckpointError: a list of modules cannot be used.
    """
    method, algo = found.method, found.algo
    if method == "compressed-tensors":
        return _compressed_tensors_declaration(found)
    if method.startswith("modelopt") or (algo and not method):
        return _modelopt_declaration(found, algo)
    excluded = ModulePatterns(found.excluded or (), False, "modules_to_not_convert")
    if method == "fp8":
        size = found.weight_block_size
        if size is None:
            return Declaration("fp8", schemes.SCHEMES["FP8"], excluded=excluded)
        if len(size) != 2 or 0 in size:
            problem = ("unknown-format", f"weight_block_size {size}, not two sizes")
            return Declaration(UNKNOWN, problems=[problem])
        return Declaration("fp8", schemes.fp8_block(*size), excluded=excluded)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return Declaration("mxfp4", schemes.SCHEMES["MXFP4"], excluded=excluded)
    if method or found.config_groups:
        return Declaration(UNKNOWN, problems=[("unknown-format", method or "no quant_method")])
    return Declaration(_looks_like(modules))


def _looks_like(modules: Mapping[str, Parts]) -> str:
    """The format of tensors that nothing declares."""
    names = {scheme.name for parts in modules.values() if (scheme := _scheme_of_parts(parts))}
    if not names:
        return PLAIN
    if any("packed" in name for name in names):
        return "compressed-tensors"
    if "MXFP4" in names:
        return "mxfp4"
    if "FP8 block" in names:
        return "fp8"
    return f"modelopt {names.pop()}" if len(names) == 1 else f"modelopt {MIXED}"


def _scheme_of_parts(parts: Parts) -> QuantisationScheme | None:
    return schemes.seen(parts) if schemes.quantised(parts) else None


def _modelopt_declaration(found: Quantisation, algo: str) -> Declaration:
    excluded = ModulePatterns(found.excluded or (), False, "ignore")
    if algo == MIXED:
        if not found.quantized_layers:
            problem = ("unknown-format", f"{MIXED} without quantized_layers: vLLM stops")
            return Declaration(UNKNOWN, problems=[problem])
        layers = _Layers(found.quantized_layers)
        problems = [("unknown-format", place) for place in layers.unknown]
        return Declaration(f"modelopt {MIXED}", layers=layers, excluded=excluded, problems=problems)
    groups = (found.config_groups or {}).values()
    if algo == "NVFP4" and groups and all(group.input_activations is None for group in groups):
        scheme = schemes.SCHEMES["W4A16_NVFP4"]
        return Declaration("modelopt NVFP4 without activations", scheme, excluded=excluded)
    uniform = schemes.modelopt(algo)
    if uniform is None:
        return Declaration(UNKNOWN, problems=[("unknown-format", algo or "no quant_algo")])
    return Declaration(f"modelopt {uniform.name}", uniform, excluded=excluded)


class _Layers:
    """ModelOpt's quantized_layers."""

    def __init__(self, found: dict[str, LayerScheme]) -> None:
        self.schemes: dict[str, QuantisationScheme | None] = {
            name: schemes.modelopt(entry.quant_algo.upper()) for name, entry in found.items()
        }
        self.unknown = [
            f"{name}: {found[name].quant_algo}"
            for name, scheme in self.schemes.items()
            if scheme is None
        ]
        self.used: set[str] = set()
        self._sets: dict[str, str] = {}  # a set of experts -> the first entry for one of them
        for name in found:
            if match := _SET.match(name):
                self._sets.setdefault(match[1], name)

    def scheme(self, module: str) -> QuantisationScheme | None:
        """The scheme of the entry that covers a layer."""
        for name in _module_names(module):
            for entry in self._entries(name):
                if entry in self.schemes:
                    self.used.add(entry)
                    return self.schemes[entry]
        return None

    def _entries(self, module: str) -> Iterable[str]:
        yield module
        parent, _, kind = module.rpartition(".")
        if kind in _FUSED:
            yield f"{parent}.{_FUSED[kind]}"
        for name, fused in _FUSED.items():
            if fused == kind:
                yield f"{parent}.{name}"
        if match := _SET.match(module):
            # Of a set vLLM asks for the whole, then for any expert; then for the layer around it.
            yield match[1]
            yield self._sets.get(match[1], "")
            around = match[1].removesuffix(".experts")
            yield f"{around}.{kind}"
            if kind in _FUSED:
                yield f"{around}.{_FUSED[kind]}"

    def unused(self) -> list[str]:
        """Entries that cover no layer of the checkpoint."""
        return [name for name in self.schemes if name not in self.used]


def _module_names(module: str) -> Iterable[str]:
    """A module's names: multimodal models have the language model before or after ``model``."""
    yield module
    for one, other in _TWINS:
        if module.startswith(one):
            yield other + module.removeprefix(one)
    if module.endswith(".lm_head"):
        yield "lm_head"


_TWINS = (
    ("language_model.model.", "model.language_model."),
    ("model.language_model.", "language_model.model."),
)


def _compressed_tensors_declaration(found: Quantisation) -> Declaration:
    groups = found.config_groups or {}
    read_ = _Groups(groups)
    problems = list(read_.problems)
    if not groups:
        problems.append(("unknown-format", "compressed-tensors without config_groups"))
    excluded = ModulePatterns(found.ignore or (), True, "ignore")
    return Declaration("compressed-tensors", groups=read_, excluded=excluded, problems=problems)


class _Groups:
    """compressed-tensors' config_groups: targets are names, patterns or classes of layers."""

    def __init__(self, groups: dict[str, QuantisationGroup]) -> None:
        self.problems: list[tuple[str, str]] = []
        self._named: list[tuple[ModulePatterns, QuantisationScheme | None]] = []
        self._classes: QuantisationScheme | None = None
        for name, group in groups.items():
            scheme = self._scheme(name, group)
            targets = group.targets or []
            self._named.append((ModulePatterns(targets, True, f"{name}: targets"), scheme))
            if any(target.isidentifier() and target[0].isupper() for target in targets):
                self._classes = self._classes or scheme  # Linear

    def scheme(self, module: str) -> QuantisationScheme | None:
        """The scheme of the group that targets a layer: names first, as vLLM."""
        for names, scheme in self._named:
            if module in names:
                return scheme
        return self._classes

    def _scheme(self, name: str, group: QuantisationGroup) -> QuantisationScheme | None:
        weights, inputs = group.weights, group.input_activations
        if weights is None:
            return None
        if (weights.num_bits, weights.type) == (8, "float"):
            return schemes.SCHEMES["FP8 compressed"]
        if (weights.num_bits, weights.type) != (4, "float"):
            said = f"{name}: weights of {weights.num_bits} bits, {weights.type}"
            self.problems.append(("unknown-format", said))
            return None
        if (weights.strategy, weights.group_size) == ("group", 32):
            return schemes.SCHEMES["MXFP4 packed"]
        for what, arguments in (("weights", weights), ("input_activations", inputs)):
            if arguments and not _tensor_group(arguments):
                said = f"{name}: {what} have strategy {arguments.strategy}"
                said += f", groups of {arguments.group_size}, {arguments.num_bits} bits"
                said += "" if arguments.symmetric is not False else ", asymmetric"
                self.problems.append(("wrong-strategy", said))
        return schemes.SCHEMES["NVFP4 packed" if inputs else "NVFP4 packed, W4A16"]


def _tensor_group(arguments: QuantisationArgs) -> bool:
    """What vLLM's _is_nvfp4_format asks for."""
    asked = (arguments.strategy, arguments.group_size, arguments.num_bits, arguments.type)
    return asked == ("tensor_group", 16, 4, "float") and arguments.symmetric is not False
