"""Judges what a TORCH_CUDA_ARCH_LIST becomes: what each GPU gets of the kernel groups.

What vLLM compiles for a list is its own CMake's answer (``plan.prediction``). What torch makes of
the list is in its select_compute_arch.cmake (torch 2.12.0, share/cmake/Caffe2/Modules_CUDA_fix).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fp4forge.kernels.base import UsageError
from fp4forge.kernels.gpus import GPUS, RUNS, VERDICTS, Gpu, serves
from fp4forge.kernels.groups import COMPILED, REQUIRED, filled

# CUDA Toolkit release notes: the family suffix came with 12.9; 13.0 renamed Thor's 10.1 to 11.0.
_FAMILIES = "12.9"
_RENAMED = {"10.1": ("12.8", "13.0")}  # first CUDA that names it, and the first that does not
CUDAS = ("12.8", "12.9", "13.0")  # those that releases/archs has results for
_NAMES = {
    "Ampere": ["8.0", "8.6"],
    "Ada": ["8.9"],
    "Hopper": ["9.0"],
    "Turing": ["7.5"],
    "Blackwell": ["10.0", "12.0"],
    "Blackwell+Tegra": ["10.1"],
}
_ENTRY = re.compile(r"[0-9]{1,4}\.[0-9][af]?")


def version(text: str) -> tuple[int, ...]:
    """A version as CMake compares it: integer components up to the first that is not one."""
    found: list[int] = []
    for part in text.split("."):
        match = re.match(r"[0-9]{1,9}", part)
        if not match:
            break
        found.append(int(match[0]))
        if match[0] != part:
            break
    return tuple(found) + (0,) * (4 - len(found))


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"[0-9]{1,9}|[^0-9]+", text)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def known(cuda: str) -> set[str]:
    """Blackwell's architectures that a CUDA's nvcc can name, by the table of GPUs."""
    bases = {gpu.label for gpu in GPUS.values() if version(gpu.nvcc) <= version(cuda)}
    bases |= {
        name
        for name, (first, end) in _RENAMED.items()
        if version(first) <= version(cuda) < version(end)
    }
    suffixes = ("", "a", "f") if version(cuda) >= version(_FAMILIES) else ("", "a")
    return {base + suffix for base in bases for suffix in suffixes}


def torch_archs(text: str) -> list[str]:
    """The entries that torch's CMake makes of a list: without names and repetition, in order.

    Raises:
        UsageError: an entry that torch refuses, or that depends on the building machine.
    """
    entries = [e for e in re.split(r"[;\s]+", text) if e]
    if not entries:
        raise UsageError("the arch list is empty", rule="such as 10.0;12.0;12.1")
    found: list[str] = []
    for entry in entries:
        plain = entry if entry in _NAMES else entry.removesuffix("+PTX")
        if plain in _NAMES:
            found += _NAMES[plain]
        elif _ENTRY.fullmatch(plain):
            found.append(entry)
        else:
            raise UsageError(
                f"{entry!r} in the arch list is not an architecture",
                rule="X.Y with an optional a or f and an optional +PTX, separated by ;",
                remedy="such as 10.0;12.0;12.1",
            )
    return sorted(dict.fromkeys(found), key=_natural)


@dataclass(frozen=True)
class Prediction:
    """What a list gives, as ``arch explain --json`` prints it."""

    vllm: str
    cuda: str
    list: str
    groups: dict[str, list[str]]  # type: ignore[valid-type]
    gpus: dict[str, dict[str, Any]]
    named: tuple[str, ...]
    fp8_guards: tuple[str, ...]  # of groups.FP8_GUARDS

    def lost(self, wanted: tuple[str, ...]) -> dict[str, str]:
        """Requested GPUs without FP4, with the reason."""
        return {g: self.gpus[g]["reason"] for g in wanted if not self.gpus[g]["ok"]}

    def as_json(self) -> dict[str, Any]:
        """The documented JSON."""
        return {
            "vllm": self.vllm,
            "cuda": self.cuda,
            "list": self.list,
            "groups": self.groups,
            "gpus": self.gpus,
            "named": self.named,
        }


def check(text: str, cuda: str) -> None:
    """Refuses a list that cannot be used with a CUDA.

    Raises:
        UsageError: torch or nvcc refuses an entry, or the CUDA is none.
    """
    if not re.fullmatch(r"1[0-9]\.[0-9]", cuda):
        raise UsageError(f"--cuda {cuda!r} is not a CUDA version", rule="such as 13.0")
    _check_nvcc(torch_archs(text), cuda)


def judge(
    text: str, vllm: str, cuda: str, groups: dict[str, list[str]], guards: tuple[str, ...]
) -> Prediction:
    """What each GPU gets.

    Args:
        text: the arch list.
        vllm: the version that compiles it.
        cuda: version of the compiler.
        groups: what it is compiled for (``groups.of_sources``).
        guards: what leaves FP8's kernels empty (``groups.FP8_GUARDS``).

    Raises:
        UsageError: nvcc refuses a target.
    """
    _check_nvcc([target for targets in groups.values() for target in targets], cuda)
    gpus = {gpu.name: _verdict(gpu, groups, guards, cuda) for gpu in GPUS.values()}
    named = {re.sub(r"[af]?(\+PTX)?$", "", arch) for arch in torch_archs(text)}
    return Prediction(
        vllm,
        cuda,
        text,
        groups,
        gpus,
        tuple(gpu.name for gpu in GPUS.values() if gpu.label in named),
        guards,
    )


def _check_nvcc(targets: list[str], cuda: str) -> None:
    plain = {target.removesuffix("+PTX") for target in targets}
    unknown = sorted(t for t in plain if version(t) >= (10,) and t not in known(cuda))
    if unknown:
        raise UsageError(
            f"nvcc {cuda} does not know {', '.join('sm_' + u.replace('.', '') for u in unknown)}",
            rule="it knows " + (", ".join(sorted(known(cuda))) or "no Blackwell GPU"),
            remedy="a newer CUDA, or leave the entry out",
        )


def _best(targets: list[str], gpu: Gpu) -> tuple[str, str]:
    found = [(serves(t, gpu), t) for t in targets]
    return min(found, key=lambda pair: VERDICTS.index(pair[0]), default=("missing", ""))


def _verdict(
    gpu: Gpu, groups: dict[str, list[str]], guards: tuple[str, ...], cuda: str
) -> dict[str, Any]:
    compiled = {t for name in REQUIRED for t in groups[name]}
    bare = sorted(t for t in compiled if t[-1] not in "af" and _of(gpu, t))
    targets = [t for t in groups["nvfp4_gemm"] if t not in bare]
    fp4, by = max(
        (_best(COMPILED[name].expected(groups[name]), gpu) for name in REQUIRED),
        key=lambda pair: VERDICTS.index(pair[0]),
    )
    scaled_mm = COMPILED["fp8_gemm"].expected(groups["fp8_gemm"])
    fp8, _ = _best(filled(scaled_mm, guards), gpu)
    notes = []
    if bare:
        fp4 = "missing"
        notes.append(
            f"NVFP4 would be compiled for {', '.join(bare)} without a or f, and ptxas refuses FP4"
            " there (cvt .e2m1x2 not supported): the build dies late"
        )
    elif not any(_of(gpu, target) for target in compiled):
        notes.append(f"the list names no {gpu.major}.x architecture that vLLM compiles NVFP4 for")
    elif fp4 == "missing":
        same = [target for target in targets if _of(gpu, target)]
        notes.append(f"NVFP4 is compiled for {', '.join(same)}, which {gpu.name} cannot load")
    else:
        notes.append(f"NVFP4 compiled for {by}")
    if fp8 != _best(scaled_mm, gpu)[0]:
        own = [target for target in scaled_mm if _of(gpu, target)]
        empty = [guard for guard in guards if filled(own, (guard,)) != own]
        notes.append(f"FP8 scaled_mm traps: {', '.join(empty)} leaves it empty here")
    if fp4 == "missing":
        notes.append(f"use {advice(gpu, cuda)}")
    marlin = _best(groups["moe_marlin"], gpu)[0]
    return {
        "fp4": fp4,
        "fp8": fp8,
        "moe_marlin": marlin,
        "ok": fp4 in RUNS,
        "reason": "; ".join(notes),
    }


def _of(gpu: Gpu, target: str) -> bool:
    """Whether a target has the GPU's major."""
    return version(target)[0] == gpu.major


def advice(gpu: Gpu, cuda: str) -> str:
    """The list that serves a GPU with a CUDA."""
    if version(cuda) >= version("13.0"):
        return gpu.arch_list
    if version(cuda) < version(gpu.nvcc):
        return f"CUDA 13.0 and {gpu.arch_list}"
    return gpu.label + "a"
